"""Measured latency of one model on one device class, and what follows from it without a queue.

Rows of a (batch, instances) grid, measured once per model digest and device class. A batch of b rows takes
about alpha*b + tau0 on accelerators and CPUs alike (Inoue 2021 fits two GPUs with R² above 0.999), so a few
cells are enough: the line feeds the queue model, the cells themselves answer look-ups inside the grid.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from itertools import accumulate, pairwise
from math import isfinite
from operator import mul
from statistics import median
from typing import Protocol

from tessera_core.perf.service import MS_PER_S, ServiceModel


class Neighbours(StrEnum):
    """What ran beside the measured instances: MIG isolates memory and SMs, not the power budget."""

    IDLE = "Idle"
    BUSY = "Busy"


@dataclass(frozen=True, slots=True, order=True)
class ProfileRow:
    """One measured cell of the (batch, instances) grid."""

    batch: int
    """Rows per batch."""
    instances: int
    """Instances of the model that ran at once on the one device."""
    p50_ms: float
    """Median service time of one batch, milliseconds, gather and transfer included, queueing excluded."""
    p99_ms: float
    throughput: float
    """Rows per second over all ``instances``."""
    memory_mib: float
    """Device memory of all ``instances`` together, MiB."""
    neighbours: Neighbours = Neighbours.IDLE


@dataclass(frozen=True, slots=True)
class LinearFit:
    """tau(b) = alpha_ms*b + tau0_ms fitted to the medians of one instance count."""

    alpha_ms: float
    tau0_ms: float
    r2: float
    """Share of the variance of the medians that the line explains; 1 is perfect."""


class Line(Protocol):
    """Batch times with so many instances at once, as a line instead of cells."""

    @property
    def instances(self) -> int: ...

    @property
    def batch(self) -> int:
        """Largest batch that was measured, rows."""

    @property
    def alpha_ms(self) -> float: ...

    @property
    def tau0_ms(self) -> float: ...

    @property
    def spread_ms(self) -> float:
        """Between the p99 and the median of a batch's time."""


