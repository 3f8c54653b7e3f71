"""What is queued under overload is answered in time, also when a batch takes longer, and the instance is never idle."""

from __future__ import annotations

from math import inf
from typing import NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tessera_core.batching.admission import ADMITTED, STANDING, Admission
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
        waits = queue.rows / rate + batch_s(min(queue.rows + 1, CAP))
        fills = queue.rows + 1 > CAP
        if admission.admits(now, SLO_S, free_at - now + waits, fills):
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
