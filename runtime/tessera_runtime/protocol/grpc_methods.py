"""Every RPC of the inference service, by name."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from tessera_runtime.dataplane import DataPlane
from tessera_runtime.protocol import describe
from tessera_runtime.protocol.grpc_call import Begin
from tessera_runtime.protocol.grpc_codec import parameters_of
from tessera_runtime.protocol.grpc_infer import StreamInfer, UnaryInfer
from tessera_runtime.protocol.grpc_rpc import TaskCall, unary
from tessera_runtime.protocol.member_call import MAX_ROWS, QUEUED_ROWS
from tessera_runtime.protocol.messages import message
from tessera_runtime.protocol.rest import check_load, check_unload

Answer = dict[str, Any]
"""The fields of the response message."""


def inference_methods(plane: DataPlane) -> dict[str, Begin]:
    return {
        "ModelInfer": UnaryInfer,
        "ModelStreamInfer": StreamInfer,
        **{name: _unary(name, answer) for name, answer in _answers(plane)},
    }


def _unary(name: str, answer: Callable[[Any, TaskCall], Awaitable[Answer]]) -> Begin:
    request_class, response_class = message(f"{name}Request"), message(f"{name}Response")

    async def respond(request: Any, call: TaskCall) -> Any:
        return response_class(**await answer(request, call))

    return unary(request_class, respond)


def _answers(
    plane: DataPlane,
) -> tuple[tuple[str, Callable[[Any, TaskCall], Awaitable[Answer]]], ...]:
    """Every RPC but inference: its name, and a function from the request to the response's fields."""

    def named(name: str, call: TaskCall) -> str:
        """The model that a request means. Raises Unauthorized."""
        return plane.resolve(name, call.head.authority, call.head.sent.keys)

    async def server_live(request: Any, call: TaskCall) -> Answer:
        return {"live": plane.live()}

    async def server_ready(request: Any, call: TaskCall) -> Answer:
        return {"ready": plane.ready()}

    async def server_metadata(request: Any, call: TaskCall) -> Answer:
        return describe.server_metadata()

    async def model_ready(request: Any, call: TaskCall) -> Answer:
        return {"ready": plane.model_ready(named(request.name, call), request.version)}

    async def model_metadata(request: Any, call: TaskCall) -> Answer:
        model = named(request.name, call)
        part = call.head.sent.part
        if part is None:
            return describe.model_metadata(plane.metadata(model, request.version))
        facts = plane.member_metadata(model, part)
        told = {MAX_ROWS: facts.max_rows, QUEUED_ROWS: plane.queued_rows(model, part)}
        call.trailing = [(name, str(value)) for name, value in told.items()]
        return describe.model_metadata(facts)

    async def model_config(request: Any, call: TaskCall) -> Answer:
        model = named(request.name, call)
        return {"config": describe.model_config(plane.metadata(model, request.version))}

    async def model_statistics(request: Any, call: TaskCall) -> Answer:
        model = named(request.name, call) if request.name else ""
        stats = plane.statistics(model, request.version, call.head.sent.keys)
        return {"model_stats": [describe.model_statistics(one) for one in stats]}

    async def index(request: Any, call: TaskCall) -> Answer:
        listed = plane.repository(call.head.sent.keys)
        entries = [e for e in listed if not request.ready or e.state == "READY"]
        return {"models": [describe.repository_entry(entry) for entry in entries]}

    async def load(request: Any, call: TaskCall) -> Answer:
        check_load(parameters_of(request.parameters))
        await plane.load(named(request.model_name, call))
        return {}

    async def unload(request: Any, call: TaskCall) -> Answer:
        check_unload(parameters_of(request.parameters))
        await plane.unload(named(request.model_name, call))
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
