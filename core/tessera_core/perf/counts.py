"""How many rows arrive in a given time: Poisson, bursty, or in a time that is itself random.

Renewal arrivals whose gaps have a squared coefficient of variation c gather, over times beyond a burst,
a variance of c times the mean (index of dispersion). The bursty law is the negative binomial with that mean
and variance: exact Poisson at c = 1, additive over adjoining times, and, like a burst, it makes a row that
arrives see more of its kind than a clock would (``met``).
"""

from __future__ import annotations

from functools import lru_cache
from math import log, log1p

import numpy as np
from numpy.typing import NDArray

Vector = NDArray[np.float64]


def arrivals_during(
    means: Vector, states: int, stride: int = 1, burstiness: float = 1.0, met: float | Vector = 0.0
) -> Vector:
    """Probability of 0, stride, 2*stride, ... rows for each mean, shape (len(means), states).

    With a stride > 1 the Poisson law is sampled and multiplied by the stride, so that a row sums to about
    1; bursty rows then come in groups of ``stride``, mean and variance kept (burstiness > stride).
    ``met`` = 1 gives what an arriving row sees beside itself (no difference for Poisson); 0.5 the half of
    it that lies before, or after, that row. It may differ by mean, shape (len(means),).
    """
    counts = np.arange(states, dtype=np.int64) * stride
    if burstiness == 1:
        safe = np.maximum(means, 1e-300)
        law: Vector = np.log(safe)[:, None] * counts
        law -= _log_factorials(counts)
        law -= safe[:, None]
        np.exp(law, out=law)
        law *= stride
        return law
    ratio = burstiness / stride
    shapes = np.maximum(means / (burstiness - stride) + met, 1e-300)
    odds = np.full_like(shapes, log1p(-1 / ratio))
    return _negative_binomial(shapes, odds, -log(ratio) * shapes, np.arange(states, dtype=np.int64))


def arrivals_in_gamma_time(means: Vector, states: int, cv2: float) -> Vector:
    """Poisson arrivals in a gamma-distributed time of squared variation ``cv2``, shape (len(means), states)."""
    shapes = np.full_like(means, 1 / cv2)
    none = -shapes * np.log1p(means / shapes)
    odds = np.log(np.maximum(means, 1e-300) / (means + shapes))
    return _negative_binomial(shapes, odds, none, np.arange(states, dtype=np.int64))


def _negative_binomial(
    shapes: Vector, log_odds: Vector, log_none: Vector, counts: NDArray[np.int64]
) -> Vector:
    law = _log_gamma(shapes[:, None] + counts)
    law -= _log_gamma(shapes)[:, None]
    law -= _log_factorials(counts)
    law += log_odds[:, None] * counts
    law += log_none[:, None]
    return np.exp(law, out=law)


def _log_gamma(x: Vector) -> Vector:
    """Stirling's series after a shift by 6, for x > 0; absolute error below 1e-9."""
    low = x * (x + 1) * (x + 2) * (x + 3) * (x + 4) * (x + 5)
    high = x + 6
    inverse = 1 / high
    series = inverse * (1 / 12 - inverse**2 * (1 / 360 - inverse**2 / 1260))
    result: Vector = (high - 0.5) * np.log(high) - high + 0.5 * log(2 * np.pi) + series
    return result - np.log(low)


def _log_factorials(counts: NDArray[np.int64]) -> Vector:
    return _log_factorial_table(1 << int(counts[-1]).bit_length())[counts]


@lru_cache(maxsize=16)
def _log_factorial_table(size: int) -> Vector:
    table = np.zeros(size)
    table[1:] = np.cumsum(np.log(np.arange(1, size)))
    return table
