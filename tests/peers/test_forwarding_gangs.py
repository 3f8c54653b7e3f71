"""Members that run as one, on servers that are each other's peers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from support.clients import Crowd
from support.model_files import ModelFile, rows
from support.peers import calls_received, forwarded, peers
from support.server import Server
from support.targets import member, service
from support.targets import server as target
from tessera_core.api.modelservice import Combine
from tessera_core.ensemble.combine import combine
from tessera_runtime.target import ServiceTime

MODEL = "test.m"
BATCH = ServiceTime(alpha_ms=1.0, tau0_ms=1.0)


@pytest.fixture
def here(tmp_path: Path) -> Iterator[ModelFile]:
    """Member a as the first server has it."""
    file = ModelFile(tmp_path / "here.py", scale=2.0)
    yield file
    file.let_go()


@pytest.fixture
def right(here: ModelFile, b: ModelFile) -> Callable[[np.ndarray], np.ndarray]:
    return lambda x: combine(Combine.MEAN, [here(x), b(x)])


@pytest.fixture
def both(one: Server, two: Server, here: ModelFile, a: ModelFile, b: ModelFile) -> Iterator[None]:
    """Both members on both servers; only the first one's member a is held by ``here``."""
    for server, other, first in ((one, two, here), (two, one, a)):
        found = {"peers": peers(other), "service_time": BATCH}
        members = member("a", first, digest="a", **found), member("b", b, digest="b", **found)
        server.apply(target(service("m", *members)), wait=False)
    for server in (one, two):
        server.wait_served()
        server.wait_joined(MODEL, 1)
    yield
    for server in (one, two):
        server.apply(target())


@pytest.mark.usefixtures("both")
def test_work_that_stays_runs_as_one(one: Server, two: Server, right):
    before = [(m.batches, forwarded(one, m.name)) for m in one.service(MODEL).members]
    crowd = Crowd(one.ports().grpc)
    np.testing.assert_array_equal(crowd.ask(MODEL, rows(1)).result(), right(rows(1)))
    crowd.close()
    after = [(m.batches, forwarded(one, m.name)) for m in one.service(MODEL).members]
    assert after == [(batches + 1, sent) for batches, sent in before]


@pytest.mark.usefixtures("both")
def test_work_leaves_for_a_peer_that_does_it_sooner(
    one: Server, two: Server, here: ModelFile, right
):
    received = {name: calls_received(two, name) for name in "ab"}
    crowd = Crowd(one.ports().grpc)
    here.hold()
    asked = [(rows(0), crowd.ask(MODEL, rows(0)))]
    here.wait_held()
    asked += [(x := rows(i, 8), crowd.ask(MODEL, x)) for i in range(1, 13)]
    one.wait_for(lambda _: calls_received(two, "b") > received["b"], "work that went to the peer")
    here.let_go()
    for x, answer in asked:
        np.testing.assert_array_equal(answer.result(), right(x))
    crowd.close()
    assert calls_received(two, "a") > received["a"]
    assert calls_received(two, "a") < received["a"] + len(asked)
