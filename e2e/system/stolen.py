"""When the processors of this machine were taken away: a hypervisor ran others on them (``steal``, proc_stat(5)).

On a shared machine that happens for seconds on end, and no cluster on it can answer meanwhile. On a machine of one's own it
never does.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

_STAT = Path("/proc/stat")
_TICK_S = 1.0 / os.sysconf("SC_CLK_TCK")

MOST = 0.5
"""Of the time that processes wanted and did not get, beyond which the machine counts as taken away."""
LEAST_PROCESSORS = 0.5
"""That have to be missing for it: an idle machine that is refused a moment is not taken away."""


@dataclass(frozen=True, slots=True)
class Reading:
    """Seconds since the machine was started, over all processors."""

    ran_s: float
    stolen_s: float

    @classmethod
    def now(cls) -> Self:
        user, nice, system, _, _, irq, softirq, steal, *_ = (
            int(each) * _TICK_S for each in _STAT.read_text().split("\n", 1)[0].split()[1:]
        )
        return cls(user + nice + system + irq + softirq, steal)


def taken_away(before: Reading, after: Reading, elapsed_s: float) -> bool:
    """Whether the machine was, between two readings."""
    stolen = after.stolen_s - before.stolen_s
    wanted = after.ran_s - before.ran_s + stolen
    return stolen > MOST * wanted and stolen > LEAST_PROCESSORS * elapsed_s


def within(spans: Sequence[tuple[float, float]], first_s: float, last_s: float) -> float:
    """Seconds of ``spans`` between two moments."""
    return sum(max(0.0, min(last, last_s) - max(first, first_s)) for first, last in spans)
