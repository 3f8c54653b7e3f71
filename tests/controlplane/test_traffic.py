"""How much traffic there is: nothing is counted twice or lost, growth is followed, sleep and waking up."""

from __future__ import annotations

import tracemalloc
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from support.objects import NOW, counters, node, service
from tessera_core.api import Condition, ModelService, RuntimeNode
from tessera_core.api.meta import ConditionStatus
from tessera_core.api.modelservice import SloStatus
from tessera_core.perf.histogram import BOUNDS_S
from tessera_operator.traffic import PEAK_S, SCALED_TO_ZERO, Traffic

EMPTY = (0,) * (len(BOUNDS_S) + 1)


def busy(total: int, name: str = "n0", **rest: Any) -> RuntimeNode:
    """A node whose server has answered ``total`` requests since it started."""
    made = node(name)
    return replace(made, status=replace(made.status, services=(counters(total=total, **rest),)))


def sleepy(**scaling: Any) -> ModelService:
    """A service that sleeps after 100 s without a request."""
    return service("s", rps=0, scaling={"minReplicas": 0, "idleTimeout": "100s", **scaling})


def fed(of: ModelService, *looks: tuple[float, Sequence[RuntimeNode]]) -> Traffic:
    traffic = Traffic()
    for now_s, nodes in looks:
        traffic.note([of], nodes, now_s)
    return traffic


S = service("s", rps=0)


def test_what_was_counted_before_is_where_counting_begins() -> None:
    traffic = fed(S, (0, [busy(1_000_000)]), (30, [busy(1_000_000)]))
    assert traffic.window(S, 30).total == 0
    assert traffic.planned_rate(S, 30) == 0


def test_only_what_is_new_counts() -> None:
    traffic = fed(S, (0, [busy(100)]), (30, [busy(160, good=150)]), (60, [busy(220, good=210)]))
    window = traffic.window(S, 60)
    assert (window.total, window.good, window.seconds) == (120, 110, 60)
    assert window.requests_per_second == 2


def test_a_server_that_was_restarted_counts_from_zero() -> None:
    traffic = fed(S, (0, [busy(100)]), (30, [busy(160)]), (60, [busy(7)]), (90, [busy(9)]))
    assert traffic.window(S, 90).total == 60 + 7 + 2


def test_buckets_are_added_over_nodes_and_give_percentiles() -> None:
    def at(name: str, *counts: int) -> RuntimeNode:
        buckets = tuple(counts) + EMPTY[len(counts) :]
        return busy(sum(counts), name, buckets=buckets)

    traffic = fed(S, (0, [at("n0"), at("n1")]), (30, [at("n0", 98), at("n1", 0, 0, 0, 2)]))
    window = traffic.window(S, 30)
    assert window.total == 100
    assert window.p50_s is not None
    assert window.p50_s <= BOUNDS_S[0]
    assert window.p99_s is not None
    assert BOUNDS_S[2] <= window.p99_s <= BOUNDS_S[3]


def test_a_server_that_begins_to_report_buckets_is_no_restart() -> None:
    buckets = (6, *EMPTY[1:])
    traffic = fed(S, (0, [busy(100)]), (30, [busy(106, buckets=buckets)]))
    window = traffic.window(S, 30)
    assert window.total == 6


def test_buckets_of_another_version_are_left_out() -> None:
    strange = (3,) * 1000
    traffic = fed(S, (0, [busy(0)]), (30, [busy(9, buckets=strange)]), (60, [busy(12)]))
    window = traffic.window(S, 60)
    assert (window.total, window.p50_s) == (12, None)


def test_the_window_forgets_what_is_older_than_the_objective_asks_for() -> None:
    looks = [(second, [busy(second)]) for second in range(0, 901, 30)]
    traffic = fed(S, *looks)  # one request per second, a window of 5 minutes
    window = traffic.window(S, 900)
    assert window.seconds == 300
    assert window.total == pytest.approx(300, abs=30)


