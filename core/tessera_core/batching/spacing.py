"""How far apart the instances of one member start their batches.

Instances that each take what waits when they are free fall into step where a small batch takes nearly as long as a full one:
the first takes all, the others find little, all of them are busy for the time of a batch, and what comes then waits for it.
PREBA's Time_queue, which makes batches wait, keeps them apart, but makes requests wait also where small batches are cheap.
So only the part of a batch's time that its size does not change is spread over the instances (docs/decisions/0041).
"""

from __future__ import annotations

from math import inf


class Spacing:
    """When the next batch may start. Times are in the caller's unit, on its clock."""

    __slots__ = ("_from",)

    def __init__(self) -> None:
        self._from = -inf

    def started(self, now: float, fixed: float, instances: int) -> None:
        """A batch started; a batch takes ``fixed`` however small it is, and so many instances take from the queue."""
        self._from = now + fixed / instances if instances > 1 else -inf

    def due(self, full: bool) -> float:
        """From when on an idle instance may start what waits; a ``full`` batch waits for nothing."""
        return -inf if full else self._from
