"""What parts of GPUs do for each service: the rate that one carries at the SLO, and what it serves in time at any rate.

Both come from the queue of one server (``perf.quick``), looked up. A part runs one to four processes, each with its own
queue and batch cap, whichever carry most; parts of one service share its rate as they carry it. The share that is in time
at ``load`` times the rate that the SLO allows is read off the rates that other percentiles allow. Beyond what nine in ten
survive, late requests are refused (``batching.admission``), and servers go on in batches of which two fit into the time
that a request has: what those finish is in time.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tessera_core.perf.quick import quick_max_rates
from tessera_core.simulate.fleet.facts import Fleet, Pool
from tessera_core.simulate.fleet.packing import packing_of
from tessera_core.simulate.fleet.services import A100_SMS, Services, Vector, batch_line

PROCESSES = (1, 2, 4)
CAPS = (1, 2, 4, 8, 16, 32, 64, 128)
OVERHEAD_MS = 1.0
"""Part of a target for what happens outside the queue: the planner's default."""
DERATE = 1.08
"""Factor on batch times in a slice whose neighbours are busy: the planner's default."""
LOADS = np.arange(0, 4 + 1e-9, 1 / 64)
"""Rates at which attainment is tabulated, in multiples of the rate that the SLO allows."""
_LATER = (99.99, 99.9, 99.5)
_EARLIER = (97.5, 95.0, 90.0)
_APART = 1e-9

Grid = NDArray[np.float32]


@dataclass(frozen=True, slots=True, eq=False)
class Parts:
    """The kinds of parts of every pool, by position: the whole GPU first, then slices, widest first."""

    names: tuple[tuple[str, ...], ...]
    """By pool."""
    price: Vector
    """In GPUs, shape (pools, kinds); ``inf`` where a pool has fewer kinds."""
    power: Vector
    """Shape (pools, kinds); a whole A100 has 1."""

    @classmethod
    def of(cls, pools: Sequence[Pool]) -> Parts:
        most = 1 + max(len(packing_of(pool.model).profiles) for pool in pools)
        price, power = np.full((len(pools), most), np.inf), np.ones((len(pools), most))
        names = []
        for place, pool in enumerate(pools):
            packing = packing_of(pool.model)
            sms = [pool.model.sm_count, *(each.sm_count or 0 for each in packing.profiles)]
            power[place, : len(sms)] = np.array(sms) * pool.speed_per_sm / A100_SMS
            # Prices that value every profile: of the others some slices are left over and free.
            valued = packing.prices[(packing.prices > 0).all(axis=1)]
            price[place, : len(sms)] = [1.0, *valued.mean(axis=0)]
            names.append(("full", *(each.name for each in packing.profiles)))
        return cls(tuple(names), price, power)


@dataclass(frozen=True, slots=True, eq=False)
class Tables:
    """By service and kind of part, shape (services, kinds)."""

    parts: Parts
    price: Vector
    """In GPUs."""
    rate: Vector
    """Requests per second that one carries at the SLO; 0: a lone request is not in time there."""
    cap: NDArray[np.int64]
    processes: NDArray[np.int64]
    alpha_ms: Vector
    tau0_ms: Vector
    """Of each process."""
    within: Grid
    """Share of the requests within the SLO at ``LOADS``, shape (services, kinds, loads)."""


def tables_of(
    fleet: Fleet, services: Services, most_processes: int = PROCESSES[-1], whole: bool = False
) -> Tables:
    """``whole``: GPUs are not cut. Raises ValueError naming a service whose target no part keeps."""
    parts = Parts.of(fleet.pools)
    price, power = parts.price[services.pool], parts.power[services.pool]
    if whole:
        price = np.where(np.arange(price.shape[1]) == 0, price, np.inf)
    derate = np.where(np.arange(price.shape[1]) == 0, 1.0, DERATE)
    best = _Best.none(price.shape)
    for processes in (each for each in PROCESSES if each <= most_processes):
        alpha, tau0 = (
            derate * each
            for each in batch_line(
                services.alpha_ms[:, None], services.tau0_ms[:, None], power, processes
            )
        )
        for cap in CAPS:
            best = best.or_else(_Best.of(services, price, alpha, tau0, processes, cap))
    usable = (best.rate > 0).any(axis=1)
    if not usable.all():
        name = services.names[int(np.flatnonzero(~usable)[0])]
        raise ValueError(
            f"{name}: no part of its pool answers a lone request within its target: raise target, or lower rowMs and batchMs"
        )
    within = _within(services, best)
    return Tables(
        parts, price, best.rate, best.cap, best.processes, best.alpha_ms, best.tau0_ms, within
    )


