"""Every HTTP endpoint but inference: a route and a body in, a :class:`Response` out.

Plain functions of the data plane; the connection (:mod:`tessera_runtime.protocol.http1`) does the bytes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

import msgspec

from tessera_runtime.dataplane import DataPlane, Parameter
from tessera_runtime.errors import InvalidRequest
from tessera_runtime.protocol import describe
from tessera_runtime.protocol.head import Head
from tessera_runtime.protocol.routes import Endpoint

_encode = msgspec.json.Encoder().encode


@dataclass(frozen=True, slots=True)
class Response:
    status: int
    body: bytes = b""
    allow: str = ""
    """The ``Allow`` header of 405 and OPTIONS."""


class _Index(msgspec.Struct):
    ready: bool = False


class _Change(msgspec.Struct):
    parameters: dict[str, Parameter] = {}


_Body = TypeVar("_Body", _Index, _Change)


def error_body(message: str) -> bytes:
    return _encode({"error": message})


def refuse_method(head: Head) -> Response | None:
    """The answer to OPTIONS and to a method that the endpoint does not take; None for the right one."""
    wanted = head.route.endpoint.method
    if not wanted or head.method == wanted or (head.method == "HEAD" and wanted == "GET"):
        return None
    allow = f"{wanted}, HEAD, OPTIONS" if wanted == "GET" else f"{wanted}, OPTIONS"
    if head.method == "OPTIONS":
        return Response(204, allow=allow)
    return Response(405, error_body(f"{head.method} is not allowed here; allowed: {allow}"), allow)


def answer(plane: DataPlane, head: Head, body: bytes) -> Response:
    """Answer any endpoint but INFER, LOAD and UNLOAD. Raises ServeError."""
    route = head.route
    match route.endpoint:
        case Endpoint.LIVE:
            return Response(200 if plane.live() else 400)
        case Endpoint.READY:
            return Response(200 if plane.ready() else 400)
        case Endpoint.SERVER:
            return Response(200, _encode(describe.server_metadata()))
        case Endpoint.INDEX:
            only_ready = _decode(body, _Index()).ready
            entries = [
                e for e in plane.repository(head.keys) if not only_ready or e.state == "READY"
            ]
            return Response(200, _encode([describe.repository_entry(entry) for entry in entries]))
        case Endpoint.UNSUPPORTED:
            allowed = ", ".join(describe.EXTENSIONS)
            return Response(501, error_body(f"extension not supported; supported: {allowed}"))
        case Endpoint.UNKNOWN:
            return Response(404, error_body("no such endpoint; see the Open Inference Protocol v2"))
    model = plane.resolve(route.model, head.host, head.keys) if route.model else ""
    match route.endpoint:
        case Endpoint.MODEL_READY:
            return Response(200 if plane.model_ready(model, route.version) else 400)
        case Endpoint.MODEL:
            facts = plane.metadata(model, route.version)
            return Response(200, _encode(describe.model_metadata(facts)))
        case Endpoint.CONFIG:
            facts = plane.metadata(model, route.version)
            return Response(200, _encode(describe.model_config(facts)))
        case Endpoint.STATISTICS:
            stats = plane.statistics(model, route.version, head.keys)
            listed = [describe.model_statistics(one) for one in stats]
            return Response(200, _encode({"model_stats": listed}))
    raise AssertionError(f"{route.endpoint} is answered elsewhere")


async def change(plane: DataPlane, head: Head, body: bytes) -> Response:
    """Load or unload a model. Raises ServeError."""
    parameters = _decode(body, _Change()).parameters
    model = plane.resolve(head.route.model, head.host, head.keys)
    if head.route.endpoint is Endpoint.LOAD:
        check_load(parameters)
        await plane.load(model)
    else:
        check_unload(parameters)
        await plane.unload(model)
    return Response(200)


def check_load(parameters: dict[str, Parameter]) -> None:
    """A client may not bring its own files or configuration: models come from their declared source."""
    for name in parameters:
        raise InvalidRequest(f"parameters.{name[:64]}: load takes no parameters")


def check_unload(parameters: dict[str, Parameter]) -> None:
    for name, value in parameters.items():
        if name != "unload_dependents" or value:
            raise InvalidRequest(
                f"parameters.{name[:64]}: unload takes only unload_dependents, false"
            )


def _decode(body: bytes, default: _Body) -> _Body:
    if not body:
        return default
    try:
        return msgspec.json.decode(body, type=type(default))
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise InvalidRequest(f"the body is not valid JSON: {error}") from None
