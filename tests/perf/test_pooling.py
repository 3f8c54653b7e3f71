"""Several servers on one queue: the stored ratios against fresh simulations."""

from __future__ import annotations

import numpy as np
import pytest

from tessera_core.perf import ServiceModel, latency_percentile, max_rate, mean_latency
from tessera_core.perf.pooling import CAPS, INSTANCES, LOADS, OVERHEADS, SCALE, ratio
from tessera_core.perf.tabulate import cell_ratios


@pytest.mark.parametrize(
    ("instances", "cap", "overhead", "load"),
    [(2, 32, 8.0, 0.5), (4, 4, 1.0, 0.9), (8, 128, 64.0, 0.2), (6, 1, 0.25, 0.1)],
)
def test_the_stored_table_is_what_its_generator_makes(
    instances: int, cap: int, overhead: float, load: float
) -> None:
    assert instances in INSTANCES
    assert cap in CAPS
    assert overhead in OVERHEADS
    assert load in LOADS
    service = ServiceModel(1.0, overhead, cap, instances)
    fresh = cell_ratios(service, load)
    rate = load * service.capacity_per_s
    stored = [ratio(service, rate, percentile) for percentile in (90, 95, 99, 99.7, 99.9, None)]
    np.testing.assert_allclose(stored, fresh, atol=1.01 / SCALE)


@pytest.mark.parametrize(
    "service",
    [
        ServiceModel(0.15, 1.9, 48, 2),
        ServiceModel(0.15, 1.9, 12, 3),
        ServiceModel(0.5, 0.6, 24, 5),
        ServiceModel(0.02, 2.2, 100, 7),
    ],
)
@pytest.mark.parametrize("slack", [2.0, 3.5, 8.0])
def test_rates_between_grid_points_are_near_the_simulated_ones_and_not_above(
    service: ServiceModel, slack: float
) -> None:
    slo = slack * service.batch_ms(1)
    simulated = max_rate(service, slo, 99, exact=True)
    assert 0.85 * simulated <= max_rate(service, slo, 99) <= 1.015 * simulated


def test_greedy_sharing_can_be_worse_than_separate_queues() -> None:
    together = ServiceModel(1.0, 8.0, 128, 8)
    apart = ServiceModel(1.0, 8.0, 128, 1)
    load = 0.8
    for exact in (False, True):
        assert latency_percentile(
            together, load * together.capacity_per_s, 99, exact=exact
        ) > 1.05 * latency_percentile(apart, load * apart.capacity_per_s, 99)


def test_without_batching_sharing_always_helps() -> None:
    together = ServiceModel(1.0, 1.0, 1, 4)
    apart = ServiceModel(1.0, 1.0, 1, 1)
    for load in (0.1, 0.5, 0.9):
        shared = mean_latency(together, load * together.capacity_per_s)
        assert shared < mean_latency(apart, load * apart.capacity_per_s)


@pytest.mark.parametrize("burstiness", [4.0, 16.0])
def test_bursty_arrivals_at_shared_servers_are_not_underestimated(burstiness: float) -> None:
    for service in (ServiceModel(1.0, 3.0, 16, 4), ServiceModel(1.0, 30.0, 64, 2)):
        for load in (0.2, 0.5, 0.7):
            rate = load * service.capacity_per_s
            predicted = latency_percentile(service, rate, 99, burstiness)
            assert predicted >= 0.95 * latency_percentile(service, rate, 99, burstiness, exact=True)


def test_outside_the_table_the_queue_is_simulated() -> None:
    many = ServiceModel(0.1, 1.0, 8, 12)
    rate = 0.6 * many.capacity_per_s
    assert latency_percentile(many, rate, 99) == latency_percentile(many, rate, 99, exact=True)
    wide = ServiceModel(0.1, 1.0, None, 2)
    assert max_rate(wide, 8.0, 99) > 0
