"""What a pool needs of a connection, whichever protocol it speaks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

Answered = Callable[[int, int, bytes], None]
"""(number of the request, status, body): called exactly once per request that was sent."""

Changed = Callable[["Connection"], None]


class Connection(Protocol):
    """An asyncio protocol. It calls ``Changed`` when it becomes usable, has room again, or ends."""

    @property
    def room(self) -> int:
        """Requests that can be sent now; 0 before it is usable and after it ended."""
        ...

    @property
    def ended(self) -> bool: ...

    def send(self, number: int, request: bytes) -> None:
        """Send one encoded request. Only where there is room."""
        ...

    def close(self) -> None: ...
