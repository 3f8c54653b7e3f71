"""Which work is queued at all: what is expected to be answered in time.

Under overload, work that waits until it is late costs those behind it their time. So it is refused when it comes, which
is also when a client can still do something else.

A queue from which the instances take full batches, one after the other, and that never runs short, keeps nobody busy
who would not be with half of it. All it does is to bring every request close to its deadline, so that the first batch
that takes longer makes all of them late at once. Such a queue is kept at half of the time (as CoDel drops from a queue
that stands: Nichols and Jacobson, ACM Queue 10(5), 2012; RFC 8289).
"""

from __future__ import annotations

from collections.abc import Callable
from math import inf
from typing import Final

ADMITTED: Final = 0.95
"""Of the time that is left: work that is expected to take more is refused. The rest is for the ways of request and answer,
no more: a plan lets one request in a hundred take all of its time, and who is refused is not in time either."""

STANDING: Final = 0.45
"""The same for a queue that stands."""


def done_after(
    busy: float,
    waiting: int,
    rows: int,
    cap: int,
    rate: float,
    batch: Callable[[int], float],
) -> float:
    """Until ``rows`` that come behind ``waiting`` ones are done: what is left of the batch that ends first, the batches
    before theirs, which all instances run together at ``rate`` rows in a unit of time, and their own.

    ``busy``, ``batch`` (of so many rows) and the result are in that unit. Later work of an earlier deadline is not
    known, nor is the work that will fill the batch up.
    """
    own = waiting % cap + rows
    if own > cap:  # work is not split: it waits for the next one
        own = rows
    return busy + (waiting + rows - own) / rate + batch(own)


class Admission:
    """What is remembered of one queue. Times are seconds on the caller's clock."""

    __slots__ = ("_short_at",)

    def __init__(self) -> None:
        self._short_at = inf

    def took(self, now: float, waiting: int, cap: int) -> None:
        """A batch of at most ``cap`` rows was taken, ``waiting`` rows were left."""
        if waiting < cap or self._short_at == inf:
            self._short_at = now

    def admits(self, now: float, left_s: float, done_s: float, fills: bool) -> bool:
        """Whether to queue work that would be done in ``done_s`` and has to be in ``left_s``.

        ``fills``: whether more than a full batch waits with it. Less is never too much: instances take it at once.
        """
        standing = fills and now - self._short_at > left_s
        return done_s <= (STANDING if standing else ADMITTED) * left_s
