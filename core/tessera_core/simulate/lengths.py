"""Requests of different lengths in one queue, batched in one way or another, on the same arrivals.

The queues are those of :mod:`tessera_core.batching` themselves. An event is an arrival, the end of a batch, or the moment
from which a queue that waits for company gives a batch. Nothing is dropped: the same work is done in every way.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from heapq import heappop, heappush, heapreplace
from math import inf
from typing import Protocol

import numpy as np

from tessera_core.batching.pace import Pace
from tessera_core.batching.policy import EdfQueue, Lengths, Padded
from tessera_core.batching.preba import Limit, WaitingQueue
from tessera_core.batching.spacing import Spacing
from tessera_core.simulate.station import Counts, Served, Vector

BatchTime = Callable[[int, int], float]
"""Milliseconds of a batch of so many requests that are padded to a bucket, which is given by its position."""


FAR_MS = 1e12
"""A deadline that nothing misses: first come, first served."""


class Forming(Protocol):
    """How batches are formed of requests, which are numbers; in milliseconds."""

    def push(self, request: int, bucket: int, now: float) -> None: ...

    def due(self) -> float:
        """From when on it gives a batch if nothing more comes; ``inf`` while nothing waits."""
        ...

    def take(self, now: float) -> tuple[Sequence[int], int]:
        """A batch that is due, and the bucket that it is padded to."""
        ...


class Waiting:
    """As PREBA does it."""

    def __init__(self, limits: Sequence[Limit]) -> None:
        """``limits``: by bucket, in milliseconds."""
        queue: WaitingQueue[int] = WaitingQueue(limits)
        self.push = queue.push
        self.due = queue.due
        self._take = queue.take

    def take(self, now: float) -> tuple[Sequence[int], int]:
        formed = self._take(now)
        assert formed is not None, "asked when one is due"
        return formed.items, formed.bucket


class AtOnce:
    """As the dispatcher does it: who is idle takes what waits, in turns if they are ``spaced``."""

    def __init__(
        self,
        sizes: Sequence[float],
        cap: int,
        lengths: Lengths,
        batch_ms: Callable[[float], float],
        spaced: int = 1,
        took_ms: BatchTime | None = None,
    ) -> None:
        """``sizes``: of a row of each bucket; ``batch_ms``: of so many rows of the mean size; ``spaced``: instances whose
        batches are kept apart. ``took_ms``: what batches take, of which it learns what rows cost; without, they cost
        their sizes.
        """
        self._queue: EdfQueue[int] = EdfQueue(limit=1 << 62)
        self._shapes = [Padded(size, ((bucket,),)) for bucket, size in enumerate(sizes)]
        self._cap, self._lengths, self._batch_ms = cap, lengths, batch_ms
        self._spacing, self._spaced = Spacing(), spaced
        self._took_ms, self._pace = took_ms, Pace(lengths.mean)
        self._buckets: dict[int, int] = {}
        self._running: list[tuple[float, float, float, Padded, bool]] = []
        """End, milliseconds, those of the profile, shape and whether it is half full, the first to end at the top."""

    def push(self, request: int, bucket: int, now: float) -> None:
        self._buckets[request] = bucket
        self._queue.push(request, now + FAR_MS, 1, self._shapes[bucket])

    def due(self) -> float:
        return self._spacing.due(self._queue.rows >= self._cap) if self._queue else inf

    def take(self, now: float) -> tuple[Sequence[int], int]:
        lengths = self._lengths
        if self._took_ms is not None:
            while self._running and self._running[0][0] <= now:
                self._pace.saw(*heappop(self._running)[1:])
            lengths = lengths._replace(mean=self._pace.mean, costs=self._pace.costs)
        self._spacing.started(now, self._likely_ms(0.0), self._spaced)
        taken = self._queue.take(now, self._cap, self._likely_ms, lengths)
        assert isinstance(taken.shape, Padded)
        bucket = taken.shape.row_shapes[0][0]
        if self._took_ms is not None:
            for request in taken.batch:
                self._pace.came(self._shapes[self._buckets[request]], 1)
            took_ms = self._took_ms(taken.rows, bucket)
            ran = took_ms, self._batch_ms(taken.work), taken.shape, 2 * taken.work >= self._cap
            heappush(self._running, (now + took_ms, *ran))
        return taken.batch, bucket

    def _likely_ms(self, rows: float) -> float:
        return self._pace.ratio * self._batch_ms(rows)


def simulate_lengths(
    forming: Forming, batch_ms: BatchTime, instances: int, arrivals_ms: Vector, buckets: Counts
) -> Served:
    """``instances`` that take what ``forming`` gives them of requests that come at ``arrivals_ms``, ascending, shape
    (requests,), each of the length of one of the ``buckets``, shape (requests,).

    Raises ``ValueError`` without an instance, and for arrays that do not fit each other.
    """
    if instances < 1:
        raise ValueError(f"instances: must be >= 1, found {instances}")
    if arrivals_ms.shape != buckets.shape or arrivals_ms.ndim != 1:
        raise ValueError(f"buckets: one for each of {arrivals_ms.shape}, found {buckets.shape}")
    if (np.diff(arrivals_ms) < 0).any():
        raise ValueError("arrivals_ms: must be ascending")
    arrivals, of = [*arrivals_ms.tolist(), inf], buckets.tolist()
    free = [0.0] * instances
    batches = np.full(len(of), -1)
    ends: list[float] = []
    sizes: list[int] = []
    coming, now, busy_ms = 0, 0.0, 0.0
    while True:
        at = max(free[0], forming.due())
        if arrivals[coming] <= at:
            if coming == len(of):
                break
            now = arrivals[coming]
            forming.push(coming, of[coming], now)
            coming += 1
            continue
        now = max(now, at)
        requests, bucket = forming.take(now)
        took_ms = batch_ms(len(requests), bucket)
        batches[list(requests)] = len(ends)
        ends.append(now + took_ms)
        sizes.append(len(requests))
        busy_ms += took_ms
        heapreplace(free, now + took_ms)
    latency_ms = np.array([*ends, inf])[batches] - arrivals_ms
    span_ms = max(max(ends, default=0.0), float(arrivals_ms[-1]) if len(of) else 0.0)
    stations = np.zeros(len(sizes), dtype=np.int64)
    return Served(
        latency_ms, batches, np.array(sizes, dtype=np.int64), stations, busy_ms, span_ms, instances
    )
