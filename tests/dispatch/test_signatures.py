"""What a service publishes, from what its members' files say."""

from __future__ import annotations

from pathlib import Path

import pytest

from support.targets import member, service
from tessera_core.api.modelservice import Combine, OnTimeout
from tessera_core.ensemble.metadata import CombineError
from tessera_runtime.dataplane import TensorSpec
from tessera_runtime.dispatch.signatures import Incompatible, largest_batch, may_mix, publish
from tessera_runtime.target import TensorTarget
from tessera_runtime.worker import messages as m

X = m.Tensor("x", "FP32", (4,))
MASK = m.Tensor("mask", "BOOL", (4,))
Y = m.Tensor("y", "FP32", (3,))


def loaded(*inputs: m.Tensor, outputs: tuple[m.Tensor, ...] = (Y,), max_rows: int = 0) -> m.Loaded:
    return m.Loaded("key", inputs, outputs, max_rows, "onnxruntime-1.22", 1.0)


def members(count: int, **settings: object):
    return [member(name, Path("/m"), **settings) for name in "abc"[:count]]


def test_a_lone_model_keeps_its_names():
    target = service("m", *members(1, max_batch=32, format="ONNX"))
    published = publish(target, [loaded(X, MASK, outputs=(Y, MASK))])
    metadata = published.metadata
    assert metadata.inputs == (
        TensorSpec("x", "FP32", (-1, 4)),
        TensorSpec("mask", "BOOL", (-1, 4)),
    )
    assert [spec.name for spec in metadata.outputs] == ["y", "mask"]
    assert (metadata.max_rows, metadata.platform) == (32, "onnxruntime_onnx")
    assert published.input_names == (((0, "x"), (1, "mask")),)


def test_members_with_one_input_each_take_the_same_whatever_they_call_it():
    published = publish(
        service("m", *members(2)), [loaded(X), loaded(m.Tensor("in", "FP32", (4,)))]
    )
    assert [spec.name for spec in published.metadata.inputs] == ["x"]
    assert published.input_names == (((0, "x"),), ((0, "in"),))
    assert published.metadata.platform == "tessera_ensemble"


def test_inputs_of_several_are_paired_by_name():
    published = publish(service("m", *members(2)), [loaded(X, MASK), loaded(MASK)])
    assert published.input_names == (((0, "x"), (1, "mask")), ((1, "mask"),))


def test_an_input_only_a_later_member_takes_is_published_too():
    published = publish(service("m", *members(2)), [loaded(X), loaded(MASK, X)])
    assert [spec.name for spec in published.metadata.inputs] == ["x", "mask"]
    assert published.input_names == (((0, "x"),), ((1, "mask"), (0, "x")))


@pytest.mark.parametrize(
    "other", [m.Tensor("x", "FP64", (4,)), m.Tensor("x", "FP32", (5,)), m.Tensor("x", "FP32", ())]
)
def test_inputs_that_differ_are_incompatible(other: m.Tensor):
    with pytest.raises(Incompatible, match=r"member b: input 'x' is .*take FP32\[4\]"):
        publish(service("m", *members(2)), [loaded(X), loaded(other)])


def test_outputs_that_cannot_be_combined_are_refused():
    with pytest.raises(CombineError, match=r"\bb\b"):
        publish(
            service("m", *members(2)),
            [loaded(X), loaded(X, outputs=(m.Tensor("y", "FP32", (9,)),))],
        )


@pytest.mark.parametrize(
    "settings", [{"on_timeout": OnTimeout.PARTIAL}, {}], ids=["late", "optional"]
)
def test_concat_refuses_answers_that_may_lack_members(settings: dict):
    required = bool(settings)
    target = service("m", *members(2, required=required), combine=Combine.CONCAT, **settings)
    with pytest.raises(CombineError, match="partial"):
        publish(target, [loaded(X), loaded(X)])


def test_the_smallest_batch_of_all_members_bounds_a_request_and_each_its_own_batches():
    target = service("m", *members(3, max_batch=16))
    signatures = [loaded(X), loaded(X, max_rows=4), loaded(X, max_rows=64)]
    assert publish(target, signatures).metadata.max_rows == 4
    largest = [largest_batch(*each) for each in zip(target.members, signatures, strict=True)]
    assert largest == [16, 4, 16]


@pytest.mark.parametrize(
    ("output", "mixed", "may"), [((3,), True, True), ((3,), False, False), ((-1, 3), True, False)]
)
def test_lengths_mix_where_nobody_forbids_it_and_no_answer_shows_it(
    output: tuple[int, ...], mixed: bool, may: bool
) -> None:
    ids = TensorTarget("ids", "INT64", (-1,), ((4,), (8,)), mixed)
    target = service("m", *members(1), inputs=(ids, TensorTarget("x", "FP32", (4,))))
    answers = (m.Tensor("y", "FP32", output),)
    assert may_mix(target, loaded(X, outputs=answers)) is may


def test_declared_buckets_go_with_their_input():
    buckets = ((4,), (8,))
    declared = (TensorTarget("ids", "INT64", (-1,), buckets), TensorTarget("x", "FP32", (4,)))
    ids = m.Tensor("ids", "INT64", (-1,))
    published = publish(service("m", *members(1), inputs=declared), [loaded(X, ids)])
    assert published.buckets == ((), buckets)
