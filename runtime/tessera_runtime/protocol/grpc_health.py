"""grpc.health.v1 over the data plane: the server as ``""`` or its service's name, or one model's name.

The state is pulled, never stored, so it cannot disagree with the readiness that the protocol reports.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc
from grpc_health.v1 import health_pb2

from tessera_runtime.dataplane import DataPlane, Keys
from tessera_runtime.errors import ServeError, Unauthorized
from tessera_runtime.protocol.grpc_rpc import abort, keys_with, parse
from tessera_runtime.protocol.messages import SERVICE

HEALTH_SERVICE = "grpc.health.v1.Health"
_WATCH_INTERVAL_S = 1.0

_Response: Any = health_pb2.HealthCheckResponse


def health_handlers(plane: DataPlane) -> dict[str, Any]:
    async def check(data: bytes, context: Any) -> bytes:
        try:
            service = parse(health_pb2.HealthCheckRequest, data).service
            state = _state_of(plane, service, keys_with(context))
        except ServeError as error:
            await abort(context, error)
        return bytes(_Response(status=state).SerializeToString())

    async def watch(data: bytes, context: Any) -> AsyncIterator[bytes]:
        try:
            service = parse(health_pb2.HealthCheckRequest, data).service
        except ServeError as error:
            await abort(context, error)
        last = None
        while True:
            try:
                state = _state_of(plane, service, keys_with(context))
            except Unauthorized as error:
                await abort(context, error)
            except ServeError:
                state = _Response.SERVICE_UNKNOWN
            if state != last:
                last = state
                yield bytes(_Response(status=state).SerializeToString())
            await asyncio.sleep(_WATCH_INTERVAL_S)

    return {
        "Check": grpc.unary_unary_rpc_method_handler(check),
        "Watch": grpc.unary_stream_rpc_method_handler(watch),
    }


def _state_of(plane: DataPlane, service: str, keys: Keys) -> Any:
    """Raises NotFound for a name that is neither the server nor a model, Unauthorized."""
    if service in ("", SERVICE):
        ready = plane.ready()
    else:
        ready = plane.model_ready(plane.resolve(service, "", keys), "")
    return _Response.SERVING if ready else _Response.NOT_SERVING
