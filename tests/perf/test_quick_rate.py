"""Looked-up rates against the exact solver and, where arrivals come in bursts, against simulation."""

from __future__ import annotations

from math import exp, inf, log
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tessera_core.perf import FULLEST_LOAD, ServiceModel, max_rate
from tessera_core.perf.pooling import simulated
from tessera_core.perf.quick import (
    CAPS,
    PERCENTILES,
    STRETCHED,
    overhead_at,
    quick_max_rate,
    quick_max_rates,
    stretched,
)
from tessera_core.perf.quick import _table as stored_table
from tessera_core.perf.tabulate_quick import curve, lifted, service_at

_TOLERANCE = 1.002

services = st.builds(
    ServiceModel,
    alpha_ms=st.floats(0.005, 5),
    tau0_ms=st.one_of(st.just(0.0), st.floats(0.01, 50)),
    cap=st.integers(1, 256),
    spread_ms=st.sampled_from([0.0, 0.3]),
)
percentiles = st.one_of(st.sampled_from([95.0, 99.0, 99.9]), st.floats(90, 99.99))


def _budget(service: ServiceModel, share: float) -> float:
    """From just above one row alone (0) to four full batches (1), evenly in the logarithm."""
    assert service.cap is not None
    least, most = service.batch_ms(1), 4 * service.batch_ms(service.cap)
    return exp(log(least) + (0.02 + 0.98 * share) * log(most / least)) + service.spread_ms


@given(service=services, share=st.floats(0, 1), percentile=percentiles)
@settings(max_examples=60, deadline=None, derandomize=True)
def test_never_more_than_the_exact_rate_and_near_it(
    service: ServiceModel, share: float, percentile: float
) -> None:
    budget = _budget(service, share)
    exact = max_rate(service, budget, percentile)
    quick = quick_max_rate(service, budget, percentile)
    # The exact search gives up at 1e-5 of capacity.
    assert quick <= _TOLERANCE * exact or quick <= 1e-5 * service.capacity_per_s
    # A plateau of the latency turns 1 % of it into much rate: so the bound is that of a budget 2 % smaller.
    shorter = max_rate(service, 0.98 * (budget - service.spread_ms) + service.spread_ms, percentile)
    assert quick >= min(0.97 * exact, shorter)


def test_typical_loss_is_below_one_percent() -> None:
    rng = np.random.default_rng(5)
    kept = []
    for _ in range(80):
        service = ServiceModel(1.0, float(2 ** rng.uniform(-2, 8)), int(2 ** rng.uniform(1, 8)))
        budget = service.batch_ms(service.cap or 1) * float(rng.uniform(0.5, 4))
        exact = max_rate(service, budget, 99)
        if exact:
            kept.append(quick_max_rate(service, budget, 99) / exact)
    assert np.median(kept) > 0.99
    assert np.percentile(kept, 5) > 0.95


@given(service=services, share=st.floats(0, 0.95), percentile=percentiles)
@settings(max_examples=100, deadline=None, derandomize=True)
def test_more_time_never_carries_less_and_a_stricter_percentile_never_more(
    service: ServiceModel, share: float, percentile: float
) -> None:
    budget = _budget(service, share)
    rate = quick_max_rate(service, budget, percentile)
    assert 0 < rate <= FULLEST_LOAD * service.capacity_per_s * (1 + 1e-9)
    assert quick_max_rate(service, 1.01 * budget, percentile) >= rate * (1 - 1e-9)
    stricter = percentile + 0.2 * (100 - percentile)
    if stricter <= PERCENTILES[-1]:
        assert quick_max_rate(service, budget, stricter) <= rate * (1 + 1e-9)


