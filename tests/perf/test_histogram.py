from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tessera_core.perf.histogram import BOUNDS_S, RATIO, Histogram, percentile_s


@given(
    st.lists(st.floats(BOUNDS_S[0], BOUNDS_S[-1], exclude_min=True), min_size=1, max_size=200),
    st.sampled_from([1.0, 50.0, 90.0, 99.0, 99.9, 100.0]),
)
@settings(deadline=None)
def test_a_percentile_is_off_by_no_more_than_a_bucket(seconds: list[float], percent: float):
    histogram = Histogram()
    for value in seconds:
        histogram.observe(value)
    found = percentile_s(histogram.counts, percent)
    exact = float(np.percentile(seconds, percent, method="inverted_cdf"))
    assert found is not None
    assert exact / RATIO / (1 + 1e-9) <= found <= exact * RATIO * (1 + 1e-9)


@given(st.lists(st.floats(0, 200), max_size=50), st.lists(st.floats(0, 200), max_size=50))
@settings(deadline=None)
def test_buckets_of_two_histograms_add_up(left: list[float], right: list[float]):
    histograms = [Histogram(), Histogram(), Histogram()]
    for histogram, values in zip(histograms, (left, right, left + right), strict=True):
        for value in values:
            histogram.observe(value)
    added = histograms[0].plus(histograms[1])
    assert added.counts == histograms[2].counts
    assert added.total_s == pytest.approx(histograms[2].total_s)
    assert histograms[2].count == len(left) + len(right)
    assert histograms[2].total_s == pytest.approx(sum(left) + sum(right))


def test_observations_outside_the_bounds_are_counted_at_the_ends():
    histogram = Histogram()
    histogram.observe(0.0)
    histogram.observe(1e6, times=3)
    assert histogram.counts[0] == 1
    assert histogram.counts[-1] == 3
    assert percentile_s(histogram.counts, 99) == BOUNDS_S[-1]


def test_without_observations_there_is_no_percentile():
    assert percentile_s(Histogram().counts, 99) is None


def test_bounds_are_nine_percent_apart():
    ratios = np.diff(np.log(BOUNDS_S))
    np.testing.assert_allclose(ratios, np.log(RATIO))
    assert RATIO < 1.091
