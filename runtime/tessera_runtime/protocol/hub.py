"""What the connections of one HTTP server share."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from tessera_runtime.dataplane import DataPlane
from tessera_runtime.protocol.limits import HttpLimits

if TYPE_CHECKING:
    from tessera_runtime.protocol.http1 import HttpConnection
    from tessera_runtime.protocol.http1_answers import Answering


@dataclass(slots=True)
class Hub:
    plane: DataPlane
    limits: HttpLimits
    now: float
    """The loop's time at the last sweep, seconds."""
    scratch: memoryview
    """Receives heads, for one connection at a time."""
    connections: set[HttpConnection] = field(default_factory=set)
    blocked: dict[Answering, None] = field(default_factory=dict)
    """Connections whose client does not read, the longest blocked first."""
    tasks: set[asyncio.Task[None]] = field(default_factory=set)
    """Loads and unloads under way; they outlive the connection that asked."""
    copied: int = 0
    """Bytes of bodies that were not received where they are used."""
    closing: bool = False
    """Answers close their connections."""
    draining: bool = False
    """Connections without a request are closed as well."""
    empty: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when the last connection of a draining server is gone."""
