"""What a service and its members have done: counters that only grow.

Request counts and latencies are per request, everything about batches is per batch.
"""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from dataclasses import dataclass, field

from tessera_core.perf.histogram import Histogram


@dataclass
class BatchTimes:
    """Batches of one size at one member."""

    batches: int = 0
    gather_ns: int = 0
    infer_ns: int = 0
    output_ns: int = 0


@dataclass
class MemberStatistics:
    rows: int = 0
    gathered_bytes: int = 0
    """Of inputs, copied from the arena into batches."""
    by_size: defaultdict[int, BatchTimes] = field(default_factory=lambda: defaultdict(BatchTimes))
    """Keyed by rows per batch."""
    queue: Histogram = field(default_factory=Histogram)
    """Per request, from arrival in the member's queue to the start of its batch."""
    inference: Histogram = field(default_factory=Histogram)
    """Per batch, in the engine."""
    gather: Histogram = field(default_factory=Histogram)
    """Per batch, arena to batch buffer."""
    latency: Histogram = field(default_factory=Histogram)
    """Per request, from arrival in the member's queue to the end of its batch."""
    lost: int = 0
    """Requests that were refused, dropped or withdrawn."""
    failed_batches: int = 0
    restarts: int = 0
    forwarded: int = 0
    """Calls to peers."""
    forward_retries: Counter[str] = field(default_factory=Counter)
    """Calls to peers after which another place was tried, by reason."""
    received: Counter[int] = field(default_factory=Counter)
    """Calls from peers by HTTP status. They are no requests of the service: who forwards counts those."""

    def batch(self, rows: int, gather_ns: int, infer_ns: int, output_ns: int) -> None:
        self.rows += rows
        times = self.by_size[rows]
        times.batches += 1
        times.gather_ns += gather_ns
        times.infer_ns += infer_ns
        times.output_ns += output_ns
        self.inference.observe(infer_ns / 1e9)
        self.gather.observe(gather_ns / 1e9)

    @property
    def batches(self) -> int:
        return sum(times.batches for times in self.by_size.values())


@dataclass
class ServiceStatistics:
    codes: Counter[int] = field(default_factory=Counter)
    """Requests by HTTP status."""
    latency: Histogram = field(default_factory=Histogram)
    """Per answered request, arrival to answer."""
    combine: Histogram = field(default_factory=Histogram)
    """Per combination of an ensemble's answers: for one request, or for a batch that ran as one."""
    good: int = 0
    """Answered within the SLO."""
    partial: int = 0
    """Answered without all members."""
    rows: int = 0
    """Rows that arrived in valid requests."""
    answered_rows: int = 0
    failed_s: float = 0.0
    """Time spent on requests that were not answered."""
    last_answer: float = 0.0
    """Wall-clock seconds; the statistics extension reports it."""

    def answered(self, seconds: float, rows: int, good: bool) -> None:
        self.codes[200] += 1
        self.latency.observe(seconds)
        self.answered_rows += rows
        self.good += good
        self.last_answer = time.time()

    def refused(self, code: int, seconds: float) -> None:
        self.codes[code] += 1
        self.failed_s += seconds

    @property
    def total(self) -> int:
        """Valid requests, whatever became of them; those the client gave up are left out."""
        return sum(n for code, n in self.codes.items() if code not in (400, 404, 413, 499))
