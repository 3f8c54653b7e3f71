"""Which parts a service has at which rate, tabulated: rates in steps of a tenth, for each step its cheapest parts.

The operator plans for rates rounded up to such steps, so a service has only as many placements as its rate has steps.
The cheapest parts for a rate are one kind in bulk and one part of any kind for the rest: enumerated, not searched.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tessera_core.simulate.fleet.services import Vector
from tessera_core.simulate.fleet.tables import Grid, Tables

STEP = 1.1
STEPS = 112
"""From the least rate that counts to the most: a factor of 43,000."""
_LEAST = 2e-3
"""Rates below this part of a service's own take no fewer parts."""
_ROUNDING = 1e-9
_TIES = 1e-6
"""Price of a part more, in GPUs: of covers that cost the same the one of fewer parts."""

Levels = NDArray[np.int16]


@dataclass(frozen=True, slots=True, eq=False)
class Covers:
    """By service and step of its rate."""

    base: Vector
    """Rate of the lowest step, requests per second, shape (services,)."""
    counts: NDArray[np.int16]
    """Parts of each kind, shape (services, STEPS, kinds)."""
    capacity: Vector
    """Requests per second at the SLO, shape (services, STEPS)."""
    price: Vector
    """In GPUs, shape (services, STEPS)."""
    bulk: NDArray[np.int8]
    """The kind that carries most of it: what its attainment is read off."""
    headroom: float

    @classmethod
    def of(cls, tables: Tables, rate_per_s: Vector, headroom: float) -> Covers:
        """``rate_per_s``: of the services in the mean, shape (services,)."""
        base = _LEAST * rate_per_s
        needs = headroom * base[:, None] * STEP ** np.arange(STEPS)
        kinds = tables.rate.shape[1]
        cheapest = np.full(needs.shape, np.inf)
        counts = np.zeros((*needs.shape, kinds), dtype=np.int64)
        for bulk in range(kinds):
            for rest in range(kinds):
                price, own, more = _one_and_rest(tables, needs, bulk, rest)
                better = price < cheapest
                cheapest = np.where(better, price, cheapest)
                row = np.zeros((*needs.shape, kinds), dtype=np.int64)
                row[..., bulk] += own
                row[..., rest] += more
                counts = np.where(better[..., None], row, counts)
        carried = counts * tables.rate[:, None, :]
        weights = np.where(np.isfinite(tables.price), tables.price, 0.0)
        return cls(
            base=base,
            counts=counts.astype(np.int16),
            capacity=carried.sum(axis=-1),
            price=(counts * weights[:, None, :]).sum(axis=-1),
            bulk=carried.argmax(axis=-1).astype(np.int8),
            headroom=headroom,
        )

    def levels(self, rates: Grid) -> Levels:
        """The steps that ``rates`` need, shape (slots, services): rounded up, from the lowest to the highest."""
        with np.errstate(divide="ignore"):
            steps = np.log(rates / self.base.astype(np.float32)) / np.float32(np.log(STEP))
        found: Levels = np.clip(np.ceil(steps - 1e-4), 0, STEPS - 1).astype(np.int16)
        return found


def _one_and_rest(
    tables: Tables, needs: Vector, bulk: int, rest: int
) -> tuple[Vector, NDArray[np.int64], NDArray[np.int64]]:
    """Price, parts of kind ``bulk`` and of kind ``rest``; the price is ``inf`` where they do not do."""
    rate, more = tables.rate[:, bulk, None], tables.rate[:, rest, None]
    usable = (rate > 0) & (more > 0)
    safe = np.where(rate > 0, rate, 1.0)
    own = np.floor(needs / safe + _ROUNDING)
    left = needs - own * safe
    extra = (left > _ROUNDING * needs) | (own == 0)
    enough = usable & (~extra | (left <= more * (1 + _ROUNDING)))
    count = own + extra
    prices = (
        np.where(usable, tables.price[:, [bulk]], 0.0),
        np.where(usable, tables.price[:, [rest]], 0.0),
    )
    price = own * prices[0] + extra * prices[1] + _TIES * count
    return (
        np.where(enough, price, np.inf),
        own.astype(np.int64),
        extra.astype(np.int64),
    )
