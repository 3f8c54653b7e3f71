"""Unary gRPC calls of one method over HTTP/2, as a load generator needs them: prepared bytes in, bytes out.

Problem: grpcio costs its caller about as much per call as it costs a server (100-190 µs), so a client on it
measures itself.

Approach: the subset of RFC 9113 that unary calls need. The request's header block is the same bytes every
time, made of static-table entries and literals without indexing (RFC 7541, 6.1 and 6.2.2). The server is told
to keep no dynamic table (SETTINGS_HEADER_TABLE_SIZE 0), so its trailers hold ``grpc-status`` as a literal
that can be found without a decoder; a server that Huffman-codes it is answered with UNREADABLE. Windows for
answers are opened wide once; the server's windows are respected.
"""

from __future__ import annotations

import asyncio
import re
import struct
from collections import deque
from dataclasses import dataclass, field
from typing import cast

from tessera_cli.loadgen.connection import Answered, Changed
from tessera_cli.loadgen.status import DISCONNECTED, GRPC, RESET

_DATA, _HEADERS, _RESET, _SETTINGS, _PING, _GOAWAY, _WINDOW, _CONTINUATION = 0, 1, 3, 4, 6, 7, 8, 9
_END_STREAM, _ACK, _END_HEADERS, _PADDED, _PRIORITY = 1, 1, 4, 8, 0x20
_MAX_STREAMS, _INITIAL_WINDOW, _MAX_FRAME = 3, 4, 5
_FRAME = struct.Struct(">HBBBI")  # length (16 high bits, 8 low bits), type, flags, stream
_SETTING = struct.Struct(">HI")
_WORD = struct.Struct(">I")

_WIDE = 2**30
"""Bytes that the server may send ahead, per connection and per stream."""
_REFILL = 2**24
_LAST_STREAM = 2**31 - 1
_MOST_STREAMS = 1024
"""Own bound, where the server states none."""

_STATUS = re.compile(rb"grpc-status[\x01\x02](\d{1,2})")
UNREADABLE = GRPC + 99
"""The trailers do not hold a readable status."""


def _frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    size = len(payload)
    return _FRAME.pack(size >> 8, size & 0xFF, kind, flags, stream) + payload


def _literal(text: str) -> bytes:
    assert len(text) < 127, "one length byte is enough for what is sent here"
    return bytes([len(text)]) + text.encode()


def request_headers(method: str, authority: str) -> bytes:
    """The header block of every call of ``method`` (``/package.Service/Method``)."""
    return b"".join(
        (
            b"\x83\x86",  # :method POST, :scheme http
            b"\x04" + _literal(method),  # :path
            b"\x01" + _literal(authority),  # :authority
            b"\x0f\x10" + _literal("application/grpc"),  # content-type
            b"\x00" + _literal("te") + _literal("trailers"),
        )
    )


_HELLO = (
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
    + _frame(
        _SETTINGS,
        0,
        0,
        # No dynamic table, no push, wide windows.
        _SETTING.pack(1, 0) + _SETTING.pack(2, 0) + _SETTING.pack(_INITIAL_WINDOW, _WIDE),
    )
    + _frame(_WINDOW, 0, 0, _WORD.pack(_WIDE))
)


@dataclass(slots=True)
class _Call:
    number: int
    window: int
    body: list[bytes] = field(default_factory=list)
    block: bytes = b""
    ends: bool = False
    """The header block being received is the end of the call."""


