"""One structured line per request that somebody wants to see.

A request whose caller samples it (the last flag of W3C trace context's ``traceparent``) is logged at info, so
that its trace can be followed into the server; all others at debug, because at full load a line per request
would cost as much as the request.
"""

from __future__ import annotations

import logging
import time

from tessera_runtime.dispatch.request import Request

log = logging.getLogger(__name__)

_SAMPLED = 0x01
"""https://www.w3.org/TR/trace-context/#sampled-flag"""


def log_request(request: Request, code: int, reason: str = "") -> None:
    """Note how ``request`` ended; ``code`` is the HTTP status, also of a gRPC request."""
    level = logging.INFO if sampled(request.call.traceparent) else logging.DEBUG
    if log.isEnabledFor(level):
        log.log(
            level,
            reason or "answered",
            extra={
                "service": request.service.name,
                "request_id": request.call.id,
                "traceparent": request.call.traceparent,
                "code": code,
                "rows": request.rows,
                "took_ms": round(1e3 * (time.monotonic() - request.arrived), 3),
            },
        )


def sampled(traceparent: str) -> bool:
    """Whether the caller records this request: ``version-traceid-parentid-flags``, all hexadecimal."""
    if not traceparent:
        return False
    flags = traceparent.rpartition("-")[2]
    try:
        return bool(int(flags, 16) & _SAMPLED)
    except ValueError:
        return False
