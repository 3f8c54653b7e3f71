"""Answers on their way to one client: its flow-control windows (RFC 9113 section 5.2) and its pace of reading.

An answer that fits the windows is one write of its three frames. What does not fit waits at its stream,
bounded over all connections of the server, and goes out in turns as the client makes room.
"""

from __future__ import annotations

import asyncio
import struct
from collections import deque
from collections.abc import Sequence

from tessera_runtime.protocol.http2.frames import (
    DATA,
    DEFAULT_WINDOW,
    END_HEADERS,
    END_STREAM,
    HEADERS,
    MAX_WINDOW,
    SMALLEST_MAX_FRAME,
    BadConnection,
    BadStream,
    Code,
    frame,
    frame_header,
)
from tessera_runtime.protocol.http2.hub import Hub, Transport
from tessera_runtime.protocol.http2.stream import Stream

_TURN = 128 * 1024
"""Bytes that one stream sends before the next one has its turn."""
_UNREAD = 4
"""Times :attr:`GrpcLimits.max_unread`: with so much unread, nothing more is read either."""
_MANY = 256
"""Frames that are written without waiting for the turn's end: a loop may read one client many times in a
turn, and each time has to know whether that client reads."""
_LEAST_PROGRESS = 64 * 1024
"""Bytes read in one period that are progress, however much waits."""


class Answers:
    """The frames of whole answers that begin with the header block ``headers``."""

    def __init__(self, headers: bytes) -> None:
        # The header frame, then the DATA frame's header; the data follows.
        self._start = struct.Struct(f">HBBBI{len(headers)}sHBBBI")
        self._headers = headers

    def start(self, stream: int, size: int) -> bytes:
        """What precedes ``size`` bytes of data in a single frame."""
        headers = self._headers
        return self._start.pack(
            0, len(headers), HEADERS, END_HEADERS, stream, headers, size >> 8, size & 0xFF, DATA, 0, stream
        )  # fmt: skip


