"""What became of a request, as one number: HTTP and gRPC statuses beside what only a client can see.

HTTP statuses are themselves; gRPC statuses are counted from :data:`GRPC`; below are the client's own.
"""

from __future__ import annotations

UNANSWERED = 0
"""No answer when the load ended."""
DISCONNECTED = 1
"""The connection ended first."""
RESET = 2
"""The server reset the stream."""
HTTP_OK = 200
GRPC = 1000
GRPC_OK = GRPC

_OWN = {UNANSWERED: "unanswered", DISCONNECTED: "disconnected", RESET: "reset"}
# The codes of https://grpc.github.io/grpc/core/md_doc_statuscodes.html, in order.
_GRPC = [
    "OK",
    "CANCELLED",
    "UNKNOWN",
    "INVALID_ARGUMENT",
    "DEADLINE_EXCEEDED",
    "NOT_FOUND",
    "ALREADY_EXISTS",
    "PERMISSION_DENIED",
    "RESOURCE_EXHAUSTED",
    "FAILED_PRECONDITION",
    "ABORTED",
    "OUT_OF_RANGE",
    "UNIMPLEMENTED",
    "INTERNAL",
    "UNAVAILABLE",
    "DATA_LOSS",
    "UNAUTHENTICATED",
]


def is_good(status: int) -> bool:
    return status in (HTTP_OK, GRPC_OK)


def status_name(status: int) -> str:
    """``200``, ``OK``, ``RESOURCE_EXHAUSTED``, ``disconnected``: for people."""
    if status >= GRPC:
        code = status - GRPC
        return _GRPC[code] if code < len(_GRPC) else f"gRPC {code}"
    return _OWN.get(status, str(status))
