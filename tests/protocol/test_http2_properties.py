"""No bytes break a gRPC connection, and how they are split never matters."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from itertools import pairwise

import hypothesis.strategies as st
import pytest
from hpack import Encoder
from hypothesis import given, settings

from support.memory_http2 import converse, error_codes, frames_of
from support.raw_http2 import INFER, LIVE, call_fields, framed, identity_request
from support.served_models import served_plane
from tessera_runtime.protocol.http2 import frames
from tessera_runtime.protocol.http2.frames import Code
from tessera_runtime.protocol.messages import SERVICE

_CALM = settings(deadline=None, max_examples=200)
START = frames.PREFACE + frames.settings_frame({})


@pytest.fixture(scope="module")
def runner() -> Iterator[asyncio.Runner]:
    with asyncio.Runner() as made:
        yield made


def call(
    stream: int,
    path: str,
    body: bytes,
    padding: int | None,
    huffman: bool,
    lengths: Sequence[int] = (),
) -> bytes:
    """``lengths``: bytes of the first DATA frames; the last has what is left."""
    block = Encoder().encode(call_fields(path).items(), huffman=huffman)
    parts = [frames.frame(frames.HEADERS, frames.END_HEADERS, stream, block)]
    flags = 0
    for length in (*lengths, len(body)):
        piece, body = body[:length], body[length:]
        if not body and flags & frames.END_STREAM:
            break
        flags = 0 if body else frames.END_STREAM
        if padding is not None:
            flags |= frames.PADDED
            piece = bytes([padding]) + piece + bytes(padding)
        parts.append(frames.frame(frames.DATA, flags, stream, piece))
    return b"".join(parts)


bodies = st.sampled_from(
    [
        (INFER, framed(identity_request("a"))),
        (INFER, framed(b"\xff")),
        (INFER, framed(identity_request())[:-3]),
        (LIVE, framed(b"")),
        (f"/{SERVICE}/ModelStreamInfer", framed(identity_request("s")) * 5),
        ("/grpc.health.v1.Health/Check", framed(b"")),
        ("/none", b""),
    ]
)
calls = st.lists(
    st.tuples(bodies, st.none() | st.integers(0, 20), st.booleans()), min_size=1, max_size=4
)
cuts = st.lists(st.integers(0, 10_000), max_size=12)


def split(data: bytes, cuts: list[int]) -> list[bytes]:
    edges = [0, *sorted(cut % (len(data) + 1) for cut in cuts), len(data)]
    return [data[a:b] for a, b in pairwise(edges) if a < b]


def answers(sent: bytes) -> dict[int, bytes]:
    """The HEADERS and DATA of each stream; what is joined in a frame is no part of it."""
    found: dict[int, bytes] = {}
    for kind, flags, stream, payload in frames_of(sent):
        if kind in (frames.HEADERS, frames.DATA):
            found[stream] = found.get(stream, b"") + payload + bytes([flags & frames.END_STREAM])
    return found


@_CALM
@given(calls, st.lists(st.integers(0, 60), max_size=6), cuts)
def test_answers_do_not_depend_on_how_messages_and_frames_are_split(runner, several, lengths, cuts):
    def sent(lengths: Sequence[int]) -> bytes:
        return START + b"".join(
            call(2 * number + 1, path, body, padding, huffman, lengths)
            for number, ((path, body), padding, huffman) in enumerate(several)
        )

    expected = answers(runner.run(converse(served_plane(), [sent(())])))
    assert len(expected) == len(several)
    pieces = split(sent(lengths), cuts)
    assert answers(runner.run(converse(served_plane(), pieces))) == expected


@st.composite
def damaged(draw: st.DrawFn) -> bytes:
    """Valid calls with bytes replaced, removed, repeated or inserted."""
    data = b"".join(
        call(2 * number + 1, path, body, padding, huffman)
        for number, ((path, body), padding, huffman) in enumerate(draw(calls))
    )
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(data)))
        until = draw(st.integers(at, min(len(data), at + 40)))
        data = data[:at] + draw(st.binary(max_size=20)) + data[until:]
    return data


any_frames = st.lists(
    st.builds(
        frames.frame,
        st.integers(0, 11),
        st.integers(0, 255),
        st.sampled_from([0, 1, 2, 3, 5, 2**31 - 1]),
        st.binary(max_size=30),
    ),
    max_size=12,
).map(b"".join)


@settings(_CALM, max_examples=400)
@given(st.binary(max_size=400) | damaged() | any_frames, cuts, st.booleans())
def test_no_bytes_break_a_connection(runner, data, cuts, greeted):
    pieces = split(START + data if greeted else data, cuts)
    codes = error_codes(runner.run(converse(served_plane(), pieces)))
    assert Code.INTERNAL_ERROR not in codes
