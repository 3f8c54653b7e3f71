"""The services of a fleet, drawn: arrays with one entry for each, in the order of the groups.

SYNTHETIC. A model's batch time is affine on a whole A100, alpha per row and tau0 per batch. On another part both grow as
streaming multiprocessors times speed shrink, tau0 only in the half that is work and not launching kernels; a further
process on the same part adds the alpha of its rows, and of its tau0 what the others cannot hide.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from tessera_core.simulate.fleet.facts import Bursts, Fleet, Range, Targets

Vector = NDArray[np.float64]
Counts = NDArray[np.int64]
Some = TypeVar("Some", float, Vector)

_LAUNCH_SHARE = 0.5
"""Part of tau0 that no faster part shortens."""
_OVERLAP = 0.6
"""Of each further process's tau0, what the others cannot hide."""
A100_SMS = 108
_ROOM = 3.0
"""A target is at least this multiple of a lone row's time on a whole GPU of the pool: wait, service, neighbours."""


@dataclass(frozen=True, slots=True, eq=False)
class Services:
    """All of shape (services,)."""

    names: tuple[str, ...]
    pool: Counts
    """Position of the pool."""
    rate_per_s: Vector
    target_ms: Vector
    percent: Vector
    burstiness: Vector
    alpha_ms: Vector
    tau0_ms: Vector
    swing: Vector
    peak_hour: Vector
    """Hour of the day with the highest rate, of one clock for all."""
    weekend: Vector
    growth: Vector
    bursts: tuple[Bursts, ...]


def batch_line(alpha: Some, tau0: Some, power: Some, processes: int) -> tuple[Some, Some]:
    """Slope and constant, ms, of each of ``processes`` on a part of ``power``; a whole A100 has 1."""
    slower = alpha * processes / power
    constant = tau0 * (_LAUNCH_SHARE + (1 - _LAUNCH_SHARE) / power)
    return slower, constant * (1 + _OVERLAP * (processes - 1))


def draw_services(fleet: Fleet) -> Services:
    """Each group has a random stream of its own: a group more changes no other's services."""
    pools = [pool.name for pool in fleet.pools]
    columns: dict[str, list[Any]] = {}
    names: list[str] = []
    bursts: list[Bursts] = []
    for group in fleet.services:
        rng = np.random.default_rng([fleet.seed, *group.name.encode()])
        count, place = group.count, pools.index(group.pool)
        pool = fleet.pools[place]
        alpha, tau0 = _drawn(group.row_ms, count, rng), _drawn(group.batch_ms, count, rng)
        power = pool.model.sm_count * pool.speed_per_sm / A100_SMS
        whole = batch_line(alpha, tau0, np.full(count, power), 1)
        drawn = {
            "pool": np.full(count, place),
            "rate_per_s": _drawn(group.requests_per_second, count, rng),
            "target_ms": np.maximum(_drawn(group.target, count, rng), 1 + _ROOM * sum(whole)),
            "percent": np.full(count, group.percent),
            "burstiness": _drawn(group.burstiness, count, rng),
            "alpha_ms": alpha,
            "tau0_ms": tau0,
            "swing": _drawn(group.swing, count, rng),
            "peak_hour": group.peak_hour + rng.uniform(-1, 1, count) * group.peak_spread,
            "weekend": _drawn(group.weekend, count, rng),
            "growth": _drawn(group.growth, count, rng),
        }
        for name, values in drawn.items():
            columns.setdefault(name, []).append(values)
        names += [f"{group.name}-{index:04d}" for index in range(count)]
        bursts += [group.bursts] * count
    joined = {name: np.concatenate(values) for name, values in columns.items()}
    return Services(names=tuple(names), bursts=tuple(bursts), **joined)


def _drawn(span: Range | Targets, count: int, rng: np.random.Generator) -> Vector:
    return np.exp(rng.uniform(np.log(span.low), np.log(span.high), count))
