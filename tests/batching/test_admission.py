"""What is queued under overload is answered in time, also when a batch takes longer, and the instance is never idle."""

from __future__ import annotations

from math import inf
from typing import NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tessera_core.batching.admission import ADMITTED, STANDING, Admission, done_after
from tessera_core.batching.policy import EdfQueue

CAP = 8
SLO_S = 0.050
WARM_S = 0.5


def batch_s(rows: int) -> float:
    return 0.002 + 0.0005 * rows


class Seen(NamedTuple):
    good: int
    late: int
    idle_s: float
    """After the first half second."""


def serve(gap_s: float, seconds: float, stall_s: float, admission: Admission) -> Seen:
    """One instance, a request every ``gap_s``, and four times a second a batch that takes ``stall_s`` longer."""
    queue: EdfQueue[float] = EdfQueue(limit=10_000)
    rate = CAP / batch_s(CAP)
    free_at, running, stalls = 0.0, False, 1
    good = late = 0
    idle_s = 0.0
    for number in range(int(seconds / gap_s)):
        now = number * gap_s
        while running and free_at <= now:
            taken = queue.take(free_at, CAP, batch_s)
            admission.took(free_at, queue.rows, CAP)
            late += sum(arrived >= WARM_S for arrived in taken.dropped)
            running = bool(taken.batch)
            if running:
                took = batch_s(taken.rows)
                if free_at >= stalls / 4:
                    took, stalls = took + stall_s, stalls + 1
                ended = free_at + took
                ends = [ended - arrived for arrived in taken.batch if arrived >= WARM_S]
                good += sum(each <= SLO_S for each in ends)
                late += sum(each > SLO_S for each in ends)
                free_at = ended
        if not running:
            if now >= WARM_S:
                idle_s += now - max(free_at, WARM_S)
            free_at, running = now + batch_s(1), True
            continue
        done_s = done_after(free_at - now, queue.rows, 1, CAP, rate, batch_s)
        if admission.admits(now, SLO_S, done_s, queue.rows + 1 > CAP):
            queue.push(now, now + SLO_S, 1)
    return Seen(good, late, idle_s)


class Unlimited(Admission):
    """Half of the time is never asked of it."""

    def took(self, now: float, waiting: int, cap: int) -> None:
        super().took(now, 0, cap)


@pytest.mark.parametrize("times", [1.5, 2.0, 4.0])
def test_a_batch_that_takes_longer_makes_nothing_late_that_a_standing_queue_was_given(times: float):
    gap_s = batch_s(CAP) / CAP / times
    seen = serve(gap_s, 5.0, 0.020, Admission())
    assert seen.late == 0
    assert seen.idle_s == 0.0
    assert seen.good > 0.9 * (4.5 - 18 * 0.020) * CAP / batch_s(CAP)
    assert serve(gap_s, 5.0, 0.020, Unlimited()).late > 100


@given(st.floats(0.0, 1e6), st.floats(1e-3, 10.0), st.floats(0.0, 20.0), st.integers(1, 512))
def test_a_queue_that_ran_short_has_all_of_the_time(
    now: float, left_s: float, done_s: float, cap: int
):
    admission = Admission()
    admission.took(now, cap, cap)
    admission.took(now + 1.0, cap - 1, cap)
    later = now + 1.0 + left_s / 2
    assert admission.admits(later, left_s, done_s, True) == (done_s <= ADMITTED * left_s)


@given(st.floats(1e-3, 10.0), st.floats(0.0, 20.0), st.integers(1, 512))
def test_a_queue_that_stands_has_half_of_it_unless_less_than_a_batch_waits(
    left_s: float, done_s: float, cap: int
):
    admission = Admission()
    admission.took(1.0, cap, cap)
    later = 1.0 + 2 * left_s
    assert admission.admits(later, left_s, done_s, True) == (done_s <= STANDING * left_s)
    assert admission.admits(later, left_s, done_s, False) == (done_s <= ADMITTED * left_s)


def test_a_queue_that_nothing_was_taken_of_does_not_stand():
    assert Admission().admits(1e9, 1.0, 0.8, True)
    assert not Admission().admits(1e9, 1.0, inf, True)


@given(st.integers(0, 200), st.integers(1, CAP), st.floats(0.0, 1.0))
def test_behind_single_rows_work_is_done_when_it_was_expected_to_be(
    waiting: int, rows: int, busy_s: float
):
    queue: EdfQueue[int] = EdfQueue(limit=1000)
    for each in [*[1] * waiting, rows]:
        queue.push(each, 1e9, each)
    done_s = busy_s
    while queue:
        done_s += batch_s(queue.take(0.0, CAP, batch_s).rows)
    expected_s = done_after(busy_s, waiting, rows, CAP, CAP / batch_s(CAP), batch_s)
    if waiting % CAP + rows <= CAP:
        assert done_s == pytest.approx(expected_s)
    else:  # the batch before is not full, and takes a little longer than its rows' share
        assert expected_s < done_s < expected_s + batch_s(CAP)
