"""Latency of servers on one queue at every load, equal and different ones, against the simulation."""

from __future__ import annotations

from math import inf

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tessera_core.perf import ServiceModel
from tessera_core.perf.part_load import part_load_latency
from tessera_core.perf.shared_queue import Server, shared_latency
from tessera_core.simulate import Station, simulate
from tessera_core.simulate.arrivals import gamma


def server(model: ServiceModel) -> Server:
    assert model.cap is not None
    full = model.batch_ms(model.cap)
    return Server(model.cap, full, model.tau0_ms, model.spread_ms, model.instances)


def predicted(
    models: list[ServiceModel], rate: float, percentile: float, burstiness: float = 1.0
) -> float:
    """As the planner predicts."""
    servers = [server(each) for each in models]
    return min(
        law(servers, rate, percentile, burstiness) for law in (shared_latency, part_load_latency)
    )


def simulated(
    models: list[ServiceModel], rate: float, percentile: float, burstiness: float = 1.0
) -> float:
    stations = [Station(model.batch_times_ms(), model.instances) for model in models]
    arrivals = gamma(rate, burstiness, 100_000 / rate, np.random.default_rng(3))
    return simulate(stations, arrivals).percentile_ms(percentile, warm_up=0.05)


EQUAL = {
    "three, quick batches": [ServiceModel(1.0, 0.5, 64, 3)],
    "eight, long batches": [ServiceModel(1.0, 10.0, 16, 8)],
    "two, one row each": [ServiceModel(5.0, 1.0, 1, 2)],
}
DIFFERENT = {
    "two slices": [ServiceModel(0.16, 2.05, 63), ServiceModel(0.25, 2.2, 41)],
    "three slices": [
        ServiceModel(0.1, 16.4, 128),
        ServiceModel(0.27, 21.1, 128, 2),
        ServiceModel(0.2, 19.1, 128, 2),
    ],
    "small and large": [ServiceModel(0.52, 4.0, 15, 3), ServiceModel(0.94, 5.2, 7, 3)],
    "more than the table has": [ServiceModel(0.3, 3.0, 16, 12), ServiceModel(0.5, 3.5, 16, 8)],
}


@pytest.mark.parametrize("load", [0.05, 0.2, 0.5, 0.8, 0.95])
@pytest.mark.parametrize("models", EQUAL.values(), ids=EQUAL.keys())
def test_equal_servers_are_predicted_closely_at_every_load(
    models: list[ServiceModel], load: float
) -> None:
    rate = load * models[0].capacity_per_s
    found = predicted(models, rate, 99.0)
    assert found == pytest.approx(simulated(models, rate, 99.0), rel=0.12)


@pytest.mark.parametrize("load", [0.05, 0.2, 0.5, 0.8, 0.95])
@pytest.mark.parametrize("models", DIFFERENT.values(), ids=DIFFERENT.keys())
def test_different_servers_are_predicted_on_the_safe_side(
    models: list[ServiceModel], load: float
) -> None:
    rate = load * sum(each.capacity_per_s for each in models)
    found = predicted(models, rate, 99.0)
    expected = simulated(models, rate, 99.0)
    assert 0.9 * expected <= found <= 1.5 * expected


@pytest.mark.parametrize("load", [0.2, 0.6, 0.9])
def test_bursts_are_predicted_on_the_safe_side(load: float) -> None:
    models = [ServiceModel(0.5, 4.0, 16, 2), ServiceModel(0.8, 5.0, 16)]
    rate = load * sum(each.capacity_per_s for each in models)
    found = predicted(models, rate, 99.0, burstiness=4.0)
    expected = simulated(models, rate, 99.0, burstiness=4.0)
    assert 0.9 * expected <= found <= 2 * expected


models = st.builds(
    ServiceModel,
    alpha_ms=st.floats(0.05, 5.0),
    tau0_ms=st.floats(0.0, 20.0),
    cap=st.integers(1, 200),
    instances=st.integers(1, 12),
    spread_ms=st.sampled_from([0.0, 1.0]),
)


@given(
    pool=st.lists(models, min_size=2, max_size=3),
    load=st.floats(0.0, 0.98),
    percentile=st.sampled_from([50.0, 90.0, 99.0, 99.95]),
)
@settings(deadline=None, max_examples=50)
def test_no_latency_is_below_that_of_a_lone_row(
    pool: list[ServiceModel], load: float, percentile: float
) -> None:
    rate = load * sum(each.capacity_per_s for each in pool)
    found = part_load_latency([server(each) for each in pool], rate, percentile)
    assert found >= max(each.batch_ms(1) + each.spread_ms for each in pool) * (1 - 1e-9)
    assert found < inf


def test_equal_servers_may_be_given_one_by_one() -> None:
    one = server(ServiceModel(0.5, 2.0, 16, spread_ms=0.5))
    three = Server(one.cap, one.batch_ms, one.tau0_ms, one.spread_ms, 3)
    rate = 0.5 * 3 * one.rows_per_ms * 1e3
    assert part_load_latency([three], rate, 99.0) == pytest.approx(
        part_load_latency([one] * 3, rate, 99.0)
    )


def test_without_load_a_row_takes_its_time_and_too_much_load_has_no_latency() -> None:
    servers = [server(ServiceModel(0.5, 2.0, 16, 2, spread_ms=1.0))]
    assert part_load_latency(servers, 0.0, 99.0) == pytest.approx(3.5)
    assert part_load_latency(servers, 0.99 * servers[0].rows_per_ms * 1e3, 99.0) == inf
