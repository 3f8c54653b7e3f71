"""Peers come, go, die and change versions under load, and no request fails."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from support.clients import Crowd, Load
from support.model_files import WIDTH, ModelFile, rows
from support.open_loop import Endpoints, OpenLoad
from support.peers import counted, forwarded, peers
from support.raw_http import RawClient, request
from support.server import Server, descendants, running_server, wait_until
from support.targets import member, service
from support.targets import server as target

MODEL = "test.m"
NOWHERE: dict[str, int] = {}
A_FEW = 40
"""Answers after which the load is known to have met the new state."""


def serving(file: ModelFile, *known: Server, here: bool = True, **settings: object):
    """The one service: with an instance here or none, and peers."""
    places = 1 if here else NOWHERE
    return target(
        service("m", member("a", file, instances=places, peers=peers(*known)), **settings)
    )


@contextmanager
def another(tmp_path: Path, name: str, *options: str) -> Iterator[Server]:
    """A server that the test may end."""
    with running_server(tmp_path / name, *options) as server:
        yield server


@pytest.fixture(autouse=True)
def _nothing_left(one: Server, two: Server) -> Iterator[None]:
    yield
    one.apply(target())
    two.apply(target())


def test_a_killed_peer_is_not_missed(one: Server, two: Server, a: ModelFile, tmp_path: Path):
    three = Server(tmp_path / "three", [])
    for server in (two, three):
        server.apply(serving(a))
    one.apply(serving(a, two, three, here=False))
    with Endpoints(one) as endpoints, OpenLoad(endpoints, MODEL, a) as load:
        load.wait_answers(A_FEW)
        wait_until(lambda: three.member(MODEL).rows > 0, "work at the one that dies")
        for pid in (three.process.pid, *descendants(three.process.pid)):
            os.kill(pid, signal.SIGKILL)
        three.process.wait()
        load.wait_answers(2 * A_FEW)
    load.check()
    three.hang_up()
    assert one.service(MODEL).codes.keys() == {"200"}


def test_work_at_a_peer_that_is_killed_is_done_again_elsewhere(
    one: Server, two: Server, a: ModelFile, b: ModelFile, tmp_path: Path
):
    """Not only what was asked later: what the dead one held is not lost."""
    three = Server(tmp_path / "three", [])
    three.apply(target(service("m", member("a", a, digest="both"))))
    two.apply(target(service("m", member("a", b, digest="both"))))
    only_three = member("a", b, digest="both", instances=NOWHERE, peers=peers(three))
    both = member("a", b, digest="both", instances=NOWHERE, peers=peers(three, two))
    one.apply(target(service("m", only_three)))
    a.hold()
    crowd = Crowd(one.ports().grpc)
    asked = {i: crowd.ask(MODEL, rows(i)) for i in range(6)}
    three.wait_for(
        lambda r: r.services[0].members[0].queued_rows >= 1, "work waiting at the one that dies"
    )
    one.apply(target(service("m", both)))
    for pid in (three.process.pid, *descendants(three.process.pid)):
        os.kill(pid, signal.SIGKILL)
    three.process.wait()
    for i, answer in asked.items():
        np.testing.assert_array_equal(answer.result(), b(rows(i)))
    crowd.close()
    three.hang_up()


def test_a_peer_that_falls_silent_is_given_up(
    one: Server, two: Server, a: ModelFile, tmp_path: Path
):
    """As when its node is lost: nobody closes the connection, and nobody answers on it."""
    with another(tmp_path, "silent") as silent:
        for server in (two, silent):
            server.apply(serving(a))
        one.apply(serving(a, two, silent, here=False))
        crowd = Crowd(one.ports().grpc)
        frozen = silent.dispatcher_pid
        os.kill(frozen, signal.SIGSTOP)
        try:
            asked = {i: crowd.ask(MODEL, rows(i)) for i in range(16)}
            for i, answer in asked.items():
                np.testing.assert_array_equal(answer.result(), a(rows(i)))
            assert counted(one, "tessera_forward_retries_total", reason="unavailable") > 0
        finally:
            os.kill(frozen, signal.SIGCONT)
        crowd.close()


def test_a_server_told_to_end_is_left_without_a_lost_request(
    one: Server, a: ModelFile, tmp_path: Path
):
    with another(tmp_path, "leaver", "--shutdown-delay=1") as leaver:
        one.apply(serving(a, leaver))
        leaver.apply(serving(a, one))
        with Endpoints(one, leaver) as endpoints, OpenLoad(endpoints, MODEL, a) as load:
            load.wait_answers(A_FEW)
            before = leaver.service(MODEL).codes["200"]
            leaver.process.terminate()
            wait_until(lambda: "answering for 1.0 s more" in leaver.log(), "the delay")
            assert not leaver.http().is_server_ready()
            assert leaver.http().is_model_ready(MODEL), "and still answering"
            assert leaver.report().draining
            assert not one.report().draining
            load.wait_answers(4)
            assert leaver.service(MODEL).codes["200"] > before
            assert leaver.process.wait(30) == 0
            load.wait_answers(A_FEW)
        load.check()


def test_a_server_that_ends_finishes_what_its_peers_have_given_it(
    one: Server, a: ModelFile, tmp_path: Path
):
    with another(tmp_path, "leaver") as leaver:
        leaver.apply(serving(a))
        one.apply(serving(a, leaver, here=False))
        a.hold()
        crowd = Crowd(one.ports().grpc)
        asked = {i: crowd.ask(MODEL, rows(i)) for i in range(4)}
        leaver.wait_for(lambda r: r.services[0].members[0].queued_rows >= 1, "calls waiting")
        leaver.process.terminate()
        wait_until(lambda: "draining" in leaver.log(), "the drain")
        a.let_go()
        for i, answer in asked.items():
            np.testing.assert_array_equal(answer.result(), a(rows(i)))
        crowd.close()
        assert leaver.process.wait(30) == 0


def test_the_last_instance_here_goes_and_comes_back(one: Server, two: Server, a: ModelFile):
    two.apply(serving(a))
    one.apply(serving(a, two))
    with Load(one.ports(), MODEL, a) as load:
        for _ in range(2):
            load.wait_answers(A_FEW)
            one.apply(serving(a, two, here=False))
            one.wait_for(lambda r: not r.workers, "the instance ended")
            before = forwarded(one, "a")
            load.wait_answers(A_FEW)
            assert forwarded(one, "a") >= before + A_FEW
            one.apply(serving(a, two))
    load.check()
    assert one.service(MODEL).codes.keys() == {"200"}


@pytest.mark.parametrize("service_goes", [True, False])
def test_an_instance_that_peers_still_call_stays_until_they_know_of_another(
    one: Server, two: Server, a: ModelFile, service_goes: bool
):
    """A member moves from the second server to the first, which learns last that it has moved."""
    two.apply(serving(a))
    one.apply(serving(a, two, here=False))
    with Load(one.ports(), MODEL, a) as load:
        load.wait_answers(A_FEW)
        two.apply(target() if service_goes else serving(a, here=False), wait=False)
        load.wait_answers(A_FEW)
        one.apply(serving(a))
        load.wait_answers(A_FEW)
        two.wait_for(lambda r: not r.workers, "the old instance ended")
    load.check()


def test_versions_change_at_one_server_after_another(
    one: Server, two: Server, a: ModelFile, b: ModelFile
):
    """The second serves the new version before the first has heard of it."""
    two.apply(serving(a, version="1"))
    one.apply(serving(a, two, here=False, version="1"))
    with Load(one.ports(), MODEL, a, b) as load:
        load.wait_answers(A_FEW)
        two.apply(serving(b, version="2"))
        load.wait_answers(A_FEW)
        one.apply(serving(b, two, here=False, version="2"))
        load.wait_answers(A_FEW)
    load.check()
    with Load(one.ports(), MODEL, b) as load:
        load.wait_answers(A_FEW)
    load.check()
    two.wait_for(lambda r: len(r.workers) == 1, "the old version's worker ended")


def test_peers_change_without_a_new_version(one: Server, two: Server, a: ModelFile):
    one.apply(serving(a))
    two.apply(serving(a))
    workers = one.worker_pids()
    with Load(one.ports(), MODEL, a) as load:
        for settings in ({"here": True}, {"here": True, "hold": 5}):
            for known in ((two,), ()):
                one.apply(serving(a, *known, **settings))
                load.wait_answers(A_FEW // 2)
    load.check()
    assert one.worker_pids() == workers
    assert one.service(MODEL).codes.keys() == {"200"}


def test_a_crashed_instance_leaves_its_queue_to_peers(
    one: Server, two: Server, a: ModelFile, b: ModelFile
):
    """The only instance here dies with a batch and a queue, and does not come back for a while."""
    two.apply(target(service("m", member("a", b, digest="both"))))
    one.apply(target(service("m", member("a", a, digest="both", cap=1))))
    a.hold()
    crowd = Crowd(one.ports().grpc)
    asked = {i: crowd.ask(MODEL, rows(i)) for i in range(5)}
    a.wait_held()
    one.wait_for(lambda r: r.services[0].members[0].queued_rows == 4, "a queue behind a batch")
    one.apply(target(service("m", member("a", a, digest="both", cap=1, peers=peers(two)))))
    a.hold_loading()
    [worker] = one.worker_pids()
    os.kill(worker, signal.SIGKILL)
    for i, answer in asked.items():
        np.testing.assert_array_equal(answer.result(), b(rows(i)))
    crowd.close()
    assert counted(two, "tessera_received_calls_total", code="200") >= 5
    a.let_load()


def test_a_client_that_keeps_its_connection_is_sent_elsewhere_while_all_is_passed_on(
    one: Server, two: Server, a: ModelFile
):
    """A node that was left is empty only once nobody comes there any more."""
    two.apply(serving(a))
    one.apply(serving(a, two))
    given = {"name": "x", "shape": [1, WIDTH], "datatype": "FP32", "data": [1.0] * WIDTH}
    ask = request("POST", f"/v2/models/{MODEL}/infer", json.dumps({"inputs": [given]}).encode())
    with RawClient(one.ports().http) as kept:
        for here, connection in ((True, None), (False, "close")):
            one.apply(serving(a, two, here=here))
            kept.send(ask)
            answer = kept.read()
            assert (answer.status, answer.headers.get("connection")) == (200, connection)
        assert kept.ended()
    one.apply(serving(a, two))
    with RawClient(one.ports().http) as other:
        other.send(ask)
        assert "connection" not in other.read().headers
