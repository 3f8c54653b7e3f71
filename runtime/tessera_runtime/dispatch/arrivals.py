"""How work comes to a member: counters that only grow."""

from __future__ import annotations

MOST_GAP_S = 1.0
"""A longer gap says that nobody asked, not how those ask who do."""


class Arrivals:
    """Work that came for the instances here, also what was refused."""

    __slots__ = ("_last", "gaps", "gaps_s", "gaps_s2", "rows")

    def __init__(self) -> None:
        self.rows = 0
        self.gaps = 0
        """Of at most MOST_GAP_S, between one piece of work and the next."""
        self.gaps_s = 0.0
        self.gaps_s2 = 0.0
        """Sum of their squares."""
        self._last = 0.0

    def came(self, now: float, rows: int) -> None:
        gap = now - self._last
        self._last = now
        self.rows += rows
        if 0.0 <= gap <= MOST_GAP_S:
            self.gaps += 1
            self.gaps_s += gap
            self.gaps_s2 += gap * gap
