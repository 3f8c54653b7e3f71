"""How work comes to a member: counters that only grow, and how bursty it comes.

A server reads what comes in turns of a millisecond or two, so that many gaps between arrivals are nothing and some are a
turn: at some thousands a second those of Poisson arrivals vary as if they came in bursts of seven. So gaps are counted
in groups of about GROUP_S, so many in each that a turn does not matter. How many is known before a group begins, so it
says nothing of its length: for independent gaps of mean m and variance v a group of k is (k*m)^2 + k*v long squared in
the mean, whatever k is.
"""

from __future__ import annotations

from math import inf
from typing import Final

MOST_GAP_S: Final = 1.0
"""A longer gap says that nobody asked, not how those ask who do."""
GROUP_S: Final = 0.01
MOST_IN_GROUP: Final = 4096
FEWEST_GROUPS: Final = 10
"""From which their variation says something. Of bursts there are few in a second, so not many can be asked for."""


class Arrivals:
    """Work that came for the instances here, also what was refused."""

    __slots__ = (
        "_begun",
        "_last",
        "_seen",
        "_size",
        "gaps",
        "gaps_s",
        "groups",
        "groups_s2",
        "requests",
        "rows",
    )

    def __init__(self) -> None:
        self.requests = 0
        """Of work: requests, of any number of rows."""
        self.rows = 0
        self.groups = 0
        """Of gaps of at most MOST_GAP_S, between one piece of work and the next."""
        self.gaps = 0
        """In these groups."""
        self.gaps_s = 0.0
        """Their sum."""
        self.groups_s2 = 0.0
        """Sum of the squared length of each group over its gaps."""
        self._last = -inf
        self._begun = 0.0
        self._seen = 0
        self._size = 1

    def came(self, now: float, rows: int) -> None:
        gap = now - self._last
        self._last = now
        self.requests += 1
        self.rows += rows
        if not 0.0 <= gap <= MOST_GAP_S:
            self._begun = now
            self._seen = 0
            return
        self._seen += 1
        if self._seen < self._size:
            return
        size, length = self._size, now - self._begun
        self.groups += 1
        self.gaps += size
        self.gaps_s += length
        self.groups_s2 += length * length / size
        if length < GROUP_S / 2:
            self._size = min(2 * size, MOST_IN_GROUP)
        elif length > 2 * GROUP_S:
            self._size = max(size // 2, 1)
        self._begun = now
        self._seen = 0


def gap_cv2(groups: int, gaps: int, total: float, squares: float) -> float | None:
    """Squared coefficient of variation of gaps, from differences of ``groups``, ``gaps``, ``gaps_s`` and ``groups_s2``.

    None for fewer than FEWEST_GROUPS, and where all came at once.
    """
    if groups < FEWEST_GROUPS or total <= 0:
        return None
    mean = total / gaps
    return max(0.0, (squares - mean * total) / (groups * mean * mean))
