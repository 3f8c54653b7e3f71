"""More instances than processes: what shares one with a model that leaks, dies or never loads is served all the same."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from tritonclient.utils import InferenceServerException

from support.clients import Crowd
from support.fault_load import Counts, FaultLoad
from support.model_files import DIE, ModelFile, rows, told
from support.server import Server
from support.targets import member, service
from support.targets import server as target
from tessera_runtime.dispatch.processes import FEWEST_PROCESSES
from tessera_runtime.target import DeviceTarget, ServerTarget, ServiceTarget

Counted = Callable[[FaultLoad], Counts]

DEVICES = (DeviceTarget("cpu-0", "cpu", cores=(min(os.sched_getaffinity(0)),)),)

_LEAKING = """
import numpy as np
kept = []
class Model:
    inputs = {"x": ("FP32", (4,))}
    outputs = {"y": ("FP32", (4,))}
    def __call__(self, batch):
        kept.append(np.ones(1 << 20, np.uint8))
        return {"y": batch["x"] * np.float32(2)}
def load(device, options):
    return Model()
"""


def full(server: Server, first: ServiceTarget, file: ModelFile) -> list[ServiceTarget]:
    """Serve ``first`` and others until no further instance gets a process to itself: the next joins that of ``first``."""
    server.apply(wanted())
    processes(server, 0)
    others = [service(f"m{n}", member("a", file)) for n in range(FEWEST_PROCESSES - 1)]
    server.apply(wanted(first, *others))
    assert len(server.worker_pids()) == FEWEST_PROCESSES
    return others


def wanted(*services: ServiceTarget) -> ServerTarget:
    return target(*services, devices=DEVICES)


def restarts(server: Server) -> dict[str, int]:
    return {each.name: each.members[0].restarts for each in server.report().services}


def processes(server: Server, count: int) -> None:
    server.wait_for(lambda report: len(report.workers) == count, f"{count} processes")


def test_what_shares_a_process_with_a_leak_is_replaced_along_with_it(
    server: Server, file: ModelFile, tmp_path: Path, counted: Counted
):
    path = tmp_path / "leaking.py"
    path.write_text(_LEAKING)
    leaking, mate = service("leaking", member("a", path)), service("mate", member("a", file))
    others = full(server, leaking, file)
    server.apply(wanted(leaking, *others, mate))
    before = server.worker_pids()
    assert len(before) == FEWEST_PROCESSES
    with (
        FaultLoad(server.ports(), "test.mate", file) as mates,
        FaultLoad(server.ports(), "test.leaking", file) as load,
    ):
        server.wait_for(lambda _: restarts(server)["test.leaking"] >= 2, "two replacements")
        load.wait_right(30)
        mates.wait_right(30)
    assert counted(load).nothing_but_right
    assert counted(mates).nothing_but_right
    after = restarts(server)
    assert after["test.mate"] >= 1
    assert {after[other.name] for other in others} == {0}
    processes(server, FEWEST_PROCESSES)
    assert len(server.worker_pids() & before) == FEWEST_PROCESSES - 1


def test_what_ends_a_process_ends_no_neighbour_twice(server: Server, crowd: Crowd, file: ModelFile):
    poisoned, mate = service("poisoned", member("a", file)), service("mate", member("a", file))
    others = full(server, poisoned, file)
    server.apply(wanted(poisoned, *others, mate))
    with pytest.raises(InferenceServerException, match=r"INTERNAL.*2 instances ended"):
        crowd.ask("test.poisoned", told(DIE)).result()
    server.wait_served()
    after = restarts(server)
    assert after["test.poisoned"] == 2
    assert after["test.mate"] == 1
    assert {after[other.name] for other in others} == {0}
    for name in ("test.poisoned", "test.mate"):
        np.testing.assert_array_equal(crowd.ask(name, rows(3)).result(), file(rows(3)))
    assert len(server.worker_pids()) == FEWEST_PROCESSES + 1


def test_what_never_loads_stands_in_nobodys_way(
    server: Server, file: ModelFile, tmp_path: Path, counted: Counted
):
    stuck_file = ModelFile(tmp_path / "stuck.py", scale=2.0)
    first, stuck = service("first", member("a", file)), service("stuck", member("a", stuck_file))
    others = full(server, first, file)
    stuck_file.hold_loading()
    with FaultLoad(server.ports(), "test.first", file) as load:
        server.apply(wanted(first, *others, stuck), wait=False)
        server.wait_for(lambda _: restarts(server)["test.first"] == 1, "the process left")
        load.wait_right(30)
    assert counted(load).nothing_but_right
    late = [service(f"late{n}", member("a", file)) for n in range(FEWEST_PROCESSES)]
    server.apply(wanted(first, *others, *late, stuck), wait=False)
    server.wait_for(
        lambda r: all(s.ready for s in r.services if s.name != "test.stuck"), "all others served"
    )
    assert not server.service("test.stuck").ready
    stuck_file.let_load()
    server.wait_served()
    assert restarts(server)["test.first"] == 1
