"""A matrix of low rank is found again from most of its entries."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tessera_core.control.completion import complete


@given(st.integers(0, 10_000), st.integers(4, 18), st.integers(4, 10))
def test_a_row_of_a_matrix_of_rank_two_is_found_again_from_two_entries(
    seed: int, rows: int, columns: int
):
    generator = np.random.default_rng(seed)
    counts = np.arange(1, columns + 1)
    base, slope = generator.uniform(1, 20, (2, rows, 1))
    whole = base + slope * counts
    entries = whole.copy()
    entries[-1, 1:-1] = np.nan
    found = complete(entries, rank=2)
    np.testing.assert_allclose(found, whole, rtol=1e-2)


def test_what_is_known_stays_as_it_is():
    entries = np.array([[1.0, 2.0, 3.0], [2.0, np.nan, 5.0], [3.0, 1.0, np.nan]])
    found = complete(entries, rank=1)
    known = ~np.isnan(entries)
    assert (found[known] == entries[known]).all()
    assert not np.isnan(found).any()


@pytest.mark.parametrize(
    ("entries", "rank", "message"),
    [
        (np.ones((2, 2)), 0, "rank: must be >= 1"),
        (np.array([[1.0, np.nan], [2.0, np.nan]]), 1, "each column"),
        (np.array([[1.0, 2.0], [np.nan, np.nan]]), 1, "each row"),
    ],
)
def test_what_cannot_be_filled_in_is_refused(entries: np.ndarray, rank: int, message: str):
    with pytest.raises(ValueError, match=message):
        complete(entries, rank)
