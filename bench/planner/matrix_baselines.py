"""How the ensemble paper places models, and what it compares itself with.

An allocation matrix A of shape [devices, models] holds the batch size of every model on every device, 0 where
it is absent. Source: Pochelu, Petiton and Conche, "An efficient and flexible inference system for serving
heterogeneous ensembles of deep neural networks", arXiv 2208.14049. The full text was not at hand: this is a
reconstruction from its abstract and the authors' public notebooks, with worst-fit-decreasing on memory, then
a bounded greedy that samples neighbours.

    Infeasible   no device has memory for a model at the smallest batch
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import inf

import numpy as np
from numpy.typing import NDArray

BATCHES = (8, 16, 32, 64, 128)
MAX_ITERATIONS = 10
MAX_NEIGHBOURS = 100

Matrix = NDArray[np.int64]
"""Batch sizes, shape [devices, models]."""
Bench = Callable[[Matrix], float]
"""Requests/s of an allocation; 0 where a device runs out of memory."""


class Infeasible(ValueError):
    """A model fits on no device."""


@dataclass(frozen=True, slots=True)
class Tables:
    """What the memory step and the batch search know. B batch sizes, D devices, M models."""

    capacity_mib: NDArray[np.float64]
    """Memory, shape [D]."""
    cpu: NDArray[np.bool_]
    """Which devices are processors, shape [D]: they are taken where no GPU has room."""
    memory_mib: NDArray[np.float64]
    """Memory of an instance, shape [M, B]."""
    rate_per_s: NDArray[np.float64]
    """Rows/s of an instance with the device to itself, shape [D, M, B]."""
    batches: tuple[int, ...] = BATCHES
    """Ascending."""


@dataclass(frozen=True, slots=True)
class Found:
    """A search's result."""

    matrix: tuple[tuple[int, ...], ...]
    score: float
    benches: int
    """Allocations that were measured."""

    @property
    def array(self) -> Matrix:
        return np.array(self.matrix, dtype=np.int64)


def worst_fit_decreasing(tables: Tables) -> Matrix:
    """Stage 1: models by memory, the largest first, each to the GPU with the most room left.

    All run at the smallest batch. A model that fits on no GPU goes to a processor. Raises Infeasible.
    """
    need = tables.memory_mib[:, 0]
    free = tables.capacity_mib.astype(np.float64)
    matrix = np.zeros((len(free), len(need)), dtype=np.int64)
    for model in sorted(range(len(need)), key=lambda index: (-need[index], index)):
        device = -1
        for kind in (~tables.cpu, tables.cpu):
            room = np.where(kind & (free >= need[model]), free, -inf)
            if room.max() > -inf:
                device = int(room.argmax())
                break
        if device < 0:
            raise Infeasible(f"model {model}: {need[model]:g} MiB fit on no device")
        matrix[device, model] = tables.batches[0]
        free[device] -= need[model]
    return matrix


def bounded_greedy(
    start: Matrix,
    bench: Bench,
    rng: np.random.Generator,
    batches: tuple[int, ...] = BATCHES,
    max_iterations: int = MAX_ITERATIONS,
    max_neighbours: int = MAX_NEIGHBOURS,
) -> Found:
    """Stage 2: the best of at most ``max_neighbours`` neighbours, as long as it improves.

    A neighbour differs in one cell and leaves no model without an instance; where there are more, a uniform
    sample is measured. Of equal scores the first in order of (device, model, batch) wins.
    """
    matrix, score, benches = start.copy(), bench(start), 1
    for _ in range(max_iterations):
        cells = _neighbours(matrix, batches)
        if len(cells) > max_neighbours:
            kept = np.sort(rng.choice(len(cells), size=max_neighbours, replace=False))
            cells = [cells[index] for index in kept]
        best: tuple[float, Matrix] | None = None
        for device, model, batch in cells:
            changed = matrix.copy()
            changed[device, model] = batch
            reached = bench(changed)
            benches += 1
            if best is None or reached > best[0]:
                best = reached, changed
        if best is None or best[0] <= score:
            break
        score, matrix = best
    return Found(_frozen(matrix), score, benches)


def worst_fit_and_greedy(tables: Tables, bench: Bench, rng: np.random.Generator) -> Found:
    """The paper's whole optimiser: stage 1, then stage 2 with its published bounds."""
    return bounded_greedy(worst_fit_decreasing(tables), bench, rng, tables.batches)


def best_batch_only(tables: Tables, bench: Bench) -> Found:
    """One instance per model where worst fit puts it; only batch sizes are chosen, per device at their best.

    The paper's comparison, in its strongest reading: the models of a device share its time evenly, so the sum
    of their times per row is least, among all batch sizes that fit its memory (exact, by a Pareto front of
    memory and time). A processor is one more device.
    """
    matrix = worst_fit_decreasing(tables)
    for device, row in enumerate(matrix):
        models = [int(model) for model in np.flatnonzero(row)]
        # (memory, time per row of all models so far, batch sizes); none is worse than another in both.
        front: list[tuple[float, float, tuple[int, ...]]] = [(0.0, 0.0, ())]
        for model in models:
            grown = sorted(
                (memory + more, time + 1 / rate, (*chosen, batch))
                for memory, time, chosen in front
                for batch, more, rate in zip(
                    tables.batches,
                    tables.memory_mib[model],
                    tables.rate_per_s[device, model],
                    strict=True,
                )
                if memory + more <= tables.capacity_mib[device] and rate > 0
            )
            front, least = [], inf
            for memory, time, chosen in grown:
                if time < least:
                    front.append((memory, time, chosen))
                    least = time
        for model, batch in zip(models, front[-1][2], strict=True):
            matrix[device, model] = batch
    return Found(_frozen(matrix), bench(matrix), 1)


def _neighbours(matrix: Matrix, batches: tuple[int, ...]) -> list[tuple[int, int, int]]:
    """(device, model, new batch) of every change of one cell that keeps every model present."""
    present = (matrix > 0).sum(axis=0)
    return [
        (device, model, batch)
        for (device, model), now in np.ndenumerate(matrix)
        for batch in (0, *batches)
        if batch != now and not (batch == 0 and present[model] == 1)
    ]


def _frozen(matrix: Matrix) -> tuple[tuple[int, ...], ...]:
    return tuple(tuple(row) for row in matrix.tolist())
