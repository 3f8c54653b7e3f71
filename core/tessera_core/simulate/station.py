"""One queue in front of servers that batch: a discrete-event simulation with one event per batch.

The rules are those of :mod:`tessera_core.batching`, whose admission runs here as it is. A batch forms the moment a
server is free and something waits (work-conserving, no timer): all that wait, at most the server's cap, earliest deadline
first. Of several free servers the one takes it that was last busy, whatever its speed. With deadlines, heads that could not
finish in the batch about to start are dropped one by one; a batch is never cut short to save its head.

A station may have noise, drawn or measured: its batches then take longer or shorter than they are expected to, and what
is dropped is still dropped by what is expected.

When deadlines follow the order of arrival (one SLO: the common case) a batch is a slice of the arrival
array, found by bisection, and the cost is per batch. Mixed deadlines need a heap and cost per request, and so does
admission, which looks at the queue that each request finds.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from heapq import heappop, heappush, heapreplace
from itertools import cycle
from math import inf

import numpy as np
from numpy.typing import NDArray

from tessera_core.batching.admission import Admission, done_after

Vector = NDArray[np.float64]
Counts = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Station:
    """Identical servers. Raises ``ValueError`` naming the field."""

    batch_ms: tuple[float, ...]
    """``batch_ms[b - 1]`` is the time that a batch of b rows is expected to take, b up to the cap."""
    instances: int = 1
    noise: tuple[tuple[float, ...], ...] = ()
    """``noise[b - 1]``: what batches of b rows take over that, in turn and again from the first; empty: 1."""

    def __post_init__(self) -> None:
        if not self.batch_ms or min(self.batch_ms) <= 0:
            raise ValueError("batch_ms: needs a positive time for every batch size up to the cap")
        if self.instances < 1:
            raise ValueError(f"instances: must be >= 1, found {self.instances}")
        if self.noise and len(self.noise) != len(self.batch_ms):
            raise ValueError(
                f"noise: needs factors for each of {len(self.batch_ms)} batch sizes, found {len(self.noise)}"
            )
        if not all(factors and min(factors) > 0 for factors in self.noise):
            raise ValueError("noise: needs a positive factor at least for every batch size")


@dataclass(frozen=True, slots=True)
class Served:
    """What became of every request, in order of arrival, and of every batch, in order of start."""

    latency_ms: Vector
    """End of its batch minus arrival, shape (requests,); ``inf`` for a dropped request."""
    batches: Counts
    """By request: position of its batch; -1 for one that was dropped or refused."""
    batch_sizes: Counts
    stations: Counts
    """By batch: position of the station whose server ran it."""
    busy_ms: float
    """Service time of all batches together."""
    span_ms: float
    """From time 0 to the last completion (or arrival)."""
    instances: int
    refused: int = 0
    """Requests that were not admitted to the queue."""
    withdrawn: int = 0
    """Requests that were of no use any more: another member had refused or dropped them."""

    @property
    def dropped(self) -> int:
        """Requests that were queued and given up because they could not meet their deadline."""
        return int(np.count_nonzero(self.batches < 0)) - self.refused - self.withdrawn

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
    admission: bool = False,
) -> Served:
    """Run ``servers``, which take from one queue, on ascending ``arrivals_ms``, shape (requests,).

    ``slo_ms``: time allowed per request (one number, or one per request); late requests are dropped.
    None: nothing is dropped and the queue is first in, first out. ``admission``: whether a request that finds all servers
    busy is refused where the dispatcher would.

    Raises ``ValueError`` without a server, when arrivals are not ascending, an SLO is not positive, or requests are to be
    refused that have none.
    """
    stations = (servers,) if isinstance(servers, Station) else tuple(servers)
    if not stations:
        raise ValueError("servers: needs at least one station")
    if arrivals_ms.ndim != 1 or (np.diff(arrivals_ms) < 0).any():
        raise ValueError("arrivals_ms: must be one ascending list of times")
    if slo_ms is None:
        if admission:
            raise ValueError("admission: needs slo_ms, the time that requests have")
        return _in_order(stations, arrivals_ms, None)
    allowed = np.broadcast_to(np.asarray(slo_ms, dtype=np.float64), arrivals_ms.shape)
    if allowed.size and not allowed.min() > 0:
        raise ValueError(f"slo_ms: must be positive, found {allowed.min()}")
    deadlines = arrivals_ms + allowed
    if not admission and (np.diff(deadlines) >= 0).all():
        return _in_order(stations, arrivals_ms, deadlines)
    return _by_deadline(stations, arrivals_ms, deadlines, Gate(stations) if admission else None)


class Servers:
    """Who is free when, and who takes the next batch: the one that was last busy."""

    def __init__(self, stations: Sequence[Station]) -> None:
        self._stations = [i for i, each in enumerate(stations) for _ in range(each.instances)]
        """By server."""
        self._free = list(range(len(self._stations)))
        """In the order in which they became so; at the start, as they are listed."""
        self._busy: list[tuple[float, int]] = []
        """A heap: until when, and which server."""

    def free_from(self) -> float:
        """When the first of them is free; 0 where one is."""
        return 0.0 if self._free else self._busy[0][0]

    def taker(self, now: float) -> int:
        """The station whose server takes a batch at ``now``, when one is free."""
        busy, free = self._busy, self._free
        while busy and busy[0][0] <= now:
            free.append(heappop(busy)[1])
        return self._stations[free[-1]]

    def start(self, end: float) -> None:
        """The server that was named by :meth:`taker` is busy until ``end``."""
        heappush(self._busy, (end, self._free.pop()))


def times_of(station: Station) -> tuple[float, ...]:
    """Expected milliseconds by rows, from none on."""
    return (0.0, *station.batch_ms)


def noise_of(station: Station) -> list[Callable[[], float]] | None:
    """By rows, from none on, what gives the factor of the next batch; None without noise."""
    if not station.noise:
        return None
    return [cycle(factors).__next__ for factors in ((1.0,), *station.noise)]


def _in_order(
    stations: tuple[Station, ...], arrivals_ms: Vector, deadlines_ms: Vector | None
) -> Served:
    arrivals = arrivals_ms.tolist()
    deadlines = None if deadlines_ms is None else deadlines_ms.tolist()
    all_times, all_noise = [*map(times_of, stations)], [*map(noise_of, stations)]
    equal, taker = len(stations) == 1, 0
    free, servers = [0.0] * stations[0].instances, Servers(stations)
    times, noise = all_times[0], all_noise[0]
    most = max(map(len, all_times)) - 1
    total, head = len(arrivals), 0
    now = noise_ms = 0.0
    arrivals.append(inf)
    heads: list[int] = []
    ends: list[float] = []
    sizes: list[int] = []
    takers: list[int] = []
    while head < total:
        now = free[0] if equal else max(now, servers.free_from())
        came = arrivals[head]
        if came > now:
            now = came
        tail = head + 1
        if arrivals[tail] <= now and most > 1:  # most batches of a light load hold one
            tail = bisect_right(arrivals, now, tail, min(head + most, total))
        if not equal:
            taker = servers.taker(now)
            times, noise = all_times[taker], all_noise[taker]
            tail = min(tail, head + len(times) - 1)
        end = now + times[tail - head]
        if deadlines is not None and deadlines[head] < end:
            head, tail = _without_hopeless(arrivals, deadlines, times, now, head, tail)
            if head == tail:
                continue
            end = now + times[tail - head]
        if noise is not None:
            beyond = times[tail - head] * (noise[tail - head]() - 1)
            noise_ms += beyond
            end += beyond
        heads.append(head)
        ends.append(end)
        sizes.append(tail - head)
        if equal:
            heapreplace(free, end)
        else:
            takers.append(taker)
            servers.start(end)
        head = tail
    return _served(stations, arrivals_ms, heads, ends, sizes, takers, noise_ms)


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
    noise_ms: float,
) -> Served:
    batches = np.full(len(arrivals_ms), -1)
    batch_sizes = np.array(sizes, dtype=np.int64)
    if sizes:
        starts = np.cumsum(batch_sizes) - batch_sizes
        members = np.arange(int(batch_sizes.sum()))
        members += np.repeat(np.array(heads) - starts, batch_sizes)
        batches[members] = np.repeat(np.arange(len(sizes)), batch_sizes)
    return summary(stations, arrivals_ms, batches, ends, batch_sizes, takers, noise_ms)


def _by_deadline(
    stations: tuple[Station, ...],
    arrivals_ms: Vector,
    deadlines_ms: Vector,
    gate: Gate | None,
) -> Served:
    arrivals, deadlines = arrivals_ms.tolist(), deadlines_ms.tolist()
    arrivals.append(inf)
    all_times, all_noise = [*map(times_of, stations)], [*map(noise_of, stations)]
    equal, taker = len(stations) == 1, 0
    free, servers = [0.0] * stations[0].instances, Servers(stations)
    times, noise = all_times[0], all_noise[0]
    total, coming, refused = len(deadlines), 0, 0
    waiting: list[tuple[float, int]] = []
    batches = [-1] * total
    ends: list[float] = []
    sizes: list[int] = []
    takers: list[int] = []
    now = noise_ms = 0.0
    while waiting or coming < total:
        free_from = free[0] if equal else servers.free_from()
        now = max(now, free_from)  # a server may have been free before they came
        if not waiting and arrivals[coming] > now:
            now = arrivals[coming]
        while (came := arrivals[coming]) <= now:
            if coming == total:
                break
            # What comes before a server is free finds all of them busy.
            if (
                gate is None
                or came >= free_from
                or gate.admits(came, deadlines[coming] - came, free_from - came, len(waiting))
            ):
                heappush(waiting, (deadlines[coming], coming))
            else:
                refused += 1
            coming += 1
        if not equal:
            taker = servers.taker(now)
            times, noise = all_times[taker], all_noise[taker]
        size = min(len(waiting), len(times) - 1)
        end = now + times[size]
        while size and waiting[0][0] < end:
            heappop(waiting)
            size = min(len(waiting), len(times) - 1)
            end = now + times[size]
        if gate is not None:
            gate.took(now, len(waiting) - size, len(times) - 1)
        if not size:
            continue
        number = len(ends)
        if size == len(waiting):
            for _, request in waiting:
                batches[request] = number
            waiting.clear()
        else:
            for _ in range(size):
                batches[heappop(waiting)[1]] = number
        if noise is not None:
            beyond = times[size] * (noise[size]() - 1)
            noise_ms += beyond
            end += beyond
        ends.append(end)
        sizes.append(size)
        if equal:
            heapreplace(free, end)
        else:
            takers.append(taker)
            servers.start(end)
    batch_sizes = np.array(sizes, dtype=np.int64)
    of_requests = np.array(batches, dtype=np.int64)
    return summary(stations, arrivals_ms, of_requests, ends, batch_sizes, takers, noise_ms, refused)


class Gate:
    """Who is queued, as a member of the dispatcher decides. It reckons in seconds; only ratios count."""

    def __init__(self, stations: Sequence[Station]) -> None:
        # The dispatcher knows one law of batch times for all instances of a member.
        self._times = max((station.batch_ms for station in stations), key=len)
        self._rate = sum(
            station.instances * len(station.batch_ms) / station.batch_ms[-1] for station in stations
        )
        self._admission = Admission()
        self.took = self._admission.took

    def admits(self, now: float, left_ms: float, busy_ms: float, waiting: int) -> bool:
        """``busy_ms``: until the first server is free."""
        times = self._times
        done_ms = done_after(
            busy_ms, waiting, 1, len(times), self._rate, lambda rows: times[rows - 1]
        )
        return self._admission.admits(now, left_ms, done_ms, waiting + 1 > len(times))


def summary(
    stations: tuple[Station, ...],
    arrivals_ms: Vector,
    batches: Counts,
    ends: list[float],
    sizes: Counts,
    takers: list[int],
    noise_ms: float,
    refused: int = 0,
    withdrawn: int = 0,
) -> Served:
    """``batches`` by request, all else by batch; ``takers`` are the stations, empty where there is one."""
    by_batch = np.array(takers or [0] * len(ends), dtype=np.int64)
    busy = noise_ms + sum(
        float(np.asarray(station.batch_ms)[sizes[by_batch == index] - 1].sum())
        for index, station in enumerate(stations)
    )
    # The last entry is that of requests without a batch.
    latency = np.array([*ends, inf])[batches] - arrivals_ms
    last_ms = float(arrivals_ms.max()) if arrivals_ms.size else 0.0
    span = max(max(ends, default=0.0), last_ms)
    instances = sum(station.instances for station in stations)
    return Served(latency, batches, sizes, by_batch, busy, span, instances, refused, withdrawn)