def test_without_traffic_there_is_nothing_and_no_percentile() -> None:
    window = fed(S, (0, []), (100, [])).window(S, 100)
    assert (window.total, window.p50_s, window.p99_s) == (0, None, None)
    assert window.requests_per_second == 0


@st.composite
def histories(draw: st.DrawFn) -> list[tuple[float, list[RuntimeNode], int]]:
    """Looks at two nodes whose servers are restarted now and then: (time, nodes, requests since the first look)."""
    totals = {name: draw(st.integers(0, 1000)) for name in ("n0", "n1")}
    now_s, counted, looks = (
        0.0,
        0,
        [(0.0, [busy(total, name) for name, total in totals.items()], 0)],
    )
    for _ in range(draw(st.integers(1, 12))):
        now_s += draw(st.floats(0.5, 20))
        for name, before in totals.items():
            if before > 0 and draw(st.integers(0, 5)) == 0:
                # Fewer than before, as otherwise nobody could tell that it was restarted.
                totals[name] = draw(st.integers(0, before - 1))
                counted += totals[name]
            else:
                more = draw(st.sampled_from((0, 0, 1, 50)))
                totals[name] += more
                counted += more
        looks.append((now_s, [busy(total, name) for name, total in totals.items()], counted))
    return looks


@given(histories())
def test_nothing_is_lost_or_counted_twice(
    looks: list[tuple[float, list[RuntimeNode], int]],
) -> None:
    traffic = Traffic()
    for now_s, nodes, counted in looks:
        traffic.note([S], nodes, now_s)
        traffic.note([S], nodes, now_s)  # a round without news counts nothing
        assert traffic.window(S, now_s).total == counted


def test_counts_of_a_service_that_nobody_knows_are_left_alone() -> None:
    traffic = Traffic()
    traffic.note([], [busy(10)], 0)
    traffic.note([S], [busy(20)], 30)
    traffic.note([S], [busy(50)], 60)
    assert traffic.window(S, 60).total == 40


def test_a_hint_counts_like_a_measurement_and_fades() -> None:
    hinted = service("s", rps=100)
    traffic = fed(hinted, *((second, [busy(0)]) for second in range(0, 1200, 30)))
    assert traffic.planned_rate(hinted, 0) >= 100
    traffic = Traffic()
    for second in range(0, int(PEAK_S) + 30, 30):
        traffic.note([hinted], [busy(second)], second)  # one request per second
        if second < PEAK_S:
            assert traffic.planned_rate(hinted, second) >= 100
    assert 1 <= traffic.planned_rate(hinted, PEAK_S) < 3


def test_no_traffic_is_a_measurement() -> None:
    hinted = service("s", rps=100)
    traffic = fed(hinted, *((second, [busy(5)]) for second in range(0, int(PEAK_S) + 60, 30)))
    assert traffic.planned_rate(hinted, PEAK_S + 30) == 0


def test_a_new_hint_counts_from_when_it_was_written_and_other_changes_do_not_renew_it() -> None:
    old, new = service("s", rps=100), service("s", rps=400, generation=2)
    other = service("s", rps=400, generation=3, target="60ms")
    traffic = Traffic()
    traffic.note([old], [], 0)
    traffic.note([new], [], 500)
    traffic.note([other], [], 1000)
    assert traffic.planned_rate(other, 500 + PEAK_S - 1) >= 400
    assert traffic.planned_rate(other, 500 + PEAK_S) == 0


def test_growth_is_followed_at_once_and_a_lull_is_not_believed_for_ten_minutes() -> None:
    traffic, total = Traffic(), 0
    for second in range(0, 601, 30):
        total += 30 if second else 0
        traffic.note([S], [busy(total)], second)
    assert 1 <= traffic.planned_rate(S, 600) < 1.2
    for second in range(630, 691, 30):
        total += 300
        traffic.note([S], [busy(total)], second)
    assert 10 <= traffic.planned_rate(S, 690) < 12
    for second in range(720, 1261, 30):
        traffic.note([S], [busy(total)], second)
    assert traffic.planned_rate(S, 1260) >= 10
    for second in range(1290, 1500, 30):
        traffic.note([S], [busy(total)], second)
    assert traffic.planned_rate(S, 1500) == 0


