"""What batches are expected to take follows what they took, and comes back."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tessera_core.batching.pace import FIRST_ROWS, FURTHEST, MEAN_ROWS, MOST, MOST_LENGTHS, Pace
from tessera_core.batching.policy import Padded

LENGTHS = [Padded(size, ((number,),)) for number, size in enumerate((0.1, 0.4, 1.0))]


@given(st.floats(0.1, 10.0), st.floats(1e-4, 1.0))
def test_it_follows_batches_that_take_a_multiple_of_their_profile(
    multiple: float, profile_s: float
):
    pace = Pace()
    for _ in range(200):
        pace.saw(multiple * profile_s, profile_s)
    assert pace.ratio == pytest.approx(multiple, rel=1e-3)


def test_one_batch_that_hung_does_not_stand_for_the_next():
    pace = Pace()
    pace.saw(3600.0, 0.001)
    assert pace.ratio < 1 + MOST / 16


def test_a_batch_without_a_profile_says_nothing():
    pace = Pace()
    pace.saw(5.0, 0.0)
    assert pace.ratio == 1.0


def test_the_mean_is_of_rows_as_they_come() -> None:
    pace = Pace()
    assert pace.mean == 1.0
    pace.came(LENGTHS[0], FIRST_ROWS)
    assert pace.mean == pytest.approx((1.0 + LENGTHS[0].size) / 2)
    for _ in range(MEAN_ROWS):
        pace.came(LENGTHS[0], 9)
        pace.came(LENGTHS[2], 1)
    assert pace.mean == pytest.approx(0.19, rel=0.02)
    pace.came(LENGTHS[1], 2 * MEAN_ROWS)
    assert pace.mean == pytest.approx(LENGTHS[1].size)


def learn(costs: list[float], batches: int = 3000) -> Pace:
    """From full batches of every length in turns, which take what their rows cost."""
    pace = Pace()
    for number in range(batches):
        which = number % len(LENGTHS)
        shape = LENGTHS[which]
        rows = round(64 / pace.cost(shape))
        pace.came(shape, rows)
        pace.saw(rows * costs[which], rows * pace.cost(shape), shape, full=True)
    return pace


@given(st.lists(st.floats(0.5, 2.0), min_size=3, max_size=3))
def test_what_a_length_costs_beside_the_others_is_learnt_from_its_batches(
    over: list[float],
) -> None:
    costs = [shape.size * each for shape, each in zip(LENGTHS, over, strict=True)]
    pace = learn(costs)
    for one, first in zip(LENGTHS, costs, strict=True):
        for other, second in zip(LENGTHS, costs, strict=True):
            before = max(
                one.size / other.size / (first / second), first / second * other.size / one.size
            )
            ratio = pace.cost(one) / pace.cost(other) / (first / second)
            assert max(ratio, 1 / ratio) <= 1.02 + 0.2 * (before - 1), (
                "what is forgotten stays small"
            )


def test_costs_that_are_their_elements_stay_so() -> None:
    pace = learn([shape.size for shape in LENGTHS])
    assert [pace.cost(shape) for shape in LENGTHS] == pytest.approx([s.size for s in LENGTHS])


@given(st.lists(st.tuples(st.sampled_from(LENGTHS), st.floats(0.0, 1e6)), max_size=200))
def test_whatever_batches_take_costs_are_bounded(batches: list[tuple[Padded, float]]) -> None:
    pace = Pace()
    for shape, took_s in batches:
        pace.saw(took_s, 1.0, shape, full=True)
        assert shape.size / FURTHEST <= pace.cost(shape) <= shape.size * FURTHEST


def test_only_full_batches_tell_and_of_so_many_lengths() -> None:
    pace = Pace()
    pace.saw(9.0, 1.0, LENGTHS[0], full=False)
    assert not pace.costs
    for number in range(MOST_LENGTHS + 10):
        pace.saw(9.0, 1.0, Padded(0.5, ((number, 1),)), full=True)
    assert len(pace.costs) == MOST_LENGTHS


@given(st.floats(1.0, MOST))
def test_what_runs_nothing_is_doubted_until_it_is_the_profile_again(multiple: float):
    pace = Pace()
    for _ in range(200):
        pace.saw(multiple, 1.0)
    for _ in range(200):
        before = pace.ratio
        pace.doubt()
        assert pace.ratio <= before
    assert pace.ratio == pytest.approx(1.0, rel=1e-3)


def test_a_pace_that_is_faster_than_the_profile_is_not_doubted():
    pace = Pace()
    pace.saw(0.5, 1.0)
    before = pace.ratio
    pace.doubt()
    assert pace.ratio == before
