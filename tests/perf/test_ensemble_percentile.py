"""Splitting an ensemble's percentile over its members."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tessera_core.perf import member_percentile, quorum_probability


def test_all_of_three_members() -> None:
    assert member_percentile(99, 3) == pytest.approx(99.6655, abs=1e-4)
    assert member_percentile(99, 1) == pytest.approx(99)


def test_two_of_three_is_a_hand_computed_majority() -> None:
    assert quorum_probability(0.9, 3, 2) == pytest.approx(3 * 0.81 * 0.1 + 0.729)
    assert member_percentile(97.2, 3, quorum=2) == pytest.approx(90.0, abs=1e-6)


def test_a_required_member_must_answer_itself() -> None:
    assert quorum_probability(0.9, 3, 2, required=1) == pytest.approx(0.9 * (1 - 0.01))
    assert quorum_probability(0.9, 3, 1, required=1) == pytest.approx(0.9)
    assert quorum_probability(0.9, 3, 1, required=3) == pytest.approx(0.729)
    assert member_percentile(99, 3, quorum=1, required=1) == pytest.approx(99)


@given(
    wanted=st.floats(50, 99.99),
    members=st.integers(1, 12),
    data=st.data(),
)
def test_members_at_their_percentile_meet_the_ensembles(
    wanted: float, members: int, data: st.DataObject
) -> None:
    quorum = data.draw(st.integers(1, members))
    required = data.draw(st.integers(0, members))
    each = member_percentile(wanted, members, quorum, required)
    assert quorum_probability(each / 100, members, quorum, required) == pytest.approx(
        wanted / 100, abs=1e-9
    )
    assert each <= member_percentile(wanted, members) + 1e-9


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((100, 3, None, 0), "ensemble_percentile"),
        ((99, 0, None, 0), "members"),
        ((99, 3, 4, 0), "quorum: must be from 1 to 3"),
        ((99, 3, 1, 4), "required"),
    ],
)
def test_impossible_questions_are_refused(
    arguments: tuple[float, int, int | None, int], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        member_percentile(*arguments)
