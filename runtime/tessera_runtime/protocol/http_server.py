"""The HTTP front end of one process."""

from __future__ import annotations

import asyncio
import socket
import ssl

from tessera_runtime.dataplane import DataPlane
from tessera_runtime.protocol.accepting import Accepting, accept_on
from tessera_runtime.protocol.front_end import FrontEnd
from tessera_runtime.protocol.http1 import HttpConnection
from tessera_runtime.protocol.hub import Hub
from tessera_runtime.protocol.limits import HttpLimits
from tessera_runtime.protocol.listen import listen_on

SCRATCH = 4096
"""Bytes received at once while a head is expected. What has come of the body with it has to be copied, so not more
than heads usually have and a small body."""


class HttpServer(FrontEnd[Hub]):
    """Made by :func:`start_http`."""

    def __init__(self, hub: Hub, accepting: Accepting) -> None:
        super().__init__(hub, accepting)
        self._ends = False

    def send_elsewhere(self, whether: bool) -> None:
        """Answer with ``Connection: close``, so that clients come back somewhere else; or no more, unless it ends."""
        self._hub.closing = whether or self._ends

    def let_go(self) -> None:
        """The same for good."""
        self._ends = True
        self.send_elsewhere(True)

    async def close(self) -> None:
        self.let_go()
        await super().close()

    def dismiss(self) -> None:
        """Answers say ``Connection: close``; idle connections are closed at once, those that never asked a few sweeps
        later.
        """
        self.let_go()
        for connection in list(self._hub.connections):
            connection.drain()


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
    now = asyncio.get_running_loop().time()
    hub = Hub(plane, limits, now, memoryview(bytearray(min(SCRATCH, limits.max_head))))
    sock = sock or listen_on(host, port)
    accepting = await accept_on(sock, lambda: HttpConnection(hub), context, limits.max_handshakes)
    return HttpServer(hub, accepting)
