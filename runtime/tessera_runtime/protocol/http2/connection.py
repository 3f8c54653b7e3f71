"""One HTTP/2 server connection: frames in, streams and frames out.

A call should cost little beside its own bytes, so a connection is a state machine of callbacks under the
event loop's buffered protocol, as in :mod:`tessera_runtime.protocol.http1`: no tasks, no timers, one object
for each request.

- Frames arrive in one scratch buffer that all connections share; an idle connection holds none.
- The payload of a long DATA frame is received straight into the place that its stream names.
- Requests with known headers cost a dictionary look-up (:mod:`tessera_runtime.protocol.http2.headers`).
- Everything that a client may repeat without end is bounded by a size, a budget or the server's sweep.
"""

from __future__ import annotations

import logging
from typing import Any, Final

from tessera_runtime.protocol.http2 import frames
from tessera_runtime.protocol.http2.control import Control
from tessera_runtime.protocol.http2.frames import (
    DATA,
    END_HEADERS,
    END_STREAM,
    HEADER_SIZE,
    HEADERS,
    PREFACE,
    BadConnection,
    BadStream,
    Code,
)
from tessera_runtime.protocol.http2.headers import HeaderReader, check_trailers
from tessera_runtime.protocol.http2.hub import Hub
from tessera_runtime.protocol.http2.stream import Received, Stream

_log = logging.getLogger(__name__)

_read_header = frames.HEADER.unpack_from
_DIRECT: Final = 4096
"""Bytes: less than this of a payload is not worth a read of its own."""


