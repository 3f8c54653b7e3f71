"""Which endpoint a request target means: a pure function from path to :class:`Route`.

Model names may hold dots and percent-encoded characters; a path is split before it is decoded, so an
encoded slash stays inside a name. Paths follow the Open Inference Protocol v2 and the extensions
``statistics``, ``model_repository`` and ``model_configuration``.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from urllib.parse import unquote_to_bytes


class Endpoint(enum.Enum):
    """An endpoint and the method it takes."""

    LIVE = ("live", "GET")
    READY = ("ready", "GET")
    SERVER = ("server metadata", "GET")
    MODEL = ("model metadata", "GET")
    MODEL_READY = ("model ready", "GET")
    CONFIG = ("model configuration", "GET")
    STATISTICS = ("statistics", "GET")
    INFER = ("infer", "POST")
    INDEX = ("repository index", "POST")
    LOAD = ("load", "POST")
    UNLOAD = ("unload", "POST")
    UNSUPPORTED = ("an extension that is not served", "")
    UNKNOWN = ("no endpoint", "")

    @property
    def method(self) -> str:
        """The one method besides HEAD (for GET) and OPTIONS; empty where any is answered the same."""
        return self.value[1]


@dataclass(frozen=True, slots=True)
class Route:
    endpoint: Endpoint
    model: str = ""
    version: str = ""


_OF_SERVER: dict[tuple[str, ...], Endpoint] = {
    ("v2",): Endpoint.SERVER,
    ("v2", "health", "live"): Endpoint.LIVE,
    ("v2", "health", "ready"): Endpoint.READY,
    ("v2", "models", "stats"): Endpoint.STATISTICS,
    ("v2", "repository", "index"): Endpoint.INDEX,
    ("v2", "logging"): Endpoint.UNSUPPORTED,
    ("v2", "trace", "setting"): Endpoint.UNSUPPORTED,
}
_OF_MODEL: dict[tuple[str, ...], Endpoint] = {
    (): Endpoint.MODEL,
    ("ready",): Endpoint.MODEL_READY,
    ("config",): Endpoint.CONFIG,
    ("stats",): Endpoint.STATISTICS,
    ("infer",): Endpoint.INFER,
    ("trace", "setting"): Endpoint.UNSUPPORTED,
}
_OF_REPOSITORY: dict[tuple[str, ...], Endpoint] = {
    ("load",): Endpoint.LOAD,
    ("unload",): Endpoint.UNLOAD,
}


def route_of(path: str) -> Route:
    """The route of an absolute path without its query. Raises ValueError for undecodable escapes."""
    parts = tuple(unquote_to_bytes(part).decode() for part in path.strip("/").split("/"))
    if endpoint := _OF_SERVER.get(parts):
        return Route(endpoint)
    match parts:
        case ("v2", "models", model, "versions", version, *rest) if model and version:
            return Route(_OF_MODEL.get(tuple(rest), Endpoint.UNKNOWN), model, version)
        case ("v2", "models", model, *rest) if model:
            return Route(_OF_MODEL.get(tuple(rest), Endpoint.UNKNOWN), model)
        case ("v2", "repository", "models", model, *rest) if model:
            return Route(_OF_REPOSITORY.get(tuple(rest), Endpoint.UNKNOWN), model)
        case ("v2", "systemsharedmemory" | "cudasharedmemory", *_):
            return Route(Endpoint.UNSUPPORTED)
    return Route(Endpoint.UNKNOWN)
