"""gRPC over raw HTTP/2 frames: what clients other than grpcio may send, and what they get."""

from __future__ import annotations

import zlib
from collections.abc import Iterator

import numpy as np
import pytest

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
from tessera_runtime.protocol.http2.frames import Code, Setting
from tessera_runtime.protocol.limits import GrpcLimits
from tessera_runtime.protocol.messages import SERVICE, ModelInferResponse, message

STREAM_INFER = f"/{SERVICE}/ModelStreamInfer"


@pytest.fixture
def client(served: FrontEnds) -> Iterator[RawHttp2]:
    with RawHttp2(served.grpc.port) as connected:
        yield connected


def echo_request(request_id: str, values: np.ndarray) -> bytes:
    """A gRPC message."""
    request = message("ModelInferRequest")(
        model_name="echo.FP32", id=request_id, raw_input_contents=[values.tobytes()]
    )
    request.inputs.add(name="INPUT0", datatype="FP32", shape=values.shape)
    return framed(request.SerializeToString())


def echoed(answer: ModelInferResponse) -> np.ndarray:
    return np.frombuffer(answer.raw_output_contents[0], np.float32)


def test_a_call_is_answered_with_headers_data_and_trailers(client):
    client.call(1, identity_request("one"))
    reply = client.reply(1)
    assert reply.headers[":status"] == "200"
    assert reply.headers["content-type"] == "application/grpc"
    assert answer_id(reply) == "one"


def test_many_calls_share_a_connection_and_one_write(client):
    encode = client.encoder.encode
    whole = b""
    for number in range(200):
        block = encode(call_fields(INFER).items())
        data = framed(identity_request(str(number)))
        whole += frames.frame(frames.HEADERS, frames.END_HEADERS, 2 * number + 1, block)
        whole += frames.frame(frames.DATA, frames.END_STREAM, 2 * number + 1, data)
    client.send(whole)
    for number in reversed(range(200)):
        assert answer_id(client.reply(2 * number + 1)) == str(number)


@pytest.mark.parametrize("padding", [None, 0, 7])
def test_how_bytes_are_split_does_not_matter(client, padding):
    block = client.encoder.encode(call_fields(INFER).items())
    whole = frames.frame(frames.HEADERS, frames.END_HEADERS, 1, block)
    flags, data = frames.END_STREAM, framed(identity_request("split"))
    if padding is not None:
        flags |= frames.PADDED
        data = bytes([padding]) + data + bytes(padding)
    whole += frames.frame(frames.DATA, flags, 1, data)
    for at in range(len(whole)):
        client.send(whole[at : at + 1])
    assert answer_id(client.reply(1)) == "split"


def test_a_message_in_many_padded_frames(client):
    client.headers(1)
    data = framed(identity_request("padded", rows=4))
    for at in range(len(data)):
        flags = frames.PADDED | (frames.END_STREAM if at == len(data) - 1 else 0)
        client.frame(frames.DATA, flags, 1, b"\x05" + data[at : at + 1] + bytes(5))
    assert answer_id(client.reply(1)) == "padded"


@pytest.mark.parametrize("empty_end", [False, True])
def test_tensors_cut_into_frames_that_alternate(client, served, empty_end):
    """Each is copied once at most, into its own place."""
    generator = np.random.default_rng(0)
    tensors = {n: generator.standard_normal((1, 11_000), np.float32) for n in (1, 3)}
    data = {number: echo_request(str(number), values) for number, values in tensors.items()}
    before, whole = served.grpc.copied, b""
    for number in tensors:
        block = client.encoder.encode(call_fields(INFER).items())
        whole += frames.frame(frames.HEADERS, frames.END_HEADERS, number, block)
    for at in range(0, len(data[1]), 16_384):
        for number, body in data.items():
            end = at + 16_384 >= len(body) and not empty_end
            whole += frames.frame(frames.DATA, int(end), number, body[at : at + 16_384])
    if empty_end:
        for number in tensors:
            whole += frames.frame(frames.DATA, frames.END_STREAM, number)
    client.send(frames.window_update(0, 2**20), whole)
    for number, values in tensors.items():
        answer = ModelInferResponse.FromString(client.reply(number).message)
        assert answer.id == str(number)
        np.testing.assert_array_equal(echoed(answer), values.ravel())
    assert served.grpc.copied - before <= sum(map(len, data.values()))


