"""Which failed requests of a load say something of the system, and which of the machine that it runs on."""

from __future__ import annotations

import pytest
from e2e.system.load import KEPT_HTTP, Outcome, Result, zero_failures
from e2e.system.stolen import Reading, taken_away, within

AWAY = ((10.0, 14.0),)


def outcome(at_s: float, seconds: float, problem: str = "") -> Outcome:
    return Outcome(KEPT_HTTP, at_s, seconds, "" if problem else "right", problem)


def result(*odd: Outcome) -> Result:
    return Result((*odd, *(outcome(20.0 + number, 0.01) for number in range(20))), AWAY)


def test_what_got_no_answer_while_the_machine_was_away_is_excused_and_counted() -> None:
    late = outcome(11.0, 3.5, "429 late")
    found = result(late)
    assert (found.failures, found.excused) == ((), (late,))
    assert "taken away for 4.0 s; excused: 1" in str(found)
    zero_failures(found)


@pytest.mark.parametrize(
    "failed",
    [
        outcome(11.0, 3.5, "wrong answer [1.]"),
        outcome(11.0, 0.05, "refused at once"),
        outcome(15.0, 9.0, "late, after it was back"),
    ],
    ids=["wrong", "at once", "later"],
)
def test_other_failures_have_no_excuse(failed: Outcome) -> None:
    with pytest.raises(AssertionError, match="1 of 21 requests failed"):
        zero_failures(result(failed))


def test_a_load_that_was_mostly_excused_has_tested_nothing() -> None:
    with pytest.raises(AssertionError, match="nothing was tested"):
        zero_failures(result(*(outcome(11.0, 3.0, "429 late") for _ in range(5))))


@pytest.mark.parametrize(
    ("ran_s", "stolen_s", "away"),
    [(0.1, 1.9, True), (1.5, 0.5, False), (0.0, 0.1, False), (2.0, 0.0, False)],
    ids=["starved", "pressed", "idle", "its own"],
)
def test_a_machine_is_away_while_it_gets_less_than_half_of_what_it_wants(
    ran_s: float, stolen_s: float, away: bool
) -> None:
    before = Reading.now()
    after = Reading(before.ran_s + ran_s, before.stolen_s + stolen_s)
    assert taken_away(before, after, 0.5) is away


def test_spans_count_as_far_as_they_overlap() -> None:
    assert within(AWAY, 0.0, 11.0) == pytest.approx(1.0)
    assert within(AWAY, 11.0, 13.0) == pytest.approx(2.0)
    assert within(AWAY, 0.0, 9.0) == 0.0
