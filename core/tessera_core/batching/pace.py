"""How long batches take here, beside what their profile says.

A profile is measured on a quiet device. What is expected under load is the profile's time, times a mean of what
the last batches took over it: it notices neighbours, throttling and a profile of another machine.

Where lengths vary, rows are counted in those of the mean cost of late, and the ratio is that of such rows. A row of some length
is first taken to cost what its elements are. Then batches of it tell, by what they take beside what is expected: with
attention the cost grows faster than the length. Only those tell that are half full at least, for small ones may take as
long as larger ones.
"""

from __future__ import annotations

from collections.abc import Hashable

from tessera_core.batching.policy import Padded

WEIGHT = 1 / 16
"""Of the last batch in the mean."""

MOST = 16.0
"""A batch that took longer counts as this: one that hung says little about the next."""

COST_WEIGHT = 1 / 8
"""Of what a batch took beside what was expected, in the cost of its length."""

FORGOTTEN = 1 / 256
"""Of what a cost differs from its elements, with each batch: where all batches take equally long nothing else brings it back."""

FURTHEST = 4.0
"""A cost is at most so many times what its elements are, and at least that part of it."""

MEAN_ROWS = 10_000
"""That the mean is of, at most: of a tenth of it, the same cap is now too much work and now too little, which where batches at the
knee are large took p99 up by half (simulated, docs/decisions/0041)."""

FIRST_ROWS = 100
"""That one of the longest counts as before any came: plans count in those."""

MOST_LENGTHS = 1024
"""Whose cost is kept: rows of further ones count by their elements."""


class Pace:
    """Means that forget; :attr:`ratio` times the profile is what a batch is expected to take."""

    __slots__ = ("_rows", "costs", "mean", "ratio")

    def __init__(self, mean: float | None = None) -> None:
        """``mean``: what is known of it, from as many rows as it is ever of."""
        self.ratio = 1.0
        self.mean = 1.0 if mean is None else mean
        """Cost of rows as they come. Profiles are measured with the longest: 1."""
        self.costs: dict[Padded, float] = {}
        """Of a row, where batches have told; elsewhere it is its size."""
        self._rows = FIRST_ROWS if mean is None else MEAN_ROWS

    def cost(self, shape: Padded) -> float:
        """Of a row of ``shape``."""
        return self.costs.get(shape, shape.size)

    def came(self, shape: Padded, rows: int) -> None:
        """So many rows of that length are about to be run."""
        self._rows = min(self._rows + rows, MEAN_ROWS)
        self.mean += min(1.0, rows / self._rows) * (self.cost(shape) - self.mean)

    def saw(
        self, took_s: float, profile_s: float, shape: Hashable = None, full: bool = False
    ) -> None:
        """A batch of ``shape`` came back; ``profile_s``: 0 where nothing was known; ``full``: at least half."""
        if profile_s <= 0.0:
            return
        if full and isinstance(shape, Padded):
            self._learn(shape, took_s / (self.ratio * profile_s))
        self.ratio += WEIGHT * (min(took_s / profile_s, MOST) - self.ratio)

    def _learn(self, shape: Padded, over: float) -> None:
        if shape not in self.costs and len(self.costs) >= MOST_LENGTHS:
            return
        cost = self.cost(shape) * (1.0 + COST_WEIGHT * (min(over, 2.0) - 1.0))
        cost += FORGOTTEN * (shape.size - cost)
        self.costs[shape] = min(max(cost, shape.size / FURTHEST), shape.size * FURTHEST)

    def doubt(self) -> None:
        """Nothing was run for it is so slow: then nothing would ever show that it is not so slow any more."""
        if self.ratio > 1.0:
            self.ratio += WEIGHT * (1.0 - self.ratio)
