"""One request of a connection: what the connection keeps of it, and what it is told."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tessera_runtime.protocol.http2.connection import Connection


Received = memoryview
"""Bytes that are there until the call returns: mostly of a buffer that all connections share."""


class Stream:
    """Base of what ``open_stream`` makes. The connection calls the methods below; all of them may answer.

    Attributes that most requests never touch are the class's, so that they cost nothing for each request.
    """

    declared: int | None = None
    """Bytes that content-length promises."""
    received = 0
    over = False
    """Answered or reset: the connection has forgotten it."""
    queue: deque[memoryview] | None = None
    """Data that waits for a window or a reader."""
    queued = 0
    trailers: bytes | None = None
    """The block that ends the stream once the queue is empty."""
    since = 0.0
    """When what is queued last made progress."""
    mark = 0
    """Bytes queued at ``since``."""

    def __init__(self, connection: Connection, number: int, ended: bool) -> None:
        self.connection = connection
        self.id = number
        self.ended = ended
        """The client has sent its last byte."""
        self.allowed = connection.stream_window
        """Bytes that the client may still send before it is given more."""
        self.window = connection.peer_window
        """Bytes that may be sent to the client."""

    def whole(self, data: Received, at: int, end: int) -> None:
        """All of the request's body is ``data[at:end]``."""
        self.receive(data, at, end)
        if not self.over:
            self.end()

    def receive(self, data: Received, at: int, end: int) -> None:
        """The next bytes of the request are ``data[at:end]``."""
        raise NotImplementedError

    def room(self) -> memoryview | None:
        """Where the next bytes of the request belong, for the connection to receive them in place."""
        return None

    def filled(self, count: int) -> None:
        """``count`` bytes have been received in the first of :meth:`room`."""
        raise NotImplementedError

    def end(self) -> None:
        """The request is complete."""
        raise NotImplementedError

    def cancel(self) -> None:
        """The client does not want an answer any more, or cannot get one."""
        raise NotImplementedError

    def holds(self) -> bool:
        """Whether the client is not to be allowed more bytes for now."""
        return False

    def drained(self) -> None:
        """All that was queued has been sent."""

    def expired(self, now: float) -> None:
        """Called by each sweep, for what takes too long."""
