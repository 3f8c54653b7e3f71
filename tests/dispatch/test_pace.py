"""What batches are expected to take follows what they took, and comes back."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tessera_runtime.dispatch.pace import MOST, Pace


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


@given(st.floats(0.01, 1.0))
def test_the_mean_size_follows_what_is_sent(size: float) -> None:
    pace = Pace()
    assert pace.size == 1.0
    for _ in range(200):
        pace.sent(size)
    assert pace.size == pytest.approx(size, rel=1e-2)


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
