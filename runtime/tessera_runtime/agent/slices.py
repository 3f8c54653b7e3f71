"""What a node has, as its GPUs are cut now.

GPUs are cut while the agent runs, by the partitioner or by hand. So it looks at them again every half minute, and at once
when the partitioner says in the RuntimeNode that it has cut; what it says of places is how slices are named.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping

from tessera_core.api.errors import Report
from tessera_core.api.records import record
from tessera_core.api.runtimenode import CutStatus, DeviceStatus
from tessera_core.gpu.geometry import Placement
from tessera_runtime.devices.inventory import Inventory, located, look_again
from tessera_runtime.kube import Document
from tessera_runtime.waits import set_within

LOOK_S = 30.0

Places = Mapping[str, Placement]
"""By UUID of a MIG instance."""


class Slices:
    """Made and run on one event loop."""

    def __init__(self, seen: Inventory, changed: Callable[[], None]) -> None:
        """``changed`` is called when there is another inventory."""
        self.seen = seen
        """As it was looked at last."""
        self._changed = changed
        self._told: Places | None = None
        """By the partitioner; None before anything was heard."""
        self._cut = asyncio.Event()

    def hear(self, document: Document | None) -> None:
        """Take over what the RuntimeNode says of places, before anything of its spec is named by them."""
        if document is None:
            return
        status = document.get("status") or {}
        told = _places(status.get("cuts"), CutStatus)
        if told == self._told:
            return
        # The agent that ran here before has named what is there; what this one guessed nobody knows of.
        first = self._told is None
        before = _places(status.get("devices"), DeviceStatus) if first else self._names()
        self._told = told
        self._cut.set()
        self._take(located(self.seen, told, before))

    async def run(self) -> None:
        """For ever, where there are GPUs."""
        while self.seen.gpus:
            await set_within(self._cut, LOOK_S)
            self._cut.clear()
            found = await asyncio.to_thread(look_again, self.seen)
            self._take(located(found, self._told or {}, self._names()))

    def _names(self) -> Places:
        return {each.uuid: each.placement for gpu in self.seen.gpus for each in gpu.slices}

    def _take(self, seen: Inventory) -> None:
        if seen != self.seen:
            self.seen = seen
            self._changed()


def _places(said: object, kind: type[CutStatus] | type[DeviceStatus]) -> Places:
    """What a status says of slices; entries that cannot be read are passed over."""
    found: dict[str, Placement] = {}
    for each in said if isinstance(said, Iterable) else ():
        report = Report(strict=False)
        entry = record(kind).decode(each, "status", report)
        if isinstance(entry, kind) and not report.errors:
            found |= {piece.uuid: Placement(piece.profile, piece.start) for piece in entry.slices}
    return found
