"""One HTTP/1.1 server connection: bytes in, arena slots and callbacks out.

A request should cost little beside its own bytes, so the connection is a state machine of callbacks
under the event loop's buffered protocol, without tasks, streams or timers::

    HEAD ──head──▶ BODY ──last byte──▶ BUSY ──answer──▶ HEAD            LINGER: refused early; what is still
      │     └────▶ CHUNKED ──last chunk──▲                              on its way is discarded, so that the
      └──no body─────────────────────────┘        any ──▶ LINGER, GONE  client can read why before the end

- Heads arrive in one scratch buffer that all connections share: the loop fills it and calls back before
  it reads for anybody else. So an idle connection holds no buffer at all.
- The rest of an inference body is received straight into the arena slot that the call will carry: the
  only copy, but for the part that came in with the head. A client repeats its heads, so behind a long body
  no more is received than the head was long: the next body lies in place from its first byte.
- Pipelined requests wait until the one before is answered, and answers stay in order. What waits is at most
  a head and a scratch buffer of each connection: with more than a head nothing is read.
- The end of the input while a request is in flight means that the client is gone, and cancels it.
- Time is the server's periodic sweep (:meth:`HttpConnection.sweep`), coarse and free for each request.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Final, cast

from tessera_runtime.dataplane import Slot
from tessera_runtime.errors import InvalidRequest, ModelFailed, ServeError, TooLarge, status_of
from tessera_runtime.protocol.body import ChunkedBody, HeapSlot
from tessera_runtime.protocol.compression import inflate
from tessera_runtime.protocol.head import BadHead, Head, parse_head
from tessera_runtime.protocol.http1_answers import Answering, State
from tessera_runtime.protocol.hub import Hub
from tessera_runtime.protocol.reply import CONTINUE
from tessera_runtime.protocol.tensors import place
from tessera_runtime.protocol.v2json import RequestBody, decode_call

_log = logging.getLogger(__name__)

_USUAL_HEAD = 1024
"""Bytes in which the end of a head is looked for first."""
_PROGRESS = 1024
"""Bytes: the least that counts as progress of a chunked body, whose length is unknown."""
_SPARE: Final = 1
"""Bytes received in place beyond a body. A loop takes a buffer that was filled to the end as a sign that there is
more, and asks once more in vain."""


class HttpConnection(Answering):
    """A BufferedProtocol: see the asyncio documentation for who calls what."""

    __slots__ = ("_aim", "_filled", "_mark", "_model", "_partial", "_reading", "_size")

    def __init__(self, hub: Hub) -> None:
        super().__init__(hub)
        self._partial = False
        """``_since`` is the first byte of the head in ``_pending``."""
        self._reading = True
        self._aim = 0
        """Bytes of the last inference's head, where a long body came behind it; else 0."""
        self._model = ""
        self._size = self._filled = self._mark = 0

    # --- events of the transport -------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        hub = self._hub
        self._transport = cast(asyncio.Transport, transport)  # uvloop's does not derive from it
        hub.connections.add(self)
        self._state = State.HEAD
        if len(hub.connections) > hub.limits.max_connections:
            self._refuse(503, "too many connections")

    def get_buffer(self, sizehint: int) -> memoryview:
        if self._state is State.BODY:
            return self._view[self._filled :]
        if self._aim and self._state is State.HEAD and not self._pending:
            return self._hub.scratch[: self._aim]
        return self._hub.scratch

    def buffer_updated(self, nbytes: int) -> None:
        state = self._state
        if state is State.BODY:
            self._filled += nbytes
            if self._filled >= self._size:
                if self._filled > self._size:
                    self._pending = bytes(self._view[self._size : self._filled])
                    self._filled = self._size
                self._execute()
                if self._pending:
                    self._advance()
            elif (self._filled - self._mark) * 16 >= self._size:
                self._mark = self._filled
                self._since = self._hub.now
            return
        received = self._hub.scratch[:nbytes]
        if state is State.HEAD and not self._pending and self not in self._hub.blocked:
            self._pending = self._begin_received(received)
            self._advance()
            return
        data = bytes(received)
        if state is State.HEAD:
            self._pending += data
        elif state is State.CHUNKED:
            assert self._chunks is not None
            self._pending = self._take_chunks(self._chunks, data)
        elif state is State.BUSY:
            self._pending += data
        self._advance()

    def eof_received(self) -> bool:
        self._since = self._hub.now
        self._forget()
        return False

    def connection_lost(self, error: Exception | None) -> None:
        self._forget()
        hub = self._hub
        hub.connections.discard(self)
        hub.blocked.pop(self, None)
        if hub.draining and not hub.connections:
            hub.empty.set()

    def resume_writing(self) -> None:
        self._hub.blocked.pop(self, None)
        self._advance()

    # --- time ----------------------------------------------------------------------------------------

    def sweep(self, now: float) -> None:
        """End what takes too long. Called about every :attr:`HttpLimits.sweep_interval_s`."""
        limits = self._hub.limits
        self._old = now > self._old_at
        if self in self._hub.blocked:
            unsent = self._transport.get_write_buffer_size()
            if unsent < self._unsent:
                self._unsent, self._drained_at = unsent, now
            elif now - self._drained_at > limits.body_timeout_s + limits.sweep_interval_s:
                self.abort()
            return
        # ``_since`` was read off the last sweep, so it may be one interval early.
        waited = now - self._since - limits.sweep_interval_s
        if self._state is State.HEAD:
            if self._pending:
                if waited > limits.head_timeout_s:
                    self._refuse(408, f"no complete request head in {limits.head_timeout_s:g} s")
            elif waited > (
                limits.sweep_interval_s if self._hub.draining else limits.idle_timeout_s
            ):
                self._close()
        elif self._state is State.BODY or self._state is State.CHUNKED:
            if waited > limits.body_timeout_s:
                self._refuse(
                    408, f"the body made too little progress in {limits.body_timeout_s:g} s"
                )
        elif self._state is not State.BUSY and waited > limits.head_timeout_s:
            self._transport.abort()

    def drain(self) -> None:
        """Close if nothing is under way; else the answer will.

        The first request of a new connection may be on its way: its client takes the connection for a good one, and
        would lose it. It has until the second sweep at least.
        """
        if self._state is State.HEAD and not self._pending and self._head is not None:
            self._close()

    # --- a request, from its head to the call --------------------------------------------------------

    def _advance(self) -> None:
        """Begin what is pending, and read on only while little of it has to wait."""
        self._begin_pending()
        read = len(self._pending) <= self._hub.limits.max_head
        if read is not self._reading and not self._transport.is_closing():
            self._reading = read
            if read:
                self._transport.resume_reading()
            else:
                self._transport.pause_reading()

    def _begin_pending(self) -> None:
        """Begin requests until one has to wait for its bytes, its answer or its reader."""
        while self._state is State.HEAD and self._pending and self not in self._hub.blocked:
            data = self._pending
            if data[0] in b"\r\n":
                # RFC 9112 section 2.2: line ends before a request are ignored.
                self._pending = data.lstrip(b"\r\n")
                continue
            end = data.find(b"\r\n\r\n") + 4
            max_head = self._hub.limits.max_head
            if end > max_head or (end < 4 and len(data) >= max_head):
                self._refuse(431, f"the request head is over the {max_head} bytes allowed")
            elif end < 4:
                if not self._partial:
                    self._partial = True
                    self._since = self._hub.now
                return
            else:
                self._partial = False
                try:
                    head = parse_head(data[:end])
                except BadHead as error:
                    self._refuse(error.status, str(error))
                    return
                self._pending = self._begin(head, memoryview(data), end)

    def _begin_received(self, data: memoryview) -> bytes:
        """Begin the request whose head is the beginning of ``data``, as most are; returns what is left to look at."""
        start = bytes(data[:_USUAL_HEAD])
        end = start.find(b"\r\n\r\n") + 4
        if end < 4 or start[0] in b"\r\n":
            return bytes(data)
        try:
            head = parse_head(start[:end])
        except BadHead as error:
            self._refuse(error.status, str(error))
            return b""
        return self._begin(head, data, end)

    def _begin(self, head: Head, data: memoryview, at: int) -> bytes:
        """Start the request whose body begins at ``data[at]``; returns what lies behind it."""
        self._head = head
        hub = self._hub
        self._since = hub.now
        size = head.content_length
        stop = min(at + size, len(data))
        have = stop - at
        allowed = hub.limits.max_body if head.infer else hub.limits.max_head
        try:
            if size > allowed:
                raise TooLarge(f"the body has {size} bytes; allowed: {allowed}")
            allocate: Callable[[int], Slot] = HeapSlot
            if head.infer:
                self._model = hub.plane.resolve(head.route.model, head.host, head.keys)
                allocate = hub.plane.allocate
            if head.chunked:
                self._chunks = ChunkedBody(allocate, allowed)
            elif size:
                slot = allocate(size if have == size else min(size + _SPARE, allowed))
                view = slot.view
                if have:
                    view[:have] = data[at:stop]
                    hub.copied += have
                self._slot, self._view, self._size = slot, view, size
        except ServeError as error:
            if have < size or head.chunked:
                self._refuse(status_of(error).http, str(error))
            else:
                self._answer_error(error)
            return bytes(data[stop:])
        self._filled = self._mark = have
        if head.infer:
            self._aim = at if size > len(hub.scratch) else 0
        if head.expect_continue and at == len(data) and (size or head.chunked):
            self._transport.write(CONTINUE)
        if self._chunks is not None:
            self._state = State.CHUNKED
            return self._take_chunks(self._chunks, bytes(data[at:]))
        if have < size:
            self._state = State.BODY
        else:
            self._execute()
        return bytes(data[stop:])

    def _take_chunks(self, body: ChunkedBody, data: bytes) -> bytes:
        """Decode chunks; returns what lies behind the body."""
        try:
            consumed = body.feed(data)
        except ValueError as error:
            self._refuse(400, str(error))
            return b""
        except ServeError as error:
            self._refuse(status_of(error).http, str(error))
            return b""
        if (body.size - self._mark) * 16 >= max(body.size, 16 * _PROGRESS):
            self._mark = body.size
            self._since = self._hub.now
        if body.done:
            self._slot, self._filled = body.take(), body.size
            self._hub.copied += body.size
            self._execute()
        return data[consumed:]

    def _execute(self) -> None:
        """The request is complete: answer it, or hand it over."""
        head, slot, size = self._head, self._slot, self._filled
        assert head is not None
        self._slot, self._view, self._chunks = None, self._hub.scratch, None
        self._state = State.BUSY
        try:
            if head.infer:
                self._infer(head, slot, size)
            else:
                body = b"" if slot is None else bytes(slot.view[:size])
                if body and head.content_encoding:
                    body = inflate(body, head.content_encoding, self._hub.limits.max_head)
                self._answer_plain(head, body)
        except ServeError as error:
            self._answer_error(error)
        except Exception:
            _log.exception("request to %s failed", head.route)
            self._answer_error(ModelFailed("internal error"))

    def _infer(self, head: Head, slot: Slot | None, size: int) -> None:
        plane = self._hub.plane
        if slot is not None and head.content_encoding:
            try:
                limit = self._hub.limits.max_inflated
                plain = inflate(slot.view[:size], head.content_encoding, limit)
            finally:
                slot.release()
            size = len(plain)
            slot = place(plane, [plain])[0] if plain else None
        if slot is None:
            raise InvalidRequest("the body is empty; an inference request is V2 JSON")
        body = RequestBody(slot, size, head.json_length)
        call, self._encoding = decode_call(
            plane, self._model, head.route.version, body, head.traceparent
        )
        self._ticket = plane.submit(call, self._done)
