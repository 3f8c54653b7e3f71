"""One request of a connection: what the connection keeps of it, and what it is told."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tessera_runtime.protocol.http2.connection import Connection


class Stream:
    """Base of what ``open_stream`` makes. The connection calls the methods below; all of them may answer."""

    __slots__ = (
        "allowed", "connection", "declared", "ended", "id", "mark", "over", "queue", "queued", "received",
        "since", "trailers", "window",
    )  # fmt: skip

    def __init__(
        self, connection: Connection, stream_id: int, ended: bool, declared: int | None = None
    ) -> None:
        self.connection = connection
        self.id = stream_id
        self.declared = declared
        """Bytes that content-length promises."""
        self.received = 0
        self.allowed = connection.hub.limits.stream_window
        """Bytes that the client may still send before it is given more."""
        self.ended = ended
        """The client has sent its last byte."""
        self.over = False
        """Answered or reset: the connection has forgotten it."""
        self.window = connection.peer_window
        """Bytes that may be sent to the client."""
        self.queue: deque[memoryview] | None = None
        """Data that waits for a window or a reader."""
        self.queued = 0
        self.trailers: bytes | None = None
        """The block that ends the stream once the queue is empty."""
        self.since = connection.hub.now
        """When what is queued last made progress."""
        self.mark = 0
        """Bytes queued at ``since``."""

    def receive(self, data: bytes, at: int, end: int) -> None:
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
