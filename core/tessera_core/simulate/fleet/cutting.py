"""What the GPUs of one pool are cut into, in total: which change needs a cut, and how long it waits for one.

Slices that fell free are taken again as they are. Others are cut anew from GPUs that hold nothing; as many GPUs as the
pool's disruption budget allows are drained and cut at a time, the rest wait. Where each slice lies is not kept: ``bench/fleet``
says how far that is from real plans.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from tessera_core.simulate.fleet.packing import Packing
from tessera_core.simulate.fleet.services import Vector

KEPT_FREE = 0.1
"""Of the GPUs in use, that may lie cut and free beside them; what is beyond is joined again."""


@dataclass(slots=True)
class Ledger:
    """One pool's. Kinds are the whole GPU, then the slices."""

    packing: Packing
    at_once: int
    """GPUs that may be cut at the same time."""
    recut_s: float
    slot_s: float
    cut: Vector
    """Parts that there are, in use or free, shape (kinds,)."""
    used: Vector
    whole: bool = False
    """Whether GPUs are never cut."""
    waiting: float = 0.0
    """GPUs that are still to be cut from slots before."""
    recuts: float = 0.0
    """GPUs that were cut so far."""

    def gpus(self, parts: Vector) -> float:
        """That hold ``parts``, shape (kinds,)."""
        slices = self.packing.profiles
        return float(parts[0] + self.packing.gpus(parts[1 : 1 + len(slices)]))

    def change(self, added: Vector, removed: Vector) -> float:
        """Use ``added`` and leave ``removed``, shape (kinds,): the seconds that what is added waits for cuts in the mean.

        What is removed is free only afterwards: it is there until its replacement serves.
        """
        wanted = self.used + added
        missing = np.maximum(wanted - self.cut, 0)
        self.cut = np.maximum(self.cut, wanted)
        self.used = wanted - removed
        to_cut = 0.0 if self.whole else self.gpus(missing)
        self.recuts += to_cut
        turns = 1 + (self.waiting + to_cut / 2) / self.at_once
        wait_s = self.recut_s * turns * min(1.0, to_cut / max(self.gpus(added), 1e-9))
        done = self.at_once * self.slot_s / self.recut_s
        self.waiting = max(0.0, self.waiting + to_cut - done)
        self._join()
        return wait_s if to_cut else 0.0

    def _join(self) -> None:
        """Leave no more free than ``KEPT_FREE``."""
        free = self.cut - self.used
        held, in_use = self.gpus(self.cut), self.gpus(self.used)
        if held > (1 + KEPT_FREE) * in_use and held > in_use:
            self.cut = self.used + free * (KEPT_FREE * in_use / (held - in_use))