@given(st.integers(1, 10**7))
@example(1045)
def test_rates_are_rounded_up_by_less_than_a_tenth(total: int) -> None:
    traffic = fed(S, (0, [busy(0)]), (60, [busy(total)]))
    rate = total / 60
    assert rate * (1 - 1e-6) <= traffic.planned_rate(S, 60) <= rate * 1.1001


@given(st.lists(st.floats(0, 0.2), min_size=30, max_size=30), st.floats(0, 29), st.integers(1, 50))
def test_a_steady_rate_is_seen_as_it_is_however_reports_and_rounds_fall(
    jitter: list[float], phase: float, rate: int
) -> None:
    traffic = Traffic()
    looks = sorted(
        (30.0 * turn + late + shift, name)
        for turn, late in enumerate(jitter)
        for name, shift in (("n0", 0.0), ("n1", phase))
    )
    nodes = {name: busy(0, name) for name in ("n0", "n1")}
    traffic.note([S], list(nodes.values()), 0)
    for (at_s, name), (next_s, _) in pairwise(looks):
        nodes[name] = busy(round(rate * at_s), name)
        traffic.note([S], list(nodes.values()), at_s)
        if at_s >= 120:
            for second in (at_s, (at_s + next_s) / 2, next_s):
                seen = traffic.window(S, second).requests_per_second
                assert seen == pytest.approx(2 * rate, rel=0.1, abs=0.1)


def test_a_burst_after_a_lull_is_not_spread_over_the_lull() -> None:
    traffic = fed(S, (0, [busy(0)]), (30, [busy(1)]), (630, [busy(601)]))
    assert traffic.window(S, 630).requests_per_second == 10


@given(
    phases=st.tuples(st.integers(0, 5), st.integers(0, 5)),
    moved_s=st.integers(120, 180),
    comes=st.booleans(),
)
def test_requests_that_move_to_other_nodes_are_no_more_than_before(
    phases: tuple[int, int], moved_s: int, comes: bool
) -> None:
    """A hundred a second, by two nodes before or after ``moved_s`` and by one of them otherwise."""
    traffic, reported = Traffic(), [0, 0]
    for now_s in range(0, 400, 5):
        alone = min(now_s, moved_s) if comes else max(0, now_s - moved_s)
        counted = 50 * (now_s + alone), 50 * (now_s - alone)
        for index, phase in enumerate(phases):
            if now_s % 30 == 5 * phase:
                reported[index] = counted[index]
        traffic.note([S], [busy(reported[0], "n0"), busy(reported[1], "n1")], now_s)
        assert traffic.window(S, now_s).requests_per_second <= 110
    assert traffic.window(S, 395).requests_per_second == pytest.approx(100, rel=0.01)


def test_a_node_that_reports_no_longer_answers_nothing() -> None:
    traffic = fed(S, *((second, [busy(second)]) for second in range(0, 301, 30)))
    assert traffic.window(S, 330).requests_per_second == 1
    assert traffic.window(S, 360).requests_per_second == 0.5
    assert traffic.window(S, 390).requests_per_second == 0


def test_a_rate_that_wavers_gives_one_number() -> None:
    found = {
        fed(S, (0, [busy(0)]), (60, [busy(total)])).planned_rate(S, 60)
        for total in range(60_100, 64_000, 300)
    }
    assert len(found) <= 2


def test_a_restarted_operator_does_not_forget_the_rate_that_it_had_measured() -> None:
    status = replace(S.status, slo=SloStatus(total=9_000, requests_per_second=30.0))
    known = replace(S, status=status)
    traffic = fed(known, (0, [busy(50_000)]))
    assert 30 <= traffic.planned_rate(known, 0) < 33.1
    for second in range(30, int(PEAK_S) + 31, 30):
        traffic.note([known], [busy(50_000)], second)
    assert traffic.planned_rate(known, PEAK_S + 30) == 0


