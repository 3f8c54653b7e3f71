"""The rate one batching server carries at an SLO, for hundreds of thousands of questions in a second.

``capacity.max_rate`` solves a queue some ten times per answer. A planner asks about every profile, cap, SLO
and percentile, so here the same answer is looked up. With h(b) = alpha*b + tau0 the percentile of the latency
over h(1) depends only on

    cap,   tau0/alpha,   percentile,   y = rate * h(1),

and is stored for a grid of these (``tabulate_quick`` solves it, exactly). The answer is the y at which the
interpolated latency meets the budget. What keeps that accurate and safe:

- The loads of the grid move with the rest: from y = 1 - percentile/100, up to which a row past the percentile
  finds the server idle and latency is h(1), to fixed parts of capacity. So the bends of the curves lie on the
  same grid line for every cap and percentile, and interpolation runs along them.
- tau0/alpha is stretched so that 0 and infinity are ends of the grid.
- Latency is interpolated linearly in logarithms between points that were lifted beforehand by what a chord
  can miss below a curve. So rates err low: in the median by 0.7 %, one in ten by more than 3 %. Those are
  small caps, and budgets of about two batches, where latency hardly depends on the rate.

Bursty arrivals of burstiness c > 1 (see ``capacity``) are taken as a Poisson stream of bursts of c rows, each
late with its last row: h(b) = c*alpha*b + tau0, cap // c bursts a batch. For bursts up to a quarter of the cap
simulated gamma arrivals carry within 4 % of that. Beyond, the queue of equal bursts promises too much where
little is carried, so ``_SIZES_VARY`` is taken off.
"""

from __future__ import annotations

from functools import lru_cache
from importlib import resources
from math import exp, inf, isfinite, log, log1p, log2
from typing import TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tessera_core.perf.capacity import FULLEST_LOAD, LEAST_RATE, latency_percentile, max_rate
from tessera_core.perf.service import MS_PER_S, ServiceModel

Vector = NDArray[np.float64]
Some = TypeVar("Some", float, Vector)

CAPS = (
    *range(1, 11),
    12,
    14,
    16,
    20,
    24,
    28,
    32,
    40,
    48,
    56,
    64,
    80,
    96,
    112,
    128,
    160,
    192,
    224,
    256,
)
STRETCHED = tuple(-2 + step / 2 for step in range(29))
"""tau0/alpha as ``stretched``: 0 is the first, infinity the last."""
PERCENTILES = (90.0, 95.0, 97.5, 98.5, 99.0, 99.5, 99.75, 99.9, 99.96, 99.99)
RISING = 40
"""Loads of the grid below ``_HALF`` of capacity."""
_BEND = 1.3
"""They lie closer where latency leaves h(1): it rises fastest there."""
_HALF = 0.55
FULL = (0.6, 0.65, 0.7, 0.75, 0.8, 0.84, 0.87, 0.9, 0.92, 0.94, 0.955, 0.97, FULLEST_LOAD)
"""Then these parts of capacity."""
SCALE = 8192
"""log(latency / h(1)) is stored in steps of 1/SCALE."""
UNSOLVED = 65535
"""Stored where the queue is too close to saturation to solve: no budget reaches it."""
_BEYOND = 1e6
_LEAST, _WIDEST = 0.25, 4096.0
_SIZES_VARY = 0.15
"""Rows per full batch time that a burstiness of one more takes from the rate of bursts of equal size."""
_CHUNK = 16384
_POINTS = RISING + len(FULL)
# log(rate * h(1)) of a load on the grid = its parts of log(1 - percentile) and log(largest), and a constant.
_RISE = (np.arange(RISING) / (RISING - 1)) ** _BEND
_OF_TAIL = np.append(1 - _RISE, np.zeros(len(FULL)))
_OF_LARGEST = 1 - _OF_TAIL
_CONSTANT = np.append(_RISE * log(_HALF), np.log(FULL))


def stretched(overhead: float) -> float:
    """tau0/alpha, from 0 to ``inf``, on the scale of ``STRETCHED``: log2 but for its two ends."""
    if overhead == inf:
        return log2(_WIDEST)
    return log2((overhead + _LEAST) / (1 + overhead / _WIDEST))


