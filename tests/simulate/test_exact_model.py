"""The simulator where the queue model is exact: Poisson, one server, no cap, nothing dropped.

Every case is eight runs of their own seeds. Their spread says how sure their mean is, and the test demands that it is
surer than what it is held to; otherwise a simulator that is wrong by as much could pass.
"""

from __future__ import annotations

import numpy as np
import pytest

from tessera_core.perf import ServiceModel
from tessera_core.perf.batch_queue import BatchQueue
from tessera_core.simulate import Station, simulate
from tessera_core.simulate.arrivals import poisson

RUNS = 8
WARM_UP = 0.02
MEAN, P99 = 0.01, 0.03

V100 = ServiceModel(0.1438, 1.8874)
P4 = ServiceModel(0.5833, 1.4284)
SMALL_OVERHEAD = ServiceModel(1.0, 1.0)
LARGE_OVERHEAD = ServiceModel(0.1, 3.0)
"""Overheads of 13, 2.4, 1 and 30 rows; the first two are ResNet-50's on those boards."""


@pytest.mark.parametrize(
    ("model", "rho", "requests"),
    [
        (V100, 0.05, 100_000),
        (V100, 0.3, 100_000),
        (V100, 0.5, 200_000),
        (V100, 0.8, 800_000),
        (V100, 0.9, 3_000_000),
        (P4, 0.2, 100_000),
        (P4, 0.5, 150_000),
        (P4, 0.8, 600_000),
        (SMALL_OVERHEAD, 0.3, 150_000),
        (SMALL_OVERHEAD, 0.7, 500_000),
        (LARGE_OVERHEAD, 0.5, 300_000),
        (LARGE_OVERHEAD, 0.8, 1_000_000),
    ],
)
def test_mean_and_tail_are_those_of_the_exact_law(
    model: ServiceModel, rho: float, requests: int
) -> None:
    rate_per_ms = rho / model.alpha_ms
    exact = BatchQueue.solve(model, rate_per_ms)
    assert exact is not None
    # So long that it never ends a batch.
    station = Station(model.batch_times_ms(largest=int(40 * exact.mean_batch) + 40))
    means, tails = [], []
    for seed in range(RUNS):
        rng = np.random.default_rng([99, seed])
        arrivals = poisson(1e3 * rate_per_ms, requests / (1e3 * rate_per_ms), rng)
        served = simulate(station, arrivals)
        assert served.batch_sizes.max() < len(station.batch_ms)
        means.append(served.latency_ms[int(WARM_UP * len(arrivals)) :].mean())
        tails.append(served.percentile_ms(99, WARM_UP))
    assert 2 * _error(means) < MEAN * exact.mean_ms
    assert 2 * _error(tails) < P99 * exact.percentile_ms(99)
    assert np.mean(means) == pytest.approx(exact.mean_ms, rel=MEAN)
    assert np.mean(tails) == pytest.approx(exact.percentile_ms(99), rel=P99)


def _error(found: list[float]) -> float:
    """Standard error of their mean."""
    return float(np.std(found, ddof=1) / len(found) ** 0.5)
