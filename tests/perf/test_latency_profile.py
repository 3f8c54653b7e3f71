"""Latency profiles: look-up, fit, knee, and what they refuse."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tessera_core.perf import LatencyProfile, Neighbours, ProfileRow, ServiceModel


def row(batch: int, p50: float, instances: int = 1, p99: float | None = None) -> ProfileRow:
    return ProfileRow(
        batch, instances, p50, p99 or 1.2 * p50, 1000 * batch * instances / p50, 100.0 * instances
    )


def from_throughput(*cells: tuple[int, float]) -> LatencyProfile:
    return LatencyProfile(tuple(row(batch, 1000 * batch / rate) for batch, rate in cells))


@pytest.mark.parametrize(
    ("rates", "alpha", "tau0", "r2"),
    [
        ((476, 880, 1631, 2685, 5877, 6275), 0.1438, 1.8874, 0.9998),
        ((569, 736, 974, 1291, 1677, 1676), 0.5833, 1.4284, 0.9999),
    ],
)
def test_published_fits_come_out_of_published_throughputs(
    rates: tuple[float, ...], alpha: float, tau0: float, r2: float
) -> None:
    fit = from_throughput(*zip((1, 2, 4, 8, 64, 128), rates, strict=True)).fit()
    assert fit.alpha_ms == pytest.approx(alpha, abs=1e-4)
    assert fit.tau0_ms == pytest.approx(tau0, abs=1e-3)
    assert fit.r2 == pytest.approx(r2, abs=1e-4)


@given(alpha=st.floats(1e-3, 10), tau0=st.floats(0, 50), relative=st.booleans())
def test_a_line_is_found_again(alpha: float, tau0: float, relative: bool) -> None:
    fit = LatencyProfile.from_fit(alpha, tau0).fit(relative=relative)
    assert fit.alpha_ms == pytest.approx(alpha, rel=1e-4)
    assert fit.tau0_ms == pytest.approx(tau0, rel=1e-4, abs=1e-4 * alpha)
    assert fit.r2 == pytest.approx(1.0, abs=1e-6)


@dataclass(frozen=True)
class Line:
    instances: int
    batch: int
    alpha_ms: float
    tau0_ms: float
    spread_ms: float = 0.0


LINES = st.lists(
    st.builds(
        Line,
        instances=st.integers(1, 64),
        batch=st.integers(2, 1024),
        alpha_ms=st.floats(1e-3, 10),
        tau0_ms=st.floats(0, 50),
        spread_ms=st.floats(0, 20),
    ),
    min_size=1,
    max_size=5,
    unique_by=lambda line: line.instances,
)


@given(lines=LINES)
def test_lines_make_a_profile_whose_lines_they_are(lines: list[Line]) -> None:
    made = LatencyProfile.from_lines(lines)
    assert made.instance_counts == tuple(sorted(line.instances for line in lines))
    for line in lines:
        fit = made.fit(line.instances, relative=True)
        assert fit.alpha_ms == pytest.approx(line.alpha_ms, rel=1e-4)
        assert fit.tau0_ms == pytest.approx(line.tau0_ms, rel=1e-4, abs=1e-4 * line.alpha_ms)
        assert made.spread_ms(line.instances) == pytest.approx(line.spread_ms, abs=1e-9)
        sizes = [row.batch for row in made.cells(line.instances)]
        assert sizes[0] == 1
        assert sizes[-1] == line.batch
        assert all(two <= 2 * one for one, two in pairwise(sizes))
        assert made.throughput(line.batch, line.instances) == pytest.approx(
            made.cells(line.instances)[-1].throughput
        )


@pytest.mark.parametrize(
    ("lines", "named"),
    [
        ([], "at least one measured cell"),
        ([Line(2, 4, 1.0, 1.0), Line(2, 8, 1.0, 1.0)], "measured twice"),
        ([Line(1, 4, -1.0, 0.5)], r"rows\[0\].p50_ms"),
        ([Line(1, 4, 0.0, 0.0)], r"rows\[0\].p50_ms"),
        ([Line(1, 4, 1.0, 0.0, -1.0)], r"rows\[0\].p99_ms"),
    ],
)
def test_lines_that_are_none_are_refused(lines: list[Line], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        LatencyProfile.from_lines(lines)


@given(times=st.lists(st.floats(0.1, 100), min_size=1, max_size=6))
def test_fit_stays_in_bounds_whatever_was_measured(times: list[float]) -> None:
    fit = LatencyProfile(tuple(row(2**i, ms) for i, ms in enumerate(times))).fit()
    assert fit.alpha_ms > 0
    assert fit.tau0_ms >= 0


def test_lookup_interpolates_and_never_falls_with_the_batch() -> None:
    noisy = LatencyProfile((row(8, 4.0), row(1, 2.0), row(2, 3.0), row(4, 2.8)))
    assert noisy.service_ms(1) == 2.0
    assert noisy.service_ms(2) == noisy.service_ms(3) == noisy.service_ms(4) == 3.0
    assert noisy.service_ms(6) == pytest.approx(3.5)
    assert noisy.service_ms(6, tail=True) == pytest.approx(1.2 * 3.5)


def test_lookup_above_the_grid_follows_the_fit_and_below_it_stays() -> None:
    profile = LatencyProfile.from_fit(0.5, 2.0, batches=(4, 8, 16))
    assert profile.service_ms(32) == pytest.approx(18.0)
    assert profile.service_ms(1) == profile.service_ms(4) == pytest.approx(4.0)


def test_knee_is_the_smallest_batch_near_the_best_throughput() -> None:
    profile = LatencyProfile.from_fit(0.1438, 1.8874)
    assert profile.knee() == 64
    assert profile.knee(fraction=0.95) == 128
    assert profile.knee(fraction=0.8, max_latency_ms=12) == 64
    assert profile.knee(fraction=0.8, max_latency_ms=10) is None


def test_instances_and_busy_neighbours_have_rows_of_their_own() -> None:
    rows = (row(1, 2.0), row(8, 4.0), row(1, 3.0, instances=2), row(8, 7.0, instances=2))
    busy = replace(row(1, 2.6), neighbours=Neighbours.BUSY)
    profile = LatencyProfile((*rows, busy))
    assert profile.instance_counts == (1, 2)
    assert profile.service_ms(1, instances=2) == 3.0
    assert profile.service_ms(1, neighbours=Neighbours.BUSY) == 2.6
    assert profile.service_ms(1, instances=2, neighbours=Neighbours.BUSY) == 3.0
    assert profile.throughput(8, instances=2) == pytest.approx(2 * 8000 / 7)
    assert profile.memory_mib(2) == 200.0
    with pytest.raises(ValueError, match=r"instances: 3 was not measured, only \[1, 2\]"):
        profile.service_ms(1, instances=3)


def test_service_for_the_queue_model_fits_what_the_cap_allows() -> None:
    profile = LatencyProfile((row(1, 2.0), row(4, 3.5), row(8, 5.5), row(64, 60.0)))
    service = profile.service(cap=8)
    assert service.batch_ms(1) == pytest.approx(2.0, rel=0.01)
    assert service.batch_ms(8) == pytest.approx(5.5, rel=0.01)
    assert service.cap == 8
    assert service.spread_ms == pytest.approx(0.2 * 5.5)
    assert LatencyProfile((row(1, 4.0, p99=4.0),)).service(1).batch_ms(1) == pytest.approx(4.0)


def test_correction_scales_times_and_not_memory() -> None:
    profile = LatencyProfile.from_fit(0.5, 2.0)
    slower = profile.scaled(1.5)
    assert slower.service(16).alpha_ms == pytest.approx(0.75)
    assert slower.rows[0].throughput == pytest.approx(profile.rows[0].throughput / 1.5)
    assert slower.memory_mib() == profile.memory_mib()
    assert profile.service(16).scaled(1.5).tau0_ms == pytest.approx(slower.service(16).tau0_ms)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ((), "at least one"),
        ((row(1, 2.0), row(1, 3.0)), "batch 1 with 1 instances.*twice"),
        ((row(1, 2.0), row(0, 3.0)), r"rows\[1\].batch"),
        ((row(1, -2.0, p99=1.0),), r"rows\[0\].p50_ms: .*-2"),
        ((row(1, 2.0, p99=1.0),), r"rows\[0\].p99_ms"),
        ((replace(row(1, 2.0), memory_mib=float("nan")),), r"rows\[0\].memory_mib"),
        ((replace(row(1, 2.0), instances=0),), r"rows\[0\].instances"),
    ],
)
def test_bad_rows_are_refused_by_name(rows: tuple[ProfileRow, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LatencyProfile(rows)


def test_batch_times_for_the_simulator() -> None:
    assert ServiceModel(1.0, 2.0, 3).batch_times_ms() == (3.0, 4.0, 5.0)
    assert ServiceModel(1.0, 2.0).batch_times_ms(largest=2) == (3.0, 4.0)
    with pytest.raises(ValueError, match="largest"):
        ServiceModel(1.0, 2.0).batch_times_ms()
