"""How bursty work comes, told by counters."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tessera_core.batching.arrivals import FEWEST_GROUPS, MOST_GAP_S, Arrivals, gap_cv2


def counted(at_s: np.ndarray) -> Arrivals:
    came = Arrivals()
    for now in at_s.tolist():
        came.came(now, 1)
    return came


def cv2_of(came: Arrivals) -> float | None:
    return gap_cv2(came.groups, came.gaps, came.gaps_s, came.groups_s2)


def gamma(rate_per_s: float, cv2: float, count: int, seed: int = 1) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return np.cumsum(rng.gamma(1 / cv2, cv2 / rate_per_s, count))


@pytest.mark.parametrize("rate_per_s", [50, 200, 1000, 20_000])
@pytest.mark.parametrize("cv2", [0.25, 1.0, 4.0, 16.0])
def test_the_variation_is_that_of_the_gaps_at_any_rate(rate_per_s: float, cv2: float):
    assert cv2_of(counted(gamma(rate_per_s, cv2, 60_000))) == pytest.approx(cv2, rel=0.2)


@pytest.mark.parametrize("rate_per_s", [50, 500, 4000, 8000])
@pytest.mark.parametrize("cv2", [1.0, 4.0])
def test_reading_in_turns_makes_no_bursts(rate_per_s: float, cv2: float):
    turn_s = 0.001
    arrivals = turn_s * np.ceil(gamma(rate_per_s, cv2, 60_000) / turn_s)
    assert cv2_of(counted(arrivals)) == pytest.approx(cv2, rel=0.25)


@given(st.lists(st.floats(2 * 0.0101, 0.9), min_size=FEWEST_GROUPS, max_size=100))
def test_long_gaps_are_groups_of_their_own(gaps: list[float]):
    came = counted(np.cumsum([5.0, *gaps]))
    assert (came.groups, came.gaps) == (len(gaps), len(gaps))
    assert cv2_of(came) == pytest.approx(np.var(gaps) / np.mean(gaps) ** 2, abs=1e-6)


def test_silence_says_nothing_of_those_who_ask():
    spell = gamma(100.0, 1.0, 2000)
    spells = np.concatenate([spell + start * (spell[-1] + 50 * MOST_GAP_S) for start in range(3)])
    assert counted(spells).rows == 6000
    assert cv2_of(counted(spells)) == pytest.approx(1.0, rel=0.2)


def test_too_little_says_nothing():
    few = FEWEST_GROUPS - 1
    assert gap_cv2(few, few, 1.0, 9.0) is None
    assert gap_cv2(FEWEST_GROUPS, 100, 0.0, 0.0) is None
