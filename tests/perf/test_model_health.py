"""Predicted beside measured latency: the identity is exact, a slow device shows, and unmet assumptions are told."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from tessera_core.perf import ServiceModel
from tessera_core.perf.batch_queue import BatchQueue
from tessera_core.perf.counters import Counters
from tessera_core.perf.health import (
    FEWEST_ANSWERS,
    FEWEST_INTERVALS,
    ModelHealth,
    Unmet,
    burstiness,
    mean_ms,
    model_health,
)
from tessera_core.simulate import Served, Station, simulate
from tessera_core.simulate.arrivals import gamma, poisson

V100 = ServiceModel(0.1438, 1.8874)
P4 = ServiceModel(0.5833, 1.4284)
"""ResNet-50; Inoue 2021."""

models = st.builds(ServiceModel, st.floats(0.05, 2.0), st.floats(0.0, 5.0))
loads = st.floats(0.05, 0.85)


@given(models, loads)
@settings(deadline=None)
def test_with_the_mean_batch_of_the_exact_law_its_mean_is_met(model: ServiceModel, rho: float):
    rate = rho / model.alpha_ms
    exact = BatchQueue.solve(model, rate)
    assume(exact is not None and exact.stride == 1)
    assert exact is not None
    found = mean_ms(model, 1e3 * rate, exact.mean_batch)
    assert found == pytest.approx(exact.mean_ms, rel=1e-6)


@given(st.sampled_from([V100, P4]), st.floats(0.05, 0.5), st.floats(0.05, 0.25))
@settings(deadline=None, max_examples=20)
def test_so_it_is_where_batch_times_vary(model: ServiceModel, rho: float, cv2: float):
    rate = rho / model.alpha_ms
    exact = BatchQueue.solve(model, rate, service_cv2=cv2)
    assert exact is not None
    found = mean_ms(model, 1e3 * rate, exact.mean_batch, cv2)
    assert found == pytest.approx(exact.mean_ms, rel=1e-4)


def test_beyond_what_the_server_finishes_there_is_no_mean():
    assert mean_ms(V100, 1e3 / V100.alpha_ms, 50.0) == float("inf")


def counted(arrivals_ms: np.ndarray, served: Served, seconds: int) -> list[Counters]:
    """What a server would have counted at every full second."""
    answered = np.isfinite(served.latency_ms)
    ends_ms = np.where(answered, arrivals_ms + served.latency_ms, arrivals_ms)
    of_batches = np.full(len(served.batch_sizes), np.inf)
    of_batches[served.batches[answered]] = ends_ms[answered]
    found = []
    for second in range(seconds + 1):
        now = 1e3 * second
        done = answered & (ends_ms <= now)
        over = of_batches <= now
        found.append(
            Counters(
                at_s=float(second),
                arrived=int(np.searchsorted(arrivals_ms, now, side="right")),
                batches=int(over.sum()),
                batched=int(served.batch_sizes[over].sum()),
                answered=int(done.sum()),
                latency_s=float(served.latency_ms[done].sum()) / 1e3,
                lost=int((~answered & (ends_ms <= now)).sum()),
            )
        )
    return found


def health_of(
    model: ServiceModel,
    rate_per_s: float,
    seconds: int = 60,
    seed: int = 1,
    slower: float = 1.0,
    slo_ms: float | None = None,
    cv2: float = 1.0,
) -> ModelHealth:
    """Of a server whose batches take ``slower`` times what ``model`` says."""
    arrivals = gamma(rate_per_s, cv2, seconds, np.random.default_rng(seed))
    station = Station(model.scaled(slower).batch_times_ms(largest=4096), model.instances)
    served = simulate(station, arrivals, slo_ms)
    return model_health(counted(arrivals, served, seconds), model)


@given(
    st.builds(ServiceModel, st.floats(0.1, 1.0), st.floats(0.2, 4.0)),
    st.floats(0.1, 0.7),
    st.integers(0, 2**32),
)
@settings(deadline=None, max_examples=40)
def test_a_server_as_fast_as_its_profile_has_a_ratio_of_one(
    model: ServiceModel, rho: float, seed: int
):
    rate = 1e3 * rho / model.alpha_ms
    found = health_of(model, rate, 100, seed)
    assume(found.unmet is not Unmet.BURSTY)  # one in twenty windows looks so
    assert found.unmet is None
    # A mean of so many correlated latencies is itself known to no better.
    noise = 4 * (model.tau0_ms + model.alpha_ms) / (1 - rho) / 1e3
    assert found.ratio == pytest.approx(1.0, abs=0.02 + noise)


@pytest.mark.parametrize("model", [V100, P4])
@pytest.mark.parametrize("rho", [0.1, 0.3, 0.5, 0.7])
def test_over_several_windows_the_ratio_is_one_within_two_percent(model: ServiceModel, rho: float):
    found = [health_of(model, 1e3 * rho / model.alpha_ms, seed=seed).ratio for seed in range(6)]
    ratios = [ratio for ratio in found if ratio is not None]
    assert len(ratios) >= 5
    assert np.mean(ratios) == pytest.approx(1.0, abs=0.02)


@pytest.mark.parametrize("rho", [0.1, 0.3, 0.5, 0.7])
def test_batches_that_take_a_third_longer_than_profiled_show(rho: float):
    found = health_of(V100, 1e3 * rho / V100.alpha_ms, slower=1.3)
    assert found.ratio is not None
    # Latency follows batch times in proportion at light load, and more than that the fuller the queue is.
    assert found.ratio > 1.27
    swifter = health_of(V100, 1e3 * rho / V100.alpha_ms, slower=0.75)
    assert swifter.ratio is not None
    assert swifter.ratio < 0.8


def test_what_every_latency_has_beside_queue_and_batch_is_told_apart():
    arrivals = poisson(1500.0, 60, np.random.default_rng(2))
    served = simulate(Station(V100.batch_times_ms(largest=512)), arrivals)
    samples = [
        replace(each, latency_s=each.latency_s + 2e-3 * each.answered)
        for each in counted(arrivals, served, 60)
    ]
    found = model_health(samples, V100, overhead_ms=2.0)
    assert found.ratio == pytest.approx(1.0, abs=0.03)


@given(st.integers(4, 128), loads)
@settings(deadline=None)
def test_a_cap_that_is_seldom_reached_changes_little_and_else_it_is_told(cap: int, load: float):
    model = replace(V100, cap=cap)
    rate = load * model.capacity_per_s
    exact = BatchQueue.solve(model, rate / 1e3)
    assume(exact is not None)
    assert exact is not None
    per_s = rate * exact.mean_batch  # of counters that need no arrivals
    samples = [
        Counters(
            t,
            round(t * rate),
            round(1e6 * t),
            round(1e6 * t * exact.mean_batch),
            t * 1000,
            t * per_s,
            0,
        )
        for t in map(float, range(FEWEST_INTERVALS + 2))
    ]
    found = model_health(_poisson_counts(samples, rate), model)
    if found.unmet is Unmet.CAP_REACHED:
        assert exact.mean_batch > cap / 4
    elif found.unmet is None:
        assert found.predicted_ms == pytest.approx(exact.mean_ms, rel=0.02)
    else:
        assert found.unmet in (Unmet.OVERLOADED, Unmet.BURSTY)


def _poisson_counts(samples: list[Counters], rate: float) -> list[Counters]:
    came = np.cumsum(np.random.default_rng(3).poisson(rate, len(samples)))
    return [replace(each, arrived=int(n)) for each, n in zip(samples, came, strict=True)]


def test_a_cap_that_is_reached_is_told():
    capped = replace(V100, cap=8)
    assert health_of(capped, 0.8 * capped.capacity_per_s).unmet is Unmet.CAP_REACHED


def test_several_instances_drops_bursts_and_overload_are_told():
    rate = 0.3e3 / V100.alpha_ms
    assert health_of(replace(V100, instances=2), rate).unmet is Unmet.SEVERAL_INSTANCES
    assert health_of(V100, rate, slo_ms=4.0).unmet is Unmet.REQUESTS_LOST
    assert health_of(V100, rate, cv2=8.0).unmet is Unmet.BURSTY
    assert health_of(V100, 0.99e3 / V100.alpha_ms).unmet is Unmet.OVERLOADED


@pytest.mark.parametrize("turn_ms", [1.0, 2.0])
def test_arrivals_that_a_server_reads_in_turns_are_as_good_as_poisson(turn_ms: float):
    arrivals = turn_ms * np.ceil(poisson(2000.0, 60, np.random.default_rng(6)) / turn_ms)
    served = simulate(Station(V100.batch_times_ms(largest=512)), arrivals)
    gaps = np.diff(arrivals)
    assert gaps.var() / gaps.mean() ** 2 > 1.5
    found = model_health(counted(arrivals, served, 60), V100)
    assert found.ratio == pytest.approx(1.0, abs=0.03)


def test_too_little_is_told_and_no_ratio_made_of_it():
    few = health_of(V100, 1000.0, seconds=FEWEST_INTERVALS - 1)
    assert (few.unmet, few.ratio) == (Unmet.TOO_FEW_SAMPLES, None)
    rare = health_of(V100, FEWEST_ANSWERS / 2 / 60)
    assert (rare.unmet, rare.predicted_ms) == (Unmet.TOO_FEW_ANSWERS, None)
    assert rare.measured_ms is not None
    silent = [Counters(float(t), 0, 0, 0, 0, 0.0, 0) for t in range(60)]
    assert model_health(silent, V100) == ModelHealth(None, None, Unmet.TOO_FEW_ANSWERS)


@pytest.mark.parametrize("cv2", [1.0, 4.0, 16.0])
def test_burstiness_is_that_of_the_gaps_also_in_uneven_intervals(cv2: float):
    rng = np.random.default_rng(4)
    arrivals = gamma(400.0, cv2, 4000, rng)
    times = np.cumsum(rng.uniform(0.7, 1.6, 3000))
    came = np.searchsorted(arrivals, 1e3 * times)
    samples = [Counters(t, int(n), 0, 0, 0, 0.0, 0) for t, n in zip(times, came, strict=True)]
    assert burstiness(samples) == pytest.approx(cv2, rel=0.12)


def test_a_rate_that_drifts_is_no_burst():
    rng = np.random.default_rng(5)
    came = np.cumsum(rng.poisson(np.linspace(800.0, 1200.0, 300)))
    samples = [Counters(float(t), int(n), 0, 0, 0, 0.0, 0) for t, n in enumerate(came)]
    assert burstiness(samples) == pytest.approx(1.0, abs=0.3)
    assert np.diff(came).var() / np.diff(came).mean() > 5


@pytest.mark.parametrize(
    "field", ["at_s", "arrived", "batches", "batched", "answered", "latency_s", "lost"]
)
def test_a_counter_that_goes_back_is_named(field: str):
    samples = [Counters(float(t), t, t, t, t, float(t), t) for t in range(1, 60)]
    samples[30] = replace(samples[30], **{field: 0})
    with pytest.raises(ValueError, match=f"^{field}"):
        model_health(samples, V100)


@pytest.mark.parametrize("argument", ["service_cv2", "overhead_ms"])
def test_what_cannot_be_is_named(argument: str):
    with pytest.raises(ValueError, match=argument):
        model_health([], V100, **{argument: -1.0})
