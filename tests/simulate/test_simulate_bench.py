"""The bench that lays the simulator beside the server: what is read from statistics, and what is said of it."""

from __future__ import annotations

import pytest
from bench.dataplane.running import ServerFailed
from bench.harness import Row
from bench.simulate.batches import SELDOM, fresh, noise_of
from bench.simulate.fleet import QUICK, simulated
from bench.simulate.judged import judged, verdict
from bench.simulate.served import BatchTimes
from bench.simulate.speed import speed_rows

from tessera_runtime.target import BatchReport, MemberReport


def times(**counted: tuple[int, float]) -> BatchTimes:
    """Count and mean in ms, by rows."""
    sizes = {int(name[1:]): pair for name, pair in counted.items()}
    return BatchTimes(
        {rows: count for rows, (count, _) in sizes.items()},
        {rows: count * mean for rows, (count, mean) in sizes.items()},
    )


def test_sizes_that_were_not_seen_lie_between_their_neighbours() -> None:
    assert times(b1=(50, 2.0), b4=(50, 5.0)).table_ms(4) == pytest.approx((2.0, 3.0, 4.0, 5.0))


def test_sizes_that_were_seldom_seen_are_as_before() -> None:
    found = times(b1=(SELDOM, 3.0), b2=(SELDOM - 1, 99.0))
    assert found.table_ms(2, (2.0, 4.0)) == (3.0, 4.0)


def test_a_run_counts_from_its_start() -> None:
    during = times(b1=(30, 3.0), b2=(10, 4.0)).since(times(b1=(10, 1.0), b2=(10, 4.0)))
    assert during.count == {1: 20}
    assert during.total_ms == {1: 80.0}


def test_without_full_batches_there_is_no_table() -> None:
    with pytest.raises(ServerFailed, match=r"batches of \[1, 2\] rows only"):
        times(b1=(50, 1.0), b2=(50, 2.0)).table_ms(4)


def row(*errors: float, own: float = 0.0, drift: float = 0.0) -> Row:
    figures = {"own_p99_error": own, "batch_time_drift": drift, "sent_1ms_late": 0.25}
    return Row({}, tuple({"p99_error": error, **figures} for error in errors))


def test_the_median_of_the_runs_is_judged_and_all_are_shown() -> None:
    found = judged(row(0.3, -0.05, 0.1), "p99_error")
    assert (found.median, found.least, found.most) == (0.1, -0.05, 0.3)
    assert str(found) == "+10.0% [-5.0%, +30.0%]"


def test_what_is_not_within_the_target_is_explained() -> None:
    assert verdict(row(-0.14)) == "within 15%"
    slow = verdict(row(-0.4, drift=0.5))
    assert slow.startswith(
        "not within 15%: batches took +50% against what was told; with the run's"
    )
    assert "25% were sent 1 ms late" in verdict(row(-0.4, own=-0.3))


def test_a_small_fleet_and_short_queues_are_simulated() -> None:
    figures = simulated(QUICK)
    assert figures["services"] == QUICK.services
    assert figures["member_requests"] >= figures["requests"] > 0
    rows = list(speed_rows(2000, 1))
    assert {each.labels["deadlines"] for each in rows} == {"none", "one SLO", "mixed"}
    assert all(each.medians["requests_per_s"] > 0 for each in rows)


def reported(batches: int, *rows: int) -> MemberReport:
    """The last ones held so many rows."""
    recent = tuple(BatchReport("cpu", 1, each, 2.0 * each) for each in rows)
    return MemberReport("m", "", 1, 1, 8, 0, batches, 0, 0.0, "cpu", 0, recent=recent)


def test_of_a_report_the_batches_count_that_the_one_before_has_not_told_of() -> None:
    before = reported(10, 1, 2, 3)
    assert fresh(before, before) == ()
    assert [each.rows for each in fresh(before, reported(12, 3, 4, 5))] == [4, 5]
    # More ran than a report holds.
    assert [each.rows for each in fresh(before, reported(50, 6, 7, 8))] == [6, 7, 8]


def test_sizes_that_were_seldom_seen_vary_as_all_do() -> None:
    batches = [BatchReport("cpu", 1, 1, 2.2)] * SELDOM + [BatchReport("cpu", 1, 2, 3.0)]
    often, *seldom = noise_of(batches, (2.0, 3.0, 4.0))
    assert often == pytest.approx((1.1,) * SELDOM)
    for each in seldom:
        assert each == pytest.approx((*often, 1.0))
    with pytest.raises(ServerFailed, match="no batch"):
        noise_of([], (2.0, 3.0))
