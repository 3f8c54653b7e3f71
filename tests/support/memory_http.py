"""An HTTP connection without a socket: bytes in, bytes out, on whatever loop is running. For fuzzing."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

from support.function_plane import FunctionPlane
from tessera_runtime.protocol.http1 import HttpConnection
from tessera_runtime.protocol.hub import Hub
from tessera_runtime.protocol.limits import HttpLimits

SMALL = HttpLimits(max_head=2048, max_body=64 * 1024, max_inflated=64 * 1024)

_ROUNDS = 40
"""Rounds of the loop after the last byte: each answers one request at least."""


class MemoryTransport(asyncio.Transport):
    def __init__(self) -> None:
        super().__init__()
        self.sent = bytearray()
        self.closing = False
        self.readable = asyncio.Event()
        self.readable.set()

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.sent += data

    def writelines(self, parts: Iterable[bytes | bytearray | memoryview]) -> None:
        for part in parts:
            self.write(part)

    def is_closing(self) -> bool:
        return self.closing

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None:
        pass

    def close(self) -> None:
        self.closing = True
        self.readable.set()

    def abort(self) -> None:
        self.close()

    def get_write_buffer_size(self) -> int:
        return 0

    def pause_reading(self) -> None:
        assert self.readable.is_set()
        self.readable.clear()

    def resume_reading(self) -> None:
        assert not self.reading
        self.readable = asyncio.Event()
        self.readable.set()


async def converse(plane: FunctionPlane, pieces: Iterable[bytes]) -> bytes:
    """Send ``pieces`` one by one, leave, and return what the server had answered by then."""
    hub = Hub(plane, SMALL, 0.0, memoryview(bytearray(SMALL.max_head)))
    connection, transport = HttpConnection(hub), MemoryTransport()
    connection.connection_made(transport)
    for piece in pieces:
        at = 0
        while at < len(piece) and not transport.closing:
            await transport.readable.wait()
            if transport.closing:
                break
            buffer = connection.get_buffer(-1)
            part = piece[at : at + len(buffer)]
            buffer[: len(part)] = part
            connection.buffer_updated(len(part))
            at += len(part)
    for _ in range(_ROUNDS):
        await asyncio.sleep(0)
    connection.eof_received()
    connection.connection_lost(None)
    assert not hub.connections
    plane.assert_clean()
    return bytes(transport.sent)


def statuses(sent: bytes) -> list[int]:
    """The status of each answer in ``sent``, which must be whole and well-formed."""
    found = []
    while sent:
        head, blank, sent = sent.partition(b"\r\n\r\n")
        assert blank
        line, *fields = head.decode().split("\r\n")
        version, code, _ = line.split(" ", 2)
        assert version == "HTTP/1.1"
        headers = {name.lower(): value for name, _, value in (f.partition(": ") for f in fields)}
        size = int(headers.get("content-length", 0))
        found.append(int(code))
        if sent.startswith((b"{", b"[")):  # else it was an answer to HEAD; bodies begin with JSON
            assert len(sent) >= size
            sent = sent[size:]
    return found