def test_arrays_give_what_single_questions_give_in_the_broadcast_shape() -> None:
    rng = np.random.default_rng(11)
    count = 400
    alpha = rng.uniform(0.01, 3, count)
    tau0 = np.where(rng.random(count) < 0.1, 0.0, rng.uniform(0, 40, count))
    cap = rng.choice([1, 2, 3, 11, 40, 100, 255, 256], count)
    budget = (alpha + tau0) * rng.uniform(0.9, 30, count)
    percentile = rng.choice([90, 95, 99, 99.67, 99.99], count)
    burstiness = rng.choice([0.5, 1, 1.5, 4, 30], count)
    many = quick_max_rates(alpha, tau0, cap, 0.1, budget, percentile, burstiness)
    single = [
        quick_max_rate(ServiceModel(a, t, int(c), spread_ms=0.1), b, p, v)
        for a, t, c, b, p, v in zip(
            alpha.tolist(),
            tau0.tolist(),
            cap.tolist(),
            budget.tolist(),
            percentile.tolist(),
            burstiness.tolist(),
            strict=True,
        )
    ]
    np.testing.assert_allclose(many, single, rtol=1e-9)
    assert (many > 0).any()
    assert (many == 0).any()
    square = quick_max_rates(0.1, [[1.0], [2.0]], [4, 8, 16], 0, 20, 99)
    assert square.shape == (2, 3)
    assert square[1, 2] == pytest.approx(quick_max_rate(ServiceModel(0.1, 2.0, 16), 20, 99))
    assert quick_max_rates([], 1, 4, 0, 20, 99).shape == (0,)


def test_a_budget_below_one_row_carries_nothing_and_one_of_a_row_something() -> None:
    service = ServiceModel(1.0, 4.0, 8, spread_ms=2.0)
    assert quick_max_rate(service, 6.99, 99) == 0
    assert quick_max_rate(service, 7.0, 99) > 0
    rates = quick_max_rates(1.0, 4.0, 8, 2.0, [-5.0, 1.0, 6.99, 7.01, 9e6], 99)
    assert (rates[:3] == 0).all()
    assert rates[3] > 0
    assert rates[4] == pytest.approx(FULLEST_LOAD * service.capacity_per_s)


@pytest.mark.parametrize(
    "service",
    [
        ServiceModel(2.0, 0.0, 1),
        ServiceModel(1e-9, 2.0, 1),
        ServiceModel(2.0, 0.0, 64),
        ServiceModel(1e-9, 2.0, 64),
        ServiceModel(1.0, 0.02, 256),
    ],
)
@pytest.mark.parametrize("slack", [1.5, 3.0, 6.0, 40.0])
def test_no_overhead_all_overhead_and_no_batching_are_ends_of_the_grid(
    service: ServiceModel, slack: float
) -> None:
    budget = slack * service.batch_ms(1)
    exact = max_rate(service, budget, 99)
    assert 0.92 * exact <= quick_max_rate(service, budget, 99) <= _TOLERANCE * exact


@pytest.mark.parametrize(("cap", "percentile"), [(300, 99.0), (16, 80.0), (16, 99.995)])
def test_what_the_table_lacks_is_solved(cap: int, percentile: float) -> None:
    service = ServiceModel(0.1, 2.0, cap)
    exact = max_rate(service, 25.0, percentile)
    assert quick_max_rate(service, 25.0, percentile) == exact
    assert quick_max_rates(0.1, 2.0, [8, cap], 0, 25.0, percentile)[1] == exact
    unlimited = ServiceModel(0.1, 2.0)
    assert quick_max_rate(unlimited, 25.0, 99) == max_rate(unlimited, 25.0, 99)


@pytest.mark.parametrize(
    ("cap", "overhead", "burstiness", "slack", "percentile"),
    [
        (64, 14.0, 8, 2.2, 99.0),
        (16, 7.0, 2, 1.7, 99.0),
        (32, 12.0, 4, 4.5, 99.0),
        (8, 4.0, 4, 3.8, 99.0),
        (4, 4.0, 4, 2.3, 99.7),
        (8, 28.0, 8, 2.1, 99.7),
        (32, 5.0, 1.5, 1.8, 99.0),
        (16, 5.0, 2.5, 3.0, 99.0),
    ],
)
def test_bursty_arrivals_are_not_promised_more_than_a_simulation_carries(
    cap: int, overhead: float, burstiness: float, slack: float, percentile: float
) -> None:
    service = ServiceModel(1.0, overhead, cap)
    budget = slack * service.batch_ms(cap)
    rate = quick_max_rate(service, budget, percentile, burstiness)
    assert rate < quick_max_rate(service, budget, percentile)
    if cap >= 4 * burstiness:
        longer = simulated(service, 1.25 * rate, burstiness).percentile_ms(percentile, 0.05)
        assert rate > 0
        assert longer > budget
    if rate:
        # Two hundred thousand rows tell the rate of a percentile to a few per cent.
        latency = simulated(service, 0.96 * rate, burstiness).percentile_ms(percentile, 0.05)
        assert latency <= budget


