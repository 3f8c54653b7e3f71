"""Filling in a matrix of which some entries are known, as one of low rank.

The singular values beyond the rank are cut off and the known entries put back, until nothing moves (hard
thresholding: Mazumder, Hastie, Tibshirani, JMLR 11, 2010, section 5). DNNScaler solves the related problem of the
least nuclear norm; with all rows but one known to nearly all columns both fill in the same.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Matrix = npt.NDArray[np.float64]

MOST_ROUNDS = 5000
STILL = 1e-9
"""Relative change of the filled-in entries below which it ends."""


def complete(entries: npt.NDArray[Any], rank: int) -> Matrix:
    """``entries``, shape (rows, columns), NaN where unknown, with those filled in.

    Raises ValueError for a rank below 1, and for a row or a column of which nothing is known.
    """
    known = ~np.isnan(entries)
    if rank < 1:
        raise ValueError(f"rank: must be >= 1, found {rank}")
    if not (known.any(axis=0).all() and known.any(axis=1).all()):
        raise ValueError("entries: something must be known of each row and of each column")
    filled: Matrix = np.where(known, entries, 0.0)
    # The first guess: each row's mean times each column's share, over what is known.
    rows = filled.sum(axis=1) / known.sum(axis=1)
    columns = filled.sum(axis=0) / (known * rows[:, None]).sum(axis=0)
    guess = rows[:, None] * columns
    filled = np.where(known, entries, guess)
    for _ in range(MOST_ROUNDS):
        left, values, right = np.linalg.svd(filled, full_matrices=False)
        near = (left[:, :rank] * values[:rank]) @ right[:rank]
        moved = float(np.abs(np.where(known, 0.0, near - filled)).max(initial=0.0))
        filled = np.where(known, entries, near)
        if moved <= STILL * float(np.abs(filled).max()):
            break
    return filled