def test_a_message_in_one_frame_is_copied_once(client, served):
    data = echo_request("one", np.ones((1, 5_000), np.float32))
    before = served.grpc.copied
    block = client.encoder.encode(call_fields(INFER).items())
    client.send(
        frames.frame(frames.HEADERS, frames.END_HEADERS, 1, block),
        frames.frame(frames.DATA, frames.END_STREAM, 1, data),
    )
    assert answer_id(client.reply(1)) == "one"
    assert served.grpc.copied - before <= len(data)


def test_headers_in_continuations_with_padding_and_priority(client):
    block = client.encoder.encode(call_fields(INFER).items())
    payload = b"\x03" + (0).to_bytes(4, "big") + b"\x10" + block[:7] + bytes(3)
    client.frame(frames.HEADERS, frames.PADDED | frames.PRIORITISED, 1, payload)
    client.frame(frames.CONTINUATION, 0, 1, block[7:20])
    client.frame(frames.CONTINUATION, frames.END_HEADERS, 1, block[20:])
    client.data(1, framed(identity_request("continued")))
    assert answer_id(client.reply(1)) == "continued"


def test_a_client_may_end_with_trailers_or_an_empty_frame(client):
    client.headers(1)
    client.data(1, framed(identity_request("trailers")), end=False)
    flags = frames.END_HEADERS | frames.END_STREAM
    client.frame(frames.HEADERS, flags, 1, client.encoder.encode([("checksum", "1")]))
    assert answer_id(client.reply(1)) == "trailers"
    client.headers(3)
    client.data(3, framed(identity_request("empty")), end=False)
    client.data(3, b"")
    assert answer_id(client.reply(3)) == "empty"


@pytest.mark.parametrize("huffman", [True, False])
def test_headers_keep_their_meaning_while_the_table_changes(client, served, huffman):
    """Every block is sent again after entries were added, evicted, and the table was resized."""
    number = 1
    for turn in range(12):
        if turn == 5:
            client.encoder.header_table_size = 0
        elif turn == 6:
            client.encoder.header_table_size = 200
        elif turn == 9:
            client.encoder.header_table_size = 4096
        for value in (f"{turn:02}" * 16, "ab" * 16):
            traceparent = f"00-{value}-{'b' * 16}-01"
            for _ in range(2):
                fields = call_fields(INFER) | {"traceparent": traceparent, "own": "x" * 20 * turn}
                block = client.encoder.encode(fields.items(), huffman=huffman)
                client.frame(frames.HEADERS, frames.END_HEADERS, number, block)
                client.data(number, framed(identity_request()))
                assert client.reply(number).status == 0
                assert served.plane.calls[-1].traceparent == traceparent
                number += 2


def test_a_block_that_indexes_nothing_is_known_until_the_table_changes(client, served):
    """The same bytes name another entry once the table has moved on."""

    def call(number: int, block: bytes) -> str:
        client.frame(frames.HEADERS, frames.END_HEADERS, number, block)
        client.data(number, framed(identity_request()))
        assert client.reply(number).status == 0
        return served.plane.calls[-1].traceparent

    first, second = (f"00-{digit * 32}-{'b' * 16}-01" for digit in "12")
    fixed = b"".join(
        b"\0" + bytes([len(n)]) + n.encode() + bytes([len(v)]) + v.encode()
        for n, v in call_fields(INFER).items()
    )

    def indexed(value: str) -> bytes:
        return b"\x40\x0btraceparent" + bytes([len(value)]) + value.encode()

    newest = b"\xbe"  # the first entry of the dynamic table
    assert call(1, fixed + indexed(first)) == first
    assert call(3, fixed + newest) == first
    assert call(5, fixed + newest) == first
    assert call(7, fixed + indexed(second)) == second
    assert call(9, fixed + newest) == second


def test_sixteen_mib_both_ways(served):
    values = np.random.default_rng(0).standard_normal((64, 65_536), np.float32)
    data = echo_request("big", values)
    with RawHttp2(served.grpc.port) as client:
        client.send(frames.settings_frame({Setting.INITIAL_WINDOW_SIZE: 2**30}))
        client.send(frames.window_update(0, 2**30))
        client.headers(1)
        limit = served.grpc._hub.limits
        client.data(1, data[:1000], end=False)
        assert client.expect(frames.WINDOW_UPDATE).stream == 0  # the connection's
        credit = int.from_bytes(client.expect(frames.WINDOW_UPDATE).payload, "big")
        assert credit + limit.stream_window >= len(data), "the whole message is let in at once"
        for at in range(1000, len(data), limit.max_frame):
            client.data(1, data[at : at + limit.max_frame], at + limit.max_frame >= len(data))
        answer = ModelInferResponse.FromString(client.reply(1).message)
    np.testing.assert_array_equal(echoed(answer), values.ravel())


