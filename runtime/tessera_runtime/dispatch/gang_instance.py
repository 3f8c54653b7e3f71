"""An instance of a gang: in a process that has an instance of every member."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence

from tessera_runtime.dispatch.gang import Gang
from tessera_runtime.dispatch.instances import (
    DRAIN_TIMEOUT_S,
    Instance,
    Timeouts,
    decide_lost,
    warm_batches,
    warm_shapes,
)
from tessera_runtime.dispatch.lane import Lane
from tessera_runtime.dispatch.service import Service
from tessera_runtime.dispatch.waiting import eventually
from tessera_runtime.dispatch.workers import LoadFailed, Worker, WorkerLost

log = logging.getLogger(__name__)


def join_members(service: Service, instances: Sequence[Instance], timeouts: Timeouts) -> None:
    """Start an instance of the gang in each process of ``instances`` where all members are and none is yet."""
    members = service.members
    positions = {tuple(position for position, _ in member.input_names) for member in members}
    if service.metadata is None or len(positions) > 1:
        return  # not known yet, or members that take different ones of its inputs
    hosted: dict[int, dict[int, Instance]] = {}
    for instance in instances:
        if instance.lane is not None:
            by_member = hosted.setdefault(instance.lane.worker.incarnation, {})
            by_member.setdefault(instance.index, instance)
    for by_member in hosted.values():
        parts = [by_member[index] for index in sorted(by_member)]
        if len(parts) == len(members) and not any(part.gang for part in parts):
            GangInstance(service, parts, timeouts)


class GangInstance:
    """One, from its start to the end of its process or until the members part."""

    def __init__(self, service: Service, parts: Sequence[Instance], timeouts: Timeouts) -> None:
        """``parts``: ready instances of all members in one process, in their order."""
        assert parts[0].lane is not None, "ready"
        self._service = service
        self._parts = tuple(parts)
        self._worker = parts[0].lane.worker
        self._timeouts = timeouts
        self._lane: Lane | None = None
        self._leaving: asyncio.Task[None] | None = None
        for part in parts:
            part.gang = self
        self._gang = service.join()
        self._task = asyncio.create_task(
            self._run(self._gang, self._worker), name=f"gang {service.name}"
        )

    def leave(self) -> asyncio.Future[None]:
        """End it: after the work it holds; what comes from now on goes elsewhere. Done when it has ended, and goes on
        when the caller does not wait for that. Whoever of the members ends first says so.
        """
        if self._leaving is None:
            if self._lane is not None:
                self._gang.leave(self._lane)  # at once, not when the task has its turn
            self._leaving = asyncio.create_task(self._leave())
        return asyncio.shield(self._leaving)

    def end(self) -> None:
        """Without waiting for work."""
        self._task.cancel()

    async def _leave(self) -> None:
        gang, lane = self._gang, self._lane
        if lane is not None:
            gang.leave(lane)  # it may have been opened since
            await eventually(lambda: gang.serves or not gang.queue, DRAIN_TIMEOUT_S)
            gang.detach(lane)
            if await eventually(lambda: not lane.batch, DRAIN_TIMEOUT_S):
                lane.close()
            else:
                log.warning("%s: a batch outlasted the drain", self._service.name)
        self._task.cancel()

    async def _run(self, gang: Gang, worker: Worker) -> None:
        name = f"{self._service.name}: {gang.name}"
        try:
            try:
                async with worker.turn(name), asyncio.timeout(self._timeouts.load_s):
                    self._lane = await self._open(gang, worker)
                gang.attach(self._lane)
            except (LoadFailed, TimeoutError) as error:
                # The members serve alone, as they did until now.
                log.error("%s: its members do not run as one: %s", self._service.name, error)
            await asyncio.shield(worker.lost)
        except (WorkerLost, OSError):
            pass  # the members' own instances tell why
        finally:
            lane = self._lane
            for part in self._parts:
                part.gang = None
            if lane is not None:
                if lane.batch and not worker.orphaned:
                    for part in self._parts:
                        part.suspect()
                lane.close()
                gang.detach(lane)
                await decide_lost(gang, lane)

    async def _open(self, gang: Gang, worker: Worker) -> Lane:
        members = gang.members
        opened = await worker.open_lane(
            tuple(part.model for part in self._parts),
            gang.largest,
            warm_batches(gang.largest),
            warm_shapes(self._service.target),
            tuple(tuple(name for _, name in member.input_names) for member in members),
        )
        signatures = [member.signature for member in members]
        outputs = [signature.outputs for signature in signatures if signature is not None]
        lane = Lane(gang, opened, outputs, self._timeouts.hang_s)
        lane.watch(tuple(part.probation for part in self._parts))
        return lane
