"""Batch times that vary where none were measured: seeded, with mean 1, skewed to the long side as measured ones are."""

from __future__ import annotations

from math import isfinite, log1p, sqrt

import numpy as np

DRAWS = 4096
"""By batch size, after which they come again."""


def lognormal(largest: int, cv2: float, rng: np.random.Generator) -> tuple[tuple[float, ...], ...]:
    """``Station.noise`` for batches of up to ``largest`` rows, of squared coefficient of variation ``cv2`` >= 0.

    Raises ``ValueError`` naming the argument.
    """
    if largest < 1:
        raise ValueError(f"largest: must be >= 1, found {largest}")
    if not (isfinite(cv2) and cv2 >= 0):
        raise ValueError(f"cv2: must be a number >= 0, found {cv2}")
    variance = log1p(cv2)
    drawn = rng.lognormal(-variance / 2, sqrt(variance), (largest, DRAWS))
    drawn /= drawn.mean(axis=1, keepdims=True)
    return tuple(tuple(each) for each in drawn.tolist())
