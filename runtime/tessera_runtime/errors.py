"""Every way in which a request can be refused or fail, drawn once.

::

    ServeError                      HTTP  gRPC                 when
    ├── InvalidRequest              400   INVALID_ARGUMENT     the request itself is wrong: shape, datatype, parameter
    ├── Unauthorized                401   UNAUTHENTICATED      the model asks for a key, and the request has none of its
    ├── NotFound                    404   NOT_FOUND            no such model, version or output
    ├── SlowClient                  408   (closed by grpc)     the request did not arrive in time
    ├── TooLarge                    413   RESOURCE_EXHAUSTED   over a size limit, whatever the load
    ├── Overloaded                  429   RESOURCE_EXHAUSTED   a bounded queue or arena is full, or the deadline
    │                                                          cannot be met at today's load: retry later or elsewhere
    ├── Cancelled                   499   CANCELLED            the client went away
    ├── ModelFailed                 500   INTERNAL             the model raised, or answered something malformed
    ├── Unavailable                 503   UNAVAILABLE          no instance is ready, or the ones tried died
    └── DeadlineExceeded            504   DEADLINE_EXCEEDED    admitted, but not finished in time

The domain raises these; only the two front ends know status codes, through :data:`STATUS`.
A message says what was found and what is allowed, and never carries a path or a traceback of the server.
"""

from __future__ import annotations

from dataclasses import dataclass


class ServeError(Exception):
    """Base of everything a client may be told."""


class InvalidRequest(ServeError): ...


class Unauthorized(ServeError): ...


class NotFound(ServeError): ...


class SlowClient(ServeError): ...


class TooLarge(ServeError): ...


class Overloaded(ServeError): ...


class Cancelled(ServeError): ...


class ModelFailed(ServeError): ...


class Unavailable(ServeError):
    def __init__(self, message: str, losses: int = 0) -> None:
        """``losses``: processes that ended while running the request."""
        super().__init__(message)
        self.losses = losses


class DeadlineExceeded(ServeError): ...


@dataclass(frozen=True, slots=True)
class Status:
    """How one error class is spoken in each protocol."""

    http: int
    grpc: str
    """Name of the ``grpc.StatusCode``."""


STATUS: dict[type[ServeError], Status] = {
    InvalidRequest: Status(400, "INVALID_ARGUMENT"),
    Unauthorized: Status(401, "UNAUTHENTICATED"),
    NotFound: Status(404, "NOT_FOUND"),
    SlowClient: Status(408, "DEADLINE_EXCEEDED"),
    TooLarge: Status(413, "RESOURCE_EXHAUSTED"),
    Overloaded: Status(429, "RESOURCE_EXHAUSTED"),
    Cancelled: Status(499, "CANCELLED"),
    ModelFailed: Status(500, "INTERNAL"),
    Unavailable: Status(503, "UNAVAILABLE"),
    DeadlineExceeded: Status(504, "DEADLINE_EXCEEDED"),
}


def status_of(error: BaseException) -> Status:
    """The status of ``error``; anything that is not a :class:`ServeError` is an internal failure."""
    for kind in type(error).__mro__:
        if kind in STATUS:
            return STATUS[kind]
    return STATUS[ModelFailed]
