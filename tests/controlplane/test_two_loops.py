"""Nodes correct at once and the operator for good: each has its own knobs, and neither undoes the other's.

Here nodes report what batches take with noise, as their own loop has it, and do what they are told.
"""

from __future__ import annotations

import pytest

from support.memory_operator import DEFAULTS, Operator, started
from support.objects import NOW
from tessera_core.api.runtimenode import BatchLine
from tessera_operator.config import Config
from tessera_operator.kinds import Document

RPS = 2600.0
"""Of the service: one A100 is enough as measured, and not where batches take half as long again."""
REPORTS_S = 60.0
"""Within which every node has reported, and the operator has seen it."""
LASTING_S = DEFAULTS.drift_after_s


def steady(config: Config = DEFAULTS) -> Operator:
    """An operator whose nodes report that batches take what was measured."""
    operator = started(3, rps=RPS, config=config)
    operator.requests_per_second = RPS / 2  # planned is the hint, for ten minutes
    operator.slowness, operator.noise = {"a": 1.0}, 0.05
    operator.rounds(2)
    after(operator, REPORTS_S)
    return operator


def after(operator: Operator, seconds: float) -> None:
    operator.rounds(int(seconds / 5), 5.0)


def drift(operator: Operator) -> float | None:
    found = operator.profile().status.drift
    return found.ratio if found is not None else None


def lines(operator: Operator) -> set[tuple[BatchLine, ...]]:
    return {
        member.batch_lines
        for node in operator.nodes()
        for served in node.spec.services
        for member in served.members
    }


def events(operator: Operator) -> list[Document]:
    return [
        found
        for key, found in operator.cluster.objects.items()
        if key[0] == "Event" and found["involvedObject"]["kind"] == "ModelProfile"
    ]


def drifted(operator: Operator) -> tuple[str, str]:
    (found,) = (each for each in operator.profile().status.conditions if each.type == "Drifted")
    return found.status.value, found.reason


def test_ten_minutes_of_both_loops_make_one_plan_for_each_change() -> None:
    operator = steady()
    told, (first,) = lines(operator), operator.plans()
    assert len(operator.running()) == 1

    operator.slowness["a"] = 1.5  # for a minute
    after(operator, 60)
    operator.slowness["a"] = 1.0
    after(operator, REPORTS_S)
    assert drift(operator) is None
    assert set(operator.plans()) == {first}

    operator.slowness["a"] = 1.5
    after(operator, LASTING_S + REPORTS_S)
    assert drift(operator) == pytest.approx(1.5, rel=operator.noise)
    assert len(operator.running()) == 2
    assert len(operator.plans()) == 2

    operator.slowness["a"] = 1.0
    after(operator, LASTING_S + REPORTS_S)
    assert drift(operator) is None
    assert len(operator.running()) == 1
    assert len(operator.plans()) == 3
    # What nodes measure themselves by is what was measured, whatever is recorded meanwhile.
    assert lines(operator) == told
    assert [each["reason"] for each in events(operator)] == ["BatchesTakeLonger", "AsMeasured"]


def test_what_is_recorded_stays_while_nothing_changes() -> None:
    operator = steady()
    operator.slowness["a"] = 1.5
    after(operator, LASTING_S + REPORTS_S)
    recorded = operator.profile().status.drift
    assert recorded is not None
    assert (recorded.since, recorded.nodes) == (NOW, 1)
    assert drifted(operator) == ("True", "BatchesTakeLonger")
    after(operator, 2 * LASTING_S)
    assert operator.profile().status.drift == recorded
    assert len(events(operator)) == 1


def test_another_leader_goes_on_with_what_is_recorded() -> None:
    operator = steady()
    operator.slowness["a"] = 1.5
    after(operator, LASTING_S + REPORTS_S)
    recorded, known = drift(operator), operator.plans()
    operator.restart()
    after(operator, LASTING_S + REPORTS_S)
    assert drift(operator) == recorded
    assert len(operator.running()) == 2
    assert operator.plans() == known
    operator.slowness["a"] = 1.0
    after(operator, LASTING_S + REPORTS_S)
    assert drift(operator) is None
    assert drifted(operator) == ("False", "AsMeasured")
    assert len(operator.running()) == 1


def test_what_lasts_for_less_is_recorded_where_the_settings_say_so() -> None:
    operator = steady(Config(drift_after_s=LASTING_S / 2))
    operator.slowness["a"] = 1.5
    after(operator, LASTING_S / 2 + REPORTS_S)
    assert drift(operator) == pytest.approx(1.5, rel=operator.noise)


def test_batches_that_take_less_are_recorded_and_nothing_is_taken_away_for_it() -> None:
    operator = started(3, rps=2 * RPS)
    operator.requests_per_second = RPS
    operator.slowness, operator.noise = {"a": 0.5}, 0.05
    operator.rounds(2)
    (first,) = operator.plans()
    after(operator, LASTING_S + 2 * REPORTS_S)
    assert drift(operator) == pytest.approx(0.5, rel=operator.noise)
    assert drifted(operator) == ("True", "BatchesTakeLess")
    assert len(operator.running()) == 2
    assert set(operator.plans()) == {first}


def test_what_was_given_back_is_not_asked_for_again_because_requests_moved() -> None:
    operator = started(3, rps=1.1 * RPS)
    operator.requests_per_second = 1.1 * RPS
    operator.slowness, operator.noise = {"a": 1.5}, 0.05
    operator.rounds(2)
    after(operator, LASTING_S + 2 * REPORTS_S)
    assert len(operator.running()) == 2
    operator.slowness["a"] = 1.0
    after(operator, LASTING_S + REPORTS_S)
    assert len(operator.running()) == 1
    plans = operator.plans()
    after(operator, 10 * REPORTS_S)
    assert operator.plans() == plans


def test_what_somebody_else_wrote_into_a_profile_stays() -> None:
    operator = steady()
    before = operator.profile()
    operator.slowness["a"] = 1.5
    after(operator, LASTING_S + REPORTS_S)
    assert operator.profile().status.rows == before.status.rows
    assert operator.profile().status.fit == before.status.fit
    assert drift(operator) is not None
