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
        self._context: ssl.SSLContext | None = None
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
        former, self._server, self._context = self._server, server, context
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

    async def refuse(self) -> None:
        """As :meth:`close`, for all processes that hold the socket: clients do not wait in its queue.

        Those in it have a connection as far as they know, which the end of the socket would reset: they are accepted.
        Returns when they are connected.
        """
        if self._closed:
            return
        waiting = self._queued()
        self._sock.shutdown(socket.SHUT_RDWR)
        self.close()
        connect = asyncio.get_running_loop().connect_accepted_socket
        timeout_s = (HANDSHAKE_S, CLOSE_S) if self._context else (None, None)
        connecting = [
            connect(
                self._protocol,
                each,
                ssl=self._context,
                ssl_handshake_timeout=timeout_s[0],
                ssl_shutdown_timeout=timeout_s[1],
            )
            for each in waiting
        ]
        # A client that is gone, or speaks no TLS, is no concern of the others.
        await asyncio.gather(*connecting, return_exceptions=True)

    def _queued(self) -> list[socket.socket]:
        """Takes connections off the queue until there are none."""
        found: list[socket.socket] = []
        while len(found) < BACKLOG:
            try:
                sock, _ = self._sock.accept()
            except OSError:
                break
            sock.setblocking(False)
            found.append(sock)
        return found


async def accept_on(
    sock: socket.socket,
    protocol: Callable[[], asyncio.BaseProtocol],
    context: ssl.SSLContext | None,
) -> Accepting:
    """Begin to accept connections, each for a new ``protocol``."""
    accepting = Accepting(sock, protocol)
    await accepting.use(context)
    return accepting
