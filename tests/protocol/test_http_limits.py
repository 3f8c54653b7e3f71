"""What a client may cost: sizes, times, connections, unread answers; and what happens when it leaves."""

from __future__ import annotations

import asyncio
import gzip
import resource
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress

import numpy as np
import pytest

from support.front_ends import FrontEnds
from support.raw_http import INFER, RawClient, binary_infer, json_infer, request
from support.served_models import served_plane
from support.server import wait_until
from tessera_runtime.protocol.http_server import start_http
from tessera_runtime.protocol.limits import HttpLimits
from tessera_runtime.protocol.listen import PortTaken, listen_on

ECHO = "/v2/models/echo.FP32/infer"


@contextmanager
def serving(hold: bool = False, capacity: int = 256 << 20, **limits) -> Iterator[FrontEnds]:
    plane = served_plane(hold=hold, capacity=capacity)
    with FrontEnds(plane, HttpLimits(**limits), grpc=False) as front_ends:
        yield front_ends


def in_flight(front_ends: FrontEnds) -> None:
    """Wait until a request was handed over."""
    front_ends.run(front_ends.plane.submitted.wait())


def connected(front_ends: FrontEnds) -> None:
    """Wait until the one connection was accepted."""
    wait_until(lambda: front_ends.http.connections == 1, "the connection")


def refused(front_ends: FrontEnds) -> bool:
    """Whether the port is closed."""
    try:
        with RawClient(front_ends.http.port):
            return False
    except (ConnectionRefusedError, ConnectionResetError):  # reset: it was closed meanwhile
        return True


def finish(front_ends: FrontEnds) -> None:
    async def run_all() -> None:
        for ticket in front_ends.plane.held:
            ticket.run()

    front_ends.run(run_all())


def test_an_oversized_body_is_refused_before_it_is_read():
    with serving(max_body=1000) as front_ends, RawClient(front_ends.http.port) as raw:
        raw.send(request("POST", INFER, headers="Content-Length: 1001\r\n"))
        answer = raw.read()
        assert answer.status == 413
        assert "1001 bytes; allowed: 1000" in answer.json["error"]
        assert raw.ended()


def test_an_unknown_model_is_refused_before_the_body_is_read():
    with serving() as front_ends, RawClient(front_ends.http.port) as raw:
        path = "/v2/models/test.absent/infer"
        raw.send(request("POST", path, headers="Content-Length: 1000000\r\n"))
        assert raw.read().status == 404
        assert raw.ended()


def test_a_client_that_sends_an_oversized_body_anyway_still_reads_why():
    with serving(max_body=1000) as front_ends, RawClient(front_ends.http.port) as raw:
        raw.send(request("POST", INFER, bytes(8 << 20)))
        assert raw.read().status == 413


@pytest.mark.parametrize("path", [INFER, "/v2/repository/index"])
def test_an_oversized_chunked_body_is_refused(path):
    with (
        serving(max_body=20_000, max_head=1024) as front_ends,
        RawClient(front_ends.http.port) as raw,
    ):
        raw.send(request("POST", path, headers="Transfer-Encoding: chunked\r\n"))
        raw.send(b"2000\r\n" + bytes(0x2000) + b"\r\n2000\r\n" + bytes(0x2000))
        raw.send(b"\r\n2000\r\n" + bytes(0x2000))
        assert raw.read().status == 413


def test_a_compressed_body_may_not_inflate_beyond_its_limit():
    with serving(max_inflated=100_000) as front_ends, RawClient(front_ends.http.port) as raw:
        bomb = gzip.compress(bytes(10 << 20))
        raw.send(request("POST", INFER, bomb, "Content-Encoding: gzip\r\n"))
        answer = raw.read()
        assert answer.status == 413
        assert "inflates to more than the 100000 bytes" in answer.json["error"]


def test_a_full_arena_is_429_and_the_connection_lives():
    with serving(capacity=2000, hold=True) as front_ends, ExitStack() as stack:
        first, second = (stack.enter_context(RawClient(front_ends.http.port)) for _ in range(2))
        body, headers = binary_infer(np.zeros((1, 400), np.float32))
        first.send(request("POST", ECHO, body, headers))
        in_flight(front_ends)
        second.send(request("POST", ECHO, body, headers))
        answer = second.read()
        assert (answer.status, answer.headers["retry-after"]) == (429, "1")
        finish(front_ends)
        assert first.read().status == 200
        second.send(request("GET", "/v2/health/live"))
        assert second.read().status == 200


def test_a_slow_head_is_408():
    with serving(head_timeout_s=0.2) as front_ends, RawClient(front_ends.http.port) as raw:
        raw.send(b"POST /v2/mod")
        assert raw.read().status == 408
        assert raw.ended()


@pytest.mark.parametrize("framing", ["Content-Length: 500\r\n", "Transfer-Encoding: chunked\r\n"])
def test_a_slow_body_is_408_and_its_slot_is_freed(framing):
    with serving(body_timeout_s=0.2) as front_ends, RawClient(front_ends.http.port) as raw:
        start = b"64\r\n{" if "chunked" in framing else b"{"
        raw.send(request("POST", INFER, headers=framing), start)
        assert raw.read().status == 408
        assert raw.ended()
        front_ends.plane.assert_clean()


