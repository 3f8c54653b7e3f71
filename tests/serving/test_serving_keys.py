"""A server whose models ask for keys, as an agent hands them over: real processes, both protocols."""

from __future__ import annotations

import json
import os
import signal
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from tritonclient.utils import InferenceServerException

from support.clients import infer_grpc, infer_http
from support.model_files import ModelFile, rows
from support.peers import counted
from support.raw_http import RawClient
from support.server import Server, descendants, running_server
from support.targets import member, service
from support.targets import server as target
from tessera_runtime.target import ServerTarget

LOCKED, OTHER, FREE = "test.locked", "test.other", "test.free"
X = rows(3)


@pytest.fixture
def a(tmp_path: Path) -> ModelFile:
    return ModelFile(tmp_path / "a.py", scale=2.0)


@pytest.fixture
def three(a: ModelFile) -> ServerTarget:
    """Two services that ask for keys, and one that does not."""
    only = member("a", a)
    return target(
        service("locked", only, needs_key=True),
        service("other", only, needs_key=True),
        service("free", only),
    )


@pytest.fixture(autouse=True)
def left_empty(server: Server) -> Iterator[None]:
    yield
    server.apply(target())


def bearer(key: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"} if key else {}


def codes(server: Server, model: str, key: str = "") -> tuple[str, str]:
    """What an inference ends with over HTTP and over gRPC."""
    found = []
    for infer, client in ((infer_http, server.http()), (infer_grpc, server.grpc())):
        try:
            answer = infer(client, model, X, headers=bearer(key))
            np.testing.assert_array_equal(answer.as_numpy("y"), 2 * X)
            found.append("")
        except InferenceServerException as error:
            found.append(error.status().removeprefix("StatusCode."))
    return found[0], found[1]


ANSWERED, REFUSED = ("", ""), ("401", "UNAUTHENTICATED")


def test_each_service_answers_to_its_own_keys_only(server: Server, three: ServerTarget) -> None:
    server.apply(three, {LOCKED: ("mine", "mine-too"), OTHER: ("theirs",)})
    before = server.service(LOCKED).codes
    assert codes(server, LOCKED, "mine") == codes(server, LOCKED, "mine-too") == ANSWERED
    assert codes(server, OTHER, "theirs") == ANSWERED
    assert codes(server, FREE) == codes(server, FREE, "whatever") == ANSWERED
    for model, key in ((LOCKED, ""), (LOCKED, "theirs"), (LOCKED, "min"), (OTHER, "mine")):
        assert codes(server, model, key) == REFUSED
    # Strangers are no traffic: capacity is planned for those who may ask.
    assert before == {}
    assert server.service(LOCKED).codes == {"200": 4}
    assert server.service(LOCKED).total == 4
    assert counted(server, "tessera_unauthorized_requests_total", service=LOCKED) == 6


def test_a_plain_name_is_the_service_that_the_host_names_and_so_is_its_key(
    server: Server, three: ServerTarget
) -> None:
    server.apply(three, {LOCKED: ("mine",), OTHER: ("theirs",)})
    tensor = {"name": "x", "shape": list(X.shape), "datatype": "FP32", "data": X.ravel().tolist()}
    body = json.dumps({"inputs": [tensor]}).encode()
    for key, status in (("theirs", 401), ("", 401), ("mine", 200)):
        head = (
            "POST /v2/models/locked/infer HTTP/1.1\r\nHost: locked.test.svc\r\n"
            f"Authorization: Bearer {key}\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        with RawClient(server.ports().http) as raw:
            raw.send(head.encode() + body)
            assert raw.read().status == status


def test_nobody_is_answered_before_keys_were_handed_over(
    server: Server, three: ServerTarget
) -> None:
    server.apply(three, wait=False)
    server.wait_for(
        lambda report: all(each.members[0].ready for each in report.services), "instances"
    )
    closed, free = server.service(LOCKED), server.service(FREE)
    assert (closed.ready, free.ready) == (False, True)
    assert "no keys" in closed.problem
    for key in ("", "mine", "None"):
        assert codes(server, LOCKED, key) == REFUSED
    assert codes(server, FREE) == ANSWERED
    assert server.http().is_server_ready(), "one closed service is no reason to end the others"
    server.apply(three, {LOCKED: ("mine",), OTHER: ("theirs",)})
    assert codes(server, LOCKED, "mine") == ANSWERED


def test_keys_change_while_requests_go_on(server: Server, three: ServerTarget) -> None:
    rest = {OTHER: ("theirs",)}
    server.apply(three, {LOCKED: ("old",), **rest})
    server.apply(three, {LOCKED: ("old", "new"), **rest})
    assert codes(server, LOCKED, "old") == codes(server, LOCKED, "new") == ANSWERED
    server.apply(three, {LOCKED: ("new",)})
    assert codes(server, LOCKED, "old") == REFUSED
    assert codes(server, LOCKED, "new") == ANSWERED
    assert codes(server, OTHER, "theirs") == ANSWERED, "whose keys are not said keep theirs"
    server.apply(three, {LOCKED: ()}, wait=False)
    assert codes(server, LOCKED, "new") == REFUSED
    assert not server.service(LOCKED).ready


def test_asking_for_keys_is_no_other_version(server: Server, a: ModelFile) -> None:
    server.apply(target(service("locked", member("a", a))))
    workers = server.worker_pids()
    assert codes(server, LOCKED) == ANSWERED
    locked = target(service("locked", member("a", a), needs_key=True, version="2"))
    server.apply(locked, {LOCKED: ("k",)})
    assert codes(server, LOCKED) == REFUSED
    assert codes(server, LOCKED, "k") == ANSWERED
    assert server.worker_pids() == workers
    server.apply(target(service("locked", member("a", a), version="3")))
    assert codes(server, LOCKED) == ANSWERED


def test_strangers_wake_nobody(server: Server, a: ModelFile) -> None:
    asleep = service("locked", member("a", a, instances={}), needs_key=True, hold=5)
    server.apply(target(asleep), {LOCKED: ("k",)}, wait=False)
    assert codes(server, LOCKED, "wrong") == REFUSED
    assert server.service(LOCKED).held == 0


def test_keys_are_in_no_log_no_metric_no_report_and_no_other_process(
    tmp_path: Path, a: ModelFile
) -> None:
    key = "hunter2-in-many-places"
    with running_server(tmp_path / "run", "--log-level=debug") as own:
        locked = target(service("locked", member("a", a), needs_key=True))
        own.apply(locked, {LOCKED: (key,)})
        assert codes(own, LOCKED, key) == ANSWERED
        assert codes(own, LOCKED, key + "x") == REFUSED
        with urllib.request.urlopen(f"http://127.0.0.1:{own.ports().metrics}/metrics") as answer:
            assert key.encode() not in answer.read()
        assert key not in repr(own.report())
        others = set(descendants(own.process.pid)) - {own.dispatcher_pid}
        assert own.worker_pids() < others
        for pid in others:
            for part in ("environ", "cmdline"):
                assert key.encode() not in Path(f"/proc/{pid}/{part}").read_bytes()
            assert not _holds(pid, key.encode())
        assert _holds(own.dispatcher_pid, key.encode()), "the search finds what is there"
        # A dispatcher that died has lost them: it is closed until they are handed over again.
        os.kill(own.dispatcher_pid, signal.SIGKILL)
        own.apply(locked, wait=False)
        assert codes(own, LOCKED, key) == REFUSED
        own.apply(locked, {LOCKED: (key,)})
        assert codes(own, LOCKED, key) == ANSWERED
        log = own.log()
    assert key not in log


def _holds(pid: int, what: bytes) -> bool:
    """Whether ``what`` is in the private memory of a process of ours."""
    with open(f"/proc/{pid}/maps") as maps, open(f"/proc/{pid}/mem", "rb", 0) as memory:
        for line in maps:
            place, rights, _, _, inode, *_ = line.split()
            if not rights.startswith("rw") or inode != "0":
                continue
            first, last = (int(each, 16) for each in place.split("-"))
            try:
                memory.seek(first)
                if what in memory.read(last - first):
                    return True
            except (OSError, ValueError):
                continue
    return False