def overhead_at(point: float) -> float:
    """Inverse of ``stretched``; ``inf`` at the last point."""
    grown = 2.0**point
    return inf if grown >= _WIDEST else (grown - _LEAST) / (1 - grown / _WIDEST)


def log_loads(largest: float, percentile: float) -> Vector:
    """log(rate * h(1)) of the grid's loads, shape (points,), rising.

    ``largest`` is rate * h(1) at capacity, cap * h(1) / h(cap).
    """
    loads: Vector = _OF_TAIL * log(1 - percentile / 100) + _OF_LARGEST * log(largest) + _CONSTANT
    return loads


def quick_max_rate(
    service: ServiceModel, budget_ms: float, percentile: float, burstiness: float = 1.0
) -> float:
    """``max_rate`` of one instance looked up: rows per SECOND that meet ``budget_ms`` at ``percentile`` %.

    ``burstiness`` is the squared coefficient of variation of the gaps; up to 1 is Poisson. Caps above 256,
    percentiles below 90 or above 99.99 and services without a cap are not in the table: they are solved
    exactly, some hundred times slower.

    Raises ``ValueError`` for several instances, and naming the argument that is out of range.
    """
    if service.instances != 1:
        raise ValueError(
            f"instances: one server is looked up, found {service.instances}; quick_shared_rate takes more"
        )
    if not isfinite(budget_ms):
        raise ValueError(f"budget_ms: must be a number of ms, found {budget_ms}")
    if not 1 <= percentile < 100:
        raise ValueError(f"percentile: must be in percent, from 1 to below 100, found {percentile}")
    if not (isfinite(burstiness) and burstiness > 0):
        raise ValueError(f"burstiness: must be a positive number, found {burstiness}")
    left = budget_ms - service.spread_ms
    if left < service.batch_ms(1):
        return 0.0
    alpha, tau0, cap = service.alpha_ms, service.tau0_ms, service.cap
    if cap is None:
        return max_rate(service, budget_ms, percentile, burstiness)
    if burstiness <= 1:
        return _one(alpha, tau0, cap, left, percentile)
    some, more = (
        rows * _one(*as_bursts(alpha, tau0, cap, rows), left, percentile)
        for rows in (int(burstiness), int(burstiness) + 1)
    )
    return float(careful(some, more, burstiness, service.batch_ms(cap)))


def quick_latency(
    service: ServiceModel, rate_per_s: float, percentile: float, burstiness: float = 1.0
) -> float:
    """``latency_percentile`` of one instance looked up, ms: what ``quick_max_rate`` is the inverse of.

    Errs high as that errs low; ``inf`` beyond ``FULLEST_LOAD``. What the table lacks, bursty arrivals
    included, is solved exactly.
    """
    cap = service.cap
    stored = cap is not None and cap <= CAPS[-1] and service.instances == 1 and burstiness <= 1
    if cap is None or not stored or not PERCENTILES[0] <= percentile <= PERCENTILES[-1]:
        return latency_percentile(service, rate_per_s, percentile, burstiness)
    if rate_per_s > FULLEST_LOAD * service.capacity_per_s * (1 + 1e-9):
        return inf
    alone = service.batch_ms(1)
    if rate_per_s < LEAST_RATE:
        return alone + service.spread_ms
    values, loads = latency_curve(cap, service.tau0_ms / service.alpha_ms, percentile)
    at = np.interp(log(rate_per_s * alone / MS_PER_S), loads, values)
    return max(exp(at), 1.0) * alone + service.spread_ms