def test_an_idle_connection_is_closed_without_a_word():
    with serving(idle_timeout_s=0.2) as front_ends, RawClient(front_ends.http.port) as raw:
        raw.send(request("GET", "/v2"))
        assert raw.read().status == 200
        assert raw.ended()


def test_a_request_in_flight_is_not_an_idle_connection():
    with (
        serving(idle_timeout_s=0.05, hold=True) as front_ends,
        RawClient(front_ends.http.port) as raw,
        RawClient(front_ends.http.port) as idle,
    ):
        raw.send(request("POST", INFER, json_infer("kept")))
        in_flight(front_ends)
        assert idle.ended()
        finish(front_ends)
        assert raw.read().json["id"] == "kept"


def test_a_client_that_leaves_cancels_its_request():
    with serving(hold=True) as front_ends:
        with RawClient(front_ends.http.port) as raw:
            raw.send(request("POST", INFER, json_infer("gone")))
            in_flight(front_ends)
        front_ends.run(front_ends.plane.cancellation.wait())
        assert [call.id for call in front_ends.plane.cancelled] == ["gone"]
        finish(front_ends)


def test_a_client_that_leaves_in_its_body_frees_the_slot():
    with serving() as front_ends:
        with RawClient(front_ends.http.port) as raw:
            raw.send(request("POST", INFER, headers="Content-Length: 500\r\n"), b"{")
            wait_for_slots(front_ends, 1)
        wait_for_slots(front_ends, 0)


def wait_for_slots(front_ends: FrontEnds, count: int) -> None:
    while len(front_ends.plane.live_slots) != count:
        with RawClient(front_ends.http.port) as other:  # a round trip lets the server get on
            other.send(request("GET", "/v2/health/live"))
            other.read()


def test_a_client_that_never_reads_is_dropped():
    with (
        serving(body_timeout_s=0.2) as front_ends,
        RawClient(front_ends.http.port, receive_buffer=4096) as raw,
    ):
        body, headers = binary_infer(np.zeros((32, 200_000), np.float32))
        raw.send(request("POST", ECHO, body, headers))
        while front_ends.http.connections:
            with RawClient(front_ends.http.port) as other:
                other.send(request("GET", "/v2", headers="Connection: close\r\n"))
                other.read()
                other.ended()


def test_pipelining_without_reading_is_held_back():
    """Answers wait for the reader, and requests for the answers: nothing piles up in the server."""
    with serving() as front_ends, RawClient(front_ends.http.port, receive_buffer=4096) as raw:
        body, headers = binary_infer(np.zeros((1, 50_000), np.float32))
        whole = request("POST", ECHO, body, headers)
        raw.socket.setblocking(False)
        sent = 0
        try:
            while sent < 1000 * len(whole):
                sent += raw.socket.send(whole[sent % len(whole) :])
        except BlockingIOError:
            pass
        raw.socket.settimeout(20)
        assert sent < 1000 * len(whole)
        for _ in range(sent // len(whole)):
            assert raw.read().status == 200


@pytest.mark.parametrize("floats", [16, 20_000])
def test_what_waits_of_pipelined_requests_is_at_most_a_head_and_a_scratch_buffer(floats):
    """With 10,000 connections that is 200 MB; the rest stays with the clients."""
    with serving(hold=True) as front_ends, RawClient(front_ends.http.port) as raw:
        body, headers = binary_infer(np.zeros((1, floats), np.float32))
        whole = request("POST", ECHO, body, headers)
        raw.send(whole)
        in_flight(front_ends)
        raw.socket.setblocking(False)
        with suppress(BlockingIOError):
            while raw.socket.send(whole * 10):
                pass
        (connection,) = front_ends.http._hub.connections
        wait_until(lambda: not connection._transport.is_reading(), "the server to read no more")
        assert len(connection._pending) <= 20 << 10
        assert len(front_ends.plane.live_slots) == 1
        finish(front_ends)


def test_unread_answers_are_bounded_over_all_connections():
    limit = 40 << 20
    with serving(max_buffered_response=limit) as front_ends, ExitStack() as stack:
        body, headers = binary_infer(np.zeros((32, 200_000), np.float32))
        clients = []
        for _ in range(4):
            raw = stack.enter_context(RawClient(front_ends.http.port, receive_buffer=4096))
            raw.send(request("POST", ECHO, body, headers))
            clients.append(raw)
            assert raw.socket.recv(1) == b"H"
        outcomes = []
        for raw in clients:
            received = 1
            try:
                while received < len(body) and (data := raw.socket.recv(1 << 20)):
                    received += len(data)
            except ConnectionResetError:
                pass
            outcomes.append(received >= len(body))
        assert outcomes[0] is False
        assert outcomes[-1] is True


def test_connections_beyond_the_bound_are_told_so():
    with serving(max_connections=1) as front_ends:
        with RawClient(front_ends.http.port) as first, RawClient(front_ends.http.port) as second:
            first.send(request("GET", "/v2"))
            assert first.read().status == 200
            assert second.read().status == 503
            assert second.ended()
        with RawClient(front_ends.http.port):
            pass


def test_a_request_is_served_beside_thousands_of_idle_connections():
    idle = 2000
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = 2 * idle + 200
    if hard != resource.RLIM_INFINITY and hard < needed:
        pytest.skip(f"only {hard} open files allowed")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, needed), hard))
    try:
        with serving(idle_timeout_s=60) as front_ends, ExitStack() as stack:
            for _ in range(idle):
                stack.enter_context(RawClient(front_ends.http.port))
            raw = stack.enter_context(RawClient(front_ends.http.port))
            raw.send(request("POST", INFER, json_infer("busy")))
            assert raw.read().json["id"] == "busy"
            assert front_ends.http.connections == idle + 1
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_drain_answers_what_is_in_flight_and_closes():
    with (
        serving(hold=True) as front_ends,
        RawClient(front_ends.http.port) as busy,
        RawClient(front_ends.http.port) as idle,
    ):
        idle.send(request("GET", "/v2"))
        idle.read()
        busy.send(request("POST", INFER, json_infer("last")))
        in_flight(front_ends)

        async def drain() -> None:
            asyncio.get_running_loop().call_soon(front_ends.plane.held[0].run)
            await front_ends.http.drain(20)

        front_ends.run(drain())
        answer = busy.read()
        assert (answer.json["id"], answer.headers["connection"]) == ("last", "close")
        assert busy.ended()
        assert idle.ended()
        with pytest.raises(ConnectionRefusedError):
            RawClient(front_ends.http.port)


