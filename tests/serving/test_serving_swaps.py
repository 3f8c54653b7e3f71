"""Variants take each other's place under load without a failed request, and what goes wrong is told."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from tritonclient.utils import InferenceServerException

from support.clients import infer_http
from support.closed_loop import ClosedLoop
from support.server import Server, running_server, wait_until
from support.targets import member, service
from support.targets import server as target
from support.torch_nets import Mlp, export
from tessera_runtime.dispatch.probation import IN_A_ROW
from tessera_runtime.target import InstanceReport, InstanceTarget, MemberTarget, ServerTarget

pytestmark = pytest.mark.slow

A_FEW = 60
"""Answers after which the load is known to have met the new state."""
MISSING = "inductor/fp32"
"""Is compiled, and was not here."""


@pytest.fixture(scope="module")
def swapping(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with running_server(tmp_path_factory.mktemp("swaps") / "run", "--preload=torch") as server:
        yield server


@pytest.fixture(scope="module")
def net() -> Mlp:
    return Mlp().eval()


@pytest.fixture(scope="module")
def file(net: Mlp, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export(net, tmp_path_factory.mktemp("swapped") / "mlp.pt2", (torch.zeros(2, 6),))


def of(file: Path, variant: str, count: int = 1) -> ServerTarget:
    plain = member("a", file, format="TorchExport", allow_code=False)
    values = {name: getattr(plain, name) for name in plain.__struct_fields__}
    places = (InstanceTarget("cpu-0", count, variant=variant),)
    return target(service("m", MemberTarget(**(values | {"instances": places}))))


def instances(server: Server) -> InstanceReport:
    return server.report().instances[0]


def until_runs(server: Server, variant: str, count: int) -> int:
    """Until nothing but ``variant`` answers; the most instances that there were meanwhile."""
    most = 0

    def runs() -> bool:
        nonlocal most
        found = instances(server)
        most = max(most, found.exist)
        return found.variants == (variant,) and (found.exist, found.ready) == (count, count)

    wait_until(runs, lambda: f"{variant!r} to run; report: {instances(server)}", 60.0)
    return most


def answer_of(net: nn.Module):
    def answer(rows: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            return net(torch.from_numpy(rows)).numpy()

    return answer


def test_variants_take_turns_under_load_and_no_request_fails(swapping, net, file) -> None:
    swapping.apply(of(file, "", 3))
    with ClosedLoop(swapping.ports(), "test.m", answer_of(net)) as load:
        for variant in ("openvino/fp32", "torch/fp32/channels-last", ""):
            load.wait_answers(A_FEW)
            swapping.apply(of(file, variant, 3), wait=False)
            # One at a time, so that there is one more than there are to be.
            assert until_runs(swapping, variant, 3) <= 4
        load.wait_answers(A_FEW)
    assert load.failed == []
    assert load.worst < 1e-4


def test_an_order_that_is_taken_back_halfway_leaves_the_variant_before(swapping, net, file) -> None:
    swapping.apply(of(file, "", 2))
    with ClosedLoop(swapping.ports(), "test.m", answer_of(net)) as load:
        for variant in ("openvino/fp32", "", "openvino/fp32", ""):
            swapping.apply(of(file, variant, 2), wait=False)
            load.wait_answers(2)
        until_runs(swapping, "", 2)
        load.wait_answers(A_FEW)
    assert load.failed == []


def test_a_variant_that_cannot_be_loaded_is_told_and_what_served_serves_on(
    swapping, net, file
) -> None:
    swapping.apply(of(file, "", 2))
    with ClosedLoop(swapping.ports(), "test.m", answer_of(net)) as load:
        swapping.apply(of(file, MISSING, 2), wait=False)
        wait_until(lambda: MISSING in instances(swapping).faulty, "the variant to be told")
        assert "could not be loaded" in instances(swapping).faulty[MISSING]
        assert instances(swapping).variants == ("",)
        load.wait_answers(A_FEW)
        swapping.apply(of(file, "", 2), wait=False)
        until_runs(swapping, "", 2)
        load.wait_answers(A_FEW)
    assert load.failed == []
    assert instances(swapping).faulty == {}


def test_a_variant_whose_process_ends_batch_after_batch_is_told(swapping, net, file) -> None:
    swapping.apply(of(file, "openvino/fp32"), wait=False)
    until_runs(swapping, "openvino/fp32", 1)
    client = swapping.http()
    for _ in range(IN_A_ROW):
        assert instances(swapping).faulty == {}
        swapping.wait_for(
            lambda report: report.instances[0].ready and len(report.workers) == 1,
            "the instance, and the end of those before it",
        )
        (pid,) = swapping.worker_pids()
        os.kill(pid, signal.SIGSTOP)
        with pytest.raises(InferenceServerException):  # it is in the stopped process
            infer_http(client, "test.m", np.ones((1, 6), np.float32), timeout=100_000)
        os.kill(pid, signal.SIGKILL)
        swapping.wait_for(
            lambda report, pid=pid: pid not in {each.pid for each in report.workers}, "its end"
        )
    wait_until(lambda: instances(swapping).faulty, "the variant to be told")
    assert "its process ended" in instances(swapping).faulty["openvino/fp32"]
    swapping.apply(of(file, ""), wait=False)
    until_runs(swapping, "", 1)
    with ClosedLoop(swapping.ports(), "test.m", answer_of(net)) as load:
        load.wait_answers(A_FEW)
    assert load.failed == []


class Logarithm(nn.Module):
    """Of anything: no number for what is negative."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.log(x)


def test_a_variant_that_answers_what_is_no_number_is_told(swapping, tmp_path) -> None:
    file = export(Logarithm(), tmp_path / "log.pt2", (torch.ones(2, 6),))
    swapping.apply(of(file, "openvino/fp32"), wait=False)
    until_runs(swapping, "openvino/fp32", 1)
    with ClosedLoop(swapping.ports(), "test.m", lambda rows: rows):
        wait_until(lambda: instances(swapping).faulty, "the variant to be told")
    assert "not a finite number" in instances(swapping).faulty["openvino/fp32"]


def test_the_untuned_model_is_on_no_probation(swapping, tmp_path) -> None:
    file = export(Logarithm(), tmp_path / "log.pt2", (torch.ones(2, 6),))
    swapping.apply(of(file, ""))
    with ClosedLoop(swapping.ports(), "test.m", lambda rows: rows) as load:
        load.wait_answers(A_FEW)
    assert instances(swapping).faulty == {}
