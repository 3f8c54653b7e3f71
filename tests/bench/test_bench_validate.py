"""The queue check against the exact law of one server, the core's simulator, and cases known by hand."""

from __future__ import annotations

from math import log

import numpy as np
import pytest
from bench.planner.validate import simulate_pool

from tessera_core.perf import ServiceModel, latency_percentile, mean_latency
from tessera_core.simulate.station import Station, simulate


@pytest.mark.parametrize(("cap", "share"), [(1, 0.6), (8, 0.3), (8, 0.9), (64, 0.7)])
def test_one_server_agrees_with_the_exact_law(cap: int, share: float) -> None:
    service = ServiceModel(alpha_ms=0.5, tau0_ms=3.0, cap=cap)
    rate = share * service.capacity_per_s
    found = simulate_pool([service.batch_times_ms()], rate, slo_ms=1e9, seed=5, rows=400_000)
    assert found.load == pytest.approx(share)
    assert found.mean_ms == pytest.approx(mean_latency(service, rate), rel=0.03)
    assert found.p99_ms == pytest.approx(latency_percentile(service, rate, 99.0), rel=0.04)


def test_equal_servers_agree_with_the_cores_simulator() -> None:
    service = ServiceModel(alpha_ms=0.5, tau0_ms=3.0, cap=8, instances=3)
    times, rate = service.batch_times_ms(), 0.7 * service.capacity_per_s
    arrivals = np.cumsum(np.random.default_rng(9).exponential(1e3 / rate, 100_000))
    other = simulate(Station(times, 3), arrivals)
    found = simulate_pool([times] * 3, rate, slo_ms=1e9, seed=9, rows=100_000, warm_up=0.0)
    assert found.p99_ms == pytest.approx(other.percentile_ms(99.0))
    assert found.mean_ms == pytest.approx(float(other.latency_ms.mean()))


def test_a_lone_row_goes_to_the_fastest_server() -> None:
    found = simulate_pool([(50.0,), (5.0, 6.0), (20.0,)], 0.1, slo_ms=10, seed=1, rows=5_000)
    assert found.p50_ms == pytest.approx(5.0)
    assert found.late < 0.01
    assert found.mean_batch < 1.01


def test_the_slower_server_helps_under_load() -> None:
    fast, slow = (1.0,), (3.0,)
    alone = simulate_pool([fast], 900, slo_ms=20, seed=2)
    both = simulate_pool([fast, slow], 900, slo_ms=20, seed=2)
    assert both.p99_ms < alone.p99_ms
    assert both.load == pytest.approx(900 / (1000 + 1000 / 3))


def test_lateness_is_the_share_beyond_the_slo() -> None:
    # M/M/inf-like: constant 10 ms, one server at 1 % load; a row is late when another is in service.
    found = simulate_pool([(10.0,)], 1.0, slo_ms=10.0001, seed=3, rows=200_000)
    assert found.late == pytest.approx(0.01, rel=0.1)
    assert found.busy == pytest.approx(0.01, rel=0.05)


def test_overload_is_said_and_does_not_hang() -> None:
    found = simulate_pool([(10.0, 12.0)], 500, slo_ms=50, seed=4, rows=20_000)
    assert found.load == pytest.approx(3.0)
    assert found.late > 0.9


def test_the_seed_decides() -> None:
    runs = [simulate_pool([(2.0, 3.0)], 300, 20, seed, rows=5_000) for seed in (1, 1, 2)]
    assert runs[0] == runs[1]
    assert runs[0] != runs[2]


def test_a_deterministic_server_with_poisson_rows_waits_as_pollaczek_says() -> None:
    # M/D/1 at half load: mean wait is rho/(2(1-rho)) services.
    found = simulate_pool([(4.0,)], 125.0, slo_ms=1e9, seed=6, rows=400_000)
    assert found.mean_ms == pytest.approx(4 + 4 * 0.5 / (2 * 0.5), rel=0.02)
    assert found.p50_ms < 4 + 4 * log(2) * 2


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"servers": []}, "servers"),
        ({"servers": [()]}, "servers"),
        ({"servers": [(0.0,)]}, "servers"),
        ({"rate_per_s": 0.0}, "rate_per_s"),
        ({"rows": 0}, "rows"),
        ({"warm_up": 1.0}, "warm_up"),
    ],
)
def test_what_cannot_be_simulated_is_named(change: dict[str, object], said: str) -> None:
    wanted = {"servers": [(1.0,)], "rate_per_s": 1.0, "slo_ms": 1.0, "seed": 0} | change
    with pytest.raises(ValueError, match=said):
        simulate_pool(**wanted)  # type: ignore[arg-type]
