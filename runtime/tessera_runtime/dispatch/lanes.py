"""The instances of a member: which take batches, and which stand by.

One that stands by is loaded and warm. On each device the first that came take batches, as many as are to be active
there; when one of them leaves or ends, the next one takes its place at once.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tessera_runtime.dispatch.lane import Lane


class Lanes:
    """Those of one member. Its length is how many there are."""

    def __init__(self) -> None:
        self.staying: list[Lane] = []
        """That work may be given to from now on."""
        self.taking: list[Lane] = []
        """:attr:`staying`, and those that leave and are not detached yet."""
        self.free: list[Lane] = []
        """Of those, the ones that run nothing; last, the one that finished last."""
        self.active: dict[str, int] = {}
        """By device, how many are to take batches; all, where it is not said."""
        self._all: list[Lane] = []

    def __len__(self) -> int:
        return len(self._all)

    def limit(self, active: dict[str, int]) -> None:
        """Have so many take batches from now on."""
        if active != self.active:
            self.active = active
            self._choose()

    def attach(self, lane: Lane) -> None:
        self._all.append(lane)
        self._choose()

    def leave(self, lane: Lane) -> None:
        """It ends soon, so that others have to serve what waits."""
        lane.leaving = True
        self._choose()

    def detach(self, lane: Lane) -> None:
        if lane in self._all:
            self._all.remove(lane)
            self._choose()

    def finished(self, lane: Lane) -> None:
        """It runs nothing any more."""
        if lane in self.taking:
            self.free.append(lane)

    def _choose(self) -> None:
        left = dict(self.active)
        self.staying = []
        self.taking = []
        for lane in self._all:
            if not lane.leaving:
                room = left.get(lane.device)
                if room is not None:
                    if room <= 0:
                        continue
                    left[lane.device] = room - 1
                self.staying.append(lane)
            self.taking.append(lane)
        free = [lane for lane in self.free if lane in self.taking]
        self.free = free + [lane for lane in self.taking if not lane.batch and lane not in free]
