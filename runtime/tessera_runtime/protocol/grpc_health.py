"""grpc.health.v1 over the data plane: the server as ``""`` or its service's name, or one model's name.

The state is pulled, never stored, so it cannot disagree with the readiness that the protocol reports.
"""

from __future__ import annotations

import asyncio
from typing import Any

from grpc_health.v1 import health_pb2

from tessera_runtime.dataplane import DataPlane
from tessera_runtime.errors import ServeError, Unauthorized
from tessera_runtime.protocol.grpc_call import Begin, method
from tessera_runtime.protocol.grpc_codec import parse
from tessera_runtime.protocol.grpc_rpc import TaskCall, unary
from tessera_runtime.protocol.messages import SERVICE

HEALTH_SERVICE = "grpc.health.v1.Health"
_WATCH_INTERVAL_S = 1.0

_Response: Any = health_pb2.HealthCheckResponse


def health_methods(plane: DataPlane) -> dict[str, Begin]:
    async def check(request: Any, call: TaskCall) -> Any:
        return _Response(status=_state_of(plane, request.service, call))

    async def watch(data: bytes, call: TaskCall) -> None:
        service = parse(health_pb2.HealthCheckRequest, data).service
        last = None
        while True:
            try:
                state = _state_of(plane, service, call)
            except Unauthorized:
                raise
            except ServeError:
                state = _Response.SERVICE_UNKNOWN
            if state != last:
                last = state
                call.write(_Response(status=state).SerializeToString())
            await asyncio.sleep(_WATCH_INTERVAL_S)

    return {
        "Check": unary(health_pb2.HealthCheckRequest, check),
        "Watch": method(TaskCall, watch),
    }


def _state_of(plane: DataPlane, service: str, call: TaskCall) -> Any:
    """Raises NotFound for a name that is neither the server nor a model, Unauthorized."""
    if service in ("", SERVICE):
        ready = plane.ready()
    else:
        ready = plane.model_ready(
            plane.resolve(service, call.head.authority, call.head.sent.keys), ""
        )
    return _Response.SERVING if ready else _Response.NOT_SERVING