def quick_max_rates(
    alpha_ms: ArrayLike,
    tau0_ms: ArrayLike,
    cap: ArrayLike,
    spread_ms: ArrayLike,
    budget_ms: ArrayLike,
    percentile: ArrayLike,
    burstiness: ArrayLike = 1.0,
) -> Vector:
    """``quick_max_rate`` of many servers at once: rows per SECOND, in the arguments' broadcast shape.

    0 where not even a lone row makes it (budget - spread < h(1)). What the table lacks, caps above 256 and
    percentiles outside 90..99.99, is solved exactly, about 10 ms each.

    Raises ``ValueError`` naming the argument that holds a value out of range.
    """
    given = (alpha_ms, tau0_ms, cap, spread_ms, budget_ms, percentile, burstiness)
    shaped = np.broadcast_arrays(*(np.asarray(part, dtype=np.float64) for part in given))
    alpha, tau0, caps, spread, budget, tail, bursty = (part.ravel() for part in shaped)
    _check("alpha_ms", alpha, alpha > 0, "positive numbers of ms")
    _check("tau0_ms", tau0, tau0 >= 0, "numbers of ms >= 0")
    _check("cap", caps, (caps >= 1) & (caps == np.floor(caps)), "whole numbers >= 1")
    _check("spread_ms", spread, spread >= 0, "numbers of ms >= 0")
    _check("budget_ms", budget, np.isfinite(budget), "numbers of ms")
    _check("percentile", tail, (tail >= 1) & (tail < 100), "in percent, from 1 to below 100")
    _check("burstiness", bursty, bursty > 0, "positive numbers")
    left = budget - spread
    rates = _many(alpha, tau0, caps, left, tail)
    at = np.flatnonzero((bursty > 1) & (rates > 0))
    if at.size:
        alpha, tau0, caps, left, tail = (part[at] for part in (alpha, tau0, caps, left, tail))
        rows = np.floor(bursty[at])
        some, more = (
            size * _many(*as_bursts(alpha, tau0, caps, size), left, tail)
            for size in (rows, rows + 1)
        )
        rates[at] = careful(some, more, bursty[at], alpha * caps + tau0)
    return rates.reshape(shaped[0].shape)


def _check(name: str, values: Vector, allowed: NDArray[np.bool_], what: str) -> None:
    wrong = np.flatnonzero(~(allowed & np.isfinite(values)))
    if wrong.size:
        raise ValueError(f"{name}: must be {what}, found {values[wrong[0]]} at index {wrong[0]}")


