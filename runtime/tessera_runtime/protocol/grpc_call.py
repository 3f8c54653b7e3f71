"""One gRPC call: its messages, put together where they will be used, its deadline, and how it ends.

A message is five bytes (compressed or not, length) and its content. The content of an inference is received
into an arena slot, in place wherever the connection can, and used where it lies.
"""

from __future__ import annotations

import asyncio
import logging
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from tessera_runtime.dataplane import DataPlane, Slot
from tessera_runtime.errors import (
    DeadlineExceeded,
    InvalidRequest,
    ModelFailed,
    ServeError,
    SlowClient,
    TooLarge,
)
from tessera_runtime.protocol.body import HeapSlot
from tessera_runtime.protocol.compression import inflate
from tessera_runtime.protocol.grpc_head import Head, Refusal
from tessera_runtime.protocol.grpc_reply import ReplyWriter
from tessera_runtime.protocol.grpc_request import RequestReader
from tessera_runtime.protocol.grpc_status import (
    ANSWERS,
    HEADERS,
    OK,
    failure,
    plain_headers,
    trailers,
)
from tessera_runtime.protocol.http2.connection import Connection
from tessera_runtime.protocol.http2.frames import Code
from tessera_runtime.protocol.http2.stream import Received, Stream
from tessera_runtime.protocol.limits import GrpcLimits

_log = logging.getLogger(__name__)

PREFIX = struct.Struct(">BI")
PREFIX_SIZE: Final = 5


@dataclass(slots=True)
class Service:
    """What the calls of one server share."""

    plane: DataPlane
    limits: GrpcLimits
    loop: asyncio.AbstractEventLoop
    reader: RequestReader
    writer: ReplyWriter
    tasks: set[asyncio.Task[None]] = field(default_factory=set)


Begin = Callable[[Service, Connection, int, bool, Head], Stream]
"""Makes a call: of which stream, whether its headers are all of it, and what they say."""


def open_call(
    service: Service, connection: Connection, number: int, ended: bool, head: Head
) -> Stream:
    """Begin a call, or refuse it: all that its metadata says is known here, and nothing of its body yet."""
    refusal = head.refusal
    if refusal is None and connection.hub.calls > service.limits.max_concurrent_rpcs:
        refusal = Refusal("RESOURCE_EXHAUSTED", "too many calls in progress; retry later")
    if refusal is None:
        assert head.begin is not None
        return head.begin(service, connection, number, ended, head)
    if not refusal.status:
        return _NotGrpc(connection, number, ended, head.length, refusal)
    stream = Stream(connection, number, ended)
    block = HEADERS + trailers(refusal.status, refusal.message, refusal.metadata)
    connection.send_headers(stream, block, end=True)
    return stream


def framed(message: bytes) -> bytes:
    return PREFIX.pack(0, len(message)) + message


class _NotGrpc(Stream):
    """A request to be told so, once it is complete."""

    def __init__(
        self,
        connection: Connection,
        number: int,
        ended: bool,
        declared: int | None,
        refusal: Refusal,
    ) -> None:
        super().__init__(connection, number, ended)
        self.declared = declared
        self._refusal = refusal
        self._begun = connection.hub.now

    def receive(self, data: Received, at: int, end: int) -> None:
        """Not wanted."""

    def end(self) -> None:
        connection = self.connection
        connection.send_headers(self, plain_headers(self._refusal.http))
        connection.send_data(self, (self._refusal.message.encode(),))
        connection.finish(self, b"")

    def cancel(self) -> None:
        """Nothing is under way."""

    def expired(self, now: float) -> None:
        if not self.ended and now - self._begun > self.connection.hub.limits.stall_timeout_s:
            self.connection.reset(self.id, Code.CANCEL)


