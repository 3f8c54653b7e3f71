"""Whether an instance that runs a variant of its model goes wrong: what an untuned model is not suspected of.

A variant was checked before it serves, on one machine's inputs. One that cannot be loaded, that fails batch after batch, whose
process ends while it runs, or that answers what is no number, is not to serve on: the dispatcher says so in its report, and the
agent has the untuned model run instead.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

import numpy as np

IN_A_ROW = 3
"""Batches that fail one after the other."""
MOST_OF_RECENT = 8
"""Batches that fail of the last ``RECENT``, where others do not: more than the requests of one client who is to blame."""
RECENT = 20
MOST_LOOKED_AT = 65536
"""Values of a batch's outputs that are looked at: some ten microseconds."""


class Probation:
    """Of one instance, for as long as it is wanted: also over restarts of its process."""

    def __init__(self, variant: str) -> None:
        self.variant = variant
        self.problem = ""
        """Why it is not to serve on; empty: nothing is wrong."""
        self._recent: deque[bool] = deque(maxlen=RECENT)
        """Whether each of the last batches failed."""
        self._in_a_row = 0

    def failed(self, why: str) -> None:
        """A batch failed."""
        self._in_a_row += 1
        self._recent.append(True)
        if self._in_a_row >= IN_A_ROW:
            self.unfit(f"{self._in_a_row} batches in a row failed: {why}")
        elif sum(self._recent) >= MOST_OF_RECENT:
            self.unfit(f"{sum(self._recent)} of the last {len(self._recent)} batches failed: {why}")

    def answered(self, outputs: Sequence[np.ndarray]) -> None:
        """A batch came back, with ``outputs`` of this model."""
        left = MOST_LOOKED_AT
        for each in outputs:
            if each.dtype.kind == "f" and not np.isfinite(each.reshape(-1)[:left]).all():
                self.failed("an output is not a finite number")
                return
            left = max(0, left - each.size)
        self._in_a_row = 0
        self._recent.append(False)

    def unfit(self, why: str) -> None:
        """It is not to serve on; the first reason is kept."""
        self.problem = self.problem or why
