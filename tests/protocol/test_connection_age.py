"""Connections do not last for ever: what balances connections does not balance requests."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import grpc

from support.front_ends import FrontEnds
from support.raw_http import RawClient, request
from support.raw_http2 import identity_request
from support.served_models import served_plane
from support.server import wait_until
from tessera_runtime.protocol.limits import GrpcLimits, HttpLimits
from tessera_runtime.protocol.messages import SERVICE

PATIENCE_S = 30.0
LIVE = request("GET", "/v2/health/live")


def closes(raw: RawClient) -> bool:
    """Whether the answer to one more request ends the connection."""
    raw.send(LIVE)
    answer = raw.read()
    assert answer.status == 200
    return answer.headers.get("connection") == "close"


def test_an_old_http_connection_ends_with_an_answer():
    with (
        FrontEnds(served_plane(), HttpLimits(max_connection_age_s=0.05), grpc=False) as front_ends,
        RawClient(front_ends.http.port) as raw,
    ):
        wait_until(lambda: closes(raw), "an answer that closes")
        assert raw.ended()


def test_a_young_http_connection_is_kept():
    with (
        FrontEnds(served_plane(), grpc=False) as front_ends,
        RawClient(front_ends.http.port) as raw,
    ):
        assert not any(closes(raw) for _ in range(20))


def test_a_server_that_lets_go_answers_old_and_new_connections_once_more():
    with (
        FrontEnds(served_plane(), grpc=False) as front_ends,
        RawClient(front_ends.http.port) as old,
    ):
        assert not closes(old)

        async def let_go() -> None:
            front_ends.http.let_go()

        front_ends.run(let_go())
        with RawClient(front_ends.http.port) as new:
            assert closes(new)
            assert new.ended()
        assert closes(old)
        assert old.ended()


def test_an_old_grpc_connection_is_told_to_go_away_and_no_call_fails():
    limits = GrpcLimits(max_connection_age_s=0.2, max_connection_age_grace_s=PATIENCE_S)
    with FrontEnds(served_plane(), grpc_limits=limits) as front_ends:
        left = threading.Event()

        def note(state: grpc.ChannelConnectivity) -> None:
            if state is grpc.ChannelConnectivity.IDLE and connected.is_set():
                left.set()
            elif state is grpc.ChannelConnectivity.READY:
                connected.set()

        connected = threading.Event()
        with grpc.insecure_channel(front_ends.grpc_url) as channel:
            channel.subscribe(note)
            live = channel.unary_unary(f"/{SERVICE}/ServerLive")
            live(b"", timeout=PATIENCE_S)
            assert connected.wait(PATIENCE_S)
            assert left.wait(PATIENCE_S), "the connection was closed"
            for _ in range(5):
                live(b"", timeout=PATIENCE_S)


def test_no_call_is_lost_while_connections_come_and_go():
    """Clients that never pause: some of their calls are on their way whenever a connection ends."""
    limits = GrpcLimits(max_connection_age_s=0.1, max_connection_age_grace_s=PATIENCE_S)
    plane = served_plane()
    plane.keep_calls = False
    with FrontEnds(plane, grpc_limits=limits) as front_ends:

        def client(_: int) -> int:
            options = [("grpc.use_local_subchannel_pool", 1)]
            with grpc.insecure_channel(front_ends.grpc_url, options) as channel:
                infer = channel.unary_unary(f"/{SERVICE}/ModelInfer")
                request = identity_request()
                return sum(len(infer(request, timeout=PATIENCE_S)) > 0 for _ in range(400))

        with ThreadPoolExecutor(8) as threads:
            assert list(threads.map(client, range(8))) == [400] * 8


def test_connections_age_unless_told_otherwise():
    assert 0 < HttpLimits().max_connection_age_s < 3600
    assert 0 < GrpcLimits().max_connection_age_s < 3600
