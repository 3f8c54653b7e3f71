"""What a client of the gRPC port can make the server hold or do is bounded, and each bound is said as HTTP/2 has it."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest
from hpack.hpack import encode_integer

from support.front_ends import FrontEnds
from support.raw_http2 import (
    INFER,
    LIVE,
    RawHttp2,
    answer_id,
    call_fields,
    framed,
    identity_request,
)
from support.served_models import served_plane
from support.server import wait_until
from tessera_runtime.protocol.http2 import frames
from tessera_runtime.protocol.http2.budget import Budget
from tessera_runtime.protocol.http2.frames import Code, Setting
from tessera_runtime.protocol.limits import GrpcLimits
from tessera_runtime.protocol.messages import SERVICE, message

STREAM_INFER = f"/{SERVICE}/ModelStreamInfer"


@contextmanager
def serving(hold: bool = False, **limits) -> Iterator[tuple[FrontEnds, RawHttp2]]:
    with (
        FrontEnds(served_plane(hold=hold), grpc_limits=GrpcLimits(**limits)) as front_ends,
        RawHttp2(front_ends.grpc.port) as client,
    ):
        yield front_ends, client


def flood(client: RawHttp2, data: bytes, times: int) -> None:
    """Send as much of it as the server takes."""
    try:
        for _ in range(times):
            client.send(data)
    except (BrokenPipeError, ConnectionResetError):
        pass


def test_streams_over_the_allowed_number_are_refused():
    with serving(hold=True, max_concurrent_streams=2) as (front_ends, client):
        for number in (1, 3, 5):
            client.call(number, identity_request(str(number)))
        refused = client.expect(frames.RST_STREAM)
        assert (refused.stream, refused.code) == (5, Code.REFUSED_STREAM)
        assert len(front_ends.plane.held) == 2


def test_calls_over_all_connections_are_bounded():
    with (
        serving(hold=True, max_concurrent_rpcs=1) as (front_ends, client),
        RawHttp2(front_ends.grpc.port) as other,
    ):
        client.call(1, identity_request())
        client.barrier()
        other.call(1, identity_request())
        assert other.reply(1).status == 8


def test_rapid_resets_end_the_connection():
    with serving(hold=True, reset_burst=50, resets_per_s=0.0) as (front_ends, client):
        client.headers(1)
        block = client.encoder.encode(call_fields(INFER).items())
        whole = b"".join(
            frames.frame(frames.HEADERS, frames.END_HEADERS, number, block)
            + frames.reset(number, Code.CANCEL)
            for number in range(3, 2001, 2)
        )
        flood(client, whole, 1)
        end = client.goaway()
        assert end.code == Code.ENHANCE_YOUR_CALM
        assert end.last <= 2 * 52 + 1
        assert front_ends.grpc._hub.calls == 0


def test_a_client_that_cancels_half_of_its_calls_goes_on():
    with serving(reset_burst=20, resets_per_s=0.0) as (_, client):
        for turn in range(100):
            client.headers(4 * turn + 1)
            client.send(frames.reset(4 * turn + 1, Code.CANCEL))
            client.call(4 * turn + 3, identity_request())
            assert client.reply(4 * turn + 3).status == 0


FLOODS = {
    "ping acknowledgements": frames.frame(frames.PING, frames.ACK, 0, bytes(8)),
    "settings": frames.settings_frame({Setting.INITIAL_WINDOW_SIZE: 5}),
    "priority": frames.frame(frames.PRIORITY, 0, 1, bytes(5)),
    "unknown": frames.frame(200, 0, 0, b""),
    "window updates": frames.window_update(0, 1),
    "empty data": frames.frame(frames.DATA, 0, 1),
}


@pytest.mark.parametrize("case", FLOODS)
def test_frames_that_ask_for_nothing_are_bounded(case):
    with serving(frame_burst=100, frames_per_s=0.0) as (_, client):
        client.headers(1)
        flood(client, FLOODS[case] * 101, 1)
        assert client.goaway().code == Code.ENHANCE_YOUR_CALM


def test_pings_between_answers_are_bounded_and_others_are_not():
    with serving() as (_, client):
        for turn in range(10):
            client.barrier()
            client.call(2 * turn + 1, identity_request())
            client.reply(2 * turn + 1)
        flood(client, frames.frame(frames.PING, 0, 0, bytes(8)) * 10, 1)
        end = client.goaway()
        assert end.code == Code.ENHANCE_YOUR_CALM
        assert end.payload[8:] == b"too_many_pings"


def test_a_header_block_has_few_continuations():
    with serving() as (_, client):
        client.frame(frames.HEADERS, 0, 1, b"\x82")
        flood(client, frames.frame(frames.CONTINUATION, 0, 1), 100)
        assert client.goaway().code == Code.ENHANCE_YOUR_CALM


def test_a_header_block_has_few_bytes():
    with serving(max_headers=4096, max_continuations=100) as (_, client):
        client.frame(frames.HEADERS, 0, 1, b"\0\x01a\x7f\xff\xff\x03")
        flood(client, frames.frame(frames.CONTINUATION, 0, 1, bytes(1000)), 10)
        assert client.goaway().code == Code.ENHANCE_YOUR_CALM


def test_a_header_list_has_few_bytes_once_decoded():
    """A few bytes that refer to a long entry of the table again and again."""
    with serving() as (_, client):
        long = b"\x40\x01a" + bytes(encode_integer(3000, 7)) + b"v" * 3000
        client.frame(frames.HEADERS, frames.END_HEADERS, 1, long + b"\xbe" * 100)
        assert client.goaway().code == Code.ENHANCE_YOUR_CALM


def test_a_frame_that_is_not_data_is_short():
    with serving() as (_, client):
        client.frame(frames.PING, 0, 0, bytes(20_000))
        assert client.goaway().code == Code.FRAME_SIZE_ERROR


def test_a_data_frame_over_what_was_allowed_ends_the_connection():
    with serving(max_frame=16_384) as (_, client):
        block = client.encoder.encode(call_fields(INFER).items())
        data = framed(identity_request(rows=300))
        client.send(
            frames.frame(frames.HEADERS, frames.END_HEADERS, 1, block),
            frames.frame(frames.DATA, frames.END_STREAM, 1, data),
        )
        assert client.goaway().code == Code.FRAME_SIZE_ERROR


def test_a_client_that_ignores_a_streams_window_is_stopped():
    with serving(stream_window=70_000, hold=True) as (_, client):
        client.headers(1, STREAM_INFER)
        client.data(1, bytes(1) + (100).to_bytes(4, "big"), end=False)
        client.data(1, bytes(80_000), end=False)
        found = client.expect(frames.RST_STREAM)
        assert (found.stream, found.code) == (1, Code.FLOW_CONTROL_ERROR)


def test_an_oversized_message_is_refused_before_it_is_sent():
    with serving(max_message=1000) as (front_ends, client):
        client.headers(1)
        client.data(1, b"\0" + (2**31).to_bytes(4, "big"), end=False)
        assert client.reply(1).status == 8
        assert not front_ends.plane.calls


def test_a_large_message_of_another_method_is_refused():
    with serving() as (_, client):
        client.headers(1, LIVE)
        client.data(1, b"\0" + (100_000).to_bytes(4, "big"), end=False)
        assert client.reply(1).status == 8


@pytest.mark.parametrize(
    "sent",
    [
        b"",
        frames.PREFACE[:10],
        frames.PREFACE,
        frames.PREFACE + frames.settings_frame({}) + b"\0\0",
    ],
)
def test_a_connection_that_says_nothing_whole_is_ended(sent):
    with (
        FrontEnds(served_plane(), grpc_limits=GrpcLimits(head_timeout_s=0.2)) as front_ends,
        RawHttp2(front_ends.grpc.port, greet=False) as client,
    ):
        client.send(sent)
        assert client.goaway().code == Code.PROTOCOL_ERROR


def test_an_unfinished_header_block_is_ended():
    with serving(head_timeout_s=0.2) as (_, client):
        client.frame(frames.HEADERS, 0, 1, b"\x82")
        assert client.goaway().code == Code.PROTOCOL_ERROR


@pytest.mark.parametrize("body", [b"", framed(identity_request())[:20]])
def test_a_request_that_makes_no_progress_is_ended(body):
    with serving(stall_timeout_s=0.2) as (front_ends, client):
        client.headers(1)
        client.data(1, body, end=False)
        assert client.reply(1).status == 4
        assert not front_ends.plane.live_slots


def big_request(identifier: str = "") -> bytes:
    values = np.zeros((64, 16_384), np.float32)
    request = message("ModelInferRequest")(
        model_name="echo.FP32", id=identifier, raw_input_contents=[values.tobytes()]
    )
    request.inputs.add(name="INPUT0", datatype="FP32", shape=values.shape)
    return request.SerializeToString()


def send_big(client: RawHttp2, number: int) -> None:
    client.headers(number)
    data = framed(big_request())
    for at in range(0, len(data), 1 << 20):
        client.data(number, data[at : at + (1 << 20)], at + (1 << 20) >= len(data))


def test_a_stream_whose_window_stays_closed_is_reset():
    with serving(stall_timeout_s=0.3) as (front_ends, client):
        send_big(client, 1)
        found = client.expect(frames.RST_STREAM)
        assert (found.stream, found.code) == (1, Code.ENHANCE_YOUR_CALM)
        assert front_ends.grpc._hub.unsent == 0
        client.send(frames.window_update(0, 100_000))
        client.call(3, identity_request("other"))
        assert answer_id(client.reply(3)) == "other"


def test_windows_that_open_by_single_bytes_are_no_progress():
    with serving(stall_timeout_s=0.3) as (_, client):
        send_big(client, 1)
        client.send(frames.window_update(0, 1 << 20))
        while (found := client.read()) is not None and found.kind != frames.RST_STREAM:
            if found.kind == frames.DATA:
                client.send(frames.window_update(1, 1))
        assert found is not None
        assert found.code == Code.ENHANCE_YOUR_CALM


def test_a_client_that_never_reads_is_cut_off():
    limits = GrpcLimits(stall_timeout_s=0.3)
    with (
        FrontEnds(served_plane(), grpc_limits=limits) as front_ends,
        RawHttp2(front_ends.grpc.port, receive_buffer=4096) as client,
    ):
        client.send(frames.settings_frame({Setting.INITIAL_WINDOW_SIZE: 2**31 - 1}))
        client.send(frames.window_update(0, 2**30))
        for number in (1, 3, 5):
            send_big(client, number)
        wait_until(lambda: front_ends.grpc.connections == 0, "the end of the connection")
        assert front_ends.grpc._hub.unsent == 0


def test_a_client_that_reads_no_errors_is_read_no_further():
    with serving(max_unread=64 * 1024) as (front_ends, client):
        block = client.encoder.encode(call_fields("/none").items())
        flags = frames.END_HEADERS | frames.END_STREAM
        client.socket.settimeout(0.5)
        client.frame(frames.HEADERS, flags, 1, block)
        block = client.encoder.encode(call_fields("/none").items()) + b"\0\x01a\x78" + b"v" * 120
        calls = [frames.frame(frames.HEADERS, flags, one, block) for one in range(3, 500_000, 2)]
        client.barrier()
        (connection,) = front_ends.grpc._hub.connections
        transport = connection._transport
        transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)

        async def flood() -> None:
            """The loop is busy until the sockets are full: it finds at once all that they hold."""
            with pytest.raises(TimeoutError):
                client.send(*calls)

        front_ends.run(flood())
        wait_until(lambda: not transport.is_reading(), "the server to read no more")
        assert 0 < transport.get_write_buffer_size() < 6 * 64 * 1024


def test_unread_answers_are_bounded_over_all_connections():
    with serving(max_buffered_response=10 << 20) as (front_ends, client):
        try:
            for number in range(1, 13, 2):
                send_big(client, number)
        except (BrokenPipeError, ConnectionResetError):
            pass
        while client.read() is not None:
            pass
        wait_until(lambda: front_ends.grpc.connections == 0, "the end of the connection")
        assert front_ends.grpc._hub.unsent == 0


def test_held_requests_are_bounded_over_all_connections():
    with serving(hold=True, max_stream_requests=1, max_held=10_000) as (front_ends, client):
        client.headers(1, STREAM_INFER)
        client.data(1, framed(identity_request(rows=16)) * 40, end=False)
        assert client.reply(1).status == 8
        assert front_ends.grpc._hub.held == 0


def test_connections_are_bounded():
    with serving(max_connections=1) as (front_ends, client):
        client.barrier()
        with RawHttp2(front_ends.grpc.port, greet=False) as second:
            assert second.goaway().code == Code.ENHANCE_YOUR_CALM
        client.call(1, identity_request("first"))
        assert answer_id(client.reply(1)) == "first"


def test_a_silent_connection_is_pinged_and_a_dead_one_ended():
    with serving(keepalive_time_s=0.2, keepalive_timeout_s=0.4) as (front_ends, client):
        for _ in range(2):
            found = client.expect(frames.PING)
            assert not found.flags & frames.ACK
            client.frame(frames.PING, frames.ACK, 0, found.payload)
        client.expect(frames.PING)  # and no answer to this one
        wait_until(lambda: front_ends.grpc.connections == 0, "the end of the connection")


def test_a_connection_that_waits_to_be_accepted_when_a_server_drains_is_answered():
    with serving() as (front_ends, client):
        client.barrier()
        late: list[RawHttp2] = []

        async def drain() -> None:
            """The loop is busy until the drain has begun, so that nobody accepts."""
            other = RawHttp2(front_ends.grpc.port)
            other.call(1, identity_request("late"))
            late.append(other)
            await front_ends.grpc.drain(20)

        draining = front_ends.begin(drain())
        wait_until(lambda: late, "the late connection")
        with late[0] as other:
            assert answer_id(other.reply(1)) == "late"
            other.frame(frames.PING, frames.ACK, 0, other.pings.pop().payload)
            assert other.goaway().last == 1
        client.socket.shutdown(socket.SHUT_WR)
        draining.result(20)


def test_calls_on_their_way_when_a_server_drains_are_answered():
    """Two GOAWAYs: what is sent before the first one is read is answered, however late it comes."""
    with serving() as (front_ends, client):
        client.barrier()

        async def drain() -> None:
            front_ends.draining = front_ends._loop.create_task(front_ends.grpc.drain(20))

        front_ends.run(drain())
        first = client.expect(frames.GOAWAY)
        assert (first.last, first.code) == (frames.MAX_STREAM, Code.NO_ERROR)
        client.call(1, identity_request("late"))
        assert answer_id(client.reply(1)) == "late"
        ping = client.pings.pop()
        client.frame(frames.PING, frames.ACK, 0, ping.payload)
        final = client.goaway()
        assert (final.last, final.code) == (1, Code.NO_ERROR)
        client.socket.shutdown(socket.SHUT_WR)

        async def drained() -> None:
            await front_ends.draining

        front_ends.run(drained())


def test_an_old_connection_ends_after_its_grace():
    with serving(
        hold=True,
        max_connection_age_s=0.1,
        max_connection_age_grace_s=0.3,
        keepalive_timeout_s=0.1,
    ) as (front_ends, client):
        client.call(1, identity_request("slow"))
        assert client.expect(frames.GOAWAY).last == frames.MAX_STREAM
        assert client.expect(frames.GOAWAY).last == 1  # it does not acknowledge the PING
        wait_until(lambda: len(front_ends.plane.cancelled) == 1, "the call cut off")


def test_descriptors_and_slots_do_not_leak():
    with serving() as (front_ends, client):
        client.barrier()
        before = len(os.listdir("/proc/self/fd"))
        for _ in range(200):
            with RawHttp2(front_ends.grpc.port) as other:
                other.headers(1)
                other.data(1, framed(identity_request())[:40], end=False)
        wait_until(lambda: front_ends.grpc.connections == 1, "the end of the connections")
        assert len(os.listdir("/proc/self/fd")) <= before
        assert front_ends.grpc._hub.calls == 0


def test_a_budget_lets_bursts_through_and_refills():
    budget = Budget(burst=3, rate=10.0, now=0.0)
    assert [budget.spend(0.0) for _ in range(4)] == [True, True, True, False]
    assert [budget.spend(0.25) for _ in range(2)] == [True, False]
    budget = Budget(burst=3, rate=0.0, now=0.0)
    for _ in range(100):
        budget.earn(1)
        assert budget.spend(0.0)
    assert [budget.spend(0.0) for _ in range(3)] == [True, True, False]
