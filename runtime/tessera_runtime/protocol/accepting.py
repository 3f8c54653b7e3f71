"""A listening socket and whoever accepts on it: connections in clear or under TLS, whose certificates are replaced."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Callable

from tessera_runtime.protocol.listen import BACKLOG
from tessera_runtime.protocol.tls import CLOSE_S, HANDSHAKE_S


class Accepting:
    """Made by :func:`accept_on`."""

    def __init__(self, sock: socket.socket, protocol: Callable[[], asyncio.BaseProtocol]) -> None:
        self._sock = sock
        self._protocol = protocol
        self._server: asyncio.Server | None = None
        self._closed = False
        self.port: int = sock.getsockname()[1]

    async def use(self, context: ssl.SSLContext | None) -> None:
        """Accept with ``context`` from now on; connections that exist stay as they are."""
        # Of a duplicate, so that ending the former does not end the socket: clients notice nothing.
        server = await asyncio.get_running_loop().create_server(
            self._protocol,
            sock=self._sock.dup(),
            backlog=BACKLOG,
            ssl=context,
            ssl_handshake_timeout=HANDSHAKE_S if context else None,
            ssl_shutdown_timeout=CLOSE_S if context else None,
        )
        former, self._server = self._server, server
        if former is not None:
            former.close()
        if self._closed:
            server.close()

    def close(self) -> None:
        """Accept no more; connections that exist stay. Idempotent."""
        self._closed = True
        if self._server is not None:
            self._server.close()
        self._sock.close()

    def refuse(self) -> None:
        """As :meth:`close`, for all processes that hold the socket: clients do not wait in its queue."""
        if not self._closed:
            self._sock.shutdown(socket.SHUT_RDWR)
        self.close()


async def accept_on(
    sock: socket.socket,
    protocol: Callable[[], asyncio.BaseProtocol],
    context: ssl.SSLContext | None,
) -> Accepting:
    """Begin to accept connections, each for a new ``protocol``."""
    accepting = Accepting(sock, protocol)
    await accepting.use(context)
    return accepting
