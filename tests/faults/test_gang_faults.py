"""Processes that run all members of a service: what their ends cost, and what a poison request does to them."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from support.fault_load import Counts, FaultLoad
from support.model_files import ModelFile
from support.server import Server
from support.targets import member, service
from support.targets import server as target
from tessera_core.api.modelservice import Combine
from tessera_core.ensemble.combine import combine

MODEL = "test.m"
Counted = Callable[[FaultLoad], Counts]


@pytest.fixture
def other(tmp_path: Path) -> ModelFile:
    return ModelFile(tmp_path / "other.py", scale=-1.0, offset=0.5)


def ensemble(file: ModelFile, other: ModelFile, instances: int):
    members = member("a", file, instances=instances), member("b", other, instances=instances)
    return target(service("m", *members))


def mean(file: ModelFile, other: ModelFile) -> Callable[[np.ndarray], np.ndarray]:
    return lambda x: combine(Combine.MEAN, [file(x), other(x)])


def test_a_killed_process_of_joined_members_costs_no_request(
    server: Server, file: ModelFile, other: ModelFile, counted: Counted
):
    server.apply(ensemble(file, other, 2))
    server.wait_joined(MODEL, 2)
    with FaultLoad(server.ports(), MODEL, mean(file, other)) as load:
        load.wait_right(30)
        for _ in range(3):
            os.kill(min(server.worker_pids()), signal.SIGKILL)
            load.wait_right(60)
            server.wait_served()
            server.wait_joined(MODEL, 2)
    assert counted(load).nothing_but_right
    assert server.member(MODEL, "b").restarts >= 3


def test_the_only_process_of_joined_members_ends_and_requests_wait_for_its_successor(
    server: Server, file: ModelFile, other: ModelFile, counted: Counted
):
    server.apply(ensemble(file, other, 1))
    server.wait_joined(MODEL, 1)
    with FaultLoad(server.ports(), MODEL, mean(file, other)) as load:
        load.wait_right(30)
        file.hold()
        server.wait_for(lambda r: r.services[0].members[0].queued_rows > 8, "requests wait")
        [pid] = server.worker_pids()
        os.kill(pid, signal.SIGKILL)
        file.let_go()
        load.wait_right(60)
        server.wait_joined(MODEL, 1)
        load.wait_right(60)
    assert counted(load).nothing_but_right


def test_a_stopped_process_of_joined_members_is_taken_for_hung(
    server: Server, file: ModelFile, other: ModelFile, counted: Counted
):
    server.apply(ensemble(file, other, 2))
    server.wait_joined(MODEL, 2)
    with FaultLoad(server.ports(), MODEL, mean(file, other)) as load:
        load.wait_right(30)
        os.kill(min(server.worker_pids()), signal.SIGSTOP)
        server.wait_for(lambda r: r.services[0].members[0].restarts == 1, "the hang noticed")
        load.wait_right(60)
        server.wait_joined(MODEL, 2)
    assert counted(load).nothing_but_right


LEAKS = """
import numpy as np
kept = []
class Model:
    inputs = {"x": ("FP32", (4,))}
    outputs = {"y": ("FP32", (4,))}
    def __call__(self, batch):
        kept.append(np.ones(1 << 20, np.uint8))
        return {"y": batch["x"] * np.float32(2)}
def load(device, options): return Model()
"""


def test_a_process_of_joined_members_that_leaks_is_left_by_all_of_them(
    server: Server, file: ModelFile, tmp_path: Path, counted: Counted
):
    leaks = tmp_path / "leaks.py"
    leaks.write_text(LEAKS)
    server.apply(target(service("m", member("a", file), member("b", leaks))))
    server.wait_joined(MODEL, 1)
    first = server.worker_pids()
    with FaultLoad(server.ports(), MODEL, lambda x: x * np.float32(2)) as load:
        server.wait_for(lambda r: r.services[0].members[0].restarts >= 2, "two replacements")
        load.wait_right(30)
        server.wait_joined(MODEL, 1)
    assert counted(load).nothing_but_right
    assert not first & server.worker_pids()
