"""Plain tables that all slice baselines read, and the one result that they return.

A profile is a tuple of measured points; a scenario is a tuple of loads; a deployment is what each GPU runs.
Slices are named by their GPCs (1, 2, 3, 4 and 7 on seven-slice boards), as the MIG literature does.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

PROFILE_NAMES = {1: "1g.10gb", 2: "2g.20gb", 3: "3g.40gb", 4: "4g.40gb", 7: "7g.80gb"}
"""MIG profiles of an A100-80 by their GPCs."""
SIZES = tuple(PROFILE_NAMES)


@dataclass(frozen=True, slots=True, order=True)
class Point:
    """One measured way to run a model on a slice; all processes are busy."""

    gpcs: int
    batch: int
    processes: int
    """Copies of the model that share the slice through MPS."""
    rate_per_s: float
    """Rows per second of all processes together."""
    latency_ms: float
    """Of one batch, queueing excluded."""


Profiles = Mapping[str, tuple[Point, ...]]
"""Points by model."""


@dataclass(frozen=True, slots=True, order=True)
class Load:
    """One service to place: a model, its rate and the latency that it promises."""

    name: str
    model: str
    rate_per_s: float
    slo_ms: float


@dataclass(frozen=True, slots=True, order=True)
class Segment:
    """A slice and what runs on it."""

    service: str
    model: str
    point: Point

    @property
    def gpcs(self) -> int:
        return self.point.gpcs


@dataclass(frozen=True, slots=True)
class Deployment:
    """What every used GPU runs, in the order in which GPUs were taken."""

    boards: tuple[tuple[Segment, ...], ...]

    @property
    def gpus(self) -> int:
        return len(self.boards)

    @property
    def gpcs(self) -> int:
        return sum(segment.gpcs for board in self.boards for segment in board)

    def segments(self, service: str) -> tuple[Segment, ...]:
        """Those of one service, by GPU."""
        return tuple(each for board in self.boards for each in board if each.service == service)

    def rate_per_s(self, service: str) -> float:
        """Rows per second that the points of a service's segments add up to."""
        return sum(each.point.rate_per_s for each in self.segments(service))


class Unplaceable(ValueError):
    """A load that no point of its model can carry under the rule in force."""


def batch_times(points: Sequence[Point], gpcs: int, processes: int, cap: int) -> tuple[float, ...]:
    """Times of batches of 1 .. ``cap`` rows, ms, on one process of a slice.

    Interpolated between the measured batches; noise that makes a larger batch look faster is raised to the
    running maximum, and a batch below the grid costs what the smallest measured one does. Raises ValueError
    when the slice was not measured, or not up to ``cap``.
    """
    measured = sorted(
        (point.batch, point.latency_ms)
        for point in points
        if point.gpcs == gpcs and point.processes == processes
    )
    if not measured or measured[-1][0] < cap:
        largest = measured[-1][0] if measured else "nothing"
        raise ValueError(
            f"batch {cap} on {gpcs} GPCs with {processes} processes: measured up to {largest}"
        )
    batches, times = zip(*measured, strict=True)
    known = np.maximum.accumulate(np.array(times))
    return tuple(np.interp(np.arange(1, cap + 1), batches, known).tolist())


def servers_of(
    deployment: Deployment, profiles: Profiles, service: str
) -> tuple[tuple[float, ...], ...]:
    """The servers behind one queue of ``service``: batch times of every process that runs it.

    The times were measured with all processes of the slice busy, and so are on the slow side of a light load.
    """
    return tuple(
        times
        for each in deployment.segments(service)
        for times in [
            batch_times(profiles[each.model], each.gpcs, each.point.processes, each.point.batch)
        ]
        for _ in range(each.point.processes)
    )
