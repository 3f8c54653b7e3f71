"""Requests of different lengths: the simulation of one queue in which batches are formed in one way or another."""

from __future__ import annotations

import numpy as np
import pytest

from tessera_core.batching.policy import Lengths
from tessera_core.batching.preba import Limit
from tessera_core.simulate import Station, simulate
from tessera_core.simulate.arrivals import poisson
from tessera_core.simulate.lengths import AtOnce, Waiting, simulate_lengths

CAP, ALPHA_MS, TAU0_MS = 8, 1.0, 3.0


def law(rows: float) -> float:
    return TAU0_MS + ALPHA_MS * rows


def arrivals(rate_per_s: float = 600.0) -> np.ndarray:
    return poisson(rate_per_s, 5.0, np.random.default_rng(3))


@pytest.mark.parametrize("instances", [1, 3])
def test_of_one_length_it_is_the_station_that_serves(instances: int) -> None:
    times = arrivals(600.0 * instances)
    station = simulate(Station(tuple(law(n) for n in range(1, CAP + 1)), instances), times)
    ours = simulate_lengths(
        AtOnce([1.0], CAP, Lengths(1.0, CAP, instances), law),
        lambda rows, _: law(rows),
        instances,
        times,
        np.zeros(len(times), dtype=np.int64),
    )
    assert np.allclose(ours.latency_ms, station.latency_ms)
    assert np.array_equal(ours.batch_sizes, station.batch_sizes)
    assert ours.busy_ms == pytest.approx(station.busy_ms)


def test_who_does_not_wait_batches_alike() -> None:
    times = arrivals()
    buckets = np.zeros(len(times), dtype=np.int64)
    served = [
        simulate_lengths(forming, lambda rows, _: law(rows), 1, times, buckets)
        for forming in (AtOnce([1.0], CAP, Lengths(1.0, CAP, 1), law), Waiting([Limit(CAP, 0.0)]))
    ]
    assert np.array_equal(served[0].batches, served[1].batches)


def test_who_waits_leaves_an_instance_idle_until_company_or_time_has_come() -> None:
    times = np.array([0.0, 1.0, 50.0])
    served = simulate_lengths(
        Waiting([Limit(8, 5.0)]), lambda rows, _: law(rows), 1, times, np.zeros(3, dtype=np.int64)
    )
    assert served.latency_ms.tolist() == [5.0 + law(2), 4.0 + law(2), 5.0 + law(1)]


@pytest.mark.parametrize("waits", [True, False])
def test_a_batch_takes_what_its_longest_does_and_nothing_is_lost(waits: bool) -> None:
    rng = np.random.default_rng(5)
    times, sizes = arrivals(), (0.25, 0.5, 1.0)
    buckets = rng.integers(0, 3, len(times))
    limits = [Limit(round(CAP / size), 10.0) for size in sizes]
    seen: list[tuple[int, int]] = []

    def batch_ms(rows: int, bucket: int) -> float:
        seen.append((rows, bucket))
        return law(rows * sizes[bucket])

    served = simulate_lengths(
        Waiting(limits) if waits else AtOnce(sizes, CAP, Lengths(1.0, 64, 2), law),
        batch_ms,
        2,
        times,
        buckets,
    )
    assert (served.batches >= 0).all()
    assert served.busy_ms == pytest.approx(sum(law(n * sizes[bucket]) for n, bucket in seen))
    for number, (rows, bucket) in enumerate(seen):
        assert buckets[served.batches == number].max() == bucket
        assert rows <= limits[bucket].batch


def test_arguments_that_do_not_fit_are_refused() -> None:
    forming, none = Waiting([Limit(1, 0.0)]), np.zeros(1, dtype=np.int64)
    with pytest.raises(ValueError, match="instances"):
        simulate_lengths(forming, lambda *_: 1.0, 0, np.zeros(1), none)
    with pytest.raises(ValueError, match="buckets"):
        simulate_lengths(forming, lambda *_: 1.0, 1, np.zeros(2), none)
    with pytest.raises(ValueError, match="arrivals_ms"):
        simulate_lengths(forming, lambda *_: 1.0, 1, np.array([2.0, 1.0]), np.zeros(2, dtype=int))


def test_full_batches_of_all_lengths_come_to_take_equally_long() -> None:
    sizes, costs = (0.25, 0.5, 1.0), (0.1, 0.3, 1.0)
    buckets = np.random.default_rng(7).integers(0, 3, 20_000)
    took: dict[int, list[float]] = {0: [], 1: [], 2: []}

    def batch_ms(rows: int, bucket: int) -> float:
        return law(rows * costs[bucket])

    def seen_ms(rows: int, bucket: int) -> float:
        took[bucket].append(batch_ms(rows, bucket))
        return took[bucket][-1]

    mean = float(np.mean(sizes))
    queue = AtOnce(
        sizes,
        32,
        Lengths(mean, 1000, 0),
        lambda rows: law(rows * mean),
        took_ms=batch_ms,
    )
    simulate_lengths(queue, seen_ms, 1, np.zeros(len(buckets)), buckets)
    before, after = (
        [float(np.mean(took[bucket][part])) for bucket in took]
        for part in (slice(0, 5), slice(-20, -5))
    )
    assert max(before) / min(before) > 1.5
    assert max(after) / min(after) < 1.1
