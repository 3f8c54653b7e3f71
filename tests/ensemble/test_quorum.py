"""When an ensemble answers, waits or fails."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tessera_core.api.modelservice import OnTimeout
from tessera_core.ensemble.quorum import (
    Answer,
    Decision,
    Fail,
    FailReason,
    MemberState,
    Wait,
    decide,
)

DEADLINE = 100.0
BEFORE, AT = 99.0, 100.0
CODES = {"p": MemberState.PENDING, "a": MemberState.ANSWERED, "f": MemberState.FAILED}
FAIL, PARTIAL = OnTimeout.FAIL, OnTimeout.PARTIAL


def states(code: str) -> dict[str, MemberState]:
    """``"apf"`` → x answered, y pending, z failed."""
    return {name: CODES[each] for name, each in zip("xyz", code, strict=False)}


def failed(reason: FailReason, members: str) -> Fail:
    return Fail(reason, tuple(members))


@pytest.mark.parametrize(
    ("code", "now", "required", "fewest", "on_timeout", "decision"),
    [
        # Everybody answered: before, at and after the deadline.
        ("aaa", BEFORE, "xyz", 3, FAIL, Answer(("x", "y", "z"))),
        ("aaa", AT + 5, "xyz", 3, FAIL, Answer(("x", "y", "z"))),
        ("a", BEFORE, "x", 1, PARTIAL, Answer(("x",))),
        # Somebody is out and there is time.
        ("aap", BEFORE, "x", 2, PARTIAL, Wait(DEADLINE)),
        ("ppp", BEFORE, "", 1, FAIL, Wait(DEADLINE)),
        # The deadline.
        ("aap", AT, "x", 2, PARTIAL, Answer(("x", "y"))),
        ("paa", AT, "y", 2, PARTIAL, Answer(("y", "z"))),
        ("aap", AT, "x", 2, FAIL, failed(FailReason.DEADLINE_EXCEEDED, "z")),
        ("aap", AT, "z", 2, PARTIAL, failed(FailReason.DEADLINE_EXCEEDED, "z")),
        ("app", AT, "x", 2, PARTIAL, failed(FailReason.DEADLINE_EXCEEDED, "yz")),
        ("ppp", AT, "", 0, PARTIAL, failed(FailReason.DEADLINE_EXCEEDED, "xyz")),
        # A member failed.
        ("fpp", BEFORE, "x", 1, PARTIAL, failed(FailReason.REQUIRED_FAILED, "x")),
        ("fpp", BEFORE, "y", 2, PARTIAL, Wait(DEADLINE)),
        ("fpp", BEFORE, "y", 3, PARTIAL, failed(FailReason.TOO_FEW_MEMBERS, "x")),
        ("faa", BEFORE, "y", 2, PARTIAL, Answer(("y", "z"))),
        ("faa", BEFORE, "y", 2, FAIL, Answer(("y", "z"))),
        ("fap", AT, "y", 1, PARTIAL, Answer(("y",))),
        ("fff", BEFORE, "", 0, PARTIAL, failed(FailReason.TOO_FEW_MEMBERS, "xyz")),
    ],
)
def test_decisions(
    code: str, now: float, required: str, fewest: int, on_timeout: OnTimeout, decision: Decision
) -> None:
    assert decide(states(code), now, DEADLINE, set(required), fewest, on_timeout) == decision


@dataclass(frozen=True)
class Case:
    states: dict[str, MemberState]
    now: float
    required: frozenset[str]
    min_members: int
    on_timeout: OnTimeout

    def decide(self) -> Decision:
        return decide(
            self.states, self.now, DEADLINE, self.required, self.min_members, self.on_timeout
        )


@st.composite
def cases(draw: st.DrawFn) -> Case:
    count = draw(st.integers(1, 6))
    names = [f"m{index}" for index in range(count)]
    return Case(
        states={name: draw(st.sampled_from(list(MemberState))) for name in names},
        now=draw(st.sampled_from([0.0, BEFORE, AT, AT + 1e-9, AT + 50])),
        required=frozenset(draw(st.lists(st.sampled_from(names)))),
        min_members=draw(st.integers(0, count)),
        on_timeout=draw(st.sampled_from(list(OnTimeout))),
    )


@given(cases())
def test_an_answer_has_every_required_member_and_enough_of_them(case: Case) -> None:
    decision = case.decide()
    if isinstance(decision, Answer):
        assert case.required <= set(decision.members)
        assert len(decision.members) >= max(case.min_members, 1)
        answered = [name for name, each in case.states.items() if each is MemberState.ANSWERED]
        assert list(decision.members) == answered


@given(cases())
def test_it_waits_only_before_the_deadline_and_for_somebody(case: Case) -> None:
    decision = case.decide()
    if isinstance(decision, Wait):
        assert case.now < DEADLINE == decision.until
        assert MemberState.PENDING in case.states.values()


@given(cases())
def test_a_failure_names_the_members_it_is_for(case: Case) -> None:
    decision = case.decide()
    if isinstance(decision, Fail):
        blamed = {case.states[name] for name in decision.members}
        late = decision.reason is FailReason.DEADLINE_EXCEEDED
        assert blamed == {MemberState.PENDING if late else MemberState.FAILED}


@given(cases())
def test_a_wait_can_still_become_an_answer(case: Case) -> None:
    """Hopeless requests are not held: if all that are out answer, the request is answered."""
    if isinstance(case.decide(), Wait):
        best = {
            name: MemberState.ANSWERED if each is MemberState.PENDING else each
            for name, each in case.states.items()
        }
        assert isinstance(replace(case, states=best).decide(), Answer)


@given(cases())
def test_time_never_revokes_an_answer_or_a_failure(case: Case) -> None:
    decision = case.decide()
    if not isinstance(decision, Wait):
        later = replace(case, now=case.now + 1000).decide()
        assert type(later) is type(decision)


@given(cases())
def test_partial_answers_whatever_fail_answers(case: Case) -> None:
    if isinstance(replace(case, on_timeout=OnTimeout.FAIL).decide(), Answer):
        assert isinstance(replace(case, on_timeout=OnTimeout.PARTIAL).decide(), Answer)
