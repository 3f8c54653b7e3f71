"""A gRPC connection without a socket: bytes in, bytes out, on whatever loop is running. For fuzzing."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

from support.function_plane import FunctionPlane
from support.memory_http import MemoryTransport
from tessera_runtime.protocol.grpc_server import make_hub
from tessera_runtime.protocol.http2 import frames
from tessera_runtime.protocol.http2.connection import Connection
from tessera_runtime.protocol.limits import GrpcLimits

SMALL = GrpcLimits(
    max_message=64 * 1024,
    max_inflated=64 * 1024,
    stream_window=64 * 1024,
    connection_window=128 * 1024,
    max_frame=16 * 1024,
    max_stream_requests=2,
    max_concurrent_rpcs=8,
    max_held=128 * 1024,
    max_buffered_response=256 * 1024,
)
_ROUNDS = 40
"""Rounds of the loop after the last byte."""


class _Transport(MemoryTransport):
    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        pass


async def converse(plane: FunctionPlane, pieces: Iterable[bytes]) -> bytes:
    """Send ``pieces`` one by one, let time pass, leave, and return what the server had said by then."""
    hub, service = make_hub(plane, SMALL)
    connection, transport = Connection(hub), _Transport()
    connection.connection_made(transport)
    for piece in pieces:
        at = 0
        while at < len(piece) and not transport.closing:
            buffer = connection.get_buffer(-1)
            part = piece[at : at + len(buffer)]
            buffer[: len(part)] = part
            connection.buffer_updated(len(part))
            at += len(part)
        await asyncio.sleep(0)
    for _ in range(_ROUNDS):
        await asyncio.sleep(0)
    hub.now += 1000.0
    connection.sweep(hub.now)
    connection.eof_received()
    connection.connection_lost(None)
    if service.tasks:
        await asyncio.wait(service.tasks)
    assert not hub.connections
    assert (hub.calls, hub.unsent, hub.held) == (0, 0, 0)
    plane.assert_clean()
    return bytes(transport.sent)


def frames_of(sent: bytes) -> list[tuple[int, int, int, bytes]]:
    """Kind, flags, stream and payload of each frame in ``sent``, which must be whole."""
    found, at = [], 0
    while at < len(sent):
        high, low, kind, flags, stream = frames.HEADER.unpack_from(sent, at)
        end = at + frames.HEADER_SIZE + (high << 8 | low)
        assert end <= len(sent)
        found.append((kind, flags, stream, sent[at + frames.HEADER_SIZE : end]))
        at = end
    return found


def error_codes(sent: bytes) -> list[int]:
    """Of every GOAWAY and RST_STREAM."""
    return [
        int.from_bytes(payload[-4:] if kind == frames.RST_STREAM else payload[4:8], "big")
        for kind, _, _, payload in frames_of(sent)
        if kind in (frames.RST_STREAM, frames.GOAWAY)
    ]
