"""When requests come: seeded arrival processes, each returning ascending times in milliseconds.

Every process takes its mean rate in requests per SECOND, its length in SECONDS and a numpy ``Generator``:
the same generator state gives the same times.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

MS_PER_S = 1000.0

Times = NDArray[np.float64]


def poisson(rate_per_s: float, duration_s: float, rng: np.random.Generator) -> Times:
    """Independent requests at a constant rate."""
    _check(rate_per_s, duration_s)
    count = rng.poisson(rate_per_s * duration_s)
    return np.sort(rng.random(count)) * (duration_s * MS_PER_S)


def gamma(rate_per_s: float, cv2: float, duration_s: float, rng: np.random.Generator) -> Times:
    """Independent gamma gaps with squared coefficient of variation ``cv2`` > 0: 1 Poisson, above it bursts."""
    _check(rate_per_s, duration_s)
    if cv2 <= 0:
        raise ValueError(f"cv2: must be positive, found {cv2}")
    end = duration_s * MS_PER_S
    scale = cv2 * MS_PER_S / rate_per_s
    expected = rate_per_s * duration_s
    block = int(expected + 4 * (cv2 * expected) ** 0.5) + 16
    times = np.cumsum(rng.gamma(1 / cv2, scale, block))
    while times[-1] < end:
        times = np.concatenate((times, times[-1] + np.cumsum(rng.gamma(1 / cv2, scale, block))))
    return times[: np.searchsorted(times, end)]


def on_off(
    on_rate_per_s: float,
    off_rate_per_s: float,
    mean_on_s: float,
    mean_off_s: float,
    duration_s: float,
    rng: np.random.Generator,
) -> Times:
    """Poisson requests whose rate jumps between two levels after exponential holding times; starts on."""
    _check(on_rate_per_s, duration_s)
    if off_rate_per_s < 0:
        raise ValueError(f"off_rate_per_s: must be >= 0, found {off_rate_per_s}")
    if mean_on_s <= 0 or mean_off_s <= 0:
        raise ValueError(
            f"mean_on_s, mean_off_s: must be positive, found {mean_on_s}, {mean_off_s}"
        )
    pieces, start, on = [], 0.0, True
    while start < duration_s:
        length = min(rng.exponential(mean_on_s if on else mean_off_s), duration_s - start)
        count = rng.poisson((on_rate_per_s if on else off_rate_per_s) * length)
        pieces.append((start + np.sort(rng.random(count)) * length) * MS_PER_S)
        start, on = start + length, not on
    return np.concatenate(pieces)


def diurnal(
    mean_per_s: float,
    swing: float,
    period_s: float,
    duration_s: float,
    rng: np.random.Generator,
) -> Times:
    """Poisson requests with rate mean*(1 - swing*cos(2*pi*t/period)): starts at its lowest; 0 <= swing <= 1."""
    _check(mean_per_s, duration_s)
    if not 0 <= swing <= 1 or period_s <= 0:
        raise ValueError(
            f"swing must be in [0, 1] and period_s positive, found {swing}, {period_s}"
        )
    candidates = poisson(mean_per_s * (1 + swing), duration_s, rng)
    rate = 1 - swing * np.cos(2 * np.pi * candidates / (period_s * MS_PER_S))
    return candidates[rng.random(len(candidates)) * (1 + swing) < rate]


def recorded(times_ms: ArrayLike) -> Times:
    """A given trace, checked: finite, ascending, not before 0."""
    times = np.asarray(times_ms, dtype=np.float64)
    if times.ndim != 1 or not np.isfinite(times).all():
        raise ValueError(f"times_ms: must be a list of finite numbers, found shape {times.shape}")
    if times.size and (times[0] < 0 or (np.diff(times) < 0).any()):
        raise ValueError("times_ms: must start at or after 0 and never decrease")
    return times


def _check(rate_per_s: float, duration_s: float) -> None:
    if not rate_per_s > 0:
        raise ValueError(f"rate_per_s: must be positive, found {rate_per_s}")
    if not duration_s > 0:
        raise ValueError(f"duration_s: must be positive, found {duration_s}")