def test_a_small_window_is_kept_to(client):
    """Answers wait for the client's windows, and go on in turns."""
    client.send(frames.settings_frame({Setting.INITIAL_WINDOW_SIZE: 10}))
    client.barrier()
    for number in (1, 3):
        client.call(number, identity_request(str(number), rows=2))
    for _ in range(2):
        first = client.expect(frames.DATA)
        assert len(first.payload) == 10
    client.barrier()
    client.send(frames.settings_frame({Setting.INITIAL_WINDOW_SIZE: 15}))
    for _ in range(2):
        assert len(client.expect(frames.DATA).payload) == 5
    client.send(frames.window_update(3, 10_000))
    assert answer_id(client.reply(3)) == "3"
    client.send(frames.window_update(1, 10_000))
    assert answer_id(client.reply(1)) == "1"


def test_the_connections_window_is_kept_to(client):
    client.send(frames.settings_frame({Setting.INITIAL_WINDOW_SIZE: 2**24}))
    request = identity_request("wide", rows=64)
    size = len(ModelInferResponse.FromString(_answer(client, 1, request)).SerializeToString()) + 5
    left = frames.DEFAULT_WINDOW - size
    number = 3
    while left >= size:
        _answer(client, number, request)
        left -= size
        number += 2
    client.call(number, request)
    if left:
        assert len(client.expect(frames.DATA).payload) == left
    client.barrier()
    client.send(frames.window_update(0, size))
    assert answer_id(client.reply(number)) == "wide"


def _answer(client: RawHttp2, number: int, request: bytes) -> bytes:
    client.call(number, request)
    return client.reply(number).message


def test_a_window_may_become_negative(client):
    client.call(1, identity_request("first"))
    client.reply(1)
    client.send(frames.settings_frame({Setting.INITIAL_WINDOW_SIZE: 50}))
    client.call(3, identity_request("second"))
    assert len(client.expect(frames.DATA).payload) == 50
    client.send(frames.settings_frame({Setting.INITIAL_WINDOW_SIZE: 0}))
    client.send(frames.window_update(3, 40))
    client.barrier()
    client.send(frames.window_update(3, 1000))
    assert answer_id(client.reply(3)) == "second"


@pytest.mark.parametrize("coding", ["gzip", "deflate"])
def test_compressed_messages(client, coding):
    deflated = zlib.compressobj(9, zlib.DEFLATED, 31 if coding == "gzip" else 15)
    data = deflated.compress(identity_request("small", rows=8)) + deflated.flush()
    client.headers(1, grpc_encoding=coding)
    client.data(1, framed(data, compressed=1))
    assert answer_id(client.reply(1)) == "small"


def test_a_compression_bomb_is_refused():
    bomb = zlib.compress(bytes(3_000_000))
    with (
        FrontEnds(served_plane(), grpc_limits=GrpcLimits(max_inflated=1_000_000)) as front_ends,
        RawHttp2(front_ends.grpc.port) as client,
    ):
        client.headers(1, grpc_encoding="deflate")
        client.data(1, framed(bomb, compressed=1))
        assert client.reply(1).status == 8


