"""The gRPC front end of one process: a listening socket, its connections and the sweep over them."""

from __future__ import annotations

import asyncio
import logging
import socket
import ssl
from functools import partial

from tessera_runtime.dataplane import DataPlane
from tessera_runtime.protocol.accepting import Accepting, accept_on
from tessera_runtime.protocol.grpc_call import Service, open_call
from tessera_runtime.protocol.grpc_head import head_reader
from tessera_runtime.protocol.grpc_health import HEALTH_SERVICE, health_methods
from tessera_runtime.protocol.grpc_methods import inference_methods
from tessera_runtime.protocol.grpc_reflection import REFLECTION_SERVICE, reflection_methods
from tessera_runtime.protocol.grpc_reply import ReplyWriter
from tessera_runtime.protocol.grpc_request import RequestReader
from tessera_runtime.protocol.http2.connection import Connection
from tessera_runtime.protocol.http2.hub import Hub
from tessera_runtime.protocol.http2.lifetime import opening
from tessera_runtime.protocol.limits import KIB, GrpcLimits
from tessera_runtime.protocol.listen import listen_on
from tessera_runtime.protocol.messages import SERVICE

_log = logging.getLogger(__name__)

_SCRATCH = 64 * KIB
"""Bytes read at once: many small calls, or a tensor of some ten KiB in whatever frames a client cuts it into. A second
read would cost more than copying that much; what is longer is received in place."""


class GrpcServer:
    """Made by :func:`start_grpc`."""

    def __init__(
        self,
        hub: Hub,
        service: Service,
        accepting: Accepting,
        sweeper: asyncio.Task[None],
    ) -> None:
        self._hub = hub
        self._service = service
        self._accepting = accepting
        self._sweeper = sweeper
        self.port: int = accepting.port

    @property
    def connections(self) -> int:
        return len(self._hub.connections)

    @property
    def copied(self) -> int:
        """Bytes of messages that were not received where they are used, each time that they were copied."""
        return self._hub.copied

    async def renew(self, context: ssl.SSLContext | None) -> None:
        """New connections are under ``context`` from now on."""
        await self._accepting.use(context)

    async def drain(self, timeout_s: float) -> None:
        """Stop listening, have clients go away, answer all that they sent before, then cut what is left.

        Returns when no connection is left, or after ``timeout_s``.
        """
        hub = self._hub
        hub.draining = True
        for connection in list(hub.connections):
            connection.go_away()
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
        """Stop at once: calls in flight are cancelled. Idempotent."""
        hub = self._hub
        hub.draining = True
        self._accepting.close()
        self._sweeper.cancel()
        await asyncio.wait([self._sweeper])
        for connection in list(hub.connections):
            connection.abort()
        if hub.connections:
            await hub.empty.wait()
        if self._service.tasks:
            await asyncio.wait(self._service.tasks)


async def start_grpc(
    plane: DataPlane,
    sock: socket.socket | None = None,
    host: str = "127.0.0.1",
    port: int = 0,
    limits: GrpcLimits | None = None,
    context: ssl.SSLContext | None = None,
) -> GrpcServer:
    """Serve ``plane`` on ``sock``, or on a new socket of ``host`` and ``port`` (0: any free one), under TLS with
    ``context``.

    Raises PortTaken, an OSError that names the port.
    """
    hub, service = make_hub(plane, limits or GrpcLimits())
    sock = sock or listen_on(host, port)
    accepting = await accept_on(sock, lambda: Connection(hub), context)
    return GrpcServer(hub, service, accepting, service.loop.create_task(_sweep(hub)))


def make_hub(plane: DataPlane, limits: GrpcLimits) -> tuple[Hub, Service]:
    """What connections to ``plane`` share, on the running loop."""
    loop = asyncio.get_running_loop()
    service = Service(plane, limits, loop, RequestReader(plane), ReplyWriter())
    services = {
        SERVICE: inference_methods(plane),
        HEALTH_SERVICE: health_methods(plane),
        REFLECTION_SERVICE: reflection_methods((SERVICE, HEALTH_SERVICE, REFLECTION_SERVICE)),
    }
    methods = {
        f"/{name}/{method}": begin
        for name, found in services.items()
        for method, begin in found.items()
    }
    hub = Hub(
        limits,
        head_reader(methods),
        partial(open_call, service),
        opening(limits),
        loop.time(),
        loop,
        memoryview(bytearray(_SCRATCH)),
    )
    return hub, service


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