def test_the_stored_table_is_what_its_generator_makes() -> None:
    table = stored_table()
    assert table.shape[:3] == (len(CAPS), len(STRETCHED), len(PERCENTILES))
    for cap, overhead, tail in [(1, 5, 0), (4, 0, 4), (16, 10, 7), (64, 28, 4), (256, 12, 2)]:
        fresh = curve(service_at(cap, STRETCHED[overhead]), PERCENTILES[tail])
        stored = table[CAPS.index(cap), overhead, tail]
        assert (stored >= fresh - 2e-4).all()
        assert np.median(stored - fresh) < 0.01
        assert (stored - fresh).max() < 0.06
    assert (np.diff(table) >= 0).all()


def test_lifting_raises_by_twice_what_a_chord_misses_and_leaves_straight_lines_alone() -> None:
    shape = stored_table().shape
    points = np.array(STRETCHED)[:, None, None]
    # Far below any latency of a full batch, where the solver's own steps are allowed for.
    straight = np.broadcast_to(points - 200, shape).copy()
    np.testing.assert_allclose(lifted(straight), straight, atol=1e-9)
    curved = np.broadcast_to(-np.square(points) - 200, shape).copy()
    np.testing.assert_allclose(lifted(curved) - curved, 2 * 0.5**2 * 2 / 8, atol=1e-9)


def test_stretching_has_an_inverse_and_both_ends() -> None:
    assert stretched(0.0) == STRETCHED[0]
    assert stretched(inf) == STRETCHED[-1]
    assert overhead_at(STRETCHED[-1]) == inf
    for overhead in (0.0, 0.1, 3.0, 900.0):
        assert overhead_at(stretched(overhead)) == pytest.approx(overhead, abs=1e-12)


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"alpha_ms": [1.0, 0.0]}, "alpha_ms: .*found 0.0 at index 1"),
        ({"tau0_ms": -1.0}, "tau0_ms"),
        ({"cap": 2.5}, "cap"),
        ({"cap": 0}, "cap"),
        ({"spread_ms": -0.1}, "spread_ms"),
        ({"budget_ms": float("nan")}, "budget_ms"),
        ({"percentile": 100.0}, "percentile"),
        ({"percentile": 0.99}, "percentile"),
        ({"burstiness": 0.0}, "burstiness"),
    ],
)
def test_arguments_out_of_range_are_named(change: dict[str, Any], name: str) -> None:
    good = {
        "alpha_ms": 1.0,
        "tau0_ms": 4.0,
        "cap": 8,
        "spread_ms": 0.0,
        "budget_ms": 20.0,
        "percentile": 99.0,
    }
    with pytest.raises(ValueError, match=name):
        quick_max_rates(**{**good, **change})


def test_a_single_question_names_what_is_out_of_range() -> None:
    service = ServiceModel(1.0, 4.0, 8)
    with pytest.raises(ValueError, match="instances"):
        quick_max_rate(ServiceModel(1.0, 4.0, 8, 2), 20.0, 99)
    with pytest.raises(ValueError, match="budget_ms"):
        quick_max_rate(service, float("nan"), 99)
    with pytest.raises(ValueError, match="percentile"):
        quick_max_rate(service, 20.0, 100)
    with pytest.raises(ValueError, match="burstiness"):
        quick_max_rate(service, 20.0, 99, -1)
