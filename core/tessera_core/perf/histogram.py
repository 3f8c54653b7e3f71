"""Counting durations in logarithmic buckets.

Buckets of different processes and times add up, percentiles do not: so buckets are what is kept and
reported, and a percentile is read from them where it is shown.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence

RATIO = 2 ** (1 / 8)
"""Neighbouring bounds differ by 9 %: the most a percentile read from the buckets can be off."""

BOUNDS_S: tuple[float, ...] = tuple(1e-5 * RATIO**i for i in range(8 * 23 + 1))
"""Upper bounds in seconds, from 10 µs to 84 s; one more bucket holds what is longer."""


class Histogram:
    """Counts per bucket and the exact sum."""

    __slots__ = ("counts", "total_s")

    def __init__(self) -> None:
        self.counts = [0] * (len(BOUNDS_S) + 1)
        self.total_s = 0.0

    def observe(self, seconds: float, times: int = 1) -> None:
        self.counts[bisect_left(BOUNDS_S, seconds)] += times
        self.total_s += seconds * times

    def plus(self, other: Histogram) -> Histogram:
        """A new one: what either has seen."""
        both = Histogram()
        both.counts = [one + more for one, more in zip(self.counts, other.counts, strict=True)]
        both.total_s = self.total_s + other.total_s
        return both

    @property
    def count(self) -> int:
        return sum(self.counts)


def percentile_s(counts: Sequence[int], percent: float) -> float | None:
    """The ``percent``-th percentile in seconds, interpolated in its bucket; None without observations."""
    total = sum(counts)
    if total == 0:
        return None
    rank = total * percent / 100
    seen = 0
    for i, count in enumerate(counts):
        if count and seen + count >= rank:
            if i == len(BOUNDS_S):
                return BOUNDS_S[-1]
            lower = BOUNDS_S[i - 1] if i else 0.0
            return lower + (BOUNDS_S[i] - lower) * (rank - seen) / count
        seen += count
    return BOUNDS_S[-1]