def test_the_first_request_of_a_connection_that_was_made_before_the_drain_is_answered():
    with serving() as front_ends, RawClient(front_ends.http.port) as raw:
        connected(front_ends)

        draining = front_ends.begin(front_ends.http.drain(20))
        wait_until(lambda: refused(front_ends), "the drain")
        raw.send(request("POST", INFER, json_infer("first")))
        answer = raw.read()
        assert (answer.json["id"], answer.headers["connection"]) == ("first", "close")
        assert raw.ended()
        draining.result(20)


def test_a_connection_that_never_asks_does_not_hold_up_the_drain():
    with (
        serving(idle_timeout_s=4000, head_timeout_s=0.04) as front_ends,
        RawClient(front_ends.http.port) as silent,
    ):
        connected(front_ends)
        front_ends.run(front_ends.http.drain(4000))
        assert silent.ended()


def test_drain_cuts_what_does_not_finish_in_time():
    with serving(hold=True) as front_ends, RawClient(front_ends.http.port) as raw:
        raw.send(request("POST", INFER, json_infer("never")))
        in_flight(front_ends)
        front_ends.run(front_ends.http.drain(0.05))
        assert raw.ended()
        assert [call.id for call in front_ends.plane.cancelled] == ["never"]


async def test_a_port_in_use_is_named():
    with listen_on("127.0.0.1", 0) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(PortTaken, match=f"port {port} of 127.0.0.1") as refused:
            await start_http(served_plane(), port=port)
        assert isinstance(refused.value, OSError)


async def test_a_given_socket_is_served():
    sock = listen_on("127.0.0.1", 0)
    server = await start_http(served_plane(), sock)
    assert server.port == sock.getsockname()[1]
    await server.close()
    await server.close()


def test_a_connection_has_room_for_a_tensor_and_tells_of_a_single_byte():
    with (
        listen_on("127.0.0.1", 0) as sock,
        RawClient(sock.getsockname()[1]) as raw,
        sock.accept()[0] as accepted,
    ):
        assert accepted.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF) >= 256 << 10
        assert accepted.getsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT) == 1
        raw.send(b"G")
        assert accepted.recv(10) == b"G"


def test_addresses_that_do_not_exist_are_named():
    with pytest.raises(PortTaken, match=r"port 1 of 203\.0\.113\.9"):
        listen_on("203.0.113.9", 1)


def test_connections_that_wait_to_be_accepted_when_a_drain_begins_are_answered():
    with serving() as front_ends, ExitStack() as stack:
        late: list[RawClient] = []

        async def drain() -> None:
            """The loop is busy until the drain has begun, so that nobody accepts."""
            for number in range(3):
                raw = stack.enter_context(RawClient(front_ends.http.port))
                raw.send(request("POST", INFER, json_infer(f"late {number}")))
                late.append(raw)
            await front_ends.http.drain(20)

        draining = front_ends.begin(drain())
        wait_until(lambda: len(late) == 3, "the late connections")
        for number, raw in enumerate(late):
            answer = raw.read()
            assert (answer.json["id"], answer.headers["connection"]) == (f"late {number}", "close")
            assert raw.ended()
        with pytest.raises(ConnectionRefusedError):
            RawClient(front_ends.http.port)
        draining.result(20)
