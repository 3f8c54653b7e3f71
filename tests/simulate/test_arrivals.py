"""Arrival processes: rate, burstiness, order, reproducibility."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from tessera_core.simulate import arrivals

Process = Callable[[np.random.Generator], np.ndarray]

PROCESSES: dict[str, Process] = {
    "poisson": lambda rng: arrivals.poisson(200, 300, rng),
    "gamma": lambda rng: arrivals.gamma(200, 4.0, 300, rng),
    "on-off": lambda rng: arrivals.on_off(350, 50, 0.5, 0.5, 300, rng),
    "diurnal": lambda rng: arrivals.diurnal(200, 0.8, 60, 300, rng),
}


@pytest.mark.parametrize("name", PROCESSES)
def test_times_are_ascending_within_the_duration_at_the_mean_rate(name: str) -> None:
    times = PROCESSES[name](np.random.default_rng(5))
    assert (np.diff(times) >= 0).all()
    assert times[0] >= 0
    assert times[-1] <= 300_000
    assert len(times) == pytest.approx(60_000, rel=0.06)


@pytest.mark.parametrize("name", PROCESSES)
def test_the_same_seed_gives_the_same_times(name: str) -> None:
    process = PROCESSES[name]
    one, two = process(np.random.default_rng(5)), process(np.random.default_rng(5))
    assert one.tolist() == two.tolist()
    assert one.tolist() != process(np.random.default_rng(6)).tolist()


@pytest.mark.parametrize("cv2", [0.25, 1.0, 4.0, 16.0])
def test_gamma_gaps_have_the_asked_variation(cv2: float) -> None:
    times = arrivals.gamma(1000, cv2, 300, np.random.default_rng(1))
    gaps = np.diff(times)
    assert gaps.var() / gaps.mean() ** 2 == pytest.approx(cv2, rel=0.05)


def test_diurnal_load_starts_low_and_peaks_half_way() -> None:
    times = arrivals.diurnal(1000, 1.0, 60, 60, np.random.default_rng(1))
    per_quarter, _ = np.histogram(times, bins=4, range=(0, 60_000))
    assert per_quarter[0] + per_quarter[3] < 0.3 * per_quarter[1:3].sum()


def test_an_off_rate_of_zero_is_silence() -> None:
    times = arrivals.on_off(1000, 0, 1.0, 1.0, 60, np.random.default_rng(1))
    assert np.diff(times).max() > 300


def test_a_recorded_trace_is_checked() -> None:
    assert arrivals.recorded([0, 1, 1, 5.5]).tolist() == [0, 1, 1, 5.5]
    assert arrivals.recorded([]).size == 0
    for bad in ([2, 1], [-1, 2], [1, float("nan")], [[1, 2]]):
        with pytest.raises(ValueError, match="times_ms"):
            arrivals.recorded(bad)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda rng: arrivals.poisson(0, 1, rng), "rate_per_s"),
        (lambda rng: arrivals.poisson(1, -1, rng), "duration_s"),
        (lambda rng: arrivals.gamma(1, 0, 1, rng), "cv2"),
        (lambda rng: arrivals.on_off(1, -1, 1, 1, 1, rng), "off_rate_per_s"),
        (lambda rng: arrivals.on_off(1, 1, 0, 1, 1, rng), "mean_on_s"),
        (lambda rng: arrivals.diurnal(1, 1.5, 1, 1, rng), "swing"),
    ],
)
def test_bad_parameters_are_named(call: Process, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call(np.random.default_rng(0))
