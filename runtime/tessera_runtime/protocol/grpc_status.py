"""How a gRPC answer begins and ends, as header blocks (gRPC over HTTP/2, "Responses")."""

from __future__ import annotations

import re
from collections.abc import Iterable

from tessera_runtime.errors import ServeError, status_of
from tessera_runtime.protocol.http2.headers import literal
from tessera_runtime.protocol.http2.outgoing import Answers

CODES = {
    "OK": 0, "CANCELLED": 1, "UNKNOWN": 2, "INVALID_ARGUMENT": 3, "DEADLINE_EXCEEDED": 4, "NOT_FOUND": 5,
    "ALREADY_EXISTS": 6, "PERMISSION_DENIED": 7, "RESOURCE_EXHAUSTED": 8, "FAILED_PRECONDITION": 9,
    "ABORTED": 10, "OUT_OF_RANGE": 11, "UNIMPLEMENTED": 12, "INTERNAL": 13, "UNAVAILABLE": 14,
    "DATA_LOSS": 15, "UNAUTHENTICATED": 16,
}  # fmt: skip
"""Names to numbers, as the specification's table has them."""

_STATUS_200 = b"\x88"  # of the static table (RFC 7541 appendix A)
_STATUS = b"\x08\x03%d"  # its name, with another value
_MAX_MESSAGE = 2048
"""Bytes: clients refuse long header lists."""
_UNSAFE = re.compile(rb"[^ -$&-~]")

HEADERS = _STATUS_200 + literal(b"content-type", b"application/grpc")
ANSWERS = Answers(HEADERS)
OK = literal(b"grpc-status", b"0")

Metadata = Iterable[tuple[str, str]]


def trailers(status: str, message: str = "", metadata: Metadata = ()) -> bytes:
    """The block that ends an answer; ``status`` is the name of a code."""
    block = literal(b"grpc-status", b"%d" % CODES[status])
    if message:
        text = message.encode("utf-8", "replace")[:_MAX_MESSAGE]
        quoted = _UNSAFE.sub(lambda found: b"%%%02X" % found.group()[0], text)
        block += literal(b"grpc-message", quoted)
    for name, value in metadata:
        block += literal(name.encode(), value.encode())
    return block


def failure(error: ServeError, metadata: Metadata = ()) -> bytes:
    return trailers(status_of(error).grpc, str(error), metadata)


def plain_headers(status: int) -> bytes:
    """Of an answer to a client that does not speak gRPC."""
    return _STATUS % status + literal(b"content-type", b"text/plain")
