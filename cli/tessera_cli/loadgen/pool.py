"""Connections to one address: requests go to whichever has room, else wait here in order."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable

from tessera_cli.loadgen.connection import Answered, Connection
from tessera_cli.loadgen.http1 import HttpConnection
from tessera_cli.loadgen.http2 import GrpcConnection, request_headers
from tessera_cli.loadgen.plan import LoadFailed, Protocol, Target

INFER = "/inference.GRPCInferenceService/ModelInfer"
CONNECT_TIMEOUT_S = 5.0
MAX_RECONNECTS = 100
"""Per pool: a server that closes every connection is not asked for ever."""
RECONNECT_PAUSE_S = 0.05


class Pool:
    """Ready after :meth:`open`; every submitted request is answered once, or never when the load ends."""

    def __init__(self, target: Target, sending: Callable[[int], None], answered: Answered) -> None:
        self._target = target
        self._sending = sending
        self._answered = answered
        self._connections: set[Connection] = set()
        self._free: deque[Connection] = deque()
        self._listed: set[Connection] = set()
        self._waiting: deque[tuple[int, bytes]] = deque()
        self._reconnects = 0
        self._tasks: set[asyncio.Task[None]] = set()
        self._closed = False
        self._all_usable = asyncio.Event()

    async def open(self) -> None:
        """Open all connections and wait until they can be used. Raises LoadFailed."""
        where = f"{self._target.host} port {self._target.port}"
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT_S):
                for _ in range(self._target.connections):
                    await self._connect()
                await self._all_usable.wait()
        except TimeoutError:
            speaks = self._target.protocol.value
            raise LoadFailed(
                f"{where} does not speak {speaks}: no answer to the greeting"
            ) from None
        except OSError as error:
            raise LoadFailed(f"cannot connect to {where}: {error.strerror or error}") from error

    def submit(self, number: int, request: bytes) -> None:
        """Send now where a connection has room, else as soon as one has."""
        if self._waiting or not self._send(number, request):
            self._waiting.append((number, request))

    def close(self) -> None:
        self._closed = True
        for task in self._tasks:
            task.cancel()
        for connection in list(self._connections):
            connection.close()

    def _send(self, number: int, request: bytes) -> bool:
        free = self._free
        while free:
            connection = free[0]
            if connection.room:
                self._sending(number)
                connection.send(number, request)
                free.rotate(-1)
                return True
            free.popleft()
            self._listed.discard(connection)
        return False

    def _changed(self, connection: Connection) -> None:
        if connection.ended:
            self._replace(connection)
        elif connection.room and connection not in self._listed:
            self._listed.add(connection)
            self._free.append(connection)
            if len(self._listed) == self._target.connections:
                self._all_usable.set()
        while self._waiting and self._send(*self._waiting[0]):
            self._waiting.popleft()

    def _replace(self, connection: Connection) -> None:
        if connection not in self._connections:
            return
        self._connections.discard(connection)
        if not self._closed and self._reconnects < MAX_RECONNECTS:
            self._reconnects += 1
            task = asyncio.get_running_loop().create_task(self._reconnect())
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _reconnect(self) -> None:
        while self._reconnects <= MAX_RECONNECTS:
            try:
                await self._connect()
                return
            except OSError:
                self._reconnects += 1
                await asyncio.sleep(RECONNECT_PAUSE_S)

    async def _connect(self) -> None:
        target = self._target

        def make() -> HttpConnection | GrpcConnection:
            if target.protocol is Protocol.HTTP:
                return HttpConnection(self._answered, self._changed)
            headers = request_headers(INFER, f"{target.host}:{target.port}")
            return GrpcConnection(headers, self._answered, self._changed)

        loop = asyncio.get_running_loop()
        _, connection = await loop.create_connection(make, target.host, target.port)
        self._connections.add(connection)
