"""How much a client may ask for that costs the server work and brings no request nearer to its answer.

Resets (CVE-2023-44487), PINGs, SETTINGS, empty frames and the like are all cheap to send. A budget lets bursts
through, refills with time, and grows with useful work, so that a client that cancels half of its many calls
never runs out and one that does nothing but cancel soon does.
"""

from __future__ import annotations


class Budget:
    """A token bucket."""

    __slots__ = ("_burst", "_left", "_rate", "_since")

    def __init__(self, burst: int, rate: float, now: float) -> None:
        """``burst``: events at once; ``rate``: events per second that may go on for ever."""
        self._burst = self._left = float(burst)
        self._rate = rate
        self._since = now

    def earn(self, events: float) -> None:
        self._left += events

    def spend(self, now: float, events: float = 1.0) -> bool:
        """Whether that was still within the budget. ``now`` in seconds, as coarse as it may be."""
        if now > self._since:
            self._left += (now - self._since) * self._rate
            self._since = now
        if self._left > self._burst:
            self._left = self._burst
        self._left -= events
        return self._left >= 0
