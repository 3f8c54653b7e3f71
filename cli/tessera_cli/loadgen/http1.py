"""HTTP/1.1 as a load generator needs it: write prepared bytes, find the end of the answer.

Answers must have a Content-Length. One request is in flight per connection: no server of this protocol is
asked to pipeline, and no client library does it.
"""

from __future__ import annotations

import asyncio
import re
from typing import cast

from tessera_cli.loadgen.connection import Answered, Changed
from tessera_cli.loadgen.status import DISCONNECTED

_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
_CLOSE = re.compile(rb"\r\nconnection: *close", re.IGNORECASE)
_IDLE = -1


class HttpConnection(asyncio.Protocol):
    """A Connection."""

    def __init__(self, answered: Answered, changed: Changed) -> None:
        self._answered = answered
        self._changed = changed
        self._transport: asyncio.WriteTransport | None = None
        self._number = _IDLE
        self._pending = b""
        self.ended = False

    @property
    def room(self) -> int:
        return int(self._number == _IDLE and self._transport is not None and not self.ended)

    def send(self, number: int, request: bytes) -> None:
        assert self._transport is not None, "only where there is room"
        self._number = number
        self._transport.write(request)

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.WriteTransport", transport)  # uvloop's is none by class
        self._changed(self)

    def data_received(self, data: bytes) -> None:
        if self._pending:
            data = self._pending + data
        end = data.find(b"\r\n\r\n") + 4
        length = _LENGTH.search(data, 0, end) if end > 3 else None
        if end > 3 and length is None:
            self._end()  # not an answer whose end can be found
            return
        if length is None or len(data) < end + int(length[1]):
            self._pending = data
            return
        number, self._number, self._pending = self._number, _IDLE, b""
        if number == _IDLE:  # such as 408 on an idle connection
            self._end()
            return
        status = int(data[9:12])
        if _CLOSE.search(data, 0, end):
            self.ended = True
            self.close()
        self._answered(number, status, data[end : end + int(length[1])])
        self._changed(self)

    def connection_lost(self, _: Exception | None) -> None:
        self._end()

    def _end(self) -> None:
        if self._transport is None:
            return
        self.ended = True
        self._transport.close()
        self._transport = None
        number, self._number = self._number, _IDLE
        if number != _IDLE:
            self._answered(number, DISCONNECTED, b"")
        self._changed(self)
