"""A profile's cells as the queue model sees them: caps, batch times, memory.

The planner tries more caps than were measured and asks for them over and over, so the cells of one model on
one class of part are put in columns, one per instance count, that can be searched by batch time. Queues are in
requests: a request of k rows is late when its last row is, and its rows stay together.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from math import ceil

import numpy as np

from tessera_core.gpu.devices import DeviceClass
from tessera_core.perf import LatencyProfile, Neighbours, ProfileRow, ServiceModel
from tessera_core.perf.shared_queue import Server

_BETWEEN = 4
"""Caps tried from a measured batch size to its double."""
_LEAST_ALPHA = 1e-6
"""Of a full batch's time per row: the queue model wants rows to cost something."""


def per_request(service: ServiceModel, rows: int) -> ServiceModel:
    """The same server seen by requests of ``rows`` rows; rates are then requests per second.

    Where a request exceeds the cap it takes several batches, and no two requests share one.
    """
    cap = service.cap
    if rows == 1:
        return service
    if cap is not None and cap < rows:
        whole = ceil(rows / cap) * service.batch_ms(cap)
        return replace(service, alpha_ms=whole, tau0_ms=0.0, cap=1)
    return replace(
        service, alpha_ms=service.alpha_ms * rows, cap=None if cap is None else cap // rows
    )


@dataclass(frozen=True, slots=True)
class Point:
    """One (cap, instances) on one class of part."""

    cap: int
    instances: int
    memory_mib: int
    queue: ServiceModel
    """In requests; one of the instances."""

    batch_ms: float
    """Of a full batch."""

    @property
    def server(self) -> Server:
        """All instances, as a queue of requests sees them."""
        queue = self.queue
        return Server(queue.cap or 1, self.batch_ms, queue.tau0_ms, queue.spread_ms, self.instances)


@dataclass(frozen=True, slots=True, eq=False)
class Column:
    """Points of one instance count, caps ascending."""

    points: tuple[Point, ...]
    batch_ms: tuple[float, ...]
    """Never falling, so that it can be searched; noise may make a larger batch look faster."""
    turn_ms: tuple[float, ...]
    """A batch and the least that rows wait for it on a shared queue, where servers are many. Never falling."""
    most_per_ms: tuple[float, ...]
    """Requests that the best point up to this one finishes per ms."""

    @classmethod
    def of(cls, points: Sequence[Point]) -> Column:
        servers = [point.server for point in points]
        turns = [each.batch_ms * (1 + each.constant_share) for each in servers]
        return cls(
            tuple(points),
            tuple(accumulate((point.batch_ms for point in points), max)),
            tuple(accumulate(turns, max)),
            tuple(accumulate((each.rows_per_ms for each in servers), max)),
        )

    @property
    def instances(self) -> int:
        return self.points[0].instances

    def longest(self, batch_ms: float) -> Point | None:
        """The largest cap whose batches take at most ``batch_ms``."""
        found = bisect_right(self.batch_ms, batch_ms)
        return self.points[found - 1] if found else None

    def most_within(self, budget_ms: float) -> float:
        """Requests per ms that points finish whose turn on a shared queue takes at most ``budget_ms``."""
        found = bisect_right(self.turn_ms, budget_ms)
        return self.most_per_ms[found - 1] if found else 0.0


def columns_of(
    profile: LatencyProfile, where: DeviceClass, rows: int, most: int, neighbour_derate: float
) -> tuple[Column, ...]:
    """The points of a profile on ``where`` for requests of ``rows`` rows, caps up to ``most``, by instances.

    Those beyond the memory of ``where`` are left out. ``neighbour_derate`` lengthens batches of a slice that
    was measured with idle neighbours only.
    """
    around = Neighbours.BUSY if where.is_mig else Neighbours.IDLE
    lone = where.is_mig and all(row.neighbours is Neighbours.IDLE for row in profile.rows)
    found = []
    for instances in profile.instance_counts:
        points: list[Point] = []
        memory = 0.0
        low = 0
        cells = profile.cells(instances, around)
        times = _Times.of(cells)
        for row in cells:
            memory = max(memory, row.memory_mib)
            for cap in _caps(low, row.batch, most, rows):
                service = times.service(cap)
                queue = per_request(service.scaled(neighbour_derate) if lone else service, rows)
                full = queue.batch_ms(queue.cap or 1)
                points.append(Point(cap, instances, ceil(memory), queue, full))
            low = row.batch
            if low >= most:
                break
        points = [point for point in points if point.memory_mib <= where.memory_mib]
        if points:
            # A cap below a request's rows splits it, which only takes longer.
            least = min(rows, points[-1].cap)
            found.append(Column.of([point for point in points if point.cap >= least]))
    return tuple(found)


@dataclass(frozen=True, slots=True)
class _Times:
    """Measured batch times of one instance count; noise that makes a larger batch look faster is raised."""

    batches: tuple[int, ...]
    median_ms: tuple[float, ...]
    tail_ms: tuple[float, ...]

    @classmethod
    def of(cls, cells: Sequence[ProfileRow]) -> _Times:
        return cls(
            tuple(row.batch for row in cells),
            tuple(accumulate((row.p50_ms for row in cells), max)),
            tuple(accumulate((row.p99_ms for row in cells), max)),
        )

    def service(self, cap: int) -> ServiceModel:
        """The steepest line through the time of a full batch that is nowhere below what was measured.

        Exact where capacity is decided, in full batches, and safe for smaller ones. A least-squares line
        would promise rates that no server reaches: measured times bend upwards with the batch.
        """
        full = float(np.interp(cap, self.batches, self.median_ms))
        tail = float(np.interp(cap, self.batches, self.tail_ms))
        # A batch below the grid costs what the smallest measured one does, and none less than nothing.
        low = ((0, 0.0), (1, self.median_ms[0]), *zip(self.batches, self.median_ms, strict=True))
        slope = min((full - ms) / (cap - batch) for batch, ms in low if batch < cap)
        alpha = max(slope, _LEAST_ALPHA * full / cap)
        return ServiceModel(alpha, max(0.0, full - alpha * cap), cap, 1, max(0.0, tail - full))


def _caps(low: int, high: int, most: int, rows: int) -> list[int]:
    """Caps above ``low`` up to a measured ``high``, some between, none above ``most``.

    In whole requests of ``rows`` rows, where one fits.
    """
    step = max(1, low // _BETWEEN)
    caps = {*range(low + step, high, step), high} if low else {high}
    found = {min(cap, most) // rows * rows or min(cap, most) for cap in caps}
    return sorted(cap for cap in found if cap > low)
