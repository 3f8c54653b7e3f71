"""What the front ends of both protocols do alike: count connections, sweep over them, drain and end.

How a connection is asked to leave is its protocol's matter, and what has to end beside the connections.
"""

from __future__ import annotations

import asyncio
import logging
import ssl
from collections.abc import Collection
from typing import Generic, Protocol, TypeVar

from tessera_runtime.protocol.accepting import Accepting

log = logging.getLogger(__name__)


class Connection(Protocol):
    """One client's."""

    def sweep(self, now: float) -> None:
        """End what takes too long at ``now``, the loop's time in seconds."""

    def abort(self) -> None:
        """End at once."""


class Limits(Protocol):
    @property
    def sweep_interval_s(self) -> float: ...


class Hub(Protocol):
    """What the connections of one front end share."""

    now: float
    """The loop's time at the last sweep, seconds."""
    draining: bool
    copied: int

    @property
    def limits(self) -> Limits: ...

    @property
    def connections(self) -> Collection[Connection]: ...

    @property
    def empty(self) -> asyncio.Event:
        """Set when the last connection is gone while draining."""


H = TypeVar("H", bound=Hub)


class FrontEnd(Generic[H]):
    """A listening socket, its connections and the sweep over them, on the running loop."""

    def __init__(self, hub: H, accepting: Accepting) -> None:
        self._hub = hub
        self._accepting = accepting
        self._sweeper = asyncio.get_running_loop().create_task(_sweep(hub))
        self.port: int = accepting.port

    @property
    def connections(self) -> int:
        return len(self._hub.connections)

    @property
    def copied(self) -> int:
        """Bytes of requests that were not received where they are used, each time that they were copied."""
        return self._hub.copied

    @property
    def handshakes(self) -> int:
        """Of TLS, under way: no connections yet."""
        return self._accepting.handshakes

    def renew(self, context: ssl.SSLContext | None) -> None:
        """New connections are under ``context`` from now on, which is None where it was before."""
        self._accepting.use(context)

    async def drain(self, timeout_s: float) -> None:
        """Stop listening, have clients go away, answer all that they sent before, then cut what is left.

        Returns when no connection is left, or after ``timeout_s``.
        """
        hub = self._hub
        hub.draining = True
        self.dismiss()
        try:
            async with asyncio.timeout(timeout_s):
                await self._accepting.refuse()
                while hub.connections:
                    hub.empty.clear()
                    await hub.empty.wait()
        except TimeoutError:
            pass
        await self.close()

    async def close(self) -> None:
        """Stop at once: what is in flight is cancelled. Idempotent."""
        hub = self._hub
        hub.draining = True
        await self._accepting.close()
        self._sweeper.cancel()
        await asyncio.wait([self._sweeper])
        for connection in list(hub.connections):
            connection.abort()
        if hub.connections:
            await hub.empty.wait()

    def dismiss(self) -> None:
        """Ask all connections to leave once what they carry is answered."""
        raise NotImplementedError


async def _sweep(hub: Hub) -> None:
    loop = asyncio.get_running_loop()
    while True:
        await asyncio.sleep(hub.limits.sweep_interval_s)
        hub.now = loop.time()
        for connection in list(hub.connections):
            try:
                connection.sweep(hub.now)
            except Exception:  # one connection's trouble must not end the timeouts of all others
                log.exception("a connection could not be swept")
                connection.abort()
