"""The one-server batch queue against published, simulated and closed-form values."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from tessera_core.perf import ServiceModel, latency_percentile, max_rate, mean_latency
from tessera_core.perf.batch_queue import BatchQueue
from tessera_core.perf.bounds import (
    fluid_rate,
    half_slo_batch,
    mean_bound,
    mean_from_telemetry,
    tail_estimate,
)
from tessera_core.perf.counts import arrivals_during, arrivals_in_gamma_time

# ResNet-50 fits of Inoue 2021: V100 with mixed precision, P4 with INT8.
V100 = ServiceModel(0.1438, 1.8874)
P4 = ServiceModel(0.5833, 1.4284)


def rate(service: ServiceModel, rho: float) -> float:
    return 1000 * rho / service.alpha_ms


@pytest.mark.parametrize(
    ("service", "rho", "mean", "phi", "busy", "batch", "p95", "p99"),
    [
        (V100, 0.05, 2.706, 2.822, 0.595, 1.21, 4.02, 4.26),
        (V100, 0.10, 3.146, 3.298, 0.867, 1.71, 4.32, 4.63),
        (V100, 0.30, 4.225, 4.226, 0.999, 5.63, 5.78, 6.38),
        (V100, 0.50, 5.902, 5.902, 1.00, 13.1, 8.32, 9.35),
        (V100, 0.80, 14.715, 14.715, 1.00, 52.5, 21.5, 24.6),
        (V100, 0.90, 29.408, 29.408, 1.00, 118, 43.5, 50.0),
        (P4, 0.20, 2.933, 3.023, 0.603, 1.22, 4.76, 5.63),
        (P4, 0.30, 3.534, 3.798, 0.790, 1.50, 5.70, 6.87),
        (P4, 0.50, 5.185, 5.257, 0.962, 2.65, 8.61, 10.6),
        (P4, 0.90, 25.877, 25.878, 1.00, 22.0, 47.3, 60.5),
    ],
)
def test_exact_values_of_two_gpus(
    service: ServiceModel,
    rho: float,
    mean: float,
    phi: float,
    busy: float,
    batch: float,
    p95: float,
    p99: float,
) -> None:
    queue = BatchQueue.solve(service, rate(service, rho) / 1000)
    assert queue is not None
    assert queue.mean_ms == pytest.approx(mean, abs=6e-4)
    assert mean_bound(service, rate(service, rho)) == pytest.approx(phi, abs=6e-4)
    assert queue.busy == pytest.approx(busy, abs=6e-4 if busy < 1 else 5e-3)
    assert queue.mean_batch == pytest.approx(batch, rel=5e-3)
    assert queue.percentile_ms(95) == pytest.approx(p95, rel=2e-3)
    assert queue.percentile_ms(99) == pytest.approx(p99, rel=4e-3)


@pytest.mark.parametrize(
    ("slo", "p95", "p99"), [(6, 2250, 1830), (10, 4030, 3690), (20, 5460, 5250)]
)
def test_largest_rate_on_a_v100(slo: float, p95: float, p99: float) -> None:
    assert max_rate(V100, slo, 95) == pytest.approx(p95, rel=0.01)
    assert max_rate(V100, slo, 99) == pytest.approx(p99, rel=0.01)


@pytest.mark.parametrize(
    ("cap", "capacity", "mean_over_phi"),
    [
        (4, 1620, (0.99, 1.08, 1.20, 1.58, 2.33)),
        (8, 2630, (1.00, 1.02, 1.06, 1.23, 1.60)),
        (16, 3820, (1.00, 1.00, 1.01, 1.07, 1.24)),
        (32, 4930, (1.00, 1.00, 1.00, 1.01, 1.07)),
        (64, 5770, (1.00, 1.00, 1.00, 0.99, 1.01)),
    ],
)
def test_mean_with_a_batch_cap(cap: int, capacity: float, mean_over_phi: tuple[float, ...]) -> None:
    service = ServiceModel(V100.alpha_ms, V100.tau0_ms, cap)
    assert service.capacity_per_s == pytest.approx(capacity, rel=5e-3)
    for load, expected in zip((0.5, 0.7, 0.8, 0.9, 0.95), mean_over_phi, strict=True):
        at = load * service.capacity_per_s
        # The reference is itself a simulation, which wanders by 2 % at the highest load.
        assert mean_latency(service, at) / mean_bound(service, at) == pytest.approx(
            expected, rel=0.02
        )


@pytest.mark.parametrize(
    ("overhead", "p95", "p99"),
    [
        (1, (1.77, 2.12), (2.20, 2.90)),
        (2.5, (1.57, 1.82), (1.85, 2.33)),
        (5, (1.38, 1.64), (1.57, 2.00)),
        (13, (1.34, 1.48), (1.47, 1.70)),
        (30, (1.32, 1.39), (1.40, 1.55)),
    ],
)
def test_tail_over_mean_bound_from_light_to_heavy_load(
    overhead: float, p95: tuple[float, float], p99: tuple[float, float]
) -> None:
    service = ServiceModel(1, overhead)
    for percentile, ends in ((95, p95), (99, p99)):
        for rho, expected in zip((0.2, 0.9), ends, strict=True):
            at = rate(service, rho)
            multiple = latency_percentile(service, at, percentile) / mean_bound(service, at)
            assert multiple == pytest.approx(expected, abs=6e-3)


@given(overhead=st.floats(0, 50), rho=st.floats(0.02, 0.95), alpha=st.floats(1e-3, 10))
@settings(max_examples=25, deadline=None)
def test_exact_mean_never_exceeds_the_bound(overhead: float, rho: float, alpha: float) -> None:
    service = ServiceModel(alpha, alpha * overhead)
    at = rate(service, rho)
    assert mean_latency(service, at) <= mean_bound(service, at) * (1 + 1e-6)


def test_a_variant_of_the_light_load_bound_in_circulation_is_not_a_bound() -> None:
    at = rate(V100, 0.05) / 1000
    alpha, tau0, rho = V100.alpha_ms, V100.tau0_ms, 0.05
    wrong = (alpha + tau0) / (2 * (1 - rho))
    wrong *= 1 + 2 * at * tau0 + (1 - at * tau0) / (1 + at * tau0)
    assert wrong == pytest.approx(2.694, abs=1e-3)
    assert wrong < mean_latency(V100, 1000 * at)


def test_service_time_alone_and_the_half_slo_rule_both_miss_the_tail() -> None:
    slo = 10.0
    served_in_time = int((slo - V100.tau0_ms) / V100.alpha_ms)
    capped = ServiceModel(V100.alpha_ms, V100.tau0_ms, served_in_time)
    assert latency_percentile(capped, 0.95 * capped.capacity_per_s, 95) > 1.9 * slo
    halved = half_slo_batch(V100, slo)
    assert halved == 21
    full_rate = 1000 * halved / V100.batch_ms(halved)
    assert latency_percentile(V100, full_rate, 95) == pytest.approx(11.0, rel=0.02)
    assert latency_percentile(V100, full_rate, 99) == pytest.approx(12.4, rel=0.02)
    assert fluid_rate(V100, slo) == pytest.approx(full_rate, rel=0.02)


@pytest.mark.parametrize(
    ("service", "slo"), [(V100, 6), (V100, 10), (V100, 20), (P4, 10), (P4, 20)]
)
def test_rate_of_the_closed_form_is_near_and_rarely_above_the_exact_one(
    service: ServiceModel, slo: float
) -> None:
    for percentile, lowest in ((95, 0.90), (99, 0.75)):
        low, high = 0.0, 1000 / service.alpha_ms
        for _ in range(40):
            middle = (low + high) / 2
            if tail_estimate(service, middle, percentile) <= slo:
                low = middle
            else:
                high = middle
        assert lowest <= low / max_rate(service, slo, percentile) <= 1.01


@pytest.mark.parametrize("cv2", [0.0, 0.05, 0.1])
@pytest.mark.parametrize("rho", [0.05, 0.3, 0.7])
def test_telemetry_identity_holds_for_variable_batch_times(cv2: float, rho: float) -> None:
    queue = BatchQueue.solve(V100, rate(V100, rho) / 1000, service_cv2=cv2)
    assert queue is not None
    told = mean_from_telemetry(V100, rate(V100, rho), queue.mean_batch, cv2)
    assert told == pytest.approx(queue.mean_ms, rel=1e-4)


def test_mean_of_variable_batch_times_has_a_limit_of_its_own() -> None:
    assert mean_from_telemetry(V100, rate(V100, 0.9), 100, service_cv2=0.3) == np.inf
    assert BatchQueue.solve(V100, rate(V100, 0.9) / 1000, service_cv2=0.3) is None


@pytest.mark.parametrize(
    ("burstiness", "mean_over_phi", "p99_over_phi"), [(4, 1.1, (2.0, 2.45)), (16, 1.55, (3.6, 4.8))]
)
def test_bursty_arrivals_stretch_mean_and_tail(
    burstiness: float, mean_over_phi: float, p99_over_phi: tuple[float, float]
) -> None:
    for rho in (0.3, 0.5, 0.8):
        at = rate(V100, rho)
        phi = mean_bound(V100, at)
        assert mean_latency(V100, at, burstiness) / phi == pytest.approx(mean_over_phi, rel=0.1)
        low, high = p99_over_phi
        assert low <= latency_percentile(V100, at, 99, burstiness) / phi <= high


def test_one_row_per_batch_is_the_textbook_m_d_1_queue() -> None:
    service = ServiceModel(1.0, 1.0, cap=1)
    for load in (0.1, 0.5, 0.9):
        waited = load / (2 * (1 - load)) * 2.0
        assert mean_latency(service, load * 500) == pytest.approx(2.0 + waited, rel=1e-6)


def test_a_cap_that_never_binds_changes_nothing() -> None:
    loose = ServiceModel(V100.alpha_ms, V100.tau0_ms, cap=400)
    for rho in (0.1, 0.5, 0.8):
        at = rate(V100, rho)
        assert mean_latency(loose, at) == pytest.approx(mean_latency(V100, at), rel=1e-6)
        assert latency_percentile(loose, at, 99) == pytest.approx(
            latency_percentile(V100, at, 99), rel=1e-3
        )


def test_sampled_counts_give_the_answer_of_all_counts() -> None:
    fine = BatchQueue.solve(ServiceModel(0.01, 3.0, cap=251), 40.0)
    sampled = BatchQueue.solve(ServiceModel(0.01, 3.0, cap=252), 40.0)
    assert fine is not None
    assert sampled is not None
    assert (fine.stride, sampled.stride) == (1, 2)
    assert sampled.mean_ms == pytest.approx(fine.mean_ms, rel=5e-3)
    assert sampled.percentile_ms(99) == pytest.approx(fine.percentile_ms(99), rel=5e-3)


def test_saturated_queues_have_no_solution() -> None:
    assert BatchQueue.solve(ServiceModel(1.0, 1.0, cap=4), 0.8) is None
    assert BatchQueue.solve(ServiceModel(1.0, 1.0), 1.0) is None


def test_arrival_laws_agree_with_scipy() -> None:
    means = np.array([0.01, 0.7, 12.0, 90.0])
    counts = np.arange(150)
    poisson = stats.poisson.pmf(counts, means[:, None])
    np.testing.assert_allclose(arrivals_during(means, 150), poisson, atol=1e-12)
    bursty = stats.nbinom.pmf(counts, means[:, None] / 3, 1 / 4)
    np.testing.assert_allclose(arrivals_during(means, 150, burstiness=4), bursty, atol=1e-9)
    mixed = stats.nbinom.pmf(counts, 1 / 0.3, 1 / (1 + 0.3 * means[:, None]))
    np.testing.assert_allclose(arrivals_in_gamma_time(means, 150, 0.3), mixed, atol=1e-9)