@dataclass(frozen=True, slots=True, eq=False)
class _Best:
    """The processes and caps that carry most so far, shape (services, kinds)."""

    rate: Vector
    cap: NDArray[np.int64]
    processes: NDArray[np.int64]
    alpha_ms: Vector
    tau0_ms: Vector

    @classmethod
    def none(cls, shape: tuple[int, ...]) -> _Best:
        ones = np.ones(shape, dtype=np.int64)
        return cls(np.zeros(shape), ones, ones, np.ones(shape), np.zeros(shape))

    @classmethod
    def of(
        cls,
        services: Services,
        price: Vector,
        alpha: Vector,
        tau0: Vector,
        processes: int,
        cap: int,
    ) -> _Best:
        rate = processes * _rates(services, alpha, tau0, np.full(price.shape, cap), None)
        rate = np.where(np.isfinite(price), rate, 0.0)
        full = np.ones(price.shape, dtype=np.int64)
        return cls(rate, cap * full, processes * full, alpha, tau0)

    def or_else(self, other: _Best) -> _Best:
        more = other.rate > self.rate
        return _Best(
            *(
                np.where(more, theirs, ours)
                for ours, theirs in (
                    (self.rate, other.rate),
                    (self.cap, other.cap),
                    (self.processes, other.processes),
                    (self.alpha_ms, other.alpha_ms),
                    (self.tau0_ms, other.tau0_ms),
                )
            )
        )


def _rates(
    services: Services, alpha: Vector, tau0: Vector, cap: NDArray[np.int64], percent: float | None
) -> Vector:
    """Of one process at ``percent``, or at the SLO's own; shape (services, kinds)."""
    wanted = services.percent[:, None] if percent is None else percent
    budget = (services.target_ms - OVERHEAD_MS)[:, None]
    return quick_max_rates(alpha, tau0, cap, 0.0, budget, wanted, services.burstiness[:, None])


def _within(services: Services, best: _Best) -> Grid:
    """Share in time at ``LOADS``, shape (services, kinds, loads)."""
    own = best.rate
    some = np.maximum(own, 1e-300)
    points = [(np.zeros_like(own), np.zeros_like(own))]
    for percent in _percentiles(services):
        rate = best.processes * _rates(services, best.alpha_ms, best.tau0_ms, best.cap, percent)
        late = 1 - (services.percent[:, None] if percent is None else percent) / 100
        points.append((rate / some, late + 0 * own))
    # Where a server is full before anything is late, several percentiles allow the same rate: the best of them holds there.
    apart = _APART * np.arange(len(points))[:, None, None]
    loads = np.maximum.accumulate(np.stack([load for load, _ in points]), axis=0) + apart
    late = np.maximum.accumulate(np.stack([share for _, share in points]), axis=0)
    # A row waits for one batch and is answered by the next.
    half = (services.target_ms - OVERHEAD_MS)[:, None] / 2
    rows = np.clip((half - best.tau0_ms) / best.alpha_ms, 0, best.cap)
    full = rows / (best.alpha_ms * rows + best.tau0_ms) * 1e3 * best.processes
    found = np.zeros((*own.shape, len(LOADS)), dtype=np.float32)
    for service, kind in np.argwhere(own > 0):
        at, lost = loads[:, service, kind], late[:, service, kind]
        known = at[-1] >= LOADS
        kept = np.where(known, 1 - np.interp(LOADS, at, lost), 0.0)
        finished = full[service, kind] / own[service, kind]
        beyond = np.where(known, 0.0, np.minimum(finished, LOADS))
        # Refusing what would be late, servers never answer less because more comes, nor a larger share of it.
        answered = np.maximum.accumulate(np.maximum(LOADS * kept, beyond))
        share = np.divide(answered, LOADS, out=np.ones_like(LOADS), where=LOADS > 0)
        found[service, kind] = np.minimum.accumulate(share)
    return found


def _percentiles(services: Services) -> Iterator[float | None]:
    """Falling; None is each service's own."""
    lowest, highest = services.percent.min(), services.percent.max()
    yield from (each for each in _LATER if each > highest)
    yield None
    yield from (each for each in _EARLIER if each < lowest)