class Call(Stream):
    """Base of the calls: assembles messages and hands each to :meth:`message`, in a slot that is then its own."""

    max_messages: int | None = 1

    trailing: Sequence[tuple[str, str]] = ()
    """Metadata that the client gets behind the answer."""
    deadline: float | None = None
    """By the loop's clock, seconds."""
    _started = False
    """The headers of the answer are sent."""
    _prefix = b""
    """What has come of the next message's five bytes, while no slot is there."""
    _compressed = 0
    _slot: Slot | None = None
    _view: memoryview
    _size = 0
    _filled = 0
    _mark = 0
    """Bytes received at ``_progress``."""

    def __init__(
        self, service: Service, connection: Connection, number: int, ended: bool, head: Head
    ) -> None:
        super().__init__(connection, number, ended)
        self.service = service
        self.head = head
        self._progress = connection.hub.now
        if head.length is not None:
            self.declared = head.length
        if head.timeout_s is not None:
            self.deadline = service.loop.time() + head.timeout_s

    # --- what the methods define ---------------------------------------------------------------------

    def allocate(self, nbytes: int) -> Slot:
        """A place for a message. Raises ServeError."""
        if nbytes > self.service.limits.max_plain_message:
            allowed = self.service.limits.max_plain_message
            raise TooLarge(f"the message has {nbytes} bytes; allowed: {allowed}")
        return HeapSlot(nbytes)

    def message(self, slot: Slot, size: int) -> None:
        """A message has arrived. Raises ServeError."""
        raise NotImplementedError

    def complete(self) -> None:
        """The last message has arrived. Raises ServeError."""
        raise NotImplementedError

    # --- messages ------------------------------------------------------------------------------------

    def receive(self, data: Received, at: int, end: int) -> None:
        try:
            while at < end and not self.over:
                if self._slot is None:
                    at = self._begin_message(data, at, end)
                    continue
                filled = self._filled
                count = min(end - at, self._size - filled)
                self._view[filled : filled + count] = data[at : at + count]
                self.connection.hub.copied += count
                at += count
                self._filled = filled + count
                if self._filled == self._size:
                    self._take()
                    at = self.keep(data, at, end)
        except ServeError as error:
            self.fail(error)
        except Exception as error:
            self.broke(error)

    def keep(self, data: Received, at: int, end: int) -> int:
        """Where to go on after a message."""
        return at

    def room(self) -> memoryview | None:
        return None if self._slot is None else self._view[self._filled : self._size]

    def filled(self, count: int) -> None:
        self._filled += count
        if self._filled == self._size:
            try:
                self._take()
            except ServeError as error:
                self.fail(error)
            except Exception as error:
                self.broke(error)

    def _begin_message(self, data: Received, at: int, end: int) -> int:
        """Read the five bytes, as far as they are there; returns where the content begins."""
        if self._prefix or end - at < PREFIX_SIZE:
            stop = min(end, at + PREFIX_SIZE - len(self._prefix))
            self._prefix += data[at:stop]
            if len(self._prefix) < PREFIX_SIZE:
                return stop
            prefix: tuple[int, int] = PREFIX.unpack(self._prefix)
            at = stop
        else:
            prefix = PREFIX.unpack_from(data, at)
            at += PREFIX_SIZE
        compressed, size = prefix
        self._prefix = b""
        if compressed and (compressed > 1 or not self.head.encoding):
            raise ModelFailed("a message is compressed, but there is no grpc-encoding")
        if self.max_messages is not None and self._size:
            raise InvalidRequest("more than one message; the method takes one")
        slot = self.allocate(size or 1)
        self._slot, self._view, self._size, self._filled = slot, slot.view, size, 0
        self._compressed = compressed
        if not size:
            self._take()
            return at
        if size - (end - at) > self.allowed:
            # The place is there, so the client need not wait for the usual credit.
            self.connection.grant(self, size)
        self._progress = self.connection.hub.now
        return at

    def _take(self) -> None:
        """The message is complete: hand it over."""
        slot, size = self._slot, self._size
        assert slot is not None
        self._slot = None
        self._size = size or 1
        if self._compressed:
            try:
                limit = self.service.limits.max_inflated
                plain = inflate(slot.view[:size], self.head.encoding, limit)
            finally:
                slot.release()
            size = len(plain)
            slot = self.allocate(size or 1)
            slot.view[:size] = plain
        self.message(slot, size)

    def end(self) -> None:
        try:
            if self._slot is not None or self._prefix:
                raise InvalidRequest("the message is cut off")
            self.complete()
        except ServeError as error:
            self.fail(error)
        except Exception as error:
            self.broke(error)

    def release(self) -> None:
        """Give back the place of a message that is not complete."""
        slot, self._slot = self._slot, None
        if slot is not None:
            slot.release()

    # --- time ----------------------------------------------------------------------------------------

    def remaining_s(self) -> float | None:
        """Until the client's deadline."""
        return None if self.deadline is None else self.deadline - self.service.loop.time()

    def waits(self) -> bool:
        """Whether the client has to send something before the call can go on."""
        return not self.ended

    def expired(self, now: float) -> None:
        if self.trailers is not None:
            return  # answered; it is up to the client to read
        if self.deadline is not None and now > self.deadline:
            self.stop()
            self.fail(DeadlineExceeded("the client's deadline has passed"))
        elif self.waits():
            if self.received - self._mark > self._size // 16:
                self._mark, self._progress = self.received, now
            elif now - self._progress > self.service.limits.stall_timeout_s:
                self.stop()
                self.fail(SlowClient("the request made too little progress"))

    # --- ends ----------------------------------------------------------------------------------------

    def start(self) -> None:
        """Send the headers of an answer whose messages follow one by one."""
        if not self._started:
            self._started = True
            self.connection.send_headers(self, HEADERS)

    def write(self, message: bytes) -> None:
        """Send one message of several."""
        self.start()
        self.connection.send_data(self, (framed(message),))

    def answer(self, parts: Sequence[bytes | memoryview], size: int) -> None:
        """The one message of a unary call: ``size`` bytes with its prefix."""
        block = trailers("OK", metadata=self.trailing) if self.trailing else OK
        self.connection.answer(self, ANSWERS, parts, size, block)

    def finish(self) -> None:
        """All messages have been written."""
        self.start()
        self.connection.finish(self, OK)

    def fail(self, error: ServeError) -> None:
        """End the call with the status of ``error``."""
        if self.over:
            return
        self.release()
        block = failure(error, self.trailing)
        if self._started:
            self.connection.finish(self, block)
        else:
            self.connection.send_headers(self, HEADERS + block, end=True)

    def broke(self, error: Exception) -> None:
        """End the call after an error of ours, whose text is not for the client."""
        _log.error("a call failed", exc_info=error)
        self.fail(ModelFailed("internal error"))

    def stop(self) -> None:
        """Give up what is under way."""

    def cancel(self) -> None:
        self.release()
        self.stop()


def method(make: type[Call], *arguments: Any) -> Begin:
    """What begins calls of class ``make``."""

    def begin(
        service: Service, connection: Connection, number: int, ended: bool, head: Head
    ) -> Stream:
        return make(service, connection, number, ended, head, *arguments)

    return begin
