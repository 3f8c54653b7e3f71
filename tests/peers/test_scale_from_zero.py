"""A service with no instance anywhere: requests wait at a server that holds them, and lose nothing."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from tritonclient.utils import InferenceServerException

from support.clients import Crowd, infer_grpc, infer_http
from support.model_files import ModelFile, rows
from support.peers import counted, peers
from support.server import Server, running_server, wait_until
from support.targets import member, service
from support.targets import server as target
from tessera_runtime.target import PeerTarget

MODEL = "test.m"


@pytest.fixture
def crowd(one: Server) -> Iterator[Crowd]:
    crowd = Crowd(one.ports().grpc, threads=64)
    yield crowd
    crowd.close()
    one.apply(target())


def zero(file: ModelFile, hold: int = 50, known: tuple[PeerTarget, ...] = (), **settings: object):
    return target(service("m", member("a", file, instances={}, peers=known), hold=hold, **settings))


def wait_held(server: Server, count: int) -> None:
    server.wait_for(lambda r: r.services[0].held == count, f"{count} requests held")


def test_a_server_that_only_holds_is_ready(one: Server, crowd: Crowd, a: ModelFile):
    one.apply(zero(a), wait=False)
    assert one.http().is_server_ready()
    assert one.http().is_model_ready(MODEL)
    assert one.grpc().is_model_ready(MODEL)
    one.apply(zero(a, hold=0), wait=False)
    assert not one.http().is_server_ready()
    assert not one.http().is_model_ready(MODEL)
    with pytest.raises(InferenceServerException, match="still being loaded") as caught:
        infer_grpc(one.grpc(), MODEL, rows(1))
    assert caught.value.status() == "StatusCode.UNAVAILABLE"


def test_held_requests_go_to_the_first_peer(one: Server, two: Server, crowd: Crowd, a: ModelFile):
    one.apply(zero(a), wait=False)
    asked = {i: crowd.ask(MODEL, rows(i)) for i in range(12)}
    over_http = crowd.submit(infer_http, one.http(), MODEL, rows(99))
    wait_held(one, 13)
    assert counted(one, "tessera_held_requests", service=MODEL) == 13
    two.apply(target(service("m", member("a", a))))
    one.apply(zero(a, known=peers(two)))
    for i, answer in asked.items():
        np.testing.assert_array_equal(answer.result(), a(rows(i)))
    np.testing.assert_array_equal(over_http.result().as_numpy("y"), a(rows(99)))
    report = one.service(MODEL)
    assert (report.held, report.codes) == (0, {"200": 13})
    two.apply(target())


def test_held_requests_go_to_the_first_instance(one: Server, crowd: Crowd, a: ModelFile):
    one.apply(zero(a), wait=False)
    asked = {i: crowd.ask(MODEL, rows(i)) for i in range(5)}
    wait_held(one, 5)
    one.apply(target(service("m", member("a", a), hold=50)))
    for i, answer in asked.items():
        np.testing.assert_array_equal(answer.result(), a(rows(i)))


def test_a_service_goes_to_zero_and_back(one: Server, two: Server, crowd: Crowd, a: ModelFile):
    """The signature is known then: what is missing is a place."""
    two.apply(target(service("m", member("a", a))))
    one.apply(zero(a, known=peers(two)))
    infer_grpc(one.grpc(), MODEL, rows(1))
    for _ in range(2):
        one.apply(zero(a), wait=False)
        asked = crowd.ask(MODEL, rows(2))
        wait_held(one, 1)
        one.apply(zero(a, known=peers(two)))
        np.testing.assert_array_equal(asked.result(), a(rows(2)))
    two.apply(target())


def test_a_version_that_nothing_serves_replaces_another_and_keeps_who_waits(
    one: Server, two: Server, crowd: Crowd, a: ModelFile, b: ModelFile
):
    one.apply(zero(a, version="1"), wait=False)
    asked = crowd.ask(MODEL, rows(2))
    wait_held(one, 1)
    one.apply(zero(b, version="2"), wait=False)
    assert one.service(MODEL).version == "2"
    two.apply(target(service("m", member("a", b), version="2")))
    one.apply(zero(b, known=peers(two), version="2"))
    np.testing.assert_array_equal(asked.result(), b(rows(2)))
    two.apply(target())


def test_one_too_many_is_refused(one: Server, crowd: Crowd, a: ModelFile):
    one.apply(zero(a, hold=3), wait=False)
    asked = [crowd.ask(MODEL, rows(i)) for i in range(3)]
    wait_held(one, 3)
    with pytest.raises(InferenceServerException, match="at most 3") as caught:
        infer_grpc(one.grpc(), MODEL, rows(1))
    assert caught.value.status() == "StatusCode.RESOURCE_EXHAUSTED"
    with pytest.raises(InferenceServerException, match="at most 3") as caught:
        infer_http(one.http(), MODEL, rows(1))
    assert caught.value.status() == "429"
    one.apply(target())
    for each in asked:
        with pytest.raises(InferenceServerException, match="not served any more"):
            each.result()


def test_a_client_waits_no_longer_than_it_says(one: Server, crowd: Crowd, a: ModelFile):
    one.apply(zero(a), wait=False)
    with pytest.raises(InferenceServerException, match="still being started") as caught:
        infer_grpc(one.grpc(), MODEL, rows(1), timeout=100_000)
    assert caught.value.status() == "StatusCode.DEADLINE_EXCEEDED"
    with pytest.raises(InferenceServerException):
        infer_grpc(one.grpc(), MODEL, rows(1), client_timeout=0.1)
    wait_held(one, 0)
    wait_until(lambda: one.report().arena_used == 0, "the inputs let go")


def test_a_server_that_ends_tells_those_who_wait(tmp_path, a: ModelFile):
    with running_server(tmp_path / "run", "--drain-timeout=1") as server:
        server.apply(zero(a), wait=False)
        crowd = Crowd(server.ports().grpc)
        asked = crowd.ask(MODEL, rows(1))
        wait_held(server, 1)
        server.process.terminate()
        with pytest.raises(InferenceServerException, match="the server ends") as caught:
            asked.result()
        assert caught.value.status() == "StatusCode.UNAVAILABLE"
        crowd.close()
