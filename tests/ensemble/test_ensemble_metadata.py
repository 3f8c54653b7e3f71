"""What an ensemble publishes and which members it refuses at load time."""

from __future__ import annotations

import pytest

from tessera_core.api.modelservice import Combine
from tessera_core.api.tensors import Datatype, Tensor
from tessera_core.ensemble.metadata import CombineError, check_combinable, result_metadata

FP32, INT64, FP64 = Datatype.FP32, Datatype.INT64, Datatype.FP64


@pytest.mark.parametrize(
    ("rule", "datatype", "shapes", "result"),
    [
        (Combine.MEAN, FP32, [(10,), (10,)], (FP32, (10,))),
        (Combine.MEAN, INT64, [(10,), (10,)], (FP64, (10,))),
        (Combine.MEAN, FP32, [(-1, 8), (3, -1)], (FP32, (3, 8))),
        (Combine.MEAN, FP32, [(-1,), (-1,)], (FP32, (-1,))),
        (Combine.MAX, INT64, [(), ()], (INT64, ())),
        (Combine.SOFT_VOTE, FP32, [(10,)], (FP32, (10,))),
        (Combine.MAJORITY_VOTE, FP32, [(10,), (10,)], (INT64, ())),
        (Combine.MAJORITY_VOTE, FP32, [(7, 10)], (INT64, (7,))),
        (Combine.MAJORITY_VOTE, INT64, [(1,), (1,)], (INT64, ())),
        (Combine.WEIGHTED_VOTE, INT64, [(), ()], (INT64, ())),
        (Combine.CONCAT, FP32, [(4, 2), (4, 3), (4, 1)], (FP32, (4, 6))),
        (Combine.CONCAT, FP32, [(4, 2), (-1, -1)], (FP32, (4, -1))),
        (Combine.CONCAT, Datatype.BYTES, [(1,), (1,)], (Datatype.BYTES, (2,))),
    ],
)
def test_the_result_has_the_shape_and_datatype_of_the_rule(
    rule: Combine,
    datatype: Datatype,
    shapes: list[tuple[int, ...]],
    result: tuple[Datatype, tuple[int, ...]],
) -> None:
    outputs = [Tensor(f"y{index}", datatype, shape) for index, shape in enumerate(shapes)]
    names = [f"m{index}" for index in range(len(shapes))]
    assert result_metadata(rule, outputs, names) == Tensor("y0", *result)


@pytest.mark.parametrize(
    ("rule", "outputs", "message"),
    [
        (
            Combine.MEAN,
            [(FP32, (10,)), (FP32, (9,))],
            r"b: found FP32\[rows,9\], expected FP32\[rows,10\]",
        ),
        (Combine.MEAN, [(FP32, (10,)), (FP32, (10, 1))], r"b: found FP32\[rows,10,1\]"),
        (
            Combine.MEAN,
            [(FP32, (10,)), (FP64, (10,))],
            r"b: found FP64\[rows,10\], expected FP32 as a",
        ),
        (
            Combine.MEAN,
            [(FP32, (-1,)), (FP32, (9,)), (FP32, (8,))],
            r"c: .* expected FP32\[rows,9\]",
        ),
        (Combine.CONCAT, [(FP32, (4, 2)), (FP32, (5, 2))], "up to its last axis"),
        (Combine.MAX, [(Datatype.BYTES, (1,))], r"a: found BYTES\[rows,1\], expected numbers"),
        (Combine.MAJORITY_VOTE, [(FP32, (1,))], "classes ≥ 2"),
        (Combine.SOFT_VOTE, [(FP32, ())], "logits"),
        (Combine.NONE, [(FP32, (1,))], "kept apart"),
        (Combine.MEAN, [], "no members"),
    ],
)
def test_members_that_never_fit_are_refused_by_name(
    rule: Combine, outputs: list[tuple[Datatype, tuple[int, ...]]], message: str
) -> None:
    tensors = [Tensor("y", datatype, shape) for datatype, shape in outputs]
    with pytest.raises(CombineError, match=message):
        result_metadata(rule, tensors, "abc"[: len(tensors)])


def test_single_outputs_are_paired_whatever_they_are_called() -> None:
    members = {"cnn": [Tensor("logits", FP32, (10,))], "mlp": [Tensor("output_0", FP32, (10,))]}
    (published,) = check_combinable(Combine.MEAN, members, partial=True)
    assert published.tensor == Tensor("logits", FP32, (10,))
    assert published.sources == (("cnn", "logits"), ("mlp", "output_0"))


def test_several_outputs_are_paired_by_name() -> None:
    box, score = Tensor("box", FP32, (4,)), Tensor("score", FP32, (10,))
    published = check_combinable(
        Combine.MEAN, {"a": [box, score], "b": [score, box]}, partial=False
    )
    assert [each.tensor for each in published] == [box, score]
    assert published[0].sources == (("a", "box"), ("b", "box"))
    with pytest.raises(CombineError, match="b: found outputs score, expected outputs box, score"):
        check_combinable(Combine.MEAN, {"a": [box, score], "b": [score]}, partial=False)


def test_outputs_that_are_not_combined_carry_their_members_name() -> None:
    members = {"a": [Tensor("y", FP32, (10,))], "b": [Tensor("y", INT64, (3,))]}
    published = check_combinable(Combine.NONE, members, partial=True)
    assert [each.tensor for each in published] == [
        Tensor("a.y", FP32, (10,)),
        Tensor("b.y", INT64, (3,)),
    ]
    assert [each.sources for each in published] == [(("a", "y"),), (("b", "y"),)]


def test_concat_refuses_partial_answers() -> None:
    members = {"a": [Tensor("y", FP32, (10,))], "b": [Tensor("y", FP32, (3,))]}
    assert check_combinable(Combine.CONCAT, members, partial=False)[0].tensor.shape == (13,)
    with pytest.raises(CombineError, match="found partial answers, expected every member"):
        check_combinable(Combine.CONCAT, members, partial=True)


@pytest.mark.parametrize("rule", list(Combine))
def test_an_ensemble_of_nothing_is_refused(rule: Combine) -> None:
    with pytest.raises(CombineError, match="no members"):
        check_combinable(rule, {}, partial=False)
    with pytest.raises(CombineError, match="a: found no outputs"):
        check_combinable(rule, {"a": []}, partial=False)
