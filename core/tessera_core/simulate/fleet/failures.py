"""What breaks when: the same for all policies, whatever they have on it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tessera_core.simulate.fleet.facts import DAY_S, Fleet

Counts = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Failure:
    """GPUs that fail together; the GPUs of a pool are numbered, and those in use come first."""

    slot: int
    pool: int
    first: int
    gpus: int

    def hits(self, in_use: float) -> int:
        """How many of the ``in_use`` GPUs it takes."""
        return int(min(max(np.ceil(in_use) - self.first, 0), self.gpus))


def draw_failures(fleet: Fleet) -> tuple[Failure, ...]:
    """Of GPUs and of nodes, by slot."""
    rng = np.random.default_rng([fleet.seed, 3])
    days = fleet.horizon_s / DAY_S / 1000
    found = []
    for place, pool in enumerate(fleet.pools):
        nodes = -(-pool.gpus // pool.gpus_per_node)
        for units, size, rate in (
            (pool.gpus, 1, fleet.failures.gpu_per_thousand_days),
            (nodes, pool.gpus_per_node, fleet.failures.node_per_thousand_days),
        ):
            count = int(rng.poisson(units * days * rate))
            slots = rng.integers(0, fleet.slots, count)
            firsts = rng.integers(0, units, count) * size
            found += [
                Failure(int(slot), place, int(first), min(size, pool.gpus - int(first)))
                for slot, first in zip(slots, firsts, strict=True)
            ]
    return tuple(sorted(found, key=lambda each: (each.slot, each.pool, each.first)))


def available(fleet: Fleet, failures: tuple[Failure, ...]) -> Counts:
    """GPUs of each pool that are not broken, shape (slots, pools)."""
    change = np.zeros((fleet.slots + 1, len(fleet.pools)), dtype=np.int64)
    length = max(1, round(fleet.failures.repair_s / fleet.slot_s))
    for each in failures:
        change[each.slot, each.pool] -= each.gpus
        change[min(each.slot + length, fleet.slots), each.pool] += each.gpus
    whole = np.array([pool.gpus for pool in fleet.pools])
    working: Counts = np.maximum(whole + np.cumsum(change, axis=0)[:-1], 0)
    return working
