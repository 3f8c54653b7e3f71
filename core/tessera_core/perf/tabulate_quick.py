"""Makes the table of ``quick``: ``python -m tessera_core.perf.tabulate_quick FILE`` (half an hour on one core)."""

from __future__ import annotations

import sys
from math import exp, inf, log, sqrt

import numpy as np
from numpy.typing import NDArray

from tessera_core.perf.batch_queue import BatchQueue
from tessera_core.perf.quick import (
    CAPS,
    PERCENTILES,
    SCALE,
    STRETCHED,
    UNSOLVED,
    log_loads,
    overhead_at,
)
from tessera_core.perf.service import ServiceModel

Vector = NDArray[np.float64]

_FLAT = 1e9
"""tau0/alpha that stands for infinity."""
_TOLERANCE = 1e-4
_LEAST_LATE = 1e-9
_KINKS = 2.0
"""A sharp bend midway between two points is split over their second differences, which see half of it."""
_STAIRS = 0.014
"""The solver places arrivals at a few phases of a batch in progress, which makes the late share of small
batches a staircase in the latency, from h(cap) + h(1) on: this times 1/sqrt(cap) of the latency is as far
as it was seen to go."""
_RAMP = 0.02


def latencies(cap: int) -> Vector:
    """log(latency / h(1)) of one cap, shape (overheads, percentiles, loads); ``inf`` where unsolved."""
    return np.array(
        [
            [curve(service_at(cap, point), percentile) for percentile in PERCENTILES]
            for point in STRETCHED
        ]
    )


def service_at(cap: int, point: float) -> ServiceModel:
    """The service of a grid point, with alpha of 1 ms."""
    return ServiceModel(1.0, min(overhead_at(point), _FLAT), cap)


def curve(service: ServiceModel, percentile: float) -> Vector:
    """log(latency / h(1)) at the grid's loads, shape (points,)."""
    found = log_loads(largest_load(service), percentile)
    low = 0.0
    for index, load in enumerate(found):
        queue = BatchQueue.solve(service, exp(load) / service.batch_ms(1))
        low = inf if queue is None else _log_latency(queue, percentile, low)
        found[index] = low
    return found


def largest_load(service: ServiceModel) -> float:
    """Largest rate * h(1), that at capacity."""
    assert service.cap is not None
    return service.cap * service.batch_ms(1) / service.batch_ms(service.cap)


def _log_latency(queue: BatchQueue, percentile: float, low: float) -> float:
    """log(latency / h(1)) at a percentile, not below ``low``: false position (Illinois), from above."""
    alone, goal = queue.service.batch_ms(1), log(1 - percentile / 100)

    def excess(at: float) -> float:
        return log(max(queue.late(alone * exp(at)), _LEAST_LATE)) - goal

    below = excess(low)
    if below <= 0:
        return low
    width = 0.05
    high, above = low + width, excess(low + width)
    while above > 0:
        low, below, width = high, above, 2 * width
        high = low + width
        above = excess(high)
    while high - low > _TOLERANCE:
        middle = low + min(max(below / (below - above), 0.02), 0.98) * (high - low)
        value = excess(middle)
        if value > 0:
            low, below, above = middle, value, above / 2
        else:
            high, above, below = middle, value, below / 2
    return high


def lifted(table: Vector) -> Vector:
    """The table (caps, overheads, percentiles, loads), each point raised so that chords between points
    do not run below the curve: by the largest sagitta, second derivative * step² / 8, of the cells around
    it, with allowance for kinks and for the solver's own steps.
    """
    caps = np.log2(CAPS)
    points = np.array(STRETCHED)
    tails = -np.log(1 - np.array(PERCENTILES) / 100)
    loads = np.empty_like(table)
    for cell in np.ndindex(table.shape[:3]):
        service = service_at(CAPS[cell[0]], STRETCHED[cell[1]])
        loads[cell] = log_loads(largest_load(service), PERCENTILES[cell[2]])
    raised = table.copy()
    for cap, lines, stored in zip(CAPS, raised, table, strict=True):
        for point, line, solved in zip(STRETCHED, lines, stored, strict=True):
            service = service_at(cap, point)
            behind_full = log(1 + service.batch_ms(cap) / service.batch_ms(1))
            line += _STAIRS / sqrt(cap) * ((solved - behind_full) / _RAMP).clip(0, 1)
    for axis, grid in enumerate((caps, points, tails, loads)):
        raised += _KINKS * _sagitta(table, grid, axis)
    return raised


def _sagitta(table: Vector, grid: Vector, axis: int) -> Vector:
    """Lift of every point for the chords along one axis, same shape as ``table``; 0 where it is convex."""
    values = np.moveaxis(table, axis, -1)
    steps = np.diff(np.moveaxis(grid, axis, -1) if grid.ndim > 1 else grid)
    with np.errstate(invalid="ignore"):
        slopes = np.diff(values) / steps
        bend = -2 * np.diff(slopes) / (steps[..., 1:] + steps[..., :-1])
    bend = np.where(np.isfinite(bend), np.maximum(bend, 0), 0)
    # Ends have no second difference of their own.
    bend = np.concatenate([bend[..., :1], bend, bend[..., -1:]], axis=-1)
    cells = np.maximum(bend[..., 1:], bend[..., :-1]) * steps**2 / 8
    outer = np.zeros_like(cells[..., :1])
    around = np.maximum(
        np.concatenate([outer, cells], axis=-1), np.concatenate([cells, outer], axis=-1)
    )
    return np.moveaxis(around, -1, axis)


def packed(table: Vector) -> NDArray[np.uint16]:
    """The lifted table in steps of 1/SCALE, rounded up; never falling with the load."""
    raised = np.maximum.accumulate(lifted(table), axis=-1)
    steps: NDArray[np.uint16] = np.ceil(raised * SCALE).clip(0, UNSOLVED).astype(np.uint16)
    return steps


def main(target: str) -> None:
    """Solve every cell and write the table to ``target``."""
    np.save(target, packed(np.stack([latencies(cap) for cap in CAPS])))


if __name__ == "__main__":
    main(sys.argv[1])
