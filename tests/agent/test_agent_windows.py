"""Rates, percentiles and attainment from counters."""

from __future__ import annotations

from typing import Any

import pytest

from tessera_core.perf.histogram import BOUNDS_S, Histogram
from tessera_runtime.agent.windows import Window
from tessera_runtime.target import MemberReport, Ports, ServerReport, ServiceReport


def report(
    at: float,
    *,
    good: int,
    total: int,
    latencies: Histogram,
    version: str = "1",
    cpu_s: float = 0.0,
    **member: Any,
) -> ServerReport:
    values: dict[str, Any] = {"batches": 0, "rows": 0} | member
    return ServerReport(
        epoch=0,
        ready=True,
        services=(
            ServiceReport(
                name="vision.digits",
                version=version,
                ready=True,
                slo_ms=50.0,
                good=good,
                total=total,
                arrivals_rows=total,
                codes={"200": total},
                latency_buckets=tuple(latencies.counts),
                members=(
                    MemberReport(
                        name="cnn",
                        digest="d",
                        wanted=1,
                        ready=1,
                        cap=8,
                        queued_rows=0,
                        memory_mib=0.0,
                        device="cpu",
                        restarts=0,
                        **values,
                    ),
                ),
            ),
        ),
        workers=(),
        arena_used=0,
        arena_size=1,
        monotonic_s=at,
        cpu_s=cpu_s,
        ports=Ports(),
    )


def observed(seconds: float, times: int) -> Histogram:
    histogram = Histogram()
    histogram.observe(seconds, times)
    return histogram


def test_a_window_needs_two_reports() -> None:
    window = Window(10.0)
    assert window.seen("vision.digits") is None
    window.add(report(0.0, good=0, total=0, latencies=Histogram()))
    assert window.seen("vision.digits") is None


def test_rates_and_percentiles_come_from_differences() -> None:
    window = Window(10.0)
    window.add(report(100.0, good=5, total=10, latencies=observed(1.0, 10), batches=10, rows=10))
    later = observed(1.0, 10)
    later.observe(0.020, 400)
    window.add(report(104.0, good=400, total=410, latencies=later, batches=60, rows=410))
    seen = window.seen("vision.digits")
    assert seen is not None
    assert seen.requests_per_second == 100.0
    assert seen.p99_ms == pytest.approx(20.0, rel=0.1)
    assert seen.attainment == pytest.approx(395 / 400)
    assert seen.mean_batch == (("cnn", 8.0),)


def test_zero_traffic_is_a_measurement() -> None:
    window = Window(10.0)
    for at in (0.0, 1.0):
        window.add(report(at, good=0, total=0, latencies=Histogram()))
    seen = window.seen("vision.digits")
    assert seen is not None
    assert seen.requests_per_second == 0.0
    assert seen.p99_ms is None
    assert seen.attainment is None


def test_what_is_older_than_the_window_is_forgotten() -> None:
    window = Window(5.0)
    for second in range(20):
        total = 1000 if second < 10 else 1000 + (second - 10) * 10
        window.add(report(float(second), good=total, total=total, latencies=Histogram()))
    seen = window.seen("vision.digits")
    assert seen is not None
    assert seen.requests_per_second == pytest.approx(10.0)
    assert seen.seconds <= 6.0


def test_counters_of_another_version_are_not_compared() -> None:
    window = Window(10.0)
    window.add(report(0.0, good=900, total=1000, latencies=Histogram(), version="1"))
    window.add(report(1.0, good=3, total=3, latencies=Histogram(), version="2"))
    assert window.seen("vision.digits") is None
    window.add(report(2.0, good=13, total=13, latencies=Histogram(), version="2"))
    seen = window.seen("vision.digits")
    assert seen is not None
    assert seen.total == 10


def test_a_server_that_restarted_starts_anew() -> None:
    window = Window(10.0)
    window.add(report(500.0, good=900, total=1000, latencies=Histogram()))
    window.add(report(1.0, good=0, total=0, latencies=Histogram()))
    assert window.seen("vision.digits") is None


def test_an_unknown_service_is_not_seen() -> None:
    window = Window(10.0)
    for at in (0.0, 1.0):
        window.add(report(at, good=0, total=0, latencies=Histogram()))
    assert window.seen("vision.other") is None


def test_the_buckets_cover_what_is_answered() -> None:
    assert BOUNDS_S[0] <= 1e-5
    assert BOUNDS_S[-1] >= 60


def test_the_dispatcher_s_own_cost_is_seen_once_there_are_requests() -> None:
    window = Window(10.0)
    window.add(report(0.0, good=0, total=0, latencies=Histogram(), cpu_s=1.0))
    window.add(report(1.0, good=100, total=100, latencies=Histogram(), cpu_s=1.02))
    assert window.dispatch_us() is None
    window.add(report(2.0, good=1000, total=1000, latencies=Histogram(), cpu_s=1.2))
    assert window.dispatch_us() == pytest.approx(200.0)
