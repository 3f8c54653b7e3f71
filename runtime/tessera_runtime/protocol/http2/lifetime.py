"""From the first byte of a connection to its last: settings, keepalive, timeouts, and leaving without losing calls.

A server that wants a connection to end says so twice. The first GOAWAY names no stream, so that whatever the
client sends before it has read it is still answered; it is followed by a PING, whose acknowledgement proves
that it was read; only then the second GOAWAY names the last stream taken, and the connection ends with its
last answer. The end of the server and the old age of a connection both go this way.
"""

from __future__ import annotations

import asyncio
import random
from typing import cast

from tessera_runtime.protocol.http2 import frames
from tessera_runtime.protocol.http2.frames import Code, Setting
from tessera_runtime.protocol.http2.hub import Hub, Transport
from tessera_runtime.protocol.http2.outgoing import Outgoing
from tessera_runtime.protocol.http2.stream import Stream
from tessera_runtime.protocol.limits import GrpcLimits

_ALIVE = b"\0\0\0\0\0\0\0\0"
_LEAVING = b"leaving\0"
_PING_STRIKES = 2
"""Pings that may come too soon, between answers."""


def opening(limits: GrpcLimits) -> bytes:
    """What a server says first."""
    settings = frames.settings_frame(
        {
            Setting.MAX_CONCURRENT_STREAMS: limits.max_concurrent_streams,
            Setting.INITIAL_WINDOW_SIZE: limits.stream_window,
            Setting.MAX_FRAME_SIZE: limits.max_frame,
            Setting.MAX_HEADER_LIST_SIZE: limits.max_headers,
        }
    )
    return settings + frames.window_update(0, limits.connection_window - frames.DEFAULT_WINDOW)


