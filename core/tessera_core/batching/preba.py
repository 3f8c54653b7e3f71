"""Batching that waits, as PREBA does it: the rule that ours is measured against.

Source: PREBA, arXiv 2411.19114. Requests stand in one line per bucket of lengths. A batch is due when a line holds
Batch_max requests, or when its oldest has waited for Time_queue, whether an instance is idle or not; a short one is then
filled up from the lines beside it. Batch_max is the knee of the bucket's throughput (:meth:`LatencyProfile.knee
<tessera_core.perf.profile.LatencyProfile.knee>`), Time_queue the time of a batch at the knee over the number of instances:
then the instances of a member have a batch each in the time that one batch takes.

What serves does not wait (:mod:`tessera_core.batching.policy`; docs/decisions/0041 has the figures).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from math import inf
from typing import Final, Generic, NamedTuple, TypeVar

from tessera_core.perf.profile import LatencyProfile

T = TypeVar("T")

KNEE: Final = 0.9
"""Of the best throughput: the paper describes the knee, this is the number that stands for it."""


class Limit(NamedTuple):
    """How batches of one bucket are formed."""

    batch: int
    """Batch_max: most requests."""
    wait: float
    """Time_queue: longest that a request waits for others, in the caller's unit of time."""


def limits(
    profiles: Iterable[LatencyProfile],
    instances: int,
    rate_per_s: float = inf,
    budget_ms: float | None = None,
) -> tuple[Limit, ...]:
    """Of each bucket, in milliseconds, from what was measured of it: to be asked again when ``instances``, those that are
    healthy, or ``rate_per_s``, of the requests of one bucket, change.

    Raises ``ValueError`` without an instance, and for a bucket whose batch at the knee takes longer than ``budget_ms``.
    """
    if instances < 1:
        raise ValueError(f"instances: must be >= 1, found {instances}")
    found: list[Limit] = []
    for bucket, profile in enumerate(profiles):
        batch = profile.knee(fraction=KNEE, max_latency_ms=budget_ms)
        if batch is None:
            raise ValueError(
                f"profiles[{bucket}]: a batch at the knee takes longer than {budget_ms} ms; "
                "allow more, or take a larger slice"
            )
        knee_ms = profile.service_ms(batch, tail=True)
        found.append(Limit(batch, queue_ms(knee_ms, instances, rate_per_s)))
    return tuple(found)


def queue_ms(knee_ms: float, instances: int, rate_per_s: float = inf) -> float:
    """Time_queue. 0 where less than one more request is to be expected in that time: nobody waits for who will not come."""
    wait = knee_ms / instances
    return wait if rate_per_s * wait >= 1e3 else 0.0


class Formed(NamedTuple, Generic[T]):
    """A batch."""

    items: tuple[T, ...]
    bucket: int
    """Of the longest in it: what all are padded to."""


class WaitingQueue(Generic[T]):
    """Requests by bucket of length, the shortest first."""

    def __init__(self, limits: Sequence[Limit]) -> None:
        self.limits = tuple(limits)
        """By bucket; may be replaced by as many others while requests wait."""
        self._lines: list[deque[tuple[float, T]]] = [deque() for _ in limits]
        """(since when, what)."""

    def __len__(self) -> int:
        return sum(map(len, self._lines))

    def push(self, item: T, bucket: int, now: float) -> None:
        self._lines[bucket].append((now, item))

    def due(self) -> float:
        """From when on :meth:`take` gives a batch if nothing more comes; ``inf`` while nothing waits."""
        return min(map(self._due, range(len(self._lines))), default=inf)

    def take(self, now: float) -> Formed[T] | None:
        """The batch whose oldest request has waited longest of those that are due at ``now``."""
        ready = [bucket for bucket in range(len(self._lines)) if self._due(bucket) <= now]
        if not ready:
            return None
        bucket = min(ready, key=lambda each: self._lines[each][0][0])
        items: list[T] = []
        longest = bucket
        for near in sorted(range(len(self._lines)), key=lambda each: (abs(each - bucket), each)):
            line, most = self._lines[near], self.limits[max(longest, near)].batch
            while line and len(items) < most:
                items.append(line.popleft()[1])
                longest = max(longest, near)
        return Formed(tuple(items), longest)

    def _due(self, bucket: int) -> float:
        line, limit = self._lines[bucket], self.limits[bucket]
        if not line:
            return inf
        return -inf if len(line) >= limit.batch else line[0][0] + limit.wait
