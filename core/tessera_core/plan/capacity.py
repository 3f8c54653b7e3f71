"""How many rows per second a member's parts carry within its latency budget.

The answer comes from the measured profile and the queue model. Three cases:

One part with one instance: its queue is solved (``perf.quick``, a conservative table of the exact law).

Several servers for one member on one node: they take batches from one queue, and the law of
``perf.shared_queue`` holds. On different nodes each node has its own queue; Poisson streams that are split at
random stay Poisson, so what the nodes carry adds up.

Several members on one part (``blocking_ms``). They take turns: between two batches of one member every other
one may run a full batch. So a member sees each of its batches lengthened by one full batch of every other
member there. This is the worst case of a round robin, hence safe: it cannot promise more than the part has,
because in one such round each member is credited with no more than the one batch it runs. Kernels that
overlap do better; an interference term measured per pair of members would replace ``blocking_ms`` alone.

A request of k rows is late when its last row is. Its rows stay together, so queues are solved in requests: a
batch of at most cap // k requests, k rows' worth of time each.

Rates are integers, thousandths of a row per second, rounded down: sums do not depend on their order.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from math import ceil, floor, log2

from tessera_core.plan.behaviour import MILLI, Behaviour, Running
from tessera_core.plan.curves import Curves
from tessera_core.plan.demand import Demand
from tessera_core.plan.matrix import Cell, Part

__all__ = ["MILLI", "Predictor"]

_BLOCKING_STEPS = 32
"""Blocking is rounded up to one of so many steps per octave, so that few different queues are solved."""


class Predictor:
    """Rates, latencies and memory of parts. Members are indices into ``demands``."""

    def __init__(self, demands: Sequence[Demand], curves: Curves) -> None:
        self.curves = curves
        self.behaviours: tuple[Behaviour, ...] = tuple(map(curves.behaviour, demands))

    def running(self, part: Part, cell: Cell) -> Running:
        """``cell`` of ``part`` as its queue sees it."""
        blocking = self.blocking_ms(part, cell) if len(part.cells) > 1 else 0.0
        return Running(part.place, cell.cap, cell.instances, blocking)

    def rate(self, member: int, hosts: Iterable[Part]) -> int:
        """Rows/s × ``MILLI`` that ``member`` is carried with by those of ``hosts``, parts of one node, it is in."""
        together = [
            self.running(part, cell) for part in hosts for cell in part.cells if cell[0] == member
        ]
        together.sort()
        return self.behaviours[member].rate(tuple(together)) if together else 0

    def batch_ms(self, place: int, cell: Cell) -> float:
        """Time of a full batch of ``cell``, alone on ``place``, other parts of the device being busy."""
        running = Running(place, cell.cap, cell.instances)
        return self.behaviours[cell.member].point(running).batch_ms

    def memory_mib(self, part: Part) -> int:
        """Device memory of everything in ``part``, MiB, rounded up per member."""
        return sum(self.cell_mib(part.place, cell) for cell in part.cells)

    def cell_mib(self, place: int, cell: Cell) -> int:
        """Buffers exist for every batch size up to the cap, so the largest of them counts."""
        running = Running(place, cell.cap, cell.instances)
        return self.behaviours[cell.member].point(running).memory_mib

    def blocking_ms(self, part: Part, cell: Cell) -> float:
        """Time that the other members of ``part`` may add to each batch of ``cell``, ms."""
        member = cell.member
        others = 0.0
        for other in part.cells:
            if other.member != member:
                others += self.batch_ms(part.place, other)
        if not others:
            return 0.0
        step = 2.0 ** floor(log2(others)) / _BLOCKING_STEPS
        return ceil(others / step) * step
