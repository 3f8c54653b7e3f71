"""The best setting that never changes, found by trying them all on the same arrivals."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from bench.control.jobs import Law
from numpy.typing import NDArray

from tessera_core.control.setpoint import Setpoint
from tessera_core.simulate.station import Station, simulate

CAPS = (*range(1, 9), *range(10, 17, 2), *range(20, 33, 4), *range(40, 65, 8), *range(80, 129, 16))
COUNTS = tuple(range(1, 11))
MOST = Setpoint(CAPS[-1], COUNTS[-1])
PERCENT = 99.0
"""Of the requests, that have to be answered within the SLO."""
_WARM_UP = 0.05
_STEP = 1.005
"""Up to this factor capacities are told apart."""


@dataclass(frozen=True, slots=True)
class Best:
    setpoint: Setpoint
    per_s: float
    """Capacity, or goodput, in requests per second."""


@lru_cache(maxsize=4096)
def station(law: Law, setpoint: Setpoint) -> Station:
    times = tuple(law(rows, setpoint.instances) for rows in range(1, setpoint.cap + 1))
    return Station(times, setpoint.instances)


def settings(law: Law, slo_ms: float, most: Setpoint = MOST) -> list[Setpoint]:
    """All in which a lone row is in time, those that finish most rows first.

    Caps whose full batch takes longer than the SLO are among them: batches grow only to what waits.
    """
    found = [
        Setpoint(cap, n)
        for cap in CAPS
        for n in COUNTS
        if cap <= most.cap and n <= most.instances and law(1, n) <= slo_ms
    ]
    return sorted(found, key=lambda each: (-finishes(law, each), each.instances, each.cap))


def finishes(law: Law, setpoint: Setpoint) -> float:
    """Rows per second of full batches back to back."""
    return 1e3 * setpoint.instances * setpoint.cap / law(setpoint.cap, setpoint.instances)


def capacity(
    law: Law, slo_ms: float, gaps: NDArray[np.float64], most: Setpoint = MOST
) -> Best | None:
    """The highest rate at which PERCENT are within the SLO, over all settings; None where none carries anything.

    ``gaps``: between arrivals, of mean 1, shape (requests,): every setting and rate has the same ones.
    """
    at_ms = np.cumsum(gaps) * 1e3
    skipped = int(_WARM_UP * len(gaps))

    def holds(setpoint: Setpoint, rate_per_s: float) -> bool:
        latency = simulate(station(law, setpoint), at_ms / rate_per_s, slo_ms).latency_ms[skipped:]
        return bool(np.mean(latency <= slo_ms) >= PERCENT / 100)

    best: Best | None = None
    for setpoint in settings(law, slo_ms, most):
        top = finishes(law, setpoint)
        low = best.per_s * _STEP if best else 0.02 * top
        if low >= top or not holds(setpoint, low):
            continue
        high = 1.3 * top
        while high > low * _STEP:
            middle = (low * high) ** 0.5
            low, high = (middle, high) if holds(setpoint, middle) else (low, middle)
        best = Best(setpoint, low)
    return best


def goodput(
    law: Law, slo_ms: float, arrivals_ms: NDArray[np.float64], tried: Sequence[Setpoint]
) -> list[Best]:
    """What each setting answers in time of ``arrivals_ms``, per second of their span; the best first.

    Nothing beats the one that answers all of them: after it no other is tried.
    """
    span_s = float(arrivals_ms[-1]) / 1e3
    found = []
    for setpoint in tried:
        served = simulate(station(law, setpoint), arrivals_ms, slo_ms)
        good = int(np.count_nonzero(served.latency_ms <= slo_ms))
        found.append(Best(setpoint, good / span_s))
        if good == len(arrivals_ms):
            break
    return sorted(found, key=lambda each: (-each.per_s, each.setpoint.instances, each.setpoint.cap))
