"""Looked-up rates of several servers on one queue, against the solved ones and against simulation."""

from __future__ import annotations

from math import exp, log

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tessera_core.perf import FULLEST_LOAD, ServiceModel, max_rate
from tessera_core.perf.pooling import simulated
from tessera_core.perf.quick_shared import quick_shared_rate
from tessera_core.perf.shared_queue import Server, equal_rate


def services(most_instances: int) -> st.SearchStrategy[ServiceModel]:
    return st.builds(
        ServiceModel,
        alpha_ms=st.floats(0.005, 5),
        tau0_ms=st.floats(0.01, 50),
        cap=st.integers(1, 128),
        instances=st.integers(2, most_instances),
        spread_ms=st.sampled_from([0.0, 0.3]),
    )


burstinesses = st.one_of(st.just(1.0), st.floats(1, 16))


def _budget(service: ServiceModel, share: float) -> float:
    """From one row alone (0) to four full batches (1), evenly in the logarithm."""
    assert service.cap is not None
    least, most = service.batch_ms(1), 4 * service.batch_ms(service.cap)
    return exp(log(least) + (0.02 + 0.98 * share) * log(most / least)) + service.spread_ms


@given(service=services(40), share=st.floats(0, 1), burstiness=burstinesses)
@settings(max_examples=150)
def test_more_time_never_carries_less_and_nothing_carries_more_than_it_finishes(
    service: ServiceModel, share: float, burstiness: float
) -> None:
    budget = _budget(service, share)
    rate = quick_shared_rate(service, budget, 99, burstiness)
    assert 0 <= rate <= FULLEST_LOAD * service.capacity_per_s * (1 + 1e-9)
    assert quick_shared_rate(service, 1.02 * budget, 99, burstiness) >= rate * (1 - 1e-9)


@given(service=services(8), share=st.floats(0.3, 1))
@settings(max_examples=40)
def test_it_is_about_the_solved_rate_where_that_one_knows(
    service: ServiceModel, share: float
) -> None:
    budget = _budget(service, share)
    solved = max_rate(service, budget, 99)
    # A plateau of the latency turns 1 % of it into much rate: so the bounds are those of budgets a little off.
    shorter, longer = (max_rate(service, part * budget, 99) for part in (0.96, 1.02))
    rate = quick_shared_rate(service, budget, 99)
    assert 0.95 * shorter <= rate
    server = Server(
        service.cap or 1,
        service.batch_ms(service.cap or 1),
        service.tau0_ms,
        service.spread_ms,
        service.instances,
    )
    assert rate <= 1.05 * max(solved, longer, equal_rate(server, budget, 99))


@pytest.mark.parametrize(
    ("instances", "cap", "overhead", "burstiness", "slack", "too_much"),
    [
        (2, 16, 1.0, 1.0, 2.0, 1.1),
        (4, 32, 8.0, 1.0, 1.2, 1.1),
        (12, 4, 20.0, 1.0, 1.3, 2.2),
        (24, 8, 4.0, 1.0, 1.5, 1.35),
        (2, 32, 4.0, 2.0, 1.6, 1.35),
        (4, 16, 2.0, 4.0, 3.0, 1.35),
        (8, 64, 30.0, 2.5, 1.2, 1.35),
        (16, 16, 8.0, 4.0, 1.7, 1.35),
    ],
)
def test_no_more_is_promised_than_a_simulation_carries_nor_much_less(
    instances: int, cap: int, overhead: float, burstiness: float, slack: float, too_much: float
) -> None:
    service = ServiceModel(1.0, overhead, cap, instances)
    budget = slack * service.batch_ms(cap)
    rate = quick_shared_rate(service, budget, 99, burstiness)
    below, above = (
        simulated(service, min(part * rate, FULLEST_LOAD * service.capacity_per_s), burstiness)
        for part in (0.97, too_much)
    )
    assert below.percentile_ms(99, 0.05) <= budget < above.percentile_ms(99, 0.05)


def test_what_the_tables_lack_has_the_closed_form() -> None:
    wide, strict = ServiceModel(0.1, 2.0, 200, 4), ServiceModel(0.1, 2.0, 16, 4)
    for service, percentile in ((wide, 99.0), (strict, 99.99)):
        cap = service.cap or 1
        server = Server(cap, service.batch_ms(cap), 2.0, 0.0, 4)
        closed = equal_rate(server, 60.0, percentile)
        assert quick_shared_rate(service, 60.0, percentile) == closed > 0


def test_a_budget_below_one_row_carries_nothing() -> None:
    service = ServiceModel(1.0, 4.0, 8, 3, spread_ms=2.0)
    assert quick_shared_rate(service, 6.99, 99) == 0
    assert quick_shared_rate(service, 7.1, 99) > 0


@pytest.mark.parametrize("service", [ServiceModel(1.0, 4.0, 8), ServiceModel(1.0, 4.0, None, 4)])
def test_one_server_and_batches_without_end_are_refused(service: ServiceModel) -> None:
    with pytest.raises(ValueError, match="instances and cap"):
        quick_shared_rate(service, 20.0, 99)


def test_random_bursts_at_random_servers_find_the_rate_on_the_safe_side() -> None:
    rng = np.random.default_rng(3)
    used = []
    while len(used) < 25:
        cap = int(2 ** rng.uniform(1, 6))
        service = ServiceModel(1.0, float(2 ** rng.uniform(-1, 5)), cap, int(rng.integers(2, 24)))
        budget = service.batch_ms(cap) * float(rng.uniform(1.2, 4))
        burstiness = float(rng.uniform(1.1, 6))
        rate = quick_shared_rate(service, budget, 99, burstiness)
        if rate < 0.05 * service.capacity_per_s:
            continue
        used.append(simulated(service, rate, burstiness).percentile_ms(99, 0.05) / budget)
    assert np.mean(np.array(used) <= 1.03) >= 0.9
    assert np.median(used) > 0.6