@dataclass(frozen=True, slots=True)
class LatencyProfile:
    """All measured cells of one model on one device class, one row per (batch, instances, neighbours).

    Rows may come in any order and are kept sorted. Raises ``ValueError`` naming the row and field for a
    duplicate cell, a number that is not positive and finite, or a p99 below its p50.
    """

    rows: tuple[ProfileRow, ...]

    def __post_init__(self) -> None:
        if not self.rows:
            raise ValueError("rows: a profile needs at least one measured cell, found none")
        for index, row in enumerate(self.rows):
            _check_row(f"rows[{index}]", row)
        ordered = sorted(
            self.rows, key=lambda row: (row.neighbours.value, row.instances, row.batch)
        )
        for one, two in pairwise(ordered):
            if _cell(one) == _cell(two):
                raise ValueError(
                    f"rows: batch {one.batch} with {one.instances} instances and "
                    f"{one.neighbours.value} neighbours is measured twice"
                )
        object.__setattr__(self, "rows", tuple(ordered))

    @classmethod
    def from_fit(
        cls,
        alpha_ms: float,
        tau0_ms: float,
        batches: tuple[int, ...] = (1, 2, 4, 8, 16, 32, 64, 128),
        memory_mib: float = 1.0,
    ) -> LatencyProfile:
        """A noiseless profile of one instance with affine batch times, for simulations and examples."""
        times = [alpha_ms * batch + tau0_ms for batch in batches]
        return cls(
            tuple(
                ProfileRow(batch, 1, ms, ms, MS_PER_S * batch / ms, memory_mib)
                for batch, ms in zip(batches, times, strict=True)
            )
        )

    @classmethod
    def from_lines(cls, lines: Iterable[Line]) -> LatencyProfile:
        """The profile of ``lines``, one per instance count: cells for powers of two up to the largest batch.

        Lines do not tell memory; it is 0. Raises ``ValueError`` as the constructor does: without a line, for two of one
        instance count, for times that are not positive.
        """
        return cls(
            tuple(
                ProfileRow(
                    batch,
                    line.instances,
                    ms,
                    ms + line.spread_ms,
                    MS_PER_S * line.instances * batch / ms if ms else 0.0,
                    0.0,
                )
                for line in lines
                for batch in _sizes(line.batch)
                for ms in [line.tau0_ms + line.alpha_ms * batch]
            )
        )

    @property
    def instance_counts(self) -> tuple[int, ...]:
        """Instance counts that were measured, ascending."""
        return tuple(sorted({row.instances for row in self.rows}))

    def cells(
        self, instances: int, neighbours: Neighbours = Neighbours.IDLE
    ) -> tuple[ProfileRow, ...]:
        """Rows of one instance count by batch size. Idle rows stand in where no busy ones were measured.

        Raises ``ValueError`` when that number of instances was not measured.
        """
        of_count = [row for row in self.rows if row.instances == instances]
        if not of_count:
            raise ValueError(
                f"instances: {instances} was not measured, only {list(self.instance_counts)}"
            )
        wanted = tuple(row for row in of_count if row.neighbours is neighbours)
        return wanted or tuple(of_count)

    def service_ms(
        self,
        batch: int,
        instances: int = 1,
        tail: bool = False,
        neighbours: Neighbours = Neighbours.IDLE,
    ) -> float:
        """Time of a batch of ``batch`` rows, ms: the median, or with ``tail`` the p99.

        Interpolated between measured batches after noise that makes a larger batch look faster is raised to
        the running maximum. A batch above the grid continues along the fit; one below it costs what the
        smallest measured batch does (never extrapolated downward).
        """
        if batch < 1:
            raise ValueError(f"batch: must be >= 1, found {batch}")
        return _batch_ms(self.cells(instances, neighbours), batch, tail)

    def throughput(self, batch: int, instances: int = 1) -> float:
        """Rows per second of all ``instances`` running full batches back to back."""
        return instances * batch * MS_PER_S / self.service_ms(batch, instances)

    def memory_mib(self, instances: int = 1) -> float:
        """Device memory of ``instances`` together at the largest measured batch, MiB."""
        return max(row.memory_mib for row in self.cells(instances))

    def fit(
        self,
        instances: int = 1,
        neighbours: Neighbours = Neighbours.IDLE,
        up_to: int | None = None,
        relative: bool = False,
    ) -> LinearFit:
        """Least-squares line through (batch, p50) with alpha > 0 and tau0 >= 0.

        ``up_to`` leaves larger batches out (at least two sizes stay). ``relative`` weights each cell by
        1/p50, so that small batches, where light load runs, count as much as large ones. A single measured
        size is taken as a batch time that hardly depends on the size. Where the free line breaks a bound,
        the best line on the bound is taken.
        """
        return _line(_up_to(self.cells(instances, neighbours), up_to), relative)

    def knee(
        self, instances: int = 1, fraction: float = 0.9, max_latency_ms: float | None = None
    ) -> int | None:
        """Smallest measured batch with ``fraction`` of the best throughput; None if it takes too long.

        PREBA's Batch_knee read as a rule: below the knee throughput is lost, above it only latency grows.
        ``max_latency_ms`` bounds the p99 of the batch at the knee.
        """
        if not 0 < fraction <= 1:
            raise ValueError(f"fraction: must be above 0 and at most 1, found {fraction}")
        batches = [row.batch for row in self.cells(instances)]
        rates = [self.throughput(batch, instances) for batch in batches]
        knee = next(
            batch
            for batch, rate in zip(batches, rates, strict=True)
            if rate >= fraction * max(rates)
        )
        if (
            max_latency_ms is not None
            and self.service_ms(knee, instances, tail=True) > max_latency_ms
        ):
            return None
        return knee

    def service(
        self, cap: int, instances: int = 1, neighbours: Neighbours = Neighbours.IDLE
    ) -> ServiceModel:
        """Batch times for the queue model when batches hold at most ``cap`` rows.

        The times of ``instances`` on one device already contain what the instances cost each other. With
        busy neighbours but no busy rows the idle ones are used: scale them by a derate.
        """
        if cap < 1:
            raise ValueError(f"cap: must be >= 1, found {cap}")
        cells = self.cells(instances, neighbours)
        line = _line(_up_to(cells, cap), relative=True)
        median = _batch_ms(cells, cap, tail=False)
        tail = _batch_ms(cells, cap, tail=True)
        return ServiceModel(line.alpha_ms, line.tau0_ms, cap, instances, max(0.0, tail - median))

    def slow_line(self, instances: int = 1) -> LinearFit:
        """Batch time on the slow side: the fit, raised by what a slow batch takes more.

        By the median of ``p99 - p50`` over the batch sizes: the tail of one cell may be one stall of the
        machine, and whoever expects a stall in every batch drops what would have been in time.
        """
        fit = self.fit(instances)
        return replace(fit, tau0_ms=fit.tau0_ms + self.spread_ms(instances))

    def spread_ms(self, instances: int = 1) -> float:
        """What a slow batch takes more, ms: the median of ``p99 - p50`` over the batch sizes."""
        return median(row.p99_ms - row.p50_ms for row in self.cells(instances))

    def scaled(self, factor: float) -> LatencyProfile:
        """Every time multiplied by ``factor`` > 0: a measured/predicted correction, or a derate for neighbours."""
        if not (isfinite(factor) and factor > 0):
            raise ValueError(f"factor: must be a positive number, found {factor}")
        return LatencyProfile(
            tuple(
                ProfileRow(
                    row.batch,
                    row.instances,
                    row.p50_ms * factor,
                    row.p99_ms * factor,
                    row.throughput / factor,
                    row.memory_mib,
                    row.neighbours,
                )
                for row in self.rows
            )
        )


