"""What load to send and what came of it: the messages between a load's process and whoever started it."""

from __future__ import annotations

from enum import Enum

import msgspec


class LoadFailed(Exception):
    """The load could not be sent: no connection, or its process ended without a result."""


class Protocol(Enum):
    HTTP = "http"
    """REST with the binary tensor extension, HTTP/1.1 keep-alive, one request at a time per connection."""
    GRPC = "grpc"
    """Unary ModelInfer over HTTP/2 without TLS, many requests at a time per connection."""


class Target(msgspec.Struct, frozen=True):
    """One address and the encoded requests to send there."""

    protocol: Protocol
    host: str
    port: int
    requests: tuple[bytes, ...]
    """As :mod:`tessera_cli.loadgen.wire` encodes them; sent in turn."""
    connections: int = 1
    """HTTP: at least as many as requests that are to be in flight at once; the rest waits in the client."""


class Phase(msgspec.Struct, frozen=True):
    """A stretch of Poisson arrivals."""

    rate_per_s: float
    seconds: float


class OpenLoop(msgspec.Struct, frozen=True, tag=True):
    """Requests at times drawn in advance, whatever the server does."""

    phases: tuple[Phase, ...]
    seed: int

    @property
    def seconds(self) -> float:
        return sum(phase.seconds for phase in self.phases)


class ClosedLoop(msgspec.Struct, frozen=True, tag=True):
    """A constant number of requests in flight: the next one is sent when an answer comes."""

    concurrency: int
    seconds: float
    warmup_s: float = 0.5
    """Before ``seconds``; not counted."""


class LoadPlan(msgspec.Struct, frozen=True):
    """A whole load. Request ``i`` goes to target ``i mod targets``, with that target's requests in turn."""

    targets: tuple[Target, ...]
    shape: OpenLoop | ClosedLoop
    keep_answers: bool = False
    answer_timeout_s: float = 5.0
    """What has no answer so long after the last request is lost."""
    progress_s: float = 0.5
    cores: tuple[int, ...] = ()
    """Cores of the load's process; empty: wherever the system puts it."""


class Started(msgspec.Struct, frozen=True, tag=True):
    """Connections are open, warm-up is over: what is sent from now on counts."""

    unix_s: float


class Progress(msgspec.Struct, frozen=True, tag=True):
    """What was seen since the last one."""

    at_s: float
    """Since Started."""
    sent: int
    answered: int
    failed: int
    late: int
    in_flight: int
    latencies_ms: tuple[float, ...]
    """Of the good answers, from the intended moment; at most PROGRESS_LATENCIES evenly chosen."""


PROGRESS_LATENCIES = 512


class Finished(msgspec.Struct, frozen=True, tag=True):
    """One entry per request; times in seconds since Started, as little-endian float64."""

    intended: bytes
    sent: bytes
    done: bytes
    """NaN where no answer came."""
    status: bytes
    """int32; see :mod:`tessera_cli.loadgen.status`."""
    answers: tuple[bytes, ...] = ()
    """Bodies as received, one per request, where they were to be kept."""


class Broke(msgspec.Struct, frozen=True, tag=True):
    reason: str


Message = Started | Progress | Finished | Broke
