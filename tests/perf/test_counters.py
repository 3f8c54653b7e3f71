"""What sums of gaps say of their variation."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from tessera_core.perf.counters import FEWEST_GAPS, gap_cv2


@given(arrays(float, st.integers(FEWEST_GAPS, 200), elements=st.floats(1e-3, 1e3)))
def test_the_variation_is_that_of_the_gaps_themselves(gaps: np.ndarray):
    found = gap_cv2(len(gaps), gaps.sum(), gaps @ gaps)
    assert found == pytest.approx(gaps.var() / gaps.mean() ** 2, abs=1e-9)


def test_gaps_that_say_nothing_are_taken_for_poissons():
    few = FEWEST_GAPS - 1
    assert gap_cv2(few, 1.0 * few, 9.0 * few) == 1.0
    assert gap_cv2(FEWEST_GAPS, 0.0, 0.0) == 1.0
