"""What the connections of one HTTP/2 server share."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from tessera_runtime.protocol.limits import GrpcLimits

if TYPE_CHECKING:
    from tessera_runtime.protocol.http2.connection import Connection
    from tessera_runtime.protocol.http2.headers import Request
    from tessera_runtime.protocol.http2.outgoing import Outgoing
    from tessera_runtime.protocol.http2.stream import Stream


class Transport(Protocol):
    """What is used of asyncio's and uvloop's transports, which have no common base."""

    def write(self, data: bytes) -> None: ...
    def writelines(self, parts: Iterable[bytes | memoryview]) -> None: ...
    def can_write_eof(self) -> bool: ...
    def write_eof(self) -> None: ...
    def close(self) -> None: ...
    def abort(self) -> None: ...
    def pause_reading(self) -> None: ...
    def resume_reading(self) -> None: ...
    def is_closing(self) -> bool: ...
    def get_write_buffer_size(self) -> int: ...
    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None: ...


@dataclass(slots=True)
class Hub:
    limits: GrpcLimits
    interpret: Callable[[Request], Any]
    """What is kept of a request's headers, for as long as the client repeats them."""
    open_stream: Callable[[Connection, int, bool, Any], Stream]
    """Begin a request from its number, whether its headers are all of it, and what ``interpret`` returned.
    It may answer at once."""
    opening: bytes
    """What every connection is told first."""
    now: float
    """The loop's time at the last sweep, seconds."""
    loop: asyncio.AbstractEventLoop
    scratch: memoryview
    """Receives what has no place of its own yet, for one connection at a time."""
    connections: set[Connection] = field(default_factory=set)
    blocked: dict[Outgoing, None] = field(default_factory=dict)
    """Connections whose client does not read, the longest blocked first."""
    unsent: int = 0
    """Bytes of answers that wait at streams."""
    held: int = 0
    """Bytes of requests that wait at streams whose earlier requests are not answered."""
    copied: int = 0
    """Bytes of messages that were not received where they are used, each time that they were copied."""
    calls: int = 0
    """Streams that are open."""
    draining: bool = False
    """Connections are told to go away."""
    empty: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when the last connection of a draining server is gone."""

    _written: list[Outgoing] = field(default_factory=list)
    """Connections that have something to flush in the loop's next turn."""

    def flush_soon(self, connection: Outgoing) -> None:
        if not self._written:
            self.loop.call_soon(self._flush)
        self._written.append(connection)

    def _flush(self) -> None:
        written, self._written = self._written, []
        for connection in written:
            connection.flush()

    def relieve(self) -> None:
        """Too much waits to be sent: end connections, those first that have read nothing for longest."""
        limit = self.limits.max_buffered_response
        for one in [*self.blocked, *sorted(self.connections, key=_oldest)]:
            if self.unsent <= limit:
                break
            one.abort()


def _oldest(connection: Connection) -> float:
    return connection.waiting_since()
