"""One queue in front of servers that batch: a discrete-event simulation with one event per batch.

A batch forms the moment a server is free and something waits (work-conserving, no timer): all that wait, at
most the server's cap, earliest deadline first. Of several free servers the one takes it that would finish it
first. With deadlines, a request that could not finish in the batch about to start is dropped and the batch
refilled; a batch is never cut short to save its head.

When deadlines follow the order of arrival (one SLO: the common case) a batch is a slice of the arrival
array, found by bisection, and the cost is per batch. Mixed deadlines need a heap and cost per request.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from heapq import heappop, heappush, heapreplace
from math import inf

import numpy as np
from numpy.typing import NDArray

Vector = NDArray[np.float64]
Counts = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Station:
    """Identical servers; ``batch_ms[b - 1]`` is the time of a batch of b rows, b up to the cap."""

    batch_ms: tuple[float, ...]
    instances: int = 1

    def __post_init__(self) -> None:
        if not self.batch_ms or min(self.batch_ms) <= 0:
            raise ValueError("batch_ms: needs a positive time for every batch size up to the cap")
        if self.instances < 1:
            raise ValueError(f"instances: must be >= 1, found {self.instances}")


@dataclass(frozen=True, slots=True)
class Served:
    """What became of every request, in order of arrival, and of every batch, in order of start."""

    latency_ms: Vector
    """End of its batch minus arrival, shape (requests,); ``inf`` for a dropped request."""
    batch_sizes: Counts
    stations: Counts
    """By batch: position of the station whose server ran it."""
    busy_ms: float
    """Service time of all batches together."""
    span_ms: float
    """From time 0 to the last completion (or arrival)."""
    instances: int

    @property
    def dropped(self) -> int:
        """Requests that were given up because they could not meet their deadline."""
        return int(np.count_nonzero(np.isinf(self.latency_ms)))

    @property
    def utilisation(self) -> float:
        """Busy share of all servers' time."""
        return self.busy_ms / (self.span_ms * self.instances) if self.span_ms else 0.0

    def percentile_ms(self, percentile: float, warm_up: float = 0.0) -> float:
        """Latency percentile (in percent) over all but the first ``warm_up`` share; dropped count as late."""
        settled = self.latency_ms[int(len(self.latency_ms) * warm_up) :]
        if not settled.size:
            raise ValueError("percentile_ms: no request was simulated")
        return float(np.percentile(settled, percentile, method="inverted_cdf"))

    def within(self, slo_ms: float) -> float:
        """Share of all requests that finished within ``slo_ms``; 1 when there were none."""
        return float(np.mean(self.latency_ms <= slo_ms)) if self.latency_ms.size else 1.0


def simulate(
    servers: Station | Sequence[Station],
    arrivals_ms: Vector,
    slo_ms: float | Vector | None = None,
) -> Served:
    """Run ``servers``, which take from one queue, on ascending ``arrivals_ms``, shape (requests,).

    ``slo_ms``: time allowed per request (one number, or one per request); late requests are dropped.
    None: nothing is dropped and the queue is first in, first out.

    Raises ``ValueError`` without a server, when arrivals are not ascending or an SLO is not positive.
    """
    stations = (servers,) if isinstance(servers, Station) else tuple(servers)
    if not stations:
        raise ValueError("servers: needs at least one station")
    if arrivals_ms.ndim != 1 or (np.diff(arrivals_ms) < 0).any():
        raise ValueError("arrivals_ms: must be one ascending list of times")
    if slo_ms is None:
        return _in_order(stations, arrivals_ms, None)
    allowed = np.broadcast_to(np.asarray(slo_ms, dtype=np.float64), arrivals_ms.shape)
    if allowed.size and not allowed.min() > 0:
        raise ValueError(f"slo_ms: must be positive, found {allowed.min()}")
    deadlines = arrivals_ms + allowed
    if (np.diff(deadlines) >= 0).all():
        return _in_order(stations, arrivals_ms, deadlines)
    return _by_deadline(stations, arrivals_ms, deadlines)


class _Servers:
    """Who is free when, and who takes the next batch."""

    def __init__(self, stations: Sequence[Station]) -> None:
        self.times = [(0.0, *station.batch_ms) for station in stations]
        """By station and size of the batch."""
        self.most = max(len(station.batch_ms) for station in stations)
        self.free = [[0.0] * station.instances for station in stations]
        """By station: a heap of the times from which its servers are free."""
        self._ranked: dict[int, list[int]] = {}

    def free_from(self) -> float:
        """When the first of them is free."""
        return min([heap[0] for heap in self.free])

    def fastest(self, now: float, waiting: int) -> int:
        """Of the stations with a free server the one that finishes first what it takes of ``waiting`` rows."""
        ranked = self._ranked.get(waiting)
        if ranked is None:
            ranked = self._ranked[waiting] = sorted(
                range(len(self.times)),
                key=lambda each: (self._batch_ms(each, waiting), len(self.times[each]), each),
            )
        return next(each for each in ranked if self.free[each][0] <= now)

    def _batch_ms(self, station: int, waiting: int) -> float:
        times = self.times[station]
        return times[min(waiting, len(times) - 1)]


