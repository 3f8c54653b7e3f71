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
    max_handshakes: int = 3000
    """Of TLS, under way at once; those that take longest are cut off for others."""
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
    """Bytes of one inference request; answers are bounded by the model."""
    max_plain_message: int = 64 * KIB
    """Bytes of a message of any other call."""
    max_inflated: int = 16 * MIB
    """Bytes of a compressed request once inflated: inflating holds the event loop, about 4 ms per MiB."""
    max_connections: int = 10_000
    max_handshakes: int = 3000
    """Of TLS, under way at once; those that take longest are cut off for others."""
    max_concurrent_rpcs: int = 4096
    """Calls and open streams over all connections; more are answered RESOURCE_EXHAUSTED."""
    max_concurrent_streams: int = 1024
    """Of one connection; more are refused, and clients know it."""
    max_stream_requests: int = 64
    """Unanswered requests of one ModelStreamInfer; the stream is not read further until one is answered."""
    max_headers: int = 16 * KIB
    """Bytes of a request's headers, on the wire and decoded, and of any frame that is not DATA."""
    max_continuations: int = 8
    """Frames of one header block (CVE-2024-27316)."""
    max_frame: int = 1 * MIB
    """Bytes of a DATA frame: the longer, the more of a tensor is received in place."""
    stream_window: int = 1 * MIB
    """Bytes that a client may send to one call before it is given more."""
    connection_window: int = 16 * MIB
    """The same of a connection: never what a client waits for."""
    max_held: int = 256 * MIB
    """Bytes of streamed requests that wait for earlier ones, over all connections."""
    max_unread: int = 256 * KIB
    """Bytes of answers that the socket of one connection is given ahead of its client."""
    max_buffered_response: int = 256 * MIB
    """Bytes of further answers that clients have not read, over all connections; the longest blocked go first."""
    head_timeout_s: float = 10.0
    """From the first byte of a preface, frame or header block to its last."""
    stall_timeout_s: float = 30.0
    """A client must send a sixteenth of a request, or read some of an answer, in each such period."""
    reset_burst: int = 1000
    """Calls that a connection may cancel (CVE-2023-44487) beyond those that were answered ..."""
    resets_per_s: float = 200.0
    """... and how many more each second."""
    frame_burst: int = 4000
    """Frames that ask for nothing (SETTINGS, PING, empty DATA) of a connection, beyond 8 for each answer ..."""
    frames_per_s: float = 1000.0
    """... and how many more each second."""
    keepalive_time_s: float = 60.0
    """The server pings a connection that was silent for this long."""
    keepalive_timeout_s: float = 20.0
    min_ping_interval_s: float = 2.0
    """Clients that ping more often are disconnected. Peers ping often, to notice soon when one is lost."""
    max_connection_age_s: float = 300.0
    """After this, or up to a tenth less, a connection is closed gently (GOAWAY), so that clients spread anew;
    0 is never."""
    max_connection_age_grace_s: float = 30.0
    """What is not answered so long after is cut off."""

    @property
    def sweep_interval_s(self) -> float:
        """A quarter of the shortest timeout, at most 1 s."""
        times = (
            self.head_timeout_s,
            self.stall_timeout_s,
            self.keepalive_time_s,
            self.keepalive_timeout_s,
            self.max_connection_age_s or 4.0,
        )
        return min(1.0, min(times) / 4)