class Outgoing(asyncio.BufferedProtocol):
    """The sending half of a connection."""

    hub: Hub
    peer_window = DEFAULT_WINDOW
    """Of a new stream, as the client's SETTINGS have it."""
    _transport: Transport

    def __init__(self) -> None:
        self._window = DEFAULT_WINDOW
        self._max_frame = SMALLEST_MAX_FRAME
        self._waiting: dict[int, Stream] = {}
        """Streams with something queued, in the order of their turns."""
        self._paused = False
        """The transport holds as much as it may."""
        self._deaf = False
        """Nothing is read, so that no more has to be answered."""
        self._paused_at = 0.0
        self._unread = 0
        """Bytes the transport held when it was last seen to make progress."""
        self.answered = 0
        """Frames of answers sent so far."""
        self._out: list[bytes] = []
        """Written in this turn of the loop: a batch answers several calls at once, and a system call for
        each would cost more than all else."""

    def _write(self, data: bytes) -> None:
        out = self._out
        if not out:
            self.hub.flush_soon(self)
        out.append(data)
        if len(out) == _MANY:
            self.flush()

    def flush(self) -> None:
        """Hand what was written to the transport."""
        out, self._out = self._out, []
        if out and not self._transport.is_closing():
            self._transport.write(out[0] if len(out) == 1 else b"".join(out))
            if self._paused and not self._deaf:
                # Errors and acknowledgements are sent in any case: a client that does not read them
                # is not to have more of them.
                held = self._transport.get_write_buffer_size()
                if held > _UNREAD * self.hub.limits.max_unread:
                    self._deaf = True
                    self._transport.pause_reading()

    def answer(
        self,
        stream: Stream,
        answers: Answers,
        parts: Sequence[bytes | memoryview],
        size: int,
        trailers: bytes,
    ) -> None:
        """Send all of an answer: its ``size`` bytes lie in ``parts``, ``trailers`` is a header block."""
        if size > self._window or size > stream.window or size > self._max_frame or self._paused:
            self.send_headers(stream, answers._headers)
            self.send_data(stream, parts)
            self.finish(stream, trailers)
            return
        self._window -= size
        number = stream.id
        end = frame_header(len(trailers), HEADERS, END_HEADERS | END_STREAM, number)
        self._write(b"".join((answers.start(number, size), *parts, end, trailers)))
        self.answered += 1
        self._forget(stream)

    def send_headers(self, stream: Stream, block: bytes, end: bool = False) -> None:
        flags = END_HEADERS | END_STREAM if end else END_HEADERS
        self._write(frame(HEADERS, flags, stream.id, block))
        self.answered += 1
        if end:
            self._forget(stream)

    def send_data(self, stream: Stream, parts: Sequence[bytes | memoryview]) -> None:
        """Queue data behind the headers and send what may go now."""
        queue = stream.queue
        if queue is None:
            queue = stream.queue = deque()
        size = sum(map(len, parts))
        queue.extend(memoryview(part) for part in parts if len(part))
        if not stream.queued:
            stream.since = self.hub.now
        stream.queued += size
        stream.mark = max(stream.mark, stream.queued)
        self.hub.unsent += size
        self._waiting[stream.id] = stream
        self._pump()
        if self.hub.unsent > self.hub.limits.max_buffered_response:
            self.hub.relieve()

    def finish(self, stream: Stream, trailers: bytes) -> None:
        """End the stream with ``trailers`` (empty: without any) when all its data is sent."""
        if stream.over:
            return
        if stream.queued:
            stream.trailers = trailers
        elif trailers:
            self.send_headers(stream, trailers, end=True)
        else:
            self._write(frame(DATA, END_STREAM, stream.id))
            self.answered += 1
            self._forget(stream)

    def _pump(self) -> None:
        """Send what windows and the transport allow, each stream in its turn."""
        idle = 0
        while self._waiting and self._window > 0 and not self._paused and idle < len(self._waiting):
            number, stream = next(iter(self._waiting.items()))
            del self._waiting[number]
            if self._push(stream):
                idle = 0
            else:
                idle += 1
            if stream.queued:
                self._waiting[number] = stream
            elif stream.trailers is not None:
                self.finish(stream, stream.trailers)
            elif not stream.over:
                stream.drained()

    def _push(self, stream: Stream) -> int:
        """Send at most a turn of the stream's data; returns how many bytes."""
        queue = stream.queue
        assert queue is not None
        left = min(self._window, stream.window, _TURN, stream.queued)
        if left <= 0:
            return 0
        pieces: list[bytes | memoryview] = []
        total = left
        while left:
            size = min(left, self._max_frame)
            pieces.append(frame_header(size, DATA, 0, stream.id))
            left -= size
            while size:
                part = queue[0]
                if len(part) <= size:
                    pieces.append(queue.popleft())
                    size -= len(part)
                else:
                    pieces.append(part[:size])
                    queue[0] = part[size:]
                    size = 0
        self._window -= total
        stream.window -= total
        stream.queued -= total
        self.hub.unsent -= total
        self.answered += len(pieces) // 2
        if stream.mark - stream.queued >= min(stream.mark // 16, _LEAST_PROGRESS):
            stream.mark = stream.queued
            stream.since = self.hub.now
        self.flush()
        self._transport.writelines(pieces)
        return total

    def _drop_queue(self, stream: Stream) -> None:
        self._waiting.pop(stream.id, None)
        self.hub.unsent -= stream.queued
        stream.queued = 0
        stream.queue = stream.trailers = None

    def _widen(self, stream: Stream | None, credit: int) -> None:
        """A WINDOW_UPDATE, for the connection where ``stream`` is None. Raises BadStream or BadConnection."""
        if stream is None:
            if self._window + credit > MAX_WINDOW:
                raise BadConnection(Code.FLOW_CONTROL_ERROR, "the connection's window overflows")
            self._window += credit
        else:
            if stream.window + credit > MAX_WINDOW:
                raise BadStream(Code.FLOW_CONTROL_ERROR, "the stream's window overflows")
            stream.window += credit
        if self._waiting:
            self._pump()

    # --- events of the transport ---------------------------------------------------------------------

    def pause_writing(self) -> None:
        self._paused = True
        self._paused_at = self.hub.now
        self._unread = self._transport.get_write_buffer_size()
        self.hub.blocked[self] = None

    def resume_writing(self) -> None:
        self._paused = False
        self.hub.blocked.pop(self, None)
        if self._deaf and not self._transport.is_closing():
            self._deaf = False
            self._transport.resume_reading()
        if self._waiting:
            self._pump()

    def _stalled(self, now: float) -> bool:
        """Whether the client has read too little for too long."""
        if self._paused:
            held = self._transport.get_write_buffer_size()
            if held < self._unread:
                self._unread, self._paused_at = held, now
        limits = self.hub.limits
        return (
            self._paused
            and now - self._paused_at > limits.stall_timeout_s + limits.sweep_interval_s
        )

    def _forget(self, stream: Stream) -> None:
        """The stream's answer is complete."""
        raise NotImplementedError

    def abort(self) -> None:
        raise NotImplementedError
