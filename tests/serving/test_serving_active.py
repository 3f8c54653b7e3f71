"""Instances that stand by, and batches smaller than what was planned: what is set changes without loading anything."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from support.clients import Crowd
from support.model_files import ModelFile, rows
from support.peers import counted
from support.server import Server
from support.targets import member, service
from support.targets import server as target

MODEL = "test.m"


@pytest.fixture
def file(tmp_path: Path) -> Iterator[ModelFile]:
    file = ModelFile(tmp_path / "a.py", 2.0)
    yield file
    file.let_go()
    file.let_load()


def served(file: ModelFile, **settings: object):
    return target(service("m", member("a", file, **settings)))


def hold_one(server: Server, crowd: Crowd, file: ModelFile, *waiting: np.ndarray) -> list:
    """A request that runs, and others that wait behind it although an instance stands by."""
    file.hold()
    asked = [crowd.ask(MODEL, rows(1))]
    file.wait_held()
    asked += [crowd.ask(MODEL, x) for x in waiting]
    count = sum(len(x) for x in waiting)
    server.wait_for(lambda r: r.services[0].members[0].queued_rows == count, "the others wait")
    return asked


def test_an_instance_that_stands_by_takes_no_batches_until_it_is_active(
    server: Server, crowd: Crowd, file: ModelFile
):
    server.apply(served(file, instances=2, active=1))
    assert server.member(MODEL).ready == 2
    assert counted(server, "tessera_instances", service=MODEL) == 2
    assert counted(server, "tessera_active_instances", service=MODEL) == 1
    first, second = hold_one(server, crowd, file, rows(2))
    pids = server.worker_pids()
    server.apply(served(file, instances=2, active=2))
    server.wait_for(lambda r: r.services[0].members[0].queued_rows == 0, "the other one took it")
    file.let_go()
    np.testing.assert_array_equal(first.result(), file(rows(1)))
    np.testing.assert_array_equal(second.result(), file(rows(2)))
    assert server.worker_pids() == pids
    assert len({batch.worker for batch in server.member(MODEL).recent}) == 2


def test_one_that_is_not_active_any_more_finishes_its_batch(
    server: Server, crowd: Crowd, file: ModelFile
):
    server.apply(served(file, instances=2, active=2, setpoint=1))
    file.hold()
    asked = [crowd.ask(MODEL, rows(i)) for i in (1, 2)]
    server.wait_for(
        lambda r: (
            r.services[0].members[0].arrived == 2 and not r.services[0].members[0].queued_rows
        ),
        "both run",
    )
    server.apply(served(file, instances=2, active=1, setpoint=1))
    asked.append(crowd.ask(MODEL, rows(3)))
    server.wait_for(lambda r: r.services[0].members[0].queued_rows == 1, "a third one waits")
    file.let_go()
    for i, answer in enumerate(asked, 1):
        np.testing.assert_array_equal(answer.result(), file(rows(i)))


def test_what_stood_by_takes_the_place_of_an_instance_that_ends(
    server: Server, crowd: Crowd, file: ModelFile
):
    server.apply(served(file, instances=2, active=1))
    before = crowd.ask(MODEL, rows(0))
    before.result()
    [batch] = server.member(MODEL).recent
    asked = hold_one(server, crowd, file, rows(2))
    file.hold_loading()
    pids = {worker.incarnation: worker.pid for worker in server.report().workers}
    os.kill(pids[batch.worker], signal.SIGKILL)
    server.wait_for(lambda r: r.services[0].members[0].ready == 1, "its end is known")
    file.let_go()
    for i, answer in enumerate(asked, 1):
        np.testing.assert_array_equal(answer.result(), file(rows(i)))
    assert batch.worker not in {each.worker for each in list(server.member(MODEL).recent)[1:]}


def test_batches_are_of_what_is_set_and_places_are_reported_as_planned(
    server: Server, crowd: Crowd, file: ModelFile
):
    server.apply(served(file, setpoint=2))
    asked = hold_one(server, crowd, file, *[rows(i) for i in (2, 3, 4, 5)])
    file.let_go()
    for i, answer in enumerate(asked, 1):
        np.testing.assert_array_equal(answer.result(), file(rows(i)))
    report = server.report()
    [seen] = report.services[0].members
    assert [batch.rows for batch in seen.recent] == [1, 2, 2]
    assert all(batch.ms > 0 and batch.device == "cpu-0" for batch in seen.recent)
    assert (seen.cap, seen.arrived, seen.batches) == (2, 5, 3)
    assert (seen.requests, sum(seen.latency_buckets), seen.lost) == (5, 5, 0)
    assert seen.latency_s >= sum(batch.rows * batch.ms for batch in seen.recent) / 1e3 - 1e-5
    assert [each.cap for each in report.instances] == [8]


def test_members_that_run_as_one_stand_by_as_one(
    server: Server, crowd: Crowd, file: ModelFile, tmp_path: Path
):
    other = ModelFile(tmp_path / "b.py", 4.0)

    def pair(active: int):
        settings = {"instances": 2, "active": active, "setpoint": 1}
        return target(service("m", member("a", file, **settings), member("b", other, **settings)))

    server.apply(pair(1))
    server.wait_joined(MODEL, 2)
    first, second = hold_one(server, crowd, file, rows(2))
    server.apply(pair(2))
    server.wait_for(lambda r: r.services[0].members[0].queued_rows == 0, "the other one took it")
    file.let_go()
    for i, answer in ((1, first), (2, second)):
        np.testing.assert_array_equal(answer.result(), 3 * rows(i))
    seen = server.service(MODEL).members
    assert [each.arrived for each in seen] == [2, 2]
    assert [len(each.recent) for each in seen] == [2, 2]
