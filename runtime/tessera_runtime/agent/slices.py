"""What a node has, as its GPUs are cut now.

GPUs are cut while the agent runs, by the partitioner or by hand. So it looks at them again every half minute, and at once
when the partitioner says in the RuntimeNode that it has cut; what it says of places is how slices are named. What the
partitioner sees and the agent does not, this pod cannot use, and somebody should hear of it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace

from tessera_core.api.errors import Report
from tessera_core.api.records import record
from tessera_core.api.runtimenode import CutStatus, DeviceStatus
from tessera_core.gpu.geometry import Placement
from tessera_runtime.devices.inventory import Gpu, Inventory, located, look_again
from tessera_runtime.kube import Document
from tessera_runtime.waits import set_within

LOOK_S = 30.0

Places = Mapping[str, Placement]
"""By UUID of a MIG instance."""

UNSEEN = (
    "{uuid}, the {placement}, is not offered: this container does not see it; NVIDIA's container toolkit has to be in CDI "
    "mode, see docs/mig.md"
)


class Slices:
    """Made and run on one event loop."""

    def __init__(self, seen: Inventory, changed: Callable[[], None]) -> None:
        """``changed`` is called when there is another inventory."""
        self.seen = seen
        """As it was looked at last."""
        self._changed = changed
        self._told: Mapping[str, Places] | None = None
        """By the partitioner, by UUID of the GPU; None before anything was heard."""
        self._unseen: Mapping[str, Places] = {}
        """What of it the last look did not find."""
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
        said = _flat(_places(status.get("devices"), DeviceStatus))
        self._told = told
        self._cut.set()
        self._take(located(self.seen, _flat(told), said if first else self._names()))

    async def run(self) -> None:
        """For ever, where there are GPUs."""
        while self.seen.gpus:
            await set_within(self._cut, LOOK_S)
            self._cut.clear()
            told = self._told or {}
            found = await asyncio.to_thread(look_again, self.seen)
            found = replace(found, gpus=tuple(self.compared(gpu, told) for gpu in found.gpus))
            self._take(located(found, _flat(self._told or {}), self._names()))

    def compared(self, gpu: Gpu, told: Mapping[str, Places]) -> Gpu:
        """``gpu``, with a problem where two looks in a row have not found what was ``told`` before the second: what one look
        does not find may be what a cut has just destroyed.
        """
        seen = {each.uuid for each in gpu.slices}
        before = self._unseen.get(gpu.uuid, {})
        unseen = {uuid: place for uuid, place in told.get(gpu.uuid, {}).items() if uuid not in seen}
        self._unseen = {**self._unseen, gpu.uuid: unseen}
        lasting = sorted((place, uuid) for uuid, place in unseen.items() if uuid in before)
        if gpu.problem or not lasting:
            return gpu
        place, uuid = lasting[0]
        return replace(gpu, problem=UNSEEN.format(uuid=uuid, placement=place))

    def _names(self) -> Places:
        return {each.uuid: each.placement for gpu in self.seen.gpus for each in gpu.slices}

    def _take(self, seen: Inventory) -> None:
        if seen != self.seen:
            self.seen = seen
            self._changed()


def _flat(of_gpus: Mapping[str, Places]) -> Places:
    return {uuid: place for places in of_gpus.values() for uuid, place in places.items()}


def _places(said: object, kind: type[CutStatus] | type[DeviceStatus]) -> Mapping[str, Places]:
    """What a status says of slices, by UUID of the GPU; entries that cannot be read are passed over."""
    found: dict[str, Places] = {}
    for each in said if isinstance(said, Iterable) else ():
        report = Report(strict=False)
        entry = record(kind).decode(each, "status", report)
        if isinstance(entry, kind) and not report.errors:
            found[entry.uuid] = {
                piece.uuid: Placement(piece.profile, piece.start) for piece in entry.slices
            }
    return found
