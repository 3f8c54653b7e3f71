"""The headers of a call, read once for each distinct header block of a connection.

The path names the method, ``grpc-timeout`` the deadline, ``grpc-encoding`` the compression of messages, and
the rest is metadata. What is wrong with them is known before any byte of the body is taken.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tessera_runtime.errors import ServeError, status_of
from tessera_runtime.protocol.http2.headers import Request
from tessera_runtime.protocol.member_call import Sent, read_metadata

if TYPE_CHECKING:
    from tessera_runtime.protocol.grpc_call import Begin

_TIMEOUT = re.compile(r"([0-9]{1,8})([HMSmun])")
_SECONDS = {"H": 3600.0, "M": 60.0, "S": 1.0, "m": 1e-3, "u": 1e-6, "n": 1e-9}
ENCODINGS = ("gzip", "deflate")
ACCEPTED = ("grpc-accept-encoding", f"identity, {', '.join(ENCODINGS)}")

_NOTHING = Sent()


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a call is not begun."""

    status: str
    """Name of a gRPC code; empty for a request that is no gRPC."""
    message: str
    http: int = 200
    metadata: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class Head:
    begin: Begin | None = None
    """Makes the method's call; None: refused."""
    authority: str = ""
    timeout_s: float | None = None
    encoding: str = ""
    """Of messages whose flag says compressed; empty: none may be."""
    sent: Sent = _NOTHING
    length: int | None = None
    """Bytes of the whole body, where a content-length says it."""
    refusal: Refusal | None = None


def head_reader(methods: Mapping[str, Begin]) -> Callable[[Request], Head]:
    """``methods``: what begins each, by its path."""

    def interpret(request: Request) -> Head:
        given = dict(request.fields)
        refusal = _refusal(request, given)
        if refusal is not None:
            return Head(refusal=refusal, length=request.length)
        encoding = given.get("grpc-encoding", "identity")
        timeout_s, timeout = None, given.get("grpc-timeout")
        begin = methods.get(request.path)
        sent = _NOTHING
        if begin is None:
            refusal = Refusal("UNIMPLEMENTED", f"no method {request.path[:128]}")
        elif encoding != "identity" and encoding not in ENCODINGS:
            text = f"grpc-encoding: found {encoding[:32]!r}, allowed: {ACCEPTED[1]}"
            refusal = Refusal("UNIMPLEMENTED", text, metadata=(ACCEPTED,))
        else:
            try:
                sent = read_metadata(request.fields)
            except ServeError as error:
                refusal = Refusal(status_of(error).grpc, str(error))
        if timeout is not None:
            found = _TIMEOUT.fullmatch(timeout)
            if found is None:
                refusal = Refusal("INTERNAL", f"grpc-timeout: found {timeout[:32]!r}")
            else:
                timeout_s = int(found[1]) * _SECONDS[found[2]]
        return Head(
            begin if refusal is None else None,
            request.authority,
            timeout_s,
            "" if encoding == "identity" else encoding,
            sent,
            request.length,
            refusal,
        )

    return interpret


def _refusal(request: Request, given: Mapping[str, str]) -> Refusal | None:
    """What a client that does not speak gRPC is told."""
    content_type = given.get("content-type", "")
    if not content_type.startswith("application/grpc") or content_type[16:17] not in ("", "+", ";"):
        return Refusal("", "this port speaks gRPC: content-type application/grpc\n", 415)
    if content_type[16:22] == "+json":
        return Refusal("INTERNAL", "content-type: only application/grpc with protobuf is served")
    if request.method != "POST":
        return Refusal("", "this port speaks gRPC: method POST\n", 405)
    if given.get("te") != "trailers":
        return Refusal("INTERNAL", "te: missing; allowed: trailers (a proxy may have removed it)")
    return None