class Connection(Control):
    """A BufferedProtocol: see the asyncio documentation for who calls what."""

    def __init__(self, hub: Hub) -> None:
        super().__init__(hub)
        limits = hub.limits
        self._max_headers = limits.max_headers
        self._longest = limits.max_frame
        """Bytes of a DATA frame."""
        self._begun = False
        """The preface and the first SETTINGS have arrived."""
        self._pending = b""
        """Received but not consumed: part of the preface, or of a frame that is not DATA."""
        self._headers: HeaderReader[Any] = HeaderReader(hub.interpret, limits.max_headers)
        self._known = self._headers.known
        self._block: tuple[int, int, list[bytes]] | None = None
        """Stream, flags and fragments of a header block that goes on in CONTINUATION frames."""
        self._data: Stream | None = None
        """The stream of the DATA frame that is being received; None if nobody wants it."""
        self._left = self._padding = 0
        """Bytes of that frame that are still to come."""
        self._ends = False
        self._direct = False
        """The loop receives into the stream's own place."""

    # --- events of the transport ---------------------------------------------------------------------

    def get_buffer(self, sizehint: int) -> memoryview:
        self._direct = False  # the loop may ask again without having read
        if self._left >= _DIRECT and self._data is not None:
            room = self._data.room()
            if room is not None and len(room) >= _DIRECT:
                self._direct = True
                return room[: self._left]
        return self.hub.scratch

    def buffer_updated(self, nbytes: int) -> None:
        self._heard = self.hub.now
        try:
            if self._direct:
                stream = self._data
                assert stream is not None
                self._left -= nbytes
                stream.filled(nbytes)
                self.replenish(stream)
                if not self._left and not self._padding:
                    self._end_data()
                return
            if self.ending:
                return
            received = self.hub.scratch[:nbytes]
            if self._begun and not self._pending:
                self._parse(received, 0)
                return
            data, self._pending = self._pending + received, b""
            at = 0 if self._begun else self._begin(data)
            if at >= 0:
                self._parse(memoryview(data), at)
        except BadConnection as error:
            self.refuse(error.code, str(error))
        except Exception:
            _log.exception("a connection failed")
            self.refuse(Code.INTERNAL_ERROR, "internal error")

    # --- frames --------------------------------------------------------------------------------------

    def _begin(self, data: bytes) -> int:
        """Check the preface and that SETTINGS follow; returns where frames begin, -1 if that is not known yet."""
        if not data.startswith(PREFACE[: len(data)]):
            raise BadConnection(Code.PROTOCOL_ERROR, "not an HTTP/2 connection preface")
        start = len(PREFACE)
        if len(data) < start + HEADER_SIZE:
            self._pending = data
            return -1
        if data[start + 3] != frames.SETTINGS or data[start + 4] & frames.ACK:
            raise BadConnection(Code.PROTOCOL_ERROR, "the preface is not followed by SETTINGS")
        self._begun = True
        return start

    def _parse(self, data: Received, at: int) -> None:
        """Take every complete frame of ``data``, and of DATA frames whatever is there."""
        size, begin = len(data), at
        streams = self.streams
        if self._left or self._padding:
            at = self._take_data(data, at)
        while at + HEADER_SIZE <= size and not self.ending:
            header: tuple[int, int, int, int, int] = _read_header(data, at)
            high, low, kind, flags, number = header
            length = high << 8 | low
            number &= frames.MAX_STREAM
            if self._block is not None and kind != frames.CONTINUATION:
                raise BadConnection(Code.PROTOCOL_ERROR, "a header block is interrupted")
            start = at + HEADER_SIZE
            end = start + length
            if kind == DATA:
                if flags <= END_STREAM and end <= size:
                    stream = streams.get(number)
                    if stream is not None and self._take_frame(stream, data, start, end, flags):
                        at = end
                        continue
                if flags & frames.PADDED and length and start == size:
                    break  # how much is padding is in the next byte
                at = self._begin_data(data, start, length, flags, number)
                continue
            if length > self._max_headers:
                raise BadConnection(Code.FRAME_SIZE_ERROR, "a frame over the allowed size")
            if end > size:
                break
            payload = bytes(data[start:end])
            at = end
            try:
                if kind == HEADERS:
                    if flags & ~END_STREAM == END_HEADERS and number & 1:
                        self._open(number, flags, payload)
                    else:
                        self._take_headers(flags, number, payload)
                elif kind == frames.CONTINUATION:
                    self._continue(flags, number, payload)
                else:
                    self._take_control(kind, flags, number, payload)
            except BadStream as error:
                self.reset(number, error.code)
                if kind in (HEADERS, frames.CONTINUATION):
                    self._drop(number)  # its data is on its way
        if at == size and self._block is None:
            self._partial_since = None
        elif self._partial_since is None or (at > begin and self._block is None):
            self._partial_since = self.hub.now
        self._pending = bytes(data[at:]) if at < size else b""

    def _take_headers(self, flags: int, number: int, payload: bytes) -> None:
        if flags & frames.PADDED:
            payload = frames.unpadded(payload)
        itself = False
        if flags & frames.PRIORITISED:
            if len(payload) < 5:
                raise BadConnection(Code.FRAME_SIZE_ERROR, "HEADERS without their priority")
            itself = int.from_bytes(payload[:4], "big") & frames.MAX_STREAM == number
            payload = payload[5:]
        if not number & 1:
            raise BadConnection(Code.PROTOCOL_ERROR, "HEADERS on a stream that no client opens")
        if itself:
            raise BadConnection(Code.PROTOCOL_ERROR, "a stream that depends on itself")
        if flags & END_HEADERS:
            self._open(number, flags, payload)
        else:
            self._block = (number, flags, [payload])

    def _continue(self, flags: int, number: int, payload: bytes) -> None:
        if self._block is None or self._block[0] != number:
            raise BadConnection(Code.PROTOCOL_ERROR, "CONTINUATION without HEADERS")
        _, first, parts = self._block
        parts.append(payload)
        limits = self.hub.limits
        if len(parts) > limits.max_continuations or sum(map(len, parts)) > limits.max_headers:
            raise BadConnection(Code.ENHANCE_YOUR_CALM, "a header block over the limit")
        if flags & END_HEADERS:
            self._block = None
            self._open(number, first, b"".join(parts))

    def _open(self, number: int, flags: int, block: bytes) -> None:
        """A whole header block: a new request, or the trailers of one."""
        if number <= self.last:
            self._take_trailers(number, flags, block)
            return
        self.last = number
        if self.last_taken is not None and number > self.last_taken:
            self._headers.decode(block)  # too late: it will be sent again, elsewhere
            return
        head = self._known.get(block)
        if head is None:
            head = self._headers.read(block)
        if len(self.streams) >= self.hub.limits.max_concurrent_streams:
            self._charge(self._resets, "streams over the allowed number")
            raise BadStream(Code.REFUSED_STREAM, "too many streams")
        self.hub.calls += 1
        ended = bool(flags & END_STREAM)
        stream = self.hub.open_stream(self, number, ended, head)
        if not stream.over:
            self.streams[number] = stream
            if ended:
                self._ended(stream)

    def _take_trailers(self, number: int, flags: int, block: bytes) -> None:
        fields = self._headers.decode(block)
        stream = self.streams.get(number)
        if stream is None:
            if number in self._dropped:
                if flags & END_STREAM:
                    del self._dropped[number]
                return
            raise BadConnection(Code.STREAM_CLOSED, "HEADERS on a closed stream")
        if stream.ended:
            raise BadStream(Code.STREAM_CLOSED, "HEADERS after the end of the request")
        if not flags & END_STREAM:
            raise BadStream(Code.PROTOCOL_ERROR, "HEADERS in the middle of a request")
        check_trailers(fields)
        self._ended(stream)

    def _take_frame(self, stream: Stream, data: Received, at: int, end: int, ends: int) -> bool:
        """Take a DATA frame that has arrived as a whole, as most have; False for what is not that simple."""
        length = end - at
        if (
            stream.ended
            or length > stream.allowed
            or length > self._longest
            or not (length or ends)
        ):
            return False
        self._spend_window(length)
        if ends and not stream.received and stream.declared in (None, length):
            stream.received = length
            stream.ended = True
            stream.whole(data, at, end)
            return True
        stream.allowed -= length
        stream.received += length
        if length:
            stream.receive(data, at, end)
        if stream.over:
            if ends:
                self._dropped.pop(stream.id, None)
        elif ends:
            self._ended(stream)
        else:
            self.replenish(stream)
        return True

    def _begin_data(self, data: Received, at: int, length: int, flags: int, number: int) -> int:
        """A DATA frame whose payload begins at ``data[at]``; returns what was consumed."""
        if length > self._longest:
            raise BadConnection(Code.FRAME_SIZE_ERROR, "a DATA frame over MAX_FRAME_SIZE")
        padding = 0
        if flags & frames.PADDED:
            padding = data[at] if length else 0
            if padding >= length:
                raise BadConnection(Code.PROTOCOL_ERROR, "padding is longer than its frame")
            at += 1
            self._left, self._padding = length - 1 - padding, padding
        else:
            self._left, self._padding = length, 0
        self._spend_window(length)
        self._ends = bool(flags & END_STREAM)
        self._data = None
        stream = self.streams.get(number)
        if stream is None:
            if number not in self._dropped:
                if not number & 1 or number > self.last:
                    raise BadConnection(Code.PROTOCOL_ERROR, "DATA on an idle stream")
                if self.last_taken is None or number <= self.last_taken:
                    self.reset(number, Code.STREAM_CLOSED)
            elif self._ends:
                del self._dropped[number]
        elif stream.ended:
            self.reset(number, Code.STREAM_CLOSED)
        elif length > stream.allowed:
            self.reset(number, Code.FLOW_CONTROL_ERROR)
        else:
            stream.allowed -= length
            stream.received += self._left
            self._data = stream
            if not self._left and not self._ends:
                self._charge(self._frames, "empty DATA frames")
        return self._take_data(data, at)

    def _take_data(self, data: Received, at: int) -> int:
        """Take what ``data`` has from ``at`` on of the current DATA frame; returns where that ends."""
        stream = self._data
        end = min(len(data), at + self._left)
        if end > at:
            self._left -= end - at
            if stream is not None and not stream.over:
                stream.receive(data, at, end)
                if not self._ends and not stream.over:
                    self.replenish(stream)
            at = end
        if not self._left:
            skipped = min(self._padding, len(data) - at)
            self._padding -= skipped
            at += skipped
            if not self._padding:
                self._end_data()
        return at

    def _end_data(self) -> None:
        stream, self._data = self._data, None
        if stream is None or not self._ends:
            return
        if stream.over:
            self._dropped.pop(stream.id, None)
        else:
            self._ended(stream)

    def _ended(self, stream: Stream) -> None:
        stream.ended = True
        if stream.declared is not None and stream.declared != stream.received:
            self.reset(stream.id, Code.PROTOCOL_ERROR)
            return
        stream.end()