def test_a_service_that_may_sleep_does_when_nobody_has_asked_for_so_long() -> None:
    found = sleepy()
    traffic = fed(found, (0, [busy(10)]), (60, [busy(11)]))
    assert traffic.next_change_s(found, 60) == 100
    assert traffic.planned_rate(found, 159) > 0
    assert traffic.planned_rate(found, 160) == 0
    assert traffic.next_change_s(found, 160) is None


def test_a_service_that_never_sleeps_waits_for_nothing() -> None:
    traffic = fed(S, (0, []))
    assert traffic.next_change_s(S, 0) is None


def test_a_service_that_has_no_rate_yet_is_planned_while_it_is_awake() -> None:
    found = sleepy()
    assert fed(found, (0, [])).planned_rate(found, 0) > 0


def test_requests_that_wait_wake_a_service_and_keep_it_awake() -> None:
    found = sleepy()
    traffic = fed(found, (0, [busy(10)]), (200, [busy(10)]))
    assert traffic.planned_rate(found, 200) == 0
    traffic.note([found], [busy(10, held=2)], 210)
    assert traffic.planned_rate(found, 210) > 0
    assert traffic.next_change_s(found, 210) == 100


def test_a_server_that_is_restarted_wakes_nobody() -> None:
    found = sleepy()
    traffic = fed(found, (0, [busy(10)]), (150, [busy(0)]))
    assert traffic.planned_rate(found, 150) == 0
    assert traffic.next_change_s(found, 150) is None


def asleep(of: ModelService) -> ModelService:
    condition = Condition("Ready", ConditionStatus.TRUE, SCALED_TO_ZERO, last_transition_time=NOW)
    return replace(of, status=replace(of.status, conditions=(condition,)))


def test_a_restarted_operator_lets_a_service_sleep_on() -> None:
    found = asleep(service("s", rps=50, scaling={"minReplicas": 0}))
    traffic = fed(found, (0, [busy(10)]))
    assert traffic.planned_rate(found, 0) == 0
    traffic.note([found], [busy(11)], 10)
    assert traffic.planned_rate(found, 10) > 0


def test_a_service_that_may_sleep_no_longer_is_planned_again() -> None:
    traffic = fed(asleep(sleepy()), (0, [busy(10)]))
    awake = service("s", rps=20, generation=2)
    traffic.note([awake], [busy(10)], 10)
    assert traffic.planned_rate(awake, 10) >= 20


def test_a_service_that_was_made_anew_begins_anew() -> None:
    hinted = service("s", rps=100)
    traffic = fed(hinted, (0, [busy(0)]), (30, [busy(3000)]))
    traffic.note([], [busy(3000)], 60)
    traffic.note([S], [busy(3000)], 90)
    assert traffic.window(S, 90).total == 0
    assert traffic.planned_rate(S, 90) == 0


def test_a_long_window_is_kept_in_few_numbers() -> None:
    long = service("s", rps=0)
    (objective,) = long.spec.slo.objectives
    slo = replace(long.spec.slo, objectives=(replace(objective, window_s=30 * 86_400.0),))
    long = replace(long, spec=replace(long.spec, slo=slo))
    traffic, buckets = Traffic(), tuple(range(1000, 1000 + len(EMPTY)))
    tracemalloc.start()
    try:
        for second in range(0, 4 * 3600, 10):
            names = ("n0", "n1")
            traffic.note([long], [busy(second, name, buckets=buckets) for name in names], second)
        used, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert used < 500_000
    window = traffic.window(long, 4 * 3600)
    assert window.total == 2 * (4 * 3600 - 10)
    assert window.requests_per_second == pytest.approx(2, rel=0.2)
