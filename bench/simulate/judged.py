"""Whether simulation and server agree, and in what the answer is sure."""

from __future__ import annotations

import statistics
from dataclasses import dataclass

from bench.harness import Row

TARGET_P99 = 0.15
"""Greatest error of the median run, as a share of the measured p99."""
STEADY = 0.05
"""Batches of a run took as long as before it, within this: else the machine is what was measured."""


@dataclass(frozen=True, slots=True)
class Judged:
    """One figure over the runs."""

    median: float
    least: float
    most: float
    """Least and greatest of five runs enclose the median of all runs with 94 % (1 - 2 / 2**5)."""

    def __str__(self) -> str:
        return f"{self.median:+.1%} [{self.least:+.1%}, {self.most:+.1%}]"


def judged(row: Row, figure: str) -> Judged:
    values = [repeat[figure] for repeat in row.repeats]
    return Judged(statistics.median(values), min(values), max(values))


def verdict(row: Row) -> str:
    """In words, for the row of one load."""
    error = judged(row, "p99_error")
    if abs(error.median) <= TARGET_P99:
        return f"within {TARGET_P99:.0%}"
    drift = judged(row, "batch_time_drift")
    own = judged(row, "own_p99_error")
    said = f"not within {TARGET_P99:.0%}: "
    if abs(drift.median) > STEADY:
        said += f"batches took {drift.median:+.0%} against what was told; "
    if abs(own.median) <= TARGET_P99:
        return said + "with the run's own batch times it is"
    late = row.medians["sent_1ms_late"]
    return said + f"nor with the run's own batch times ({late:.0%} were sent 1 ms late)"
