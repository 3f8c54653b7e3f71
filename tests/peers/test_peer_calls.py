"""What one server asks its peers, and what it makes of their answers: the peers are played."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import grpc
import numpy as np
import pytest
from tritonclient.utils import InferenceServerException

from support.clients import Crowd, infer_grpc
from support.model_files import WIDTH, rows
from support.peers import Played, counted
from support.raw_http import RawClient, request
from support.server import Server, wait_until
from support.targets import member, service
from support.targets import server as target
from tessera_runtime.dataplane import MemberCall
from tessera_runtime.errors import (
    DeadlineExceeded,
    InvalidRequest,
    ModelFailed,
    Overloaded,
    ServeError,
    Unavailable,
)
from tessera_runtime.protocol.grpc_server import start_grpc
from tessera_runtime.protocol.member_call import write_metadata
from tessera_runtime.protocol.messages import message

MODEL = "test.m"
DIGEST = "sha256:played"

Play = Callable[..., list[Played]]


def twice(given: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {"y": 2 * given["x"]}


def refusing(error: ServeError):
    def refuse(given: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        raise error

    return refuse


@pytest.fixture
def play(one: Server) -> Iterator[Play]:
    """Serve the model at played peers only, one for each function, the best one first."""
    with ExitStack() as stack:

        def start(*functions, hold: bool = False, **settings: object) -> list[Played]:
            played = [
                stack.enter_context(Played(MODEL, "a", function, hold=hold))
                for function in functions
            ]
            targets = tuple(peer.target(10.0 ** (6 - i)) for i, peer in enumerate(played))
            only = member("a", "", instances={}, digest=DIGEST, peers=targets)
            one.apply(target(service("m", only, **settings)))
            return played

        yield start
        one.apply(target())


def counts(played: list[Played]) -> list[int]:
    return [len(peer.calls) for peer in played]


def test_a_call_names_the_member_and_its_digest_and_carries_the_request(one: Server, play: Play):
    [peer] = play(twice)
    trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    x = rows(3, 2)
    result = infer_grpc(one.grpc(), MODEL, x, request_id="id-7", headers={"traceparent": trace})
    np.testing.assert_array_equal(result.as_numpy("y"), 2 * x)
    [call] = peer.calls
    assert (call.model, call.id, call.traceparent) == (MODEL, "id-7", trace)
    assert call.part is not None
    assert (call.part.member, call.part.digest, call.part.losses) == ("a", DIGEST, 0)


def test_a_deadline_of_the_client_is_the_calls_own(one: Server, play: Play):
    [peer] = play(twice)
    infer_grpc(one.grpc(), MODEL, rows(1), client_timeout=7.0)
    infer_grpc(one.grpc(), MODEL, rows(1), timeout=6_000_000)
    by_grpc, by_parameter = peer.calls
    # gRPC rounds time-outs up, by a hundredth at most for each hop.
    assert 5 < by_grpc.timeout_s < 7.2
    assert 4 < by_parameter.timeout_s < 6.2
    assert by_grpc.part.slo_s is by_parameter.part.slo_s is None


def test_a_deadline_of_the_slo_only_orders(one: Server, play: Play):
    [peer] = play(twice, slo_ms=9_000.0)
    infer_grpc(one.grpc(), MODEL, rows(1))
    [call] = peer.calls
    assert 8 < call.part.slo_s < 9
    assert 9 < call.timeout_s < 100, "a late answer is waited for, but not for ever"


def test_a_client_that_leaves_is_left_at_the_peer_too(one: Server, play: Play):
    [peer] = play(twice, hold=True)
    given = {"name": "x", "shape": [1, WIDTH], "datatype": "FP32", "data": [0.0] * WIDTH}
    body = json.dumps({"inputs": [given]}).encode()
    with RawClient(one.ports().http) as raw:
        raw.send(request("POST", f"/v2/models/{MODEL}/infer", body))
        wait_until(lambda: peer.calls, "the call at the peer")
    wait_until(lambda: len(peer.plane.cancelled) == 1, "the call cancelled at the peer")


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (InvalidRequest("inputs.x: no"), "StatusCode.INVALID_ARGUMENT"),
        (ModelFailed("member a: it raised"), "StatusCode.INTERNAL"),
        (DeadlineExceeded("too late"), "StatusCode.DEADLINE_EXCEEDED"),
    ],
)
def test_an_error_of_the_member_is_told_and_not_tried_elsewhere(
    one: Server, play: Play, error: ServeError, status: str
):
    played = play(refusing(error), twice)
    with pytest.raises(InferenceServerException) as caught:
        infer_grpc(one.grpc(), MODEL, rows(1))
    assert caught.value.status() == status
    assert counts(played) == [1, 0]


def test_what_a_peer_cannot_do_another_does(one: Server, play: Play):
    played = play(refusing(Unavailable("gone")), refusing(Overloaded("full")), twice)
    before = counted(one, "tessera_forward_retries_total")
    x = rows(1)
    np.testing.assert_array_equal(infer_grpc(one.grpc(), MODEL, x).as_numpy("y"), 2 * x)
    assert counts(played) == [1, 1, 1]
    assert counted(one, "tessera_forward_retries_total") - before == 2
    assert one.service(MODEL).codes == {"200": 1}


def test_three_places_are_tried_and_none_twice(one: Server, play: Play):
    played = play(*[refusing(Unavailable("gone"))] * 5)
    with pytest.raises(InferenceServerException) as caught:
        infer_grpc(one.grpc(), MODEL, rows(1))
    assert caught.value.status() == "StatusCode.UNAVAILABLE"
    assert counts(played) == [1, 1, 1, 0, 0]


def test_overload_everywhere_is_overload(one: Server, play: Play):
    played = play(*[refusing(Overloaded("the queue is full"))] * 2)
    with pytest.raises(InferenceServerException, match="queue is full") as caught:
        infer_grpc(one.grpc(), MODEL, rows(1))
    assert caught.value.status() == "StatusCode.RESOURCE_EXHAUSTED"
    assert counts(played) == [1, 1]


def test_a_peer_without_room_in_time_is_not_tried(one: Server, play: Play):
    """The second peer carries a row in ten seconds, the SLO gives one."""
    busy, slow = play(refusing(Overloaded("the queue is full")), twice)
    places = (busy.target(1000.0), slow.target(0.1))
    only = member("a", "", instances={}, digest=DIGEST, peers=places)
    one.apply(target(service("m", only, slo_ms=1_000.0)))
    with pytest.raises(InferenceServerException) as caught:
        infer_grpc(one.grpc(), MODEL, rows(1))
    assert caught.value.status() == "StatusCode.RESOURCE_EXHAUSTED"
    assert counts([busy, slow]) == [1, 0]


def test_an_answer_of_the_wrong_rows_is_the_members_failure(one: Server, play: Play):
    played = play(lambda given: {"y": given["x"][:1]}, twice)
    with pytest.raises(InferenceServerException, match="for 2 rows") as caught:
        infer_grpc(one.grpc(), MODEL, rows(1, 2))
    assert caught.value.status() == "StatusCode.INTERNAL"
    assert counts(played) == [1, 0]


def test_what_is_at_a_peer_counts_there_and_the_queue_it_reports(one: Server, play: Play):
    """Both carry alike: rows under way at one send the next to the other."""
    played = play(twice, twice, hold=True)
    alike = tuple(peer.target(1000.0) for peer in played)
    only = member("a", "", instances={}, digest=DIGEST, peers=alike)
    one.apply(target(service("m", only)))
    crowd = Crowd(one.ports().grpc)
    asked = []
    for count in range(1, 7):
        asked.append(crowd.ask(MODEL, rows(count)))
        wait_until(lambda count=count: sum(counts(played)) == count, "the call at a peer")
    assert counts(played) == [3, 3]

    async def answer(peer: Played) -> None:
        peer.plane.hold = False
        for ticket in peer.plane.held:
            ticket.run()

    for peer in played:
        peer.run(answer(peer))
    for each in asked:
        each.result()
    crowd.close()


def test_a_peer_that_is_gone_is_asked_until_it_is_back(one: Server, play: Play):
    [peer] = play(twice)
    port = peer.grpc.port
    peer.run(peer.grpc.close())
    with pytest.raises(InferenceServerException) as caught:
        infer_grpc(one.grpc(), MODEL, rows(1), timeout=300_000)
    assert caught.value.status() == "StatusCode.DEADLINE_EXCEEDED"
    one.wait_for(lambda r: not r.services[0].ready, "the only peer known to be gone")
    assert not one.http().is_server_ready()
    assert str(port) in one.member(MODEL).problem

    async def come_back() -> None:
        peer.grpc = await start_grpc(peer.plane, port=port)

    peer.run(come_back())
    one.wait_served()
    infer_grpc(one.grpc(), MODEL, rows(1))


def test_work_that_waits_for_a_place_goes_to_a_peer_that_comes_back(one: Server, play: Play):
    [peer] = play(twice)
    port = peer.grpc.port
    peer.run(peer.grpc.close())
    crowd = Crowd(one.ports().grpc)
    x = rows(5)
    asked = crowd.ask(MODEL, x)
    one.wait_for(lambda r: r.services[0].members[0].queued_rows == 1, "the request waiting")

    async def come_back() -> None:
        peer.grpc = await start_grpc(peer.plane, port=port)

    peer.run(come_back())
    np.testing.assert_array_equal(asked.result(), 2 * x)
    crowd.close()


def test_a_member_with_another_digest_is_not_called(one: Server, two: Server, a):
    """Versions change at one server after another: what another version answers must not be mixed in."""
    two.apply(target(service("m", member("a", a, digest="new"))))
    part = MemberCall("a", "old")
    with grpc.insecure_channel(f"127.0.0.1:{two.ports().grpc}") as channel:
        ask = channel.unary_unary("/inference.GRPCInferenceService/ModelMetadata")
        question = message("ModelMetadataRequest")(name=MODEL).SerializeToString()
        with pytest.raises(grpc.RpcError) as caught:
            ask(question, metadata=write_metadata(part))
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        ask(question, metadata=write_metadata(MemberCall("a", "new")))
