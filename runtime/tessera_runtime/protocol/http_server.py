"""The HTTP front end of one process: a listening socket, its connections and the sweep over them."""

from __future__ import annotations

import asyncio
import logging
import socket
import ssl

from tessera_runtime.dataplane import DataPlane
from tessera_runtime.protocol.accepting import Accepting, accept_on
from tessera_runtime.protocol.http1 import HttpConnection
from tessera_runtime.protocol.hub import Hub
from tessera_runtime.protocol.limits import HttpLimits
from tessera_runtime.protocol.listen import listen_on

_log = logging.getLogger(__name__)


SCRATCH = 4096
"""Bytes received at once while a head is expected. What has come of the body with it has to be copied, so not more
than heads usually have and a small body."""


class HttpServer:
    """Made by :func:`start_http`."""

    def __init__(self, hub: Hub, accepting: Accepting, sweeper: asyncio.Task[None]) -> None:
        self._hub = hub
        self._accepting = accepting
        self._sweeper = sweeper
        self.port: int = accepting.port

    @property
    def connections(self) -> int:
        return len(self._hub.connections)

    @property
    def copied(self) -> int:
        """Bytes of bodies that were not received where they are used."""
        return self._hub.copied

    async def renew(self, context: ssl.SSLContext | None) -> None:
        """New connections are under ``context`` from now on."""
        await self._accepting.use(context)

    def let_go(self) -> None:
        """Answer with ``Connection: close`` from now on, so that clients come back somewhere else."""
        self._hub.closing = True

    async def drain(self, timeout_s: float) -> None:
        """Stop listening, answer what is in flight with ``Connection: close``, then cut what is left.

        Idle connections are closed at once, those that never asked a few sweeps later. Returns when none is left, or
        after ``timeout_s``.
        """
        hub = self._hub
        hub.closing = hub.draining = True
        for connection in list(hub.connections):
            connection.drain()
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
        """Stop at once: requests in flight are cancelled. Idempotent."""
        hub = self._hub
        hub.closing = hub.draining = True
        self._accepting.close()
        self._sweeper.cancel()
        await asyncio.wait([self._sweeper])
        for connection in list(hub.connections):
            connection.abort()
        if hub.connections:
            await hub.empty.wait()


async def start_http(
    plane: DataPlane,
    sock: socket.socket | None = None,
    host: str = "127.0.0.1",
    port: int = 0,
    limits: HttpLimits | None = None,
    context: ssl.SSLContext | None = None,
) -> HttpServer:
    """Serve ``plane`` on ``sock``, or on a new socket of ``host`` and ``port`` (0: any free one), under TLS with
    ``context``.

    Raises PortTaken, an OSError that names the port.
    """
    limits = limits or HttpLimits()
    loop = asyncio.get_running_loop()
    hub = Hub(plane, limits, loop.time(), memoryview(bytearray(min(SCRATCH, limits.max_head))))
    sock = sock or listen_on(host, port)
    accepting = await accept_on(sock, lambda: HttpConnection(hub), context)
    return HttpServer(hub, accepting, loop.create_task(_sweep(hub)))


async def _sweep(hub: Hub) -> None:
    loop = asyncio.get_running_loop()
    while True:
        await asyncio.sleep(hub.limits.sweep_interval_s)
        hub.now = loop.time()
        for connection in list(hub.connections):
            try:
                connection.sweep(hub.now)
            except Exception:  # one connection's trouble must not end the timeouts of all others
                _log.exception("a connection could not be swept")
                connection.abort()