REFUSED = {
    "no such method": ({":path": f"/{SERVICE}/Nothing"}, 12, "no method"),
    "no te": ({"te": None}, 13, "te: missing"),
    "unknown encoding": ({"grpc-encoding": "snappy"}, 12, "allowed: identity, gzip, deflate"),
    "bad timeout": ({"grpc-timeout": "soon"}, 13, "grpc-timeout"),
    "bad member call": ({"tessera-member": "a", "tessera-slo-ms": "x"}, 3, "tessera-slo-ms"),
    "json": ({"content-type": "application/grpc+json"}, 13, "protobuf"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_call_is_refused_before_its_body_is_taken(client, served, case):
    changes, status, text = REFUSED[case]
    fields = {n: v for n, v in (call_fields(INFER) | changes).items() if v is not None}
    client.frame(frames.HEADERS, frames.END_HEADERS, 1, client.encoder.encode(fields.items()))
    reply = client.reply(1)
    assert reply.status == status
    assert text in reply.headers["grpc-message"]
    assert client.expect(frames.RST_STREAM).code == Code.NO_ERROR
    client.data(1, bytes(10_000))  # on its way when the call was refused
    client.call(3, identity_request("next"))
    assert answer_id(client.reply(3)) == "next"
    assert len(served.plane.calls) == 1


@pytest.mark.parametrize(
    ("changes", "status"), [({"content-type": "text/html"}, "415"), ({":method": "GET"}, "405")]
)
def test_other_clients_are_told_what_is_spoken_here(client, changes, status):
    fields = call_fields(INFER) | changes
    flags = frames.END_HEADERS | frames.END_STREAM
    client.frame(frames.HEADERS, flags, 1, client.encoder.encode(fields.items()))
    reply = client.reply(1)
    assert reply.headers[":status"] == status
    assert b"gRPC" in reply.data


def test_an_error_message_is_percent_encoded(client):
    request = message("ModelInferRequest")(model_name="größe%\n")
    client.call(1, request.SerializeToString())
    reply = client.reply(1)
    assert "inputs: empty" in reply.headers["grpc-message"] or reply.status == 5
    assert reply.headers["grpc-message"].isascii()
    assert "\n" not in reply.headers["grpc-message"]


BAD_BODIES = {
    "no message": (b"", 3),
    "a cut prefix": (b"\0\0", 3),
    "a cut message": (framed(bytes(10))[:-1], 3),
    "two messages": (framed(identity_request()) * 2, 3),
    "compressed without an encoding": (framed(identity_request(), 1), 13),
}


@pytest.mark.parametrize("case", BAD_BODIES)
def test_bad_bodies_end_the_call_and_not_the_connection(client, case):
    body, status = BAD_BODIES[case]
    client.headers(1)
    client.data(1, body)
    assert client.reply(1).status == status
    client.call(3, identity_request("next"))
    assert answer_id(client.reply(3)) == "next"


def test_a_reset_cancels_the_request_and_a_lost_connection_all_of_them():
    with FrontEnds(served_plane(hold=True)) as front_ends:
        plane = front_ends.plane
        with RawHttp2(front_ends.grpc.port) as client:
            for number in (1, 3, 5):
                client.call(number, identity_request(str(number)))
            client.send(frames.reset(3, Code.CANCEL))
            client.barrier()
            assert [call.id for call in plane.cancelled] == ["3"]
        wait_until(lambda: len(plane.cancelled) == 3, "the other two cancelled")


def test_a_reset_in_the_middle_of_a_message_gives_its_place_back(client, served):
    client.headers(1)
    client.data(1, framed(identity_request(rows=64))[:-100], end=False)
    client.barrier()
    assert served.plane.live_slots
    client.send(frames.reset(1, Code.CANCEL))
    client.barrier()
    assert not served.plane.live_slots


def test_a_deadline_is_kept_for_clients_that_do_not_keep_it():
    limits = GrpcLimits(keepalive_timeout_s=0.2)  # sweeps come soon
    with (
        FrontEnds(served_plane(hold=True), grpc_limits=limits) as front_ends,
        RawHttp2(front_ends.grpc.port) as client,
    ):
        client.call(1, identity_request(), grpc_timeout="50m")
        assert client.reply(1).status == 4
        assert len(front_ends.plane.cancelled) == 1


def test_a_stream_is_not_read_beyond_its_unanswered_requests():
    with (
        FrontEnds(
            served_plane(hold=True), grpc_limits=GrpcLimits(max_stream_requests=2)
        ) as front_ends,
        RawHttp2(front_ends.grpc.port) as client,
    ):
        plane = front_ends.plane
        client.headers(1, STREAM_INFER)
        client.data(1, b"".join(framed(identity_request(str(i))) for i in range(6)))
        client.barrier()
        assert [ticket.call.id for ticket in plane.held] == ["0", "1"]

        async def finish(count: int) -> None:
            for ticket in [one for one in plane.held if not one.finished][:count]:
                ticket.run()

        front_ends.run(finish(1))
        wait_until(lambda: len(plane.held) == 3, "the third request")
        for _ in range(5):
            front_ends.run(finish(2))
        reply = client.reply(1)
        assert reply.status == 0
        assert len(plane.calls) == 6
        assert front_ends.grpc._hub.held == 0


def test_many_bad_messages_in_a_stream_are_each_answered(client):
    client.headers(1, STREAM_INFER)
    client.send(frames.window_update(0, 2**24), frames.window_update(1, 2**24))
    client.data(1, framed(b"\xff") * 5000)
    reply = client.reply(1)
    assert reply.status == 0
    assert reply.data.count(b"not a valid ModelInferRequest") == 5000


def test_calls_of_other_methods(client):
    client.call(1, b"", LIVE)
    assert message("ServerLiveResponse").FromString(client.reply(1).message).live
    client.call(3, b"\xff", LIVE)
    assert client.reply(3).status == 3