class GrpcConnection(asyncio.Protocol):
    """A Connection."""

    def __init__(self, headers: bytes, answered: Answered, changed: Changed) -> None:
        self._headers = headers
        self._answered = answered
        self._changed = changed
        self._transport: asyncio.WriteTransport | None = None
        self._calls: dict[int, _Call] = {}
        self._next = 1
        self._pending = b""
        self._window = 65535
        self._stream_window = 65535
        self._max_frame = 16384
        self._max_streams = _MOST_STREAMS
        self._settled = False
        self._leaving = False
        self._unsent: deque[tuple[int, memoryview]] = deque()
        self._consumed = 0

    @property
    def room(self) -> int:
        if not self._settled or self._leaving or self._transport is None or self._unsent:
            return 0
        return max(0, self._max_streams - len(self._calls))

    @property
    def ended(self) -> bool:
        return self._leaving

    def send(self, number: int, request: bytes) -> None:
        assert self._transport is not None, "only where there is room"
        stream, size = self._next, len(request)
        self._next += 2
        call = self._calls[stream] = _Call(number, self._stream_window)
        head = _frame(_HEADERS, _END_HEADERS, stream, self._headers)
        if size <= min(self._max_frame, self._window, call.window):
            self._window -= size
            self._transport.write(head + _frame(_DATA, _END_STREAM, stream, request))
        else:
            self._transport.write(head)
            self._unsent.append((stream, memoryview(request)))
            self._flush()
        if self._next > _LAST_STREAM:
            self._leaving = True

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.WriteTransport", transport)  # uvloop's is none by class
        self._transport.write(_HELLO)

    def connection_lost(self, _: Exception | None) -> None:
        self._transport = None
        self._leaving = True
        self._forget(list(self._calls), DISCONNECTED)
        self._changed(self)

    def data_received(self, data: bytes) -> None:
        if self._pending:
            data = self._pending + data
        at, size = 0, len(data)
        while at + 9 <= size:
            high, low, kind, flags, stream = _FRAME.unpack_from(data, at)
            end = at + 9 + (high << 8 | low)
            if end > size:
                break
            self._frame_received(kind, flags, stream, data[at + 9 : end])
            at = end
        self._pending = data[at:]
        if self._consumed >= _REFILL and self._transport is not None:
            self._transport.write(_frame(_WINDOW, 0, 0, _WORD.pack(self._consumed)))
            self._consumed = 0
        self._changed(self)

    def _frame_received(self, kind: int, flags: int, stream: int, payload: bytes) -> None:
        if kind == _DATA:
            self._consumed += len(payload)
            call = self._calls.get(stream)
            if call is not None:
                call.body.append(_unpadded(flags, payload))
        elif kind in (_HEADERS, _CONTINUATION):
            self._block_received(kind, flags, stream, payload)
        elif kind == _SETTINGS:
            self._settings_received(flags, payload)
        elif kind == _WINDOW:
            self._window_opened(stream, _WORD.unpack(payload)[0])
        elif kind == _RESET:
            self._forget([stream], RESET)
        elif kind == _PING and not flags & _ACK:
            self._write(_frame(_PING, _ACK, 0, payload))
        elif kind == _GOAWAY:
            self._leaving = True
            last = _WORD.unpack_from(payload)[0]
            self._forget([known for known in self._calls if known > last], DISCONNECTED)

    def _block_received(self, kind: int, flags: int, stream: int, payload: bytes) -> None:
        call = self._calls.get(stream)
        if call is None:
            return
        if kind == _HEADERS:
            payload = _unpadded(flags, payload)
            call.block = payload[5:] if flags & _PRIORITY else payload
            call.ends = bool(flags & _END_STREAM)
        else:
            call.block += payload
        if not (flags & _END_HEADERS and call.ends):
            return
        del self._calls[stream]
        status = _STATUS.search(call.block)
        body = call.body[0] if len(call.body) == 1 else b"".join(call.body)
        self._answered(call.number, GRPC + int(status[1]) if status else UNREADABLE, body)

    def _settings_received(self, flags: int, payload: bytes) -> None:
        if flags & _ACK:
            return
        for key, value in _SETTING.iter_unpack(payload):
            if key == _MAX_STREAMS:
                self._max_streams = min(_MOST_STREAMS, value)
            elif key == _MAX_FRAME:
                self._max_frame = value
            elif key == _INITIAL_WINDOW:
                for call in self._calls.values():
                    call.window += value - self._stream_window
                self._stream_window = value
        self._settled = True
        self._write(_frame(_SETTINGS, _ACK, 0))
        self._flush()

    def _window_opened(self, stream: int, size: int) -> None:
        call = self._calls.get(stream)
        if stream == 0:
            self._window += size
        elif call is not None:
            call.window += size
        self._flush()

    def _flush(self) -> None:
        """Send what waited for a window, in order."""
        while self._unsent:
            stream, rest = self._unsent[0]
            call = self._calls.get(stream)
            if call is None:  # answered early or reset: nobody reads the rest
                self._unsent.popleft()
                continue
            size = min(len(rest), self._max_frame, self._window, call.window)
            if size <= 0:
                return
            self._window -= size
            call.window -= size
            last = size == len(rest)
            self._write(_frame(_DATA, _END_STREAM if last else 0, stream, bytes(rest[:size])))
            if last:
                self._unsent.popleft()
            else:
                self._unsent[0] = (stream, rest[size:])

    def _forget(self, streams: list[int], status: int) -> None:
        for stream in streams:
            call = self._calls.pop(stream, None)
            if call is not None:
                self._answered(call.number, status, b"")

    def _write(self, data: bytes) -> None:
        if self._transport is not None:
            self._transport.write(data)


def _unpadded(flags: int, payload: bytes) -> bytes:
    return payload[1 : len(payload) - payload[0]] if flags & _PADDED else payload
