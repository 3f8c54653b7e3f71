"""Does a plan keep its p99? A discrete-event check of one queue before servers that differ.

A member that is placed on slices of several sizes has one queue, first in, first out, and servers with batch
times of their own. Whenever a server is free and rows wait, a batch forms: all that wait, at most the
server's cap. Of several free servers the one takes it that finishes its batch soonest. Arrivals are Poisson.

This is on purpose not ``tessera_core.simulate``, which knows equal servers only and shares its assumptions
with the planner. The cost is per batch: rows are slices of the arrival array.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from heapq import heappop, heappush

import numpy as np
from numpy.typing import NDArray

Vector = NDArray[np.float64]

Server = tuple[float, ...]
"""Time of a batch of 1, 2, ... rows, ms, up to the cap."""

MOST_ROWS = 5_000_000
_MS_PER_S = 1e3


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one simulated queue did; times in ms, warm-up left out of all latencies."""

    p50_ms: float
    p99_ms: float
    mean_ms: float
    late: float
    """Share of rows that took longer than the SLO."""
    load: float
    """Rate over the rows per second that all servers finish in full batches; from 1 on the queue grows without
    end, and latencies only say how long it was watched."""
    busy: float
    """Share of all servers' time that was spent in batches."""
    mean_batch: float
    rows: int


def simulate_pool(
    servers: Sequence[Server],
    rate_per_s: float,
    slo_ms: float,
    seed: int,
    rows: int = 200_000,
    warm_up: float = 0.05,
) -> Outcome:
    """``rows`` Poisson arrivals at ``rate_per_s``; the first ``warm_up`` share is not counted.

    Raises ValueError for no servers, a batch time or rate that is not positive, or a number of rows outside
    1 .. ``MOST_ROWS``.
    """
    if not servers or not all(times and min(times) > 0 for times in servers):
        raise ValueError("servers: needs at least one, each with a positive time for every batch")
    if not rate_per_s > 0:
        raise ValueError(f"rate_per_s: must be positive, found {rate_per_s}")
    if not 1 <= rows <= MOST_ROWS:
        raise ValueError(f"rows: must be 1 to {MOST_ROWS}, found {rows}")
    if not 0 <= warm_up < 1:
        raise ValueError(f"warm_up: must be at least 0 and below 1, found {warm_up}")
    gaps = np.random.default_rng(seed).exponential(_MS_PER_S / rate_per_s, rows)
    arrivals: Vector = np.cumsum(gaps)
    ends, sizes, busy_ms = _serve(servers, arrivals.tolist())
    latency = (np.repeat(ends, sizes) - arrivals)[int(rows * warm_up) :]
    p50, p99 = np.percentile(latency, (50, 99), method="inverted_cdf")
    finished_per_ms = sum(len(times) / times[-1] for times in servers)
    return Outcome(
        p50_ms=float(p50),
        p99_ms=float(p99),
        mean_ms=float(latency.mean()),
        late=float(np.mean(latency > slo_ms)),
        load=rate_per_s / _MS_PER_S / finished_per_ms,
        busy=busy_ms / (len(servers) * max(ends)),
        mean_batch=rows / len(sizes),
        rows=rows,
    )


def _serve(
    servers: Sequence[Server], arrivals: list[float]
) -> tuple[list[float], list[int], float]:
    """End and size of every batch, in order of start, and the time spent in all of them."""
    counts = Counter(servers)
    kinds = sorted(counts)
    idle = [counts[times] for times in kinds]
    most = max(len(times) for times in kinds)
    busy: list[tuple[float, int]] = []  # (free again at, kind)
    ends: list[float] = []
    sizes: list[int] = []
    spent = clock = 0.0
    head, total = 0, len(arrivals)
    while head < total:
        clock = max(arrivals[head], clock if any(idle) else busy[0][0])
        while busy and busy[0][0] <= clock:
            idle[heappop(busy)[1]] += 1
        waiting = bisect_right(arrivals, clock, head, min(head + most, total)) - head
        time, kind, size = min(
            (times[size - 1], kind, size)
            for kind, times in enumerate(kinds)
            if idle[kind]
            for size in [min(waiting, len(times))]
        )
        idle[kind] -= 1
        heappush(busy, (clock + time, kind))
        ends.append(clock + time)
        sizes.append(size)
        spent += time
        head += size
    return ends, sizes, spent
