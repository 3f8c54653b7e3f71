"""What a client may cost a front end before it is refused. Every number has a unit and a reason."""

from __future__ import annotations

from dataclasses import dataclass

KIB = 1024
MIB = 1024 * KIB


@dataclass(frozen=True, slots=True)
class HttpLimits:
    """Bounds of the HTTP front end. Timeouts are enforced by one sweep, so they may run over by two sweeps."""

    max_head: int = 16 * KIB
    """Bytes of request line and headers, and of a body that is not an inference request."""
    max_body: int = 64 * MIB
    """Bytes of an inference request on the wire."""
    max_inflated: int = 16 * MIB
    """Bytes of a compressed request once inflated: inflating holds the event loop, about 4 ms per MiB."""
    max_connections: int = 10_000
    max_buffered_response: int = 256 * MIB
    """Bytes of answers that clients have not read, over all connections; the longest blocked go first."""
    head_timeout_s: float = 10.0
    """From the first byte of a head to its last."""
    body_timeout_s: float = 30.0
    """A client must send a sixteenth of a body, or read some of an answer, in each such period."""
    idle_timeout_s: float = 75.0
    """Between requests. Longer than the 60 s of common load balancers, so that they close first."""
    max_connection_age_s: float = 300.0
    """The next answer after this closes the connection, so that clients spread anew: what balances
    connections does not balance requests. Up to a tenth less, so that not all come back at once."""

    @property
    def sweep_interval_s(self) -> float:
        """A quarter of the shortest timeout, at most 1 s."""
        shortest = min(
            self.head_timeout_s,
            self.body_timeout_s,
            self.idle_timeout_s,
            self.max_connection_age_s,
        )
        return min(1.0, shortest / 4)


@dataclass(frozen=True, slots=True)
class GrpcLimits:
    """Bounds of the gRPC front end."""

    max_message: int = 64 * MIB
    """Bytes of one request message; answers are bounded by the model."""
    max_concurrent_rpcs: int = 4096
    """Calls and open streams over all connections; more are answered RESOURCE_EXHAUSTED."""
    max_stream_requests: int = 64
    """Unanswered requests of one ModelStreamInfer; the stream is not read further until one is answered."""
    keepalive_time_s: float = 60.0
    """The server pings a connection that was silent for this long."""
    keepalive_timeout_s: float = 20.0
    min_ping_interval_s: float = 2.0
    """Clients that ping more often are disconnected. Peers ping often, to notice soon when one is lost."""
    max_connection_age_s: float = 300.0
    """After this, give or take a tenth (gRPC's own jitter), a connection is closed gently (GOAWAY), so that
    clients spread anew; 0 is never."""
    max_connection_age_grace_s: float = 30.0