class Lifetime(Outgoing):
    """What a connection does beside its requests."""

    def __init__(self, hub: Hub) -> None:
        super().__init__()
        limits = hub.limits
        self.hub = hub
        self.streams: dict[int, Stream] = {}
        self.last = 0
        """The highest stream that the client has opened."""
        self.last_taken: int | None = None
        """Named in the final GOAWAY: later streams are not answered."""
        self.ending = False
        """Nothing that arrives counts any more."""
        self.answered_before = 0
        self._since = hub.now
        """When it was made, told to go away, or ended."""
        self._heard = hub.now
        self._pinged: float | None = None
        self._ping_at = float("-inf")
        self._strikes = self._answered_at_ping = 0
        self._partial_since: float | None = hub.now
        """When the first byte of an incomplete preface, frame or header block came."""
        self._going = False
        self._old_at = float("inf")
        if limits.max_connection_age_s:
            self._old_at = hub.now + limits.max_connection_age_s * random.uniform(0.9, 1.0)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(Transport, transport)
        self._transport.set_write_buffer_limits(high=self.hub.limits.max_unread)
        self.hub.connections.add(self)  # type: ignore[arg-type]  # the one class that derives from this
        self._write(self.hub.opening)
        if len(self.hub.connections) > self.hub.limits.max_connections:
            self.refuse(Code.ENHANCE_YOUR_CALM, "too many connections")
        elif self.hub.draining:
            self.go_away()

    def eof_received(self) -> bool:
        self._cancel_all()
        return False

    def connection_lost(self, error: Exception | None) -> None:
        self.ending = True
        self._cancel_all()
        self._out.clear()
        hub = self.hub
        hub.connections.discard(self)
        hub.blocked.pop(self, None)
        if hub.draining and not hub.connections:
            hub.empty.set()

    # --- leaving -------------------------------------------------------------------------------------

    def go_away(self) -> None:
        """Have the client open its next streams elsewhere, and end when all that it sent is answered."""
        if self._going or self.ending:
            return
        self._going = True
        self._since = self.hub.now
        self._write(
            frames.goaway(frames.MAX_STREAM, Code.NO_ERROR)
            + frames.frame(frames.PING, 0, 0, _LEAVING)
        )

    def _leave(self) -> None:
        """The client has read the first GOAWAY, or had the time to."""
        if self.last_taken is None and not self.ending:
            self.last_taken = self.last
            self._write(frames.goaway(self.last, Code.NO_ERROR))
            self.check_done()

    def check_done(self) -> None:
        """End a connection that is told to and has nothing left to answer."""
        if self.last_taken is not None and not self.streams and not self.ending:
            self._end()

    def refuse(self, code: Code, message: str) -> None:
        """End now, and say why."""
        if self.ending:
            return
        self.ending = True
        self._cancel_all()
        self._write(frames.goaway(self.last, code, message))
        self._end()

    def _end(self) -> None:
        """Close one way and let the client close the other, so that it can read all that was written."""
        self.ending = True
        self._since = self.hub.now
        self.flush()
        if self._transport.is_closing():
            return
        if self._transport.can_write_eof():
            self._transport.write_eof()
        else:
            self._transport.close()  # TLS knows no half of an end: what was written is sent, then its goodbye

    def abort(self) -> None:
        self.ending = True
        self._cancel_all()
        self._transport.abort()

    def _cancel_all(self) -> None:
        for stream in list(self.streams.values()):
            self._cancel(stream)

    # --- pings and time ------------------------------------------------------------------------------

    def take_ping(self, flags: int, payload: bytes) -> None:
        if flags & frames.ACK:
            if payload == _LEAVING and self._going:
                self._leave()
            return
        now = asyncio.get_running_loop().time()
        if self.answered != self._answered_at_ping:
            self._answered_at_ping, self._strikes = self.answered, 0
        elif now - self._ping_at < self.hub.limits.min_ping_interval_s:
            self._strikes += 1
            if self._strikes > _PING_STRIKES:
                # Clients know these words (gRPC proposal A8) and ping less often.
                self.refuse(Code.ENHANCE_YOUR_CALM, "too_many_pings")
                return
        self._ping_at = now
        self._write(frames.frame(frames.PING, frames.ACK, 0, payload))

    def sweep(self, now: float) -> None:
        """End what takes too long. Called about every :attr:`GrpcLimits.sweep_interval_s`."""
        limits = self.hub.limits
        # Times are read off the last sweep, so they may be one interval early.
        late = now - limits.sweep_interval_s
        if self.ending:
            if late - self._since > limits.head_timeout_s:
                self._transport.abort()
            return
        if self._stalled(now):
            self.abort()
            return
        if self._partial_since is not None and late - self._partial_since > limits.head_timeout_s:
            self.refuse(Code.PROTOCOL_ERROR, f"nothing whole in {limits.head_timeout_s:g} s")
            return
        for stream in list(self.streams.values()):
            if stream.queued and late - stream.since > limits.stall_timeout_s:
                self._cancel(stream)
                self._write(frames.reset(stream.id, Code.ENHANCE_YOUR_CALM))
            elif not stream.over:
                stream.expired(now)
        self._keep_alive(now)
        if self._going:
            waited = late - self._since
            if waited > limits.max_connection_age_grace_s:
                self.refuse(Code.NO_ERROR, "out of time")
            elif waited > limits.keepalive_timeout_s:
                self._leave()
        elif now > self._old_at:
            self.go_away()

    def _keep_alive(self, now: float) -> None:
        limits = self.hub.limits
        if self._pinged is not None:
            if self._heard >= self._pinged:
                self._pinged = None
            elif now - self._pinged > limits.keepalive_timeout_s:
                self.abort()
        elif now - self._heard > limits.keepalive_time_s:
            self._pinged = now
            self._write(frames.frame(frames.PING, 0, 0, _ALIVE))

    def waiting_since(self) -> float:
        """When the stream that waits longest to be read made its last progress; for :meth:`Hub.relieve`."""
        return min((one.since for one in self._waiting.values()), default=float("inf"))

    def _cancel(self, stream: Stream) -> None:
        """The stream is not to be answered any more."""
        raise NotImplementedError
