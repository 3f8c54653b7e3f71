"""The gRPC front end of one process, on grpcio: inference, health, reflection and the protocol's extensions.

Requests arrive as bytes and are parsed here, so that a malformed message is the client's error and not an
internal one.
"""

from __future__ import annotations

import errno
from collections.abc import Awaitable, Callable, Iterable
from functools import cache
from typing import Any

import grpc
from google.protobuf import descriptor_pb2
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection, reflection_pb2

from tessera_runtime.dataplane import DataPlane
from tessera_runtime.protocol import describe
from tessera_runtime.protocol.grpc_codec import parameters_of
from tessera_runtime.protocol.grpc_health import HEALTH_SERVICE, health_handlers
from tessera_runtime.protocol.grpc_rpc import (
    InferStream,
    abort,
    keys_with,
    parse,
    sent_with,
    unary_infer,
)
from tessera_runtime.protocol.limits import GrpcLimits
from tessera_runtime.protocol.listen import PortTaken
from tessera_runtime.protocol.member_call import MAX_ROWS, QUEUED_ROWS
from tessera_runtime.protocol.messages import POOL, SERVICE, message
from tessera_runtime.protocol.rest import check_load, check_unload

Answer = dict[str, Any]
"""The fields of the response message."""


class GrpcServer:
    """Made by :func:`start_grpc`."""

    def __init__(self, server: Any, port: int) -> None:
        self._server = server
        self.port = port

    async def drain(self, timeout_s: float) -> None:
        """Refuse new calls (GOAWAY), let those in flight finish, then cancel what is left."""
        await self._server.stop(timeout_s)

    async def close(self) -> None:
        """Stop at once: calls in flight are cancelled. Idempotent."""
        await self._server.stop(0)


async def start_grpc(
    plane: DataPlane,
    host: str = "127.0.0.1",
    port: int = 0,
    limits: GrpcLimits | None = None,
) -> GrpcServer:
    """Serve ``plane`` on ``host`` and ``port`` (0: any free one).

    Raises PortTaken, an OSError that names the port.
    """
    limits = limits or GrpcLimits()
    handlers = {
        HEALTH_SERVICE: health_handlers(plane),
        SERVICE: _inference_handlers(plane, limits),
    }
    server = grpc.aio.server(
        handlers=[
            grpc.method_handlers_generic_handler(name, methods)
            for name, methods in handlers.items()
        ],
        options=_options(limits),
        maximum_concurrent_rpcs=limits.max_concurrent_rpcs,
    )
    names = [SERVICE, HEALTH_SERVICE, reflection.SERVICE_NAME]
    reflection.enable_server_reflection(names, server, pool=_described())
    address = f"[{host}]:{port}" if ":" in host else f"{host or '[::]'}:{port}"
    try:
        bound = server.add_insecure_port(address)
    except RuntimeError as error:  # all that grpcio says
        raise PortTaken(errno.EADDRINUSE, f"cannot listen on port {port} of {host}") from error
    await server.start()
    return GrpcServer(server, bound)


def _options(limits: GrpcLimits) -> list[tuple[str, int]]:
    options = [
        # Two servers must not share a port by accident.
        ("grpc.so_reuseport", 0),
        ("grpc.max_receive_message_length", limits.max_message),
        ("grpc.max_send_message_length", -1),
        ("grpc.keepalive_time_ms", round(limits.keepalive_time_s * 1e3)),
        ("grpc.keepalive_timeout_ms", round(limits.keepalive_timeout_s * 1e3)),
        ("grpc.http2.ping_timeout_ms", round(limits.keepalive_timeout_s * 1e3)),
        ("grpc.keepalive_permit_without_calls", 1),
        (
            "grpc.http2.min_ping_interval_without_data_ms",
            round(limits.min_ping_interval_s * 1e3),
        ),
    ]
    if limits.max_connection_age_s:
        age_ms = round(limits.max_connection_age_s * 1e3)
        grace_ms = round(limits.max_connection_age_grace_s * 1e3)
        options.append(("grpc.max_connection_age_ms", age_ms))
        options.append(("grpc.max_connection_age_grace_ms", grace_ms))
    return options