def _in_order(
    stations: tuple[Station, ...], arrivals_ms: Vector, deadlines_ms: Vector | None
) -> Served:
    arrivals = arrivals_ms.tolist()
    deadlines = None if deadlines_ms is None else deadlines_ms.tolist()
    servers = _Servers(stations)
    equal, taker = len(stations) == 1, 0
    free, times = servers.free[0], servers.times[0]
    total, head = len(arrivals), 0
    heads: list[int] = []
    ends: list[float] = []
    sizes: list[int] = []
    takers: list[int] = []
    while head < total:
        now = free[0] if equal else servers.free_from()
        if arrivals[head] > now:
            now = arrivals[head]
        tail = bisect_right(arrivals, now, head, min(head + servers.most, total))
        if not equal:
            taker = servers.fastest(now, tail - head)
            free, times = servers.free[taker], servers.times[taker]
            tail = min(tail, head + len(times) - 1)
        end = now + times[tail - head]
        if deadlines is not None and deadlines[head] < end:
            head, tail = _without_hopeless(arrivals, deadlines, times, now, head, tail)
            if head == tail:
                continue
            end = now + times[tail - head]
        heads.append(head)
        ends.append(end)
        sizes.append(tail - head)
        takers.append(taker)
        heapreplace(free, end)
        head = tail
    return _served(stations, arrivals_ms, heads, ends, sizes, takers)


def _without_hopeless(
    arrivals: list[float],
    deadlines: list[float],
    times: tuple[float, ...],
    now: float,
    head: int,
    tail: int,
) -> tuple[int, int]:
    """Drop heads that cannot finish in the batch, one by one, for without one it may be smaller; may leave it empty."""
    while head < tail and deadlines[head] < now + times[tail - head]:
        head += 1
        tail = bisect_right(arrivals, now, head, min(head + len(times) - 1, len(arrivals)))
    return head, tail


def _served(
    stations: tuple[Station, ...],
    arrivals_ms: Vector,
    heads: list[int],
    ends: list[float],
    sizes: list[int],
    takers: list[int],
) -> Served:
    latency = np.full(len(arrivals_ms), inf)
    batch_sizes = np.array(sizes, dtype=np.int64)
    if sizes:
        starts = np.cumsum(batch_sizes) - batch_sizes
        members = np.arange(int(batch_sizes.sum()))
        members += np.repeat(np.array(heads) - starts, batch_sizes)
        latency[members] = np.repeat(np.array(ends), batch_sizes) - arrivals_ms[members]
    return _summary(stations, arrivals_ms, latency, batch_sizes, takers, max(ends, default=0.0))


def _by_deadline(
    stations: tuple[Station, ...], arrivals_ms: Vector, deadlines_ms: Vector
) -> Served:
    arrivals, deadlines = arrivals_ms.tolist(), deadlines_ms.tolist()
    servers = _Servers(stations)
    total, coming = len(arrivals), 0
    waiting: list[tuple[float, int]] = []
    latency = np.full(total, inf)
    sizes: list[int] = []
    takers: list[int] = []
    now = last = 0.0
    while waiting or coming < total:
        now = max(now, servers.free_from())  # a server may have been free before they came
        if not waiting and arrivals[coming] > now:
            now = arrivals[coming]
        while coming < total and arrivals[coming] <= now:
            heappush(waiting, (deadlines[coming], coming))
            coming += 1
        taker = servers.fastest(now, min(len(waiting), servers.most))
        times = servers.times[taker]
        batch: list[int] = []
        while True:
            while waiting and len(batch) < len(times) - 1:
                batch.append(heappop(waiting)[1])
            end = now + times[len(batch)]
            if not batch or deadlines[batch[0]] >= end:  # the first is the most urgent
                break
            del batch[0]
        if batch:
            latency[batch] = end - arrivals_ms[batch]
            sizes.append(len(batch))
            takers.append(taker)
            last = max(last, end)
            heapreplace(servers.free[taker], end)
    batch_sizes = np.array(sizes, dtype=np.int64)
    return _summary(stations, arrivals_ms, latency, batch_sizes, takers, last)


def _summary(
    stations: tuple[Station, ...],
    arrivals_ms: Vector,
    latency: Vector,
    sizes: Counts,
    takers: list[int],
    last_ms: float,
) -> Served:
    by_batch = np.array(takers, dtype=np.int64)
    busy = sum(
        float(np.asarray(station.batch_ms)[sizes[by_batch == index] - 1].sum())
        for index, station in enumerate(stations)
    )
    span = max(last_ms, float(arrivals_ms[-1]) if arrivals_ms.size else 0.0)
    instances = sum(station.instances for station in stations)
    return Served(latency, sizes, by_batch, busy, span, instances)
