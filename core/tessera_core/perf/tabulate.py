"""Makes the table of ``pooling``: ``python -m tessera_core.perf.tabulate FILE`` (about ten minutes)."""

from __future__ import annotations

import sys

import numpy as np
from numpy.typing import NDArray

from tessera_core.perf.batch_queue import BatchQueue
from tessera_core.perf.pooling import (
    CAPS,
    INSTANCES,
    LOADS,
    OVERHEADS,
    PERCENTILES,
    SCALE,
    simulated,
)
from tessera_core.perf.service import MS_PER_S, ServiceModel

_REQUESTS = 150_000
_WARM_UP = _REQUESTS // 20


def ratios(instances: int) -> NDArray[np.float64]:
    """Ratios of one instance count, shape (caps, overheads, loads, percentiles and mean)."""
    shape = (len(CAPS), len(OVERHEADS), len(LOADS), len(PERCENTILES) + 1)
    table = np.empty(shape)
    for cell in np.ndindex(shape[:-1]):
        cap, overhead, load = CAPS[cell[0]], OVERHEADS[cell[1]], LOADS[cell[2]]
        table[cell] = cell_ratios(ServiceModel(1.0, overhead, cap, instances), load)
    return table


def cell_ratios(service: ServiceModel, load: float) -> NDArray[np.float64]:
    """Latency of ``service`` at ``load`` over that of one of its servers: percentiles, then the mean."""
    rate = load * service.capacity_per_s
    alone = BatchQueue.solve(service, rate / MS_PER_S / service.instances)
    if alone is None:
        raise ValueError(f"load {load}: too close to saturation to solve")
    latency = simulated(service, rate, requests=_REQUESTS).latency_ms[_WARM_UP:]
    together = np.append(np.percentile(latency, PERCENTILES), latency.mean())
    apart = [*(alone.percentile_ms(percentile) for percentile in PERCENTILES), alone.mean_ms]
    found: NDArray[np.float64] = together / np.array(apart)
    return found


def main(target: str) -> None:
    """Simulate every cell and write the table, rounded up to the next step, to ``target``."""
    table = np.stack([ratios(instances) for instances in INSTANCES])
    np.save(target, np.ceil(table * SCALE).clip(0, 255).astype(np.uint8))


if __name__ == "__main__":
    main(sys.argv[1])
