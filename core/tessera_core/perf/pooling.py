"""Several servers on one queue: how much their latency differs from that of one server at the same load.

No formula is known for servers that share a queue and batch greedily, and the two tempting ones are wrong:
pooling is not always a gain (eight servers that take all that waits leave each other small batches: up to
20 % slower than eight separate queues) and not always none (at light load p99 halves). So the ratio

    latency of n servers at load x / latency of one server at load x,   x = rate / capacity

was simulated over (n, cap, tau0/alpha, x) and stored. It depends on nothing else, because scaling time
scales both. The one-server latency is exact (``batch_queue``), so the table only carries the difference,
which is smooth. Outside the table, and for the reference (``simulated_latency``), the queue is simulated.

``python -m tessera_core.perf.tabulate FILE`` makes the table again.
"""

from __future__ import annotations

from functools import lru_cache
from importlib import resources
from math import log, log2

import numpy as np
from numpy.typing import NDArray

from tessera_core.perf.service import MS_PER_S, ServiceModel
from tessera_core.simulate.station import Served, Station, simulate

INSTANCES = (2, 3, 4, 6, 8)
CAPS = (1, 2, 4, 8, 16, 32, 64, 128)
OVERHEADS = (0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0)
"""tau0/alpha."""
LOADS = (
    *(0.01, 0.02, 0.035, 0.05, 0.075, 0.1, 0.15, 0.2, 0.25, 0.3),
    *(0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.98),
)
PERCENTILES = (90.0, 95.0, 99.0, 99.7, 99.9)
"""Then, last, the mean."""
SCALE = 180
"""Ratios are stored as bytes in steps of 1/SCALE."""
_CAUTION = 0.15
_WARM_UP = 0.05
_LARGEST_BATCH = 1024
_REQUESTS = 200_000
_MOST_REQUESTS = 2_000_000
_SEED = 20210147


def covered(service: ServiceModel, percentile: float | None) -> bool:
    """Whether the table answers for this service and percentile (None: the mean)."""
    return (
        service.instances <= INSTANCES[-1]
        and service.cap is not None
        and service.cap <= CAPS[-1]
        and (percentile is None or PERCENTILES[0] <= percentile <= PERCENTILES[-1])
    )


def ratio(service: ServiceModel, rate_per_s: float, percentile: float | None) -> float:
    """Latency of ``service.instances`` servers over that of one at the same load, interpolated.

    ``percentile`` None is the ratio of means. tau0/alpha and loads beyond the grid take its edge: there the
    ratio has settled, or the latency is that of a lone row, which bounds it from below.
    """
    assert covered(service, percentile)
    assert service.cap is not None
    overhead = service.tau0_ms / service.alpha_ms
    load = min(max(rate_per_s / service.capacity_per_s, LOADS[0]), LOADS[-1])
    values = ratios_by_load(service.instances, service.cap, overhead, percentile)
    return float(_between(values, 0, LOADS, load))


@lru_cache(maxsize=8192)
def ratios_by_load(
    instances: int, cap: int, overhead: float, percentile: float | None
) -> NDArray[np.float64]:
    """Ratios at ``LOADS``; many rates are asked of one service. ``overhead`` is tau0/alpha."""
    table = _table()
    overhead = min(max(overhead, OVERHEADS[0]), OVERHEADS[-1])
    if percentile is None:
        values = table[..., -1]
    else:
        tails = [log(100 / (100 - grid)) for grid in PERCENTILES]
        values = _between(table[..., :-1], -1, tails, log(100 / (100 - percentile)))
    values = _between(values, 0, INSTANCES, instances)
    values = _between(values, 0, [log2(grid) for grid in CAPS], log2(cap))
    return _between(values, 0, [log2(grid) for grid in OVERHEADS], log2(overhead))


def simulated(
    service: ServiceModel,
    rate_per_s: float,
    burstiness: float = 1.0,
    requests: int = _REQUESTS,
) -> Served:
    """The shared queue under seeded arrivals: the same question gives the same answer.

    Gaps are gamma distributed with squared variation ``burstiness`` > 0 (1: Poisson). One sequence of gaps
    serves every rate, so that answers are smooth in the rate. Batches of a service without a cap end at
    1024 rows.
    """
    times = _unit_times(requests, burstiness) * (MS_PER_S / rate_per_s)
    return simulate(Station(service.batch_times_ms(_LARGEST_BATCH), service.instances), times)


def simulated_latency(
    service: ServiceModel, rate_per_s: float, percentile: float | None, burstiness: float = 1.0
) -> float:
    """Latency percentile, or with None the mean, of the simulated shared queue, ms."""
    if percentile is None:
        latency = simulated(service, rate_per_s, burstiness).latency_ms
        return float(latency[int(len(latency) * _WARM_UP) :].mean())
    requests = min(max(_REQUESTS, int(200 / (1 - percentile / 100))), _MOST_REQUESTS)
    served = simulated(service, rate_per_s, burstiness, requests)
    return served.percentile_ms(percentile, _WARM_UP)


@lru_cache(maxsize=4)
def _unit_times(requests: int, burstiness: float) -> NDArray[np.float64]:
    rng = np.random.default_rng(_SEED)
    return np.cumsum(rng.gamma(1 / burstiness, burstiness, size=requests))


@lru_cache(maxsize=1)
def _table() -> NDArray[np.float64]:
    """Shape (instances, caps, overheads, loads, percentiles and mean)."""
    with resources.files(__package__).joinpath("pooling.npy").open("rb") as stored:
        packed: NDArray[np.uint8] = np.load(stored)
    return packed / SCALE


def _between(
    values: NDArray[np.float64], axis: int, grid: object, at: float
) -> NDArray[np.float64]:
    points = np.asarray(grid, dtype=np.float64)
    upper = int(np.clip(np.searchsorted(points, at), 1, len(points) - 1))
    share = (at - points[upper - 1]) / (points[upper] - points[upper - 1])
    low, high = values.take(upper - 1, axis), values.take(upper, axis)
    # Between grid points the true ratio bends: err towards more latency, by a part of the difference.
    caution = _CAUTION * 4 * share * (1 - share) * np.abs(high - low)
    between: NDArray[np.float64] = low + share * (high - low) + caution
    return between
