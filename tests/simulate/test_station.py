"""The simulator by hand-computed cases, against a plain event loop, and against the exact model."""

from __future__ import annotations

from itertools import pairwise
from math import inf

import numpy as np
import pytest
from bench.planner.validate import simulate_pool
from hypothesis import given, settings
from hypothesis import strategies as st

from tessera_core.perf import ServiceModel, member_percentile
from tessera_core.perf.batch_queue import BatchQueue
from tessera_core.simulate import Station, simulate, simulate_ensemble
from tessera_core.simulate.arrivals import gamma, poisson

TWO_ROWS = Station((3.0, 4.0))


def at(*times: float) -> np.ndarray:
    return np.array(times)


def test_a_batch_takes_all_that_wait_up_to_the_cap_in_order() -> None:
    served = simulate(TWO_ROWS, at(0, 1, 1, 2))
    assert served.latency_ms.tolist() == [3, 6, 6, 8]
    assert served.batch_sizes.tolist() == [1, 2, 1]
    assert served.busy_ms == 10
    assert served.utilisation == 1


def test_an_idle_server_starts_at_the_arrival() -> None:
    served = simulate(TWO_ROWS, at(5, 20))
    assert served.latency_ms.tolist() == [3, 3]
    assert served.utilisation == pytest.approx(6 / 23)


def test_servers_share_one_queue() -> None:
    served = simulate(Station((3.0, 4.0), instances=2), at(0, 1, 2, 2.5))
    assert served.latency_ms.tolist() == [3, 3, 5, 4.5]


def test_of_different_free_servers_the_one_takes_a_batch_that_was_last_busy() -> None:
    fast, slow = Station((3.0, 4.0)), Station((5.0, 6.0, 7.0))
    served = simulate((fast, slow), at(0, 1, 10, 20, 21))
    # 0 to the one that is listed last, 1 to the other; then the slow one ended last, and again.
    assert served.stations.tolist() == [1, 0, 1, 1, 0]
    assert served.latency_ms.tolist() == [5, 3, 5, 5, 3]
    assert served.busy_ms == 21
    assert served.utilisation == pytest.approx(21 / (25 * 2))


@pytest.mark.parametrize("slo_ms", [None, at(9, 9, 9, 9, 8)])
def test_what_it_does_not_take_goes_to_the_one_that_was_busy_before_it(
    slo_ms: np.ndarray | None,
) -> None:
    wide, narrow = Station((2.0, 2.0, 2.0, 2.0)), Station((1.0,))
    served = simulate((wide, narrow), at(0, 0, 0, 0, 0), slo_ms)
    assert served.stations.tolist() == [1, 0]
    assert served.batch_sizes.tolist() == [1, 4]
    assert sorted(served.latency_ms) == [1, 2, 2, 2, 2]


def test_batches_take_longer_and_shorter_by_the_noise_of_their_size_in_turn() -> None:
    station = Station((2.0, 4.0), noise=((1.5, 0.5, 2.0), (0.25,)))
    served = simulate(station, at(0, 1, 1, 10, 20, 30))
    # One row 3 ms, two rows 1 ms, then single rows 1, 4 and again 3 ms.
    assert served.latency_ms.tolist() == [3, 3, 3, 1, 4, 3]
    assert served.busy_ms == 12
    mixed = simulate(station, at(0, 1, 1, 10, 20, 30), slo_ms=at(9, 9, 8, 9, 9, 9))
    assert mixed.latency_ms.tolist() == served.latency_ms.tolist()
    assert mixed.busy_ms == served.busy_ms
    pool = simulate((station, station), at(0, 10, 20))
    assert pool.latency_ms.tolist() == [3, 1, 4]


def test_what_is_dropped_is_dropped_by_what_its_batch_is_expected_to_take() -> None:
    slow = Station((2.0,), noise=((3.0,),))
    served = simulate(slow, at(0, 1, 3), slo_ms=4.0)
    # The first ends at 6, 2 ms after its deadline; the second could end at 8 only.
    assert served.latency_ms.tolist() == [6, inf, inf]
    assert simulate(slow, at(0, 3), slo_ms=5.0).latency_ms.tolist() == [6, 9]


def test_what_is_hopeless_on_the_server_that_is_free_is_dropped() -> None:
    pool = (Station((9.0,)), Station((2.0,)))
    served = simulate(pool, at(0, 1, 2.5), slo_ms=4.0)
    assert served.latency_ms.tolist() == [2, inf, 2]
    assert served.stations.tolist() == [1, 1]
    mixed = simulate(pool, at(0, 1, 2.5), slo_ms=at(4, 4, 2))
    assert mixed.latency_ms.tolist() == [2, inf, 2]


def test_mixed_deadlines_start_nobody_before_they_came() -> None:
    served = simulate(Station((0.5,), 2), at(0, 1, 1, 1), slo_ms=at(9, 9, 9, 8.5))
    assert served.latency_ms.tolist() == [0.5, 0.5, 1.0, 0.5]


