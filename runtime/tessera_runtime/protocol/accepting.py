"""A listening socket and whoever accepts on it: connections in clear, or under TLS once the handshake is done.

A handshake costs a client nothing that it does not finish, so many can be under way at once. Then those are ended that
take longest: an honest client needs some round trips, so it gets through unless as many others as are allowed come in
that time. To refuse the newest, or to let them wait, would keep honest clients out for as long as strangers may take.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import ssl
from collections.abc import Callable
from functools import partial
from itertools import islice

from tessera_runtime.protocol.listen import BACKLOG
from tessera_runtime.protocol.tls import CLOSE_S, HANDSHAKE_S

log = logging.getLogger(__name__)

ACCEPTS = 32
"""Connections taken from the queue in a turn of the loop: who is connected, or nearly so, has its turns too."""

PAUSE_S = 0.1
"""Before the next look at the queue when descriptors have run out: those of handshakes that are ended are free then."""


class Accepting:
    """Made by :func:`accept_on`."""

    def __init__(
        self,
        sock: socket.socket,
        protocol: Callable[[], asyncio.BaseProtocol],
        context: ssl.SSLContext | None,
        most: int,
    ) -> None:
        self._sock = sock
        self._protocol = protocol
        self._context = context
        self._most = most
        self._loop = asyncio.get_running_loop()
        self._server: asyncio.Server | None = None
        """Accepts in clear."""
        self._opening: dict[asyncio.Task[None], None] = {}
        """Connections that are none yet, the oldest first."""
        self._short = False
        """Whether the system could not give a connection when it was asked last."""
        self._closed = False
        self.port: int = sock.getsockname()[1]

    @property
    def handshakes(self) -> int:
        """How many are under way."""
        return len(self._opening)

    async def start(self) -> None:
        if self._context is None:
            # It closes the socket that it is given, at a time of its own.
            self._server = await self._loop.create_server(
                self._protocol, sock=self._sock.dup(), backlog=BACKLOG
            )
        else:
            self._sock.listen(BACKLOG)
            self._listen()

    def use(self, context: ssl.SSLContext | None) -> None:
        """Accept with ``context`` from now on; what has begun stays as it is. What is in clear remains so."""
        assert (context is None) == (self._context is None)
        self._context = context

    async def close(self) -> None:
        """Accept no more, and end handshakes; connections that exist stay. Idempotent."""
        self._stop()
        opening = list(self._opening)
        for task in opening:
            task.cancel()
        await asyncio.gather(*opening, return_exceptions=True)

    async def refuse(self) -> None:
        """Accept no more, for all processes that hold the socket: clients do not wait in its queue.

        Those in it have a connection as far as they know, which the end of the socket would reset: they are accepted.
        Returns when they are connected.
        """
        if self._closed:
            return
        waiting = self._queued()
        self._sock.shutdown(socket.SHUT_RDWR)
        self._stop()
        for each in waiting:
            self._open(each)
        await asyncio.gather(*self._opening, return_exceptions=True)

    def _stop(self) -> None:
        if self._closed:
            return
        self._closed = True
        if self._server is not None:
            self._server.close()
        else:
            self._loop.remove_reader(self._sock)
        self._sock.close()

    def _listen(self) -> None:
        if not self._closed:
            self._loop.add_reader(self._sock, self._accept)

    def _accept(self) -> None:
        for _ in range(ACCEPTS):
            try:
                sock, _ = self._sock.accept()
            except (BlockingIOError, ConnectionAbortedError):
                return
            except OSError as error:
                if not self._short:
                    log.error("cannot accept connections: %s", error)
                self._short = True
                self._end_oldest(ACCEPTS)
                self._loop.remove_reader(self._sock)
                self._loop.call_later(PAUSE_S, self._listen)
                return
            self._short = False
            if len(self._opening) >= self._most:
                self._end_oldest(1)
            self._open(sock)

    def _open(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        task = self._loop.create_task(self._connect(sock))
        self._opening[task] = None
        task.add_done_callback(partial(self._opened, sock))

    def _end_oldest(self, count: int) -> None:
        """Of handshakes."""
        for task in list(islice(self._opening, count)):
            del self._opening[task]
            task.cancel()

    def _opened(self, sock: socket.socket, task: asyncio.Task[None]) -> None:
        self._opening.pop(task, None)
        if task.cancelled():
            sock.close()  # which nobody has if the task was not begun

    async def _connect(self, sock: socket.socket) -> None:
        under_tls = self._context is not None
        try:
            await self._loop.connect_accepted_socket(
                self._protocol,
                sock,
                ssl=self._context,
                ssl_handshake_timeout=HANDSHAKE_S if under_tls else None,
                ssl_shutdown_timeout=CLOSE_S if under_tls else None,
            )
        except OSError:
            pass  # a client that is gone, or speaks no TLS, is no concern of the others

    def _queued(self) -> list[socket.socket]:
        """Takes connections off the queue until there are none."""
        found: list[socket.socket] = []
        while len(found) < BACKLOG:
            try:
                sock, _ = self._sock.accept()
            except OSError:
                break
            found.append(sock)
        return found


async def accept_on(
    sock: socket.socket,
    protocol: Callable[[], asyncio.BaseProtocol],
    context: ssl.SSLContext | None,
    most_handshakes: int,
) -> Accepting:
    """Begin to accept connections, each for a new ``protocol``, under TLS with ``context``."""
    accepting = Accepting(sock, protocol, context, most_handshakes)
    await accepting.start()
    return accepting