def _sizes(most: int) -> list[int]:
    """Powers of two below ``most``, and ``most``."""
    return [*(1 << power for power in range((most - 1).bit_length())), most]


def _up_to(cells: Sequence[ProfileRow], batch: int | None) -> Sequence[ProfileRow]:
    """Those of at most ``batch`` rows, but two at least where there are two."""
    if batch is None:
        return cells
    kept = sum(row.batch <= batch for row in cells)
    return cells[: max(2, kept)]


def _batch_ms(cells: Sequence[ProfileRow], batch: int, tail: bool) -> float:
    """``LatencyProfile.service_ms`` of the ``cells`` of one instance count."""
    batches = [row.batch for row in cells]
    times = list(accumulate([row.p99_ms if tail else row.p50_ms for row in cells], max))
    above = bisect_left(batches, batch)
    if above == len(batches):
        slope = _line(cells, relative=False).alpha_ms
        return times[-1] * (1 + slope * (batch - batches[-1]) / cells[-1].p50_ms)
    if above == 0 or batches[above] == batch:
        return times[above]
    low, high = times[above - 1], times[above]
    slope = (high - low) / (batches[above] - batches[above - 1])
    return low + slope * (batch - batches[above - 1])


def _line(cells: Sequence[ProfileRow], relative: bool) -> LinearFit:
    """``LatencyProfile.fit`` of ``cells``, which are few: arrays would take five times as long."""
    batches = [row.batch for row in cells]
    times = [row.p50_ms for row in cells]
    weights = [1 / (ms * ms) for ms in times] if relative else [1.0] * len(times)
    whole = sum(weights)
    mean_batch = _dot(weights, batches) / whole
    mean_time = _dot(weights, times) / whole
    off_batch = [batch - mean_batch for batch in batches]
    off_time = [ms - mean_time for ms in times]
    weighted = list(map(mul, weights, off_batch))
    variance = _dot(weighted, off_batch)
    alpha = _dot(weighted, off_time) / variance if variance > 0 else 0.0
    alpha = max(alpha, 1e-6 * max(times) / batches[-1])
    tau0 = mean_time - alpha * mean_batch
    if tau0 < 0:
        tau0 = 0.0
        weighted = list(map(mul, weights, batches))
        alpha = _dot(weighted, times) / _dot(weighted, batches)
    left = [ms - alpha * batch - tau0 for ms, batch in zip(times, batches, strict=True)]
    total = _dot(map(mul, weights, off_time), off_time)
    unexplained = _dot(map(mul, weights, left), left)
    return LinearFit(alpha, tau0, 1 - unexplained / total if total > 0 else 1.0)


def _dot(one: Iterable[float], two: Iterable[float]) -> float:
    return sum(map(mul, one, two), 0.0)


def _cell(row: ProfileRow) -> tuple[int, int, Neighbours]:
    return row.batch, row.instances, row.neighbours


def _check_row(path: str, row: ProfileRow) -> None:
    for name, count in (("batch", row.batch), ("instances", row.instances)):
        if count < 1:
            raise ValueError(f"{path}.{name}: must be >= 1, found {count}")
    for name, number in (
        ("p50_ms", row.p50_ms),
        ("p99_ms", row.p99_ms),
        ("throughput", row.throughput),
    ):
        if not (isfinite(number) and number > 0):
            raise ValueError(f"{path}.{name}: must be a positive number, found {number}")
    if not (isfinite(row.memory_mib) and row.memory_mib >= 0):
        raise ValueError(f"{path}.memory_mib: must be a number >= 0, found {row.memory_mib}")
    if row.p99_ms < row.p50_ms:
        raise ValueError(
            f"{path}.p99_ms: must not be below p50_ms {row.p50_ms}, found {row.p99_ms}"
        )