@cache
def _described() -> Any:
    """The pool that reflection answers from: the protocol's, with health and reflection themselves."""
    for module in (health_pb2, reflection_pb2):
        described = descriptor_pb2.FileDescriptorProto()
        module.DESCRIPTOR.CopyToProto(described)
        POOL.Add(described)
    return POOL


def _inference_handlers(plane: DataPlane, limits: GrpcLimits) -> dict[str, Any]:
    async def stream_infer(requests: Any, context: Any) -> None:
        await InferStream(plane, context, limits.max_stream_requests).serve(requests)

    def unary(name: str, answer: Callable[[Any, Any], Awaitable[Answer]]) -> tuple[str, Any]:
        request_class, response_class = message(f"{name}Request"), message(f"{name}Response")

        async def handle(data: bytes, context: Any) -> bytes:
            try:
                fields = await answer(parse(request_class, data), context)
            except Exception as error:
                await abort(context, error)
            return bytes(response_class(**fields).SerializeToString())

        return name, grpc.unary_unary_rpc_method_handler(handle)

    return {
        "ModelInfer": grpc.unary_unary_rpc_method_handler(unary_infer(plane)),
        "ModelStreamInfer": grpc.stream_stream_rpc_method_handler(stream_infer),
        **dict(unary(name, answer) for name, answer in _answers(plane)),
    }


def _answers(plane: DataPlane) -> Iterable[tuple[str, Callable[[Any, Any], Awaitable[Answer]]]]:
    """Every other RPC: its name, and a function from request and context to the response's fields."""

    def named(name: str, context: Any) -> str:
        """The model that a request means. Raises Unauthorized."""
        return plane.resolve(name, "", keys_with(context))

    async def server_live(request: Any, context: Any) -> Answer:
        return {"live": plane.live()}

    async def server_ready(request: Any, context: Any) -> Answer:
        return {"ready": plane.ready()}

    async def server_metadata(request: Any, context: Any) -> Answer:
        return describe.server_metadata()

    async def model_ready(request: Any, context: Any) -> Answer:
        return {"ready": plane.model_ready(named(request.name, context), request.version)}

    async def model_metadata(request: Any, context: Any) -> Answer:
        model = named(request.name, context)
        part = sent_with(context).part
        if part is None:
            return describe.model_metadata(plane.metadata(model, request.version))
        facts = plane.member_metadata(model, part)
        told = {MAX_ROWS: facts.max_rows, QUEUED_ROWS: plane.queued_rows(model, part)}
        context.set_trailing_metadata(tuple((name, str(value)) for name, value in told.items()))
        return describe.model_metadata(facts)

    async def model_config(request: Any, context: Any) -> Answer:
        model = named(request.name, context)
        return {"config": describe.model_config(plane.metadata(model, request.version))}

    async def model_statistics(request: Any, context: Any) -> Answer:
        model = named(request.name, context) if request.name else ""
        stats = plane.statistics(model, request.version, keys_with(context))
        return {"model_stats": [describe.model_statistics(one) for one in stats]}

    async def index(request: Any, context: Any) -> Answer:
        listed = plane.repository(keys_with(context))
        entries = [e for e in listed if not request.ready or e.state == "READY"]
        return {"models": [describe.repository_entry(entry) for entry in entries]}

    async def load(request: Any, context: Any) -> Answer:
        check_load(parameters_of(request.parameters))
        await plane.load(named(request.model_name, context))
        return {}

    async def unload(request: Any, context: Any) -> Answer:
        check_unload(parameters_of(request.parameters))
        await plane.unload(named(request.model_name, context))
        return {}

    return (
        ("ServerLive", server_live),
        ("ServerReady", server_ready),
        ("ServerMetadata", server_metadata),
        ("ModelReady", model_ready),
        ("ModelMetadata", model_metadata),
        ("ModelConfig", model_config),
        ("ModelStatistics", model_statistics),
        ("RepositoryIndex", index),
        ("RepositoryModelLoad", load),
        ("RepositoryModelUnload", unload),
    )