def test_what_cannot_finish_in_the_batch_is_dropped_and_the_batch_refilled() -> None:
    served = simulate(TWO_ROWS, at(0, 0.5, 1, 2.9), slo_ms=6.0)
    # At t = 3 a batch of two would end at 7: the request of 0.5 (deadline 6.5) goes, 2.9 takes its place.
    assert served.latency_ms.tolist() == [3, inf, 6, 4.1]
    assert served.dropped == 1
    assert served.within(6.0) == 0.75


def test_a_tighter_deadline_goes_first() -> None:
    served = simulate(Station((3.0,)), at(0, 1, 2), slo_ms=at(20, 20, 5))
    assert served.latency_ms.tolist() == [3, 8, 4]


def test_an_empty_trace_is_no_error() -> None:
    served = simulate(TWO_ROWS, at())
    assert served.within(1.0) == 1
    assert served.utilisation == 0
    with pytest.raises(ValueError, match="no request"):
        served.percentile_ms(99)


@pytest.mark.parametrize(
    ("arrivals", "slo", "message"),
    [((2, 1), None, "ascending"), ((1, 2), 0.0, "slo_ms"), ((1, 2), at(1, -1), "slo_ms")],
)
def test_bad_traces_are_refused(
    arrivals: tuple[float, ...], slo: float | np.ndarray | None, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        simulate(TWO_ROWS, at(*arrivals), slo)


def test_bad_stations_are_refused() -> None:
    with pytest.raises(ValueError, match="batch_ms"):
        Station(())
    with pytest.raises(ValueError, match="instances"):
        Station((1.0,), 0)
    with pytest.raises(ValueError, match="noise: needs factors for each of 2"):
        Station((1.0, 2.0), noise=((1.0,),))
    for factors in ((), (1.0, 0.0)):
        with pytest.raises(ValueError, match="noise: needs a positive"):
            Station((1.0,), noise=(factors,))
    with pytest.raises(ValueError, match="at least one station"):
        simulate((), at(1.0))


gaps = st.lists(st.sampled_from([0.0, 0.1, 0.5, 1.0, 4.0]), min_size=1, max_size=60)


@given(gaps=gaps, instances=st.integers(1, 3), cap=st.integers(1, 5), slo=st.floats(2.5, 12))
@settings(deadline=None)
def test_both_loops_agree_when_deadlines_follow_arrivals(
    gaps: list[float], instances: int, cap: int, slo: float
) -> None:
    station = Station(tuple(2.0 + 0.3 * rows for rows in range(1, cap + 1)), instances)
    arrivals = np.cumsum(gaps)
    fast = simulate(station, arrivals, slo)
    # A last request with a later arrival but an earlier deadline forces the general loop.
    late = np.append(arrivals, arrivals[-1] + 1000)
    general = simulate(station, late, np.append(np.full(len(gaps), slo), 1e-3))
    in_order = simulate(station, late, np.append(np.full(len(gaps), slo), 900.0))
    assert fast.latency_ms.tolist() == in_order.latency_ms[:-1].tolist()
    shortest = simulate(station, arrivals, np.full(len(gaps), slo))
    assert shortest.latency_ms.tolist() == fast.latency_ms.tolist()
    assert general.latency_ms[-1] == inf


@given(gaps=gaps, instances=st.integers(1, 3), cap=st.integers(1, 5))
@settings(deadline=None)
def test_every_request_is_served_once_and_the_servers_never_rest_beside_work(
    gaps: list[float], instances: int, cap: int
) -> None:
    times = tuple(2.0 + 0.3 * rows for rows in range(1, cap + 1))
    arrivals = np.cumsum(gaps)
    served = simulate(Station(times, instances), arrivals)
    assert served.batch_sizes.sum() == len(gaps)
    assert served.batch_sizes.max() <= cap
    assert (served.latency_ms >= times[0] - 1e-9).all()
    starts = []
    for size, first in zip(
        served.batch_sizes, np.cumsum(served.batch_sizes) - served.batch_sizes, strict=True
    ):
        starts.append(arrivals[first] + served.latency_ms[first] - times[size - 1])
    assert all(one <= two + 1e-9 for one, two in pairwise(starts))
    assert served.busy_ms == pytest.approx(sum(times[size - 1] for size in served.batch_sizes))


stations = st.builds(
    lambda alpha, tau0, cap, count: Station(
        tuple(tau0 + alpha * rows for rows in range(1, cap + 1)), count
    ),
    st.sampled_from([0.1, 0.3, 0.7]),
    st.sampled_from([0.5, 2.0]),
    st.integers(1, 5),
    st.integers(1, 3),
)


@given(pool=stations, load=st.floats(0.05, 0.95))
@settings(deadline=None)
def test_equal_servers_agree_with_an_independent_simulation(pool: Station, load: float) -> None:
    servers = [pool.batch_ms] * pool.instances
    rate = 1e3 * load * sum(len(times) / times[-1] for times in servers)
    arrivals = np.cumsum(np.random.default_rng(5).exponential(1e3 / rate, 300))
    served = simulate(pool, arrivals)
    other = simulate_pool(servers, rate, slo_ms=5.0, seed=5, rows=300, warm_up=0.0)
    assert served.percentile_ms(50) == pytest.approx(other.p50_ms)
    assert served.percentile_ms(99) == pytest.approx(other.p99_ms)
    assert served.latency_ms.mean() == pytest.approx(other.mean_ms)
    assert served.batch_sizes.mean() == pytest.approx(other.mean_batch)
    busy = sum(pool.batch_ms[size - 1] for size in served.batch_sizes)
    assert served.busy_ms == pytest.approx(busy)


@given(gaps=gaps, times=stations, slo=st.floats(2.5, 12), whole=st.booleans())
@settings(deadline=None)
def test_equal_servers_may_be_given_one_by_one(
    gaps: list[float], times: Station, slo: float, whole: bool
) -> None:
    arrivals = np.cumsum(gaps)
    # Deadlines out of order take the general loop.
    allowed = slo if whole else slo + np.arange(len(gaps)) % 3 * 5.0
    together = simulate(times, arrivals, allowed)
    apart = simulate([Station(times.batch_ms)] * times.instances, arrivals, allowed)
    assert apart.latency_ms.tolist() == together.latency_ms.tolist()
    assert apart.batch_sizes.tolist() == together.batch_sizes.tolist()
    assert apart.busy_ms == pytest.approx(together.busy_ms)


@pytest.mark.parametrize(
    ("alpha", "tau0", "cap", "load", "requests"),
    [
        (0.1438, 1.8874, 64, 0.6, 300_000),
        (0.1438, 1.8874, 8, 0.8, 300_000),
        (0.1438, 1.8874, 4, 0.5, 300_000),
        (0.5833, 1.4284, 2, 0.7, 600_000),
        (5.0, 1.0, 64, 0.5, 300_000),
        (0.01, 3.0, 256, 0.9, 1_000_000),
    ],
)
def test_exact_model_predicts_the_simulation(
    alpha: float, tau0: float, cap: int, load: float, requests: int
) -> None:
    service = ServiceModel(alpha, tau0, cap)
    rate = load * service.capacity_per_s
    arrivals = poisson(rate, requests / rate, np.random.default_rng(7))
    served = simulate(Station(service.batch_times_ms()), arrivals)
    queue = BatchQueue.solve(service, rate / 1000)
    assert queue is not None
    assert served.latency_ms.mean() == pytest.approx(queue.mean_ms, rel=0.01)
    for percentile in (50, 95, 99):
        assert served.percentile_ms(percentile) == pytest.approx(
            queue.percentile_ms(percentile), rel=0.02
        )
    assert served.utilisation == pytest.approx(queue.busy, rel=0.01)
    assert served.batch_sizes.mean() == pytest.approx(queue.mean_batch, rel=0.01)


@pytest.mark.parametrize("cv2", [2.0, 4.0, 16.0])
@pytest.mark.parametrize(("overhead", "cap"), [(3.0, 4), (13.0, 16), (13.0, 128)])
def test_bursty_model_is_not_below_the_simulation_by_more_than_its_noise(
    cv2: float, overhead: float, cap: int
) -> None:
    service = ServiceModel(1.0, overhead, cap)
    for load in (0.1, 0.3, 0.6):
        rate = load * service.capacity_per_s
        arrivals = gamma(rate, cv2, 100_000 / rate, np.random.default_rng(3))
        served = simulate(Station(service.batch_times_ms()), arrivals)
        queue = BatchQueue.solve(service, rate / 1000, cv2)
        assert queue is not None
        assert queue.percentile_ms(99) >= 0.95 * served.percentile_ms(99)
        assert queue.mean_ms >= 0.95 * served.latency_ms.mean()


def test_independence_is_a_safe_guess_for_an_ensemble() -> None:
    services = [ServiceModel(0.1438, 1.8874 * scale, 128) for scale in (0.8, 1.0, 1.2)]
    rate = 2500.0
    arrivals = poisson(rate, 120, np.random.default_rng(11))
    stations = [Station(service.batch_times_ms()) for service in services]
    together = simulate_ensemble(stations, arrivals)
    each = member_percentile(99, 3)
    queues = [BatchQueue.solve(service, rate / 1000) for service in services]
    bound = max(queue.percentile_ms(each) for queue in queues if queue is not None)
    measured = float(np.percentile(together, 99))
    assert measured <= bound * 1.005
    assert measured >= 0.93 * bound


def test_a_quorum_waits_for_its_members_only() -> None:
    stations = [Station((1.0,)), Station((2.0,)), Station((5.0,))]
    arrivals = at(0, 100)
    assert simulate_ensemble(stations, arrivals).tolist() == [5, 5]
    assert simulate_ensemble(stations, arrivals, min_members=2).tolist() == [2, 2]
    assert simulate_ensemble(stations, arrivals, 1, frozenset({1})).tolist() == [2, 2]
    assert simulate_ensemble(stations, arrivals, 3, frozenset({0})).tolist() == [5, 5]
    with pytest.raises(ValueError, match="min_members"):
        simulate_ensemble(stations, arrivals, 4)
    with pytest.raises(ValueError, match="required"):
        simulate_ensemble(stations, arrivals, 1, frozenset({3}))