def as_bursts(alpha: Some, tau0: Some, cap: Some, rows: Some) -> tuple[Some, Some, Some]:
    """alpha, tau0 and cap of the server as seen by bursts of ``rows`` rows, each of which ends as one."""
    turns = -(-rows // cap)
    whole = turns == 1
    split = turns * (alpha * cap + tau0)
    return (
        alpha * rows * whole + split * (1 - whole),
        tau0 * whole,
        cap // rows * whole + 1.0 * (1 - whole),
    )


def careful(some: Some, more: Some, burstiness: Some, full_ms: Some) -> Some:
    """Rate between those of bursts of two whole sizes, less what bursts that vary in size cost more."""
    rate = some + burstiness % 1 * (more - some)
    lost = _SIZES_VARY * (burstiness - 1) / full_ms * MS_PER_S
    careful: Some = np.maximum(rate - lost, 0.0)
    return careful


def _one(alpha: float, tau0: float, cap: float, left: float, percentile: float) -> float:
    """Rows per second of one server under Poisson arrivals; ``left`` is the budget without the spread."""
    alone = alpha + tau0
    if left < alone:
        return 0.0
    if cap > CAPS[-1] or not PERCENTILES[0] <= percentile <= PERCENTILES[-1]:
        return max_rate(ServiceModel(alpha, tau0, int(cap)), left, percentile)
    values, loads = latency_curve(cap, tau0 / alpha, percentile)
    return exp(np.interp(log(left / alone), values, loads)) / alone * MS_PER_S


def _many(alpha: Vector, tau0: Vector, cap: Vector, left: Vector, percentile: Vector) -> Vector:
    """``_one`` for arguments of shape (n,)."""
    possible = left >= alpha + tau0
    stored = (percentile >= PERCENTILES[0]) & (percentile <= PERCENTILES[-1]) & (cap <= CAPS[-1])
    rates = np.zeros(len(alpha))
    asked = np.flatnonzero(possible & stored)
    for start in range(0, len(asked), _CHUNK):
        at = asked[start : start + _CHUNK]
        rates[at] = _looked_up(alpha[at], tau0[at], cap[at], left[at], percentile[at])
    for one in np.flatnonzero(possible & ~stored):
        rates[one] = _one(alpha[one], tau0[one], cap[one], left[one], percentile[one])
    return rates


def _looked_up(
    alpha: Vector, tau0: Vector, cap: Vector, left: Vector, percentile: Vector
) -> Vector:
    """Rows per second for budgets ``left`` >= h(1); all of shape (n,)."""
    overhead = tau0 / alpha
    point = np.log2((overhead + _LEAST) / (1 + overhead / _WIDEST))
    corner, weight = np.zeros((1, len(alpha)), dtype=np.int64), np.ones((1, len(alpha)))
    for grid, at in zip(_grids(), (np.log2(cap), point, -np.log1p(-percentile / 100)), strict=True):
        lower = np.clip(grid.searchsorted(at, "right") - 1, 0, len(grid) - 2)
        share = (at - grid[lower]) / (grid[lower + 1] - grid[lower])
        corner = np.concatenate([corner * len(grid) + lower, corner * len(grid) + lower + 1])
        weight = np.concatenate([weight * (1 - share), weight * share])
    corner *= _POINTS
    table = _table().ravel()

    def value(index: NDArray[np.int64]) -> Vector:
        found: Vector = np.einsum("cn,cn->n", table.take(corner + index), weight)
        return found

    alone = alpha + tau0
    target = np.log(left / alone)
    met = np.zeros(len(alpha), dtype=np.int64)
    """Grid loads that meet the budget: the curves rise, so bit by bit."""
    step = 1 << (_POINTS.bit_length() - 1)
    while step:
        more = met + step
        met = np.where(
            (more <= _POINTS) & (value(np.minimum(more, _POINTS) - 1) <= target), more, met
        )
        step //= 2
    low, high = np.maximum(met - 1, 0), np.minimum(met, _POINTS - 1)
    below, above = value(low), value(high)
    share = (target - below) / np.where(high > low, above - below, inf)
    # Loads are linear in these parts, so that the parts can be interpolated.
    largest = np.log(cap * alone / (alpha * cap + tau0))
    of_tail, of_largest, constant = (
        part[low] + share * (part[high] - part[low]) for part in (_OF_TAIL, _OF_LARGEST, _CONSTANT)
    )
    load = of_tail * np.log1p(-percentile / 100) + of_largest * largest + constant
    rates: Vector = np.exp(load) / alone * MS_PER_S
    return rates


@lru_cache(maxsize=8192)
def latency_curve(cap: float, overhead: float, percentile: float) -> tuple[Vector, Vector]:
    """log(latency / h(1)) and log(rate * h(1)) at the grid's loads, both of shape (points,)."""
    values = _table()
    places = []
    for grid, at in zip(
        _grids(), (log2(cap), stretched(overhead), -log1p(-percentile / 100)), strict=True
    ):
        lower = min(max(int(grid.searchsorted(at, "right")) - 1, 0), len(grid) - 2)
        places.append((lower, (at - grid[lower]) / (grid[lower + 1] - grid[lower])))
    values = values[tuple(slice(lower, lower + 2) for lower, _ in places)]
    for _, share in places:
        values = (1 - share) * values[0] + share * values[1]
    return values, log_loads(cap * (1 + overhead) / (cap + overhead), percentile)


@lru_cache(maxsize=1)
def _grids() -> tuple[Vector, Vector, Vector]:
    """The table's caps, overheads and percentiles as they are interpolated."""
    return np.log2(CAPS), np.array(STRETCHED), -np.log1p(-np.array(PERCENTILES) / 100)


@lru_cache(maxsize=1)
def _table() -> Vector:
    """log(latency / h(1)), shape (caps, overheads, percentiles, loads)."""
    with resources.files(__package__).joinpath("quick.npy").open("rb") as stored:
        packed: NDArray[np.uint16] = np.load(stored)
    return np.where(packed == UNSOLVED, _BEYOND, packed / SCALE)
