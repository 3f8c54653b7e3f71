"""The partitioner of one node: follows its RuntimeNode, cuts what is ordered there, tells what there is.

One loop does one thing at a time, and NVML's calls, which are slow, are made in a thread. All that is decided is in
``decide``. Nothing has to survive a restart: what a GPU is cut into is asked of it, and how the last tries went is read
back from the status.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable

from tessera_core.api import SpecInvalid
from tessera_core.api.records import record
from tessera_core.api.runtimenode import CutStatus, RuntimeNodeStatus
from tessera_core.gpu.geometry import Geometry, GeometryError
from tessera_runtime.following import Follower
from tessera_runtime.kube import Document, Kube, KubeError
from tessera_runtime.partitioner import decide
from tessera_runtime.partitioner.cut import cut
from tessera_runtime.partitioner.decide import Order, Seen, Tried
from tessera_runtime.partitioner.errors import DriverLost, PartitionError, Stopped
from tessera_runtime.partitioner.gpu import MigGpu, Slice
from tessera_runtime.partitioner.machine import look
from tessera_runtime.waits import pause_s, set_within

log = logging.getLogger(__name__)

LOOK_S = 30.0
"""Between two looks at the GPUs without news: an administrator may cut them by hand."""

FIRST_PAUSE_S = 0.5
MOST_PAUSE_S = 30.0
"""Between two rounds that the API server did not let end."""


class Partitioner:
    """Made and run on one event loop."""

    def __init__(
        self,
        kube: Kube,
        node: str,
        *,
        patience_s: float,
        look_s: float = LOOK_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """``patience_s``: how long one try of a cut waits for what is in use."""
        self._kube = kube
        self._node = node
        self._patience_s = patience_s
        self._look_s = look_s
        self._clock = clock
        self._order = Order()
        self._seen: Seen = {}
        self._tried: dict[str, Tried] | None = None
        """None until it is read back what the partitioner before this one has tried."""
        self._said: tuple[CutStatus, ...] | None = None
        """What the API server has; None: there is nothing to write to, or it cannot be read."""
        self._exists = False
        self._news = asyncio.Event()
        self._ends = False

    async def run(self, stop: asyncio.Event) -> None:
        """Until ``stop``; a cut that is under way then ends with its step."""
        async with asyncio.TaskGroup() as group:
            beside = [
                group.create_task(Follower(self._kube, self._node, self._hear).run()),
                group.create_task(self._end(stop)),
            ]
            try:
                await self._rounds()
            finally:
                self._ends = True
                for task in beside:
                    task.cancel()

    async def _rounds(self) -> None:
        failures = 0
        while not self._ends:
            self._news.clear()
            try:
                await self._round()
                failures, wait_s = 0, self._wait_s()
            except KubeError as error:
                failures += 1
                wait_s = pause_s(failures, FIRST_PAUSE_S, MOST_PAUSE_S, error.retry_after_s)
                log.warning("%s", error)
            await set_within(self._news, wait_s)

    async def _end(self, stop: asyncio.Event) -> None:
        await stop.wait()
        self._ends = True
        self._news.set()

    def _hear(self, document: Document | None) -> None:
        """The RuntimeNode as it is now; None while there is none, and then nothing is ordered."""
        before = self._order, self._said, self._exists
        self._exists = document is not None
        if document is None:
            self._order, self._said = Order(epoch=self._order.epoch), None
        else:
            self._order = self._ordered(document)
            self._said = _said(document)
            if self._tried is None:
                self._tried = decide.tried_before(self._said or ())
        if before != (self._order, self._said, self._exists):
            self._news.set()

    def _ordered(self, document: Document) -> Order:
        """What counts of ``document``: nothing of a leader that was deposed, or that cannot be read."""
        seen = self._order.epoch
        try:
            found = decide.order(document)
        except SpecInvalid as error:
            log.warning("the RuntimeNode orders what cannot be read: %s", error)
            return Order(epoch=seen)
        if found.epoch < seen:
            log.warning("spec.epoch: found %d, %d was seen already: ignored", found.epoch, seen)
            return Order(epoch=seen)
        return found

    async def _round(self) -> None:
        """Look, cut one GPU if one is due, and tell. Raises KubeError."""
        if self._tried is None:
            return  # nothing is known of this node yet
        await self._look()
        if decide.due(self._order, self._tried, self._clock()) is not None:
            # What was heard last may be of long ago: without the API server an order may have been taken back, and what
            # was free may be serving. Read from the server itself, an order that stands cannot be older than this.
            self._hear(await self._kube.node(self._node))
            self._settle()
            uuid = decide.due(self._order, self._tried, self._clock())
            if uuid is not None:
                await self._cut(uuid, self._order)
        await self._tell()

    async def _look(self) -> None:
        try:
            self._seen = await asyncio.to_thread(look)
        except DriverLost as error:
            # What was seen last is all that there is to tell; cuts that are due say why they fail.
            log.warning("%s", error)
        self._settle()

    def _settle(self) -> None:
        assert self._tried is not None
        self._tried = decide.settled(self._order, self._seen, self._tried)

    async def _cut(self, uuid: str, order: Order) -> None:
        assert self._tried is not None
        goal = order.goals[uuid]
        log.info("cutting %s: %s", uuid, ", ".join(map(str, goal)) or "nothing")

        def stands() -> bool:
            return not self._ends and self._order.goals.get(uuid) == goal

        try:
            slices = await asyncio.to_thread(_cut, uuid, goal, self._patience_s, stands)
        except Stopped as error:
            log.info("%s", error)
        except (PartitionError, GeometryError) as error:
            log.warning("%s", error)
            last = self._tried.get(uuid)
            self._tried[uuid] = decide.failed(order.generation, last, error, self._clock())
        else:
            log.info("cut %s", uuid)
            self._seen = {**self._seen, uuid: slices}
            self._tried[uuid] = Tried(order.generation)
            return
        await self._look()

    async def _tell(self) -> None:
        """Write the status where it differs. Raises KubeError."""
        assert self._tried is not None
        cuts = decide.told(self._seen, self._tried)
        if self._exists and cuts != self._said:
            status = record(RuntimeNodeStatus).encode(RuntimeNodeStatus(cuts=cuts))
            await self._kube.write_status(self._node, status)
            self._said = cuts

    def _wait_s(self) -> float:
        if self._tried is None:
            return self._look_s
        next_s = decide.next_due_s(self._order, self._tried)
        if next_s is None:
            return self._look_s
        return min(self._look_s, max(0.0, next_s - self._clock()))


def _cut(
    uuid: str, goal: Geometry, patience_s: float, go_on: Callable[[], bool]
) -> tuple[Slice, ...]:
    with MigGpu(uuid) as gpu:
        return cut(gpu, goal, patience_s=patience_s, go_on=go_on)


def _said(document: Document) -> tuple[CutStatus, ...] | None:
    try:
        return decide.said_before(document)
    except SpecInvalid as error:
        log.warning("status.cuts cannot be read, and is written anew: %s", error)
        return None
