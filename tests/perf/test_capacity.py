"""The functions that the planner calls: monotone, consistent with each other, clear about bad input."""

from __future__ import annotations

from math import inf

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tessera_core.perf import (
    FULLEST_LOAD,
    EnergyModel,
    ServiceModel,
    joules_per_row,
    latency_percentile,
    max_rate,
    mean_latency,
    utilisation,
)

services = st.builds(
    ServiceModel,
    alpha_ms=st.floats(0.005, 5),
    tau0_ms=st.floats(0, 20),
    cap=st.sampled_from([1, 2, 4, 7, 16, 64, 128]),
    instances=st.sampled_from([1, 1, 2, 3, 5, 8]),
)


@given(service=services, slack=st.floats(1.05, 30), percentile=st.sampled_from([90, 95, 99, 99.5]))
@settings(max_examples=25, deadline=None)
def test_latency_at_the_largest_rate_meets_the_slo(
    service: ServiceModel, slack: float, percentile: float
) -> None:
    slo = slack * service.batch_ms(1)
    at = max_rate(service, slo, percentile)
    assert 0 < at <= FULLEST_LOAD * service.capacity_per_s
    assert latency_percentile(service, at, percentile) <= slo * 1.01


@given(service=services, slack=st.floats(1.1, 20))
@settings(max_examples=12, deadline=None)
def test_more_slo_never_admits_less_and_a_stricter_percentile_or_bursts_never_more(
    service: ServiceModel, slack: float
) -> None:
    slo = slack * service.batch_ms(1)
    at = max_rate(service, slo, 99)
    assert max_rate(service, 1.2 * slo, 99) >= at * 0.997
    assert max_rate(service, slo, 99.7) <= at * 1.003
    assert max_rate(service, slo, 99, burstiness=4.0) <= at * 1.003


def test_times_scale_rates() -> None:
    service = ServiceModel(0.1, 2.0, 32, 2)
    slower = service.scaled(3.0)
    assert max_rate(slower, 30, 99) == pytest.approx(max_rate(service, 10, 99) / 3, rel=3e-3)
    assert latency_percentile(slower, 300, 99) == pytest.approx(
        3 * latency_percentile(service, 900, 99), rel=1e-3
    )


def test_an_slo_below_one_row_admits_nothing() -> None:
    assert max_rate(ServiceModel(1.0, 4.0, 8), 4.9, 99) == 0
    assert max_rate(ServiceModel(1.0, 4.0, 8, spread_ms=2.0), 6.9, 99) == 0
    assert max_rate(ServiceModel(1.0, 4.0, 8, spread_ms=2.0), 7.1, 99) > 0


def test_a_generous_slo_admits_the_fullest_load() -> None:
    service = ServiceModel(0.1, 1.0, 8)
    assert max_rate(service, 10_000, 99) == pytest.approx(FULLEST_LOAD * service.capacity_per_s)


def test_tail_of_the_batch_time_itself_is_added() -> None:
    plain, jittery = ServiceModel(0.1, 2, 32), ServiceModel(0.1, 2, 32, spread_ms=1.5)
    assert latency_percentile(jittery, 1000, 99) == pytest.approx(
        latency_percentile(plain, 1000, 99) + 1.5
    )
    assert max_rate(jittery, 11.5, 99) == max_rate(plain, 10, 99)


def test_edges_of_the_rate() -> None:
    service = ServiceModel(0.5, 2.0, 4)
    assert latency_percentile(service, 0, 99) == mean_latency(service, 0) == 2.5
    assert latency_percentile(service, service.capacity_per_s, 99) == inf
    assert mean_latency(service, 2 * service.capacity_per_s) == inf
    assert utilisation(service, 500) == pytest.approx(0.5)


def test_members_back_to_back_add_their_coefficients() -> None:
    one, two = ServiceModel(0.1, 1.0, 16), ServiceModel(0.3, 2.0, 8, spread_ms=0.5)
    assert one.then(two) == ServiceModel(0.4, 3.0, 8, 1, 0.5)
    with pytest.raises(ValueError, match="instances"):
        one.then(ServiceModel(0.1, 1.0, 8, instances=2))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"alpha_ms": 0.0, "tau0_ms": 1.0}, r"alpha_ms.*positive.*0\.0"),
        ({"alpha_ms": 1.0, "tau0_ms": -1.0}, "tau0_ms"),
        ({"alpha_ms": 1.0, "tau0_ms": 1.0, "cap": 0}, "cap"),
        ({"alpha_ms": 1.0, "tau0_ms": 1.0, "instances": 0}, "instances"),
        ({"alpha_ms": 1.0, "tau0_ms": 1.0, "spread_ms": inf}, "spread_ms"),
    ],
)
def test_a_service_out_of_range_names_the_field(fields: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ServiceModel(**fields)  # type: ignore[arg-type]


def test_bad_questions_are_refused() -> None:
    service = ServiceModel(1.0, 1.0, 4)
    with pytest.raises(ValueError, match=r"percentile.*0\.99"):
        max_rate(service, 10, 0.99)
    with pytest.raises(ValueError, match="slo_ms"):
        max_rate(service, 0, 99)
    with pytest.raises(ValueError, match="burstiness"):
        max_rate(service, 10, 99, burstiness=0)
    with pytest.raises(ValueError, match="rate_per_s"):
        latency_percentile(service, -1, 99)


def test_arrivals_smoother_than_poisson_count_as_poisson() -> None:
    service = ServiceModel(0.1, 2.0, 32)
    assert max_rate(service, 10, 99, burstiness=0.3) == max_rate(service, 10, 99)


def test_energy_per_row_never_rises_with_the_rate() -> None:
    service = ServiceModel(0.1438, 1.8874, 64)
    energy = EnergyModel(row_joules=0.03, batch_joules=0.4, idle_watts=60)
    loads = (0.02, 0.05, 0.1, 0.3, 0.5, 0.7, 0.9)
    costs = [joules_per_row(energy, service, load * service.capacity_per_s) for load in loads]
    assert costs == sorted(costs, reverse=True)
    nearly_full = joules_per_row(energy, service, 0.97 * service.capacity_per_s)
    floor = 0.03 + 0.4 / 64 + 60 / service.capacity_per_s
    assert floor < nearly_full < 1.1 * floor
    assert joules_per_row(energy, service, service.capacity_per_s) == inf
    with pytest.raises(ValueError, match="batch_joules"):
        EnergyModel(0.1, -1)
