"""The gRPC front end of one process."""

from __future__ import annotations

import asyncio
import socket
import ssl
from functools import partial

from tessera_runtime.dataplane import DataPlane
from tessera_runtime.protocol.accepting import Accepting, accept_on
from tessera_runtime.protocol.front_end import FrontEnd
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

_SCRATCH = 64 * KIB
"""Bytes read at once: many small calls, or a tensor of some ten KiB in whatever frames a client cuts it into. A second
read would cost more than copying that much; what is longer is received in place."""


class GrpcServer(FrontEnd[Hub]):
    """Made by :func:`start_grpc`."""

    def __init__(self, hub: Hub, accepting: Accepting, service: Service) -> None:
        super().__init__(hub, accepting)
        self._service = service

    async def close(self) -> None:
        await super().close()
        if self._service.tasks:
            await asyncio.wait(self._service.tasks)

    def dismiss(self) -> None:
        for connection in list(self._hub.connections):
            connection.go_away()


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
    accepting = await accept_on(sock, lambda: Connection(hub), context, hub.limits.max_handshakes)
    return GrpcServer(hub, accepting, service)


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
