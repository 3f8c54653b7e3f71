"""Ensembles through the whole server equal the same members combined in this process."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
import tritonclient.http as http_client
from tritonclient.utils import InferenceServerException

from support.clients import Crowd, infer_grpc, infer_http
from support.model_files import ModelFile, rows
from support.server import Server, wait_until
from support.targets import DEVICES, WIDE, member, service
from support.targets import server as target
from tessera_core.api.modelservice import Combine, OnTimeout
from tessera_core.ensemble.combine import combine
from tessera_runtime.target import DeviceTarget

MODEL = "test.m"
WEIGHTS = (3.0, 1.0, 2.5)
WEIGHTED = (Combine.WEIGHTED_MEAN, Combine.WEIGHTED_VOTE)

FAILS = """
class Model:
    inputs = outputs = {"x": ("FP32", (4,))}
    def __call__(self, batch):
        if batch["x"].any():
            raise ValueError("out of order")
        return batch

def load(device, options):
    return Model()
"""


@pytest.fixture
def files(tmp_path: Path) -> Iterator[list[ModelFile]]:
    files = [
        ModelFile(tmp_path / f"{name}.py", scale, offset)
        for name, scale, offset in (("a", 1.5, 0.25), ("b", -0.5, 3.0), ("c", 1.0, -1.0))
    ]
    yield files
    for file in files:
        file.let_go()


@pytest.fixture
def fails(tmp_path: Path) -> Path:
    path = tmp_path / "fails.py"
    path.write_text(FAILS)
    return path


def ensemble(
    files: list[ModelFile],
    required: str = "abc",
    devices: Sequence[DeviceTarget] = DEVICES,
    **settings: object,
):
    members = (
        member(name, file, weight=weight, required=name in required)
        for name, file, weight in zip("abc", files, WEIGHTS, strict=True)
    )
    return target(service("m", *members, **settings), devices=devices)


@pytest.mark.parametrize("devices", [DEVICES, WIDE], ids=["as one", "apart"])
@pytest.mark.parametrize("rule", [rule for rule in Combine if rule is not Combine.NONE])
def test_each_rule_equals_the_computation_in_process(
    server: Server, files: list[ModelFile], rule: Combine, devices: Sequence[DeviceTarget]
):
    server.apply(ensemble(files, combine=rule, devices=devices))
    server.wait_joined(MODEL, 1 if devices is DEVICES else 0)
    x = rows(-1.0, 5)
    weights = WEIGHTS if rule in WEIGHTED else None
    expected = combine(rule, [file(x) for file in files], weights)
    for result in (
        infer_http(server.http(), MODEL, x),
        infer_grpc(server.grpc(), MODEL, x),
    ):
        np.testing.assert_array_equal(result.as_numpy("y"), expected)
        assert result.as_numpy("y").dtype == expected.dtype


@pytest.mark.parametrize("devices", [DEVICES, WIDE], ids=["as one", "apart"])
def test_without_a_rule_every_members_output_is_given(
    server: Server, files: list[ModelFile], devices: Sequence[DeviceTarget]
):
    server.apply(ensemble(files, combine=Combine.NONE, devices=devices))
    server.wait_joined(MODEL, 1 if devices is DEVICES else 0)
    x = rows(2.0, 3)
    wanted = [http_client.InferRequestedOutput(f"{name}.y") for name in "ca"]
    some = infer_http(server.http(), MODEL, x, outputs=wanted)
    assert {output["name"] for output in some.get_response()["outputs"]} == {"a.y", "c.y"}
    result = infer_http(server.http(), MODEL, x)
    for name, file in zip("abc", files, strict=True):
        np.testing.assert_array_equal(result.as_numpy(f"{name}.y"), file(x))


def test_an_answer_waits_for_the_slowest_member(
    server: Server, crowd: Crowd, files: list[ModelFile]
):
    server.apply(ensemble(files, devices=WIDE))
    files[2].hold()
    x = rows(4.0)
    answer = crowd.ask(MODEL, x)
    server.wait_for(
        lambda r: [m.batches for m in r.services[0].members] == [1, 1, 0], "the fast members done"
    )
    assert not answer.done()
    files[2].let_go()
    np.testing.assert_array_equal(answer.result(), combine(Combine.MEAN, [f(x) for f in files]))


def test_a_late_member_is_left_out_of_a_partial_answer(server: Server, files: list[ModelFile]):
    server.apply(
        ensemble(
            files,
            required="ac",
            combine=Combine.WEIGHTED_MEAN,
            min_members=2,
            on_timeout=OnTimeout.PARTIAL,
            slo_ms=1_000.0,
        )
    )
    x = rows(4.0, 2)
    files[1].hold()
    late = infer_http(server.http(), MODEL, x)
    files[1].let_go()
    assert late.get_response()["parameters"] == {"members_answered": "a,c", "partial": True}
    expected = combine(Combine.WEIGHTED_MEAN, [files[0](x), files[2](x)], [3.0, 2.5])
    np.testing.assert_array_equal(late.as_numpy("y"), expected)


def test_a_complete_answer_says_so(server: Server, files: list[ModelFile]):
    server.apply(ensemble(files, required="", min_members=2, on_timeout=OnTimeout.PARTIAL))
    response = infer_grpc(server.grpc(), MODEL, rows(1.0)).get_response()
    assert response.parameters["members_answered"].string_param == "a,b,c"
    assert not response.parameters["partial"].bool_param


def test_too_few_members_at_the_deadline_is_an_error(server: Server, files: list[ModelFile]):
    server.apply(
        ensemble(files, required="a", min_members=2, on_timeout=OnTimeout.PARTIAL, slo_ms=500.0)
    )
    for file in files[1:]:
        file.hold()
    with pytest.raises(InferenceServerException, match="no answer within 500 ms"):
        infer_http(server.http(), MODEL, rows(1.0))
    for file in files[1:]:
        file.let_go()


def test_an_optional_member_that_fails_is_left_out(
    server: Server, files: list[ModelFile], fails: Path
):
    members = (member("a", files[0]), member("b", fails, required=False))
    server.apply(target(service("m", *members, min_members=1, combine=Combine.MEAN)))
    x = rows(1.0)
    result = infer_http(server.http(), MODEL, x)
    np.testing.assert_array_equal(result.as_numpy("y"), files[0](x))
    assert result.get_response()["parameters"] == {"members_answered": "a", "partial": True}


def test_a_required_member_that_fails_fails_the_request(
    server: Server, files: list[ModelFile], fails: Path
):
    members = (member("a", files[0]), member("b", fails))
    server.apply(target(service("m", *members, min_members=1)))
    with pytest.raises(InferenceServerException, match=r"member b: .*out of order"):
        infer_http(server.http(), MODEL, rows(1.0))


def test_an_optional_members_failure_does_not_hide_that_a_required_one_is_late(
    server: Server, files: list[ModelFile], fails: Path
):
    members = (member("a", files[0]), member("b", fails, required=False))
    server.apply(target(service("m", *members, min_members=1)))
    files[0].hold()
    with pytest.raises(InferenceServerException, match="no answer within 500 ms"):
        infer_http(server.http(), MODEL, rows(1.0), timeout=500_000)
    files[0].let_go()


def test_members_on_several_devices_with_several_instances_answer_many_at_once(
    server: Server, crowd: Crowd, files: list[ModelFile]
):
    members = (
        member(name, file, instances=places)
        for name, file, places in zip(
            "abc", files, ({"cpu-0": 2}, {"cpu-1": 1}, {"cpu-0": 1, "cpu-1": 1}), strict=True
        )
    )
    server.apply(target(service("m", *members, combine=Combine.MEDIAN)))
    asked = [(x := rows(i, 1 + i % 4), crowd.ask(MODEL, x)) for i in range(200)]
    for x, answer in asked:
        expected = combine(Combine.MEDIAN, [file(x) for file in files])
        np.testing.assert_array_equal(answer.result(), expected)
    wait_until(lambda: server.report().arena_used == 0, "all input memory free again")
