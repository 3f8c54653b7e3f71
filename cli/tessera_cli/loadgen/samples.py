"""What a load measured, as arrays, and the figures that are read from it."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from tessera_cli.loadgen.plan import Finished
from tessera_cli.loadgen.status import DISCONNECTED, RESET, UNANSWERED, is_good, status_name

Floats = npt.NDArray[np.float64]

LATE_S = 0.005
"""A request sent more than this after its time is counted as late: the client was busy, or had no room."""

LOST = (UNANSWERED, DISCONNECTED, RESET)


@dataclass(frozen=True, slots=True)
class Samples:
    """Per request, in the order in which they were meant to be sent. Times in seconds from the start."""

    intended: Floats
    sent: Floats
    """NaN: never."""
    done: Floats
    """NaN: never."""
    status: npt.NDArray[np.int32]
    answers: tuple[bytes, ...]
    """One body per request, or nothing where answers were not kept."""

    @classmethod
    def of(cls, finished: Finished) -> Samples:
        return cls(
            np.frombuffer(finished.intended, "<f8"),
            np.frombuffer(finished.sent, "<f8"),
            np.frombuffer(finished.done, "<f8"),
            np.frombuffer(finished.status, "<i4"),
            finished.answers,
        )

    @property
    def good(self) -> npt.NDArray[np.bool_]:
        known = {int(status): is_good(int(status)) for status in np.unique(self.status)}
        return np.array([known[int(status)] for status in self.status], dtype=np.bool_)

    @property
    def latency_ms(self) -> Floats:
        """From the intended moment; NaN where no answer came."""
        latency: Floats = (self.done - self.intended) * 1e3
        return latency

    @property
    def lost(self) -> int:
        """Requests without any answer: not even an error."""
        return int(np.isin(self.status, LOST).sum())


@dataclass(frozen=True, slots=True)
class Summary:
    """The figures of one stretch of a load."""

    requests: int
    """Meant to be sent in it."""
    rate_per_s: float
    """Good answers that arrived in it, per second."""
    p50_ms: float
    p99_ms: float
    """Of the good answers to its requests, from the intended moment; NaN without any."""
    worst_ms: float
    attainment: float
    """Share of its requests with a good answer within the SLO; NaN without requests or SLO."""
    failed: int
    """Answered with an error."""
    lost: int
    late: int
    statuses: dict[str, int]

    def as_dict(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self.__slots__}


def summarise(
    samples: Samples, begin_s: float, end_s: float, slo_ms: float | None = None
) -> Summary:
    """Figures of the requests meant to be sent in ``[begin_s, end_s)``."""
    inside = (samples.intended >= begin_s) & (samples.intended < end_s)
    good = samples.good
    arrived = good & (samples.done >= begin_s) & (samples.done < end_s)
    latency = samples.latency_ms[inside & good]
    status = samples.status[inside]
    lost = int(np.isin(status, LOST).sum())
    requests = int(inside.sum())
    p50, p99 = np.percentile(latency, (50, 99)) if latency.size else (np.nan, np.nan)
    within = float((latency <= slo_ms).sum()) if slo_ms is not None else np.nan
    lateness = samples.sent[inside] - samples.intended[inside]
    return Summary(
        requests=requests,
        rate_per_s=float(arrived.sum()) / (end_s - begin_s),
        p50_ms=float(p50),
        p99_ms=float(p99),
        worst_ms=float(latency.max()) if latency.size else np.nan,
        attainment=within / requests if requests else np.nan,
        failed=int((~good[inside]).sum()) - lost,
        lost=lost,
        late=int((lateness > LATE_S).sum()),
        statuses={status_name(code): n for code, n in Counter(status.tolist()).items()},
    )
