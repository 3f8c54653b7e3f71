"""Keeping instances running: start, load, warm, attach; when the process dies, again, with growing pauses."""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tessera_runtime.artefacts import ArtefactStore, key_of
from tessera_runtime.dispatch.lane import Lane
from tessera_runtime.dispatch.member import Member
from tessera_runtime.dispatch.probation import Probation
from tessera_runtime.dispatch.processes import Workers
from tessera_runtime.dispatch.service import Service
from tessera_runtime.dispatch.signatures import Signature
from tessera_runtime.dispatch.waiting import eventually
from tessera_runtime.dispatch.workers import LoadFailed, OpenedLane, Worker, WorkerLost
from tessera_runtime.target import DeviceTarget, MemberTarget, ServiceTarget
from tessera_runtime.worker import messages as m

if TYPE_CHECKING:
    from tessera_runtime.dispatch.gang_instance import GangInstance

log = logging.getLogger(__name__)

FIRST_PAUSE_S = 0.05
MOST_PAUSE_S = 10.0
"""Restarts are immediate at first, since a lone crash should cost little, and rare when they do not help."""

HEALTHY_S = 30.0
"""An instance that ran for so long starts with a short pause again."""

DRAIN_TIMEOUT_S = 60.0
"""Most that finishing accepted work may delay the end of an instance."""


def load_message(
    member: MemberTarget, service: ServiceTarget, together: bool = False, variant: str = ""
) -> m.Load:
    """``together``: whether the other members' models come into the same process."""
    others = [each.path for each in service.members if each is not member]
    return m.Load(
        model=f"{service.name}/{member.name}@{member.digest}{variant and f'+{variant}'}",
        path=member.path,
        format=member.format,
        allow_code=member.allow_code,
        inputs=tuple(m.Tensor(t.name, t.datatype, t.row_shape) for t in service.inputs),
        outputs=tuple(m.Tensor(t.name, t.datatype, t.row_shape) for t in service.outputs),
        beside=tuple(others) if together else (),
        variant=variant,
    )


def warm_batches(largest: int) -> tuple[int, ...]:
    """Powers of two up to ``largest``, and ``largest``: what is warmed, and what a profile measures."""
    sizes = {largest}
    size = 1
    while size < largest:
        sizes.add(size)
        size *= 2
    return tuple(sorted(sizes))


def warm_shapes(service: ServiceTarget) -> dict[str, tuple[int, ...]]:
    """A concrete row shape for every declared input of variable shape: its largest bucket, or ones."""
    return {
        tensor.name: max(tensor.buckets, key=math.prod)
        if tensor.buckets
        else tuple(1 if size == -1 else size for size in tensor.row_shape)
        for tensor in service.inputs
        if -1 in tensor.row_shape
    }


@dataclass(frozen=True, slots=True)
class Timeouts:
    """After which an instance is taken for stuck and its process ended, seconds."""

    load_s: float
    """For loading and warming."""
    hang_s: float
    """For one batch, unless its profile says that it takes long."""


class Instance:
    """One wanted instance of a member, from its first start to its end."""

    def __init__(
        self,
        service: Service,
        index: int,
        device: DeviceTarget,
        variant: str,
        company: str | None,
        workers: Workers,
        artefacts: ArtefactStore,
        timeouts: Timeouts,
        on_loaded: Callable[[Service, int, Signature], None],
        on_ready: Callable[[Service], None],
    ) -> None:
        """``company``: instances of the same one share a process on a device."""
        self.index = index
        """Of the member."""
        self.device = device
        self.variant = variant
        """How the model is run; empty: untuned."""
        self.model = ""
        """Its key in the worker process."""
        self.gang: GangInstance | None = None
        """What runs all members of the service in this instance's process."""
        self.lane: Lane | None = None
        self.problem = ""
        self.memory_mib = 0.0
        self._alone = False
        """Whether it may have ended a process, or stopped it."""
        self._service = service
        self._company = company
        self._workers = workers
        self._artefacts = artefacts
        self._timeouts = timeouts
        self._on_loaded = on_loaded
        self._on_ready = on_ready
        self._stopping = False
        self.probation = Probation(variant) if variant else None
        """Of what runs a variant."""
        self._task = asyncio.create_task(
            self._keep_running(), name=f"instance {service.name}[{index}]"
        )

    @property
    def spot(self) -> tuple[DeviceTarget, str]:
        """Its device and its variant: where either is another one, it is another instance."""
        return self.device, self.variant

    @property
    def ready(self) -> bool:
        return self.lane is not None

    @property
    def worker(self) -> Worker | None:
        """The process that it serves from; None before it is warm."""
        return self.lane.worker if self.lane is not None else None

    @property
    def is_faulty(self) -> bool:
        """Whether it runs a variant that is not to serve on."""
        return self.probation is not None and bool(self.probation.problem)

    def suspect(self) -> None:
        """It may have ended its process: the next one it has to itself, and to its company."""
        self._alone = True

    async def stop(self, drain: bool) -> None:
        """End the instance: after the work it holds, if ``drain``."""
        self._stopping = True
        lane = self.lane
        if lane is not None and drain:
            member = self._member
            member.leave(lane)
            if self.gang is not None:
                await self.gang.leave()
            # Where nobody else could serve what waits, it goes first. Peers are somebody else once they
            # answer; and those that call for this instance are given the time to notice.
            calls = self._service.calls[self.index]
            await eventually(
                lambda: (
                    member.serves
                    or (
                        not member.queue
                        and (member.routes is None or member.routes.up)
                        and not calls.lately
                    )
                ),
                DRAIN_TIMEOUT_S,
            )
            member.detach(lane)
            if not await eventually(lambda: not lane.batch, DRAIN_TIMEOUT_S):
                log.warning("%s: a batch outlasted the drain", self._service.name)
        if self.gang is not None:
            self.gang.end()
        self._task.cancel()
        try:
            await self._task
        except asyncio.CancelledError:
            pass

    @property
    def _member(self) -> Member:
        return self._service.members[self.index]

    async def _keep_running(self) -> None:
        failures = 0
        while not self._stopping:
            started = time.monotonic()
            try:
                await self._run_once()
            except (WorkerLost, OSError) as error:  # of the system: no descriptors, no memory
                self.problem = str(error)
            except LoadFailed as error:
                self.problem = str(error)
                log.error("%s/%s: %s", self._service.name, self._member.name, error)
                if self.probation is not None:
                    self.probation.unfit(f"it could not be loaded: {error}")
            failures = 0 if time.monotonic() - started > HEALTHY_S else failures + 1
            await asyncio.sleep(
                min(MOST_PAUSE_S, FIRST_PAUSE_S * 2 ** (failures - 1)) if failures else 0
            )

    async def _run_once(self) -> None:
        """From the fork to the end of the process, or to the cancellation of this task."""
        target = self._service.target
        wanted = target.members[self.index]
        load = load_message(
            wanted, target, together=self._company is not None, variant=self.variant
        )
        self.model = load.model
        namespace = target.name.partition(".")[0]
        worker = await self._workers.acquire(
            self.device, namespace, load.model, company=self._company, alone=self._alone
        )
        lane: Lane | None = None
        suspect = busy = False
        try:
            try:
                async with worker.turn(load.model), asyncio.timeout(self._timeouts.load_s):
                    suspect = busy = True
                    with self._artefacts.found(self._key(wanted)) as artefact:
                        loaded = await worker.load(load, artefact)
                    largest = min(wanted.max_batch, loaded.max_rows or wanted.max_batch)
                    opened = await worker.open_lane(
                        (loaded.model,), largest, warm_batches(largest), warm_shapes(target)
                    )
                    suspect = busy = False
            except LoadFailed:
                busy = False
                raise
            except TimeoutError as error:
                # It may be stuck in what was loaded. A GPU seldom has the memory for a second process beside it.
                worker.retired = self.device.kind == "cpu"
                limit = self._timeouts.load_s
                raise LoadFailed(f"loading and warming took over {limit:.0f} s") from error
            self.memory_mib = loaded.memory_mib
            lane = self._attach(opened, loaded)
            await asyncio.shield(worker.lost)
            self._member.statistics.restarts += 1
            log.warning("worker %d of %s ended", worker.incarnation, self._service.name)
        finally:
            self.lane = None
            if lane is not None:
                lane.close()
                self._member.detach(lane)
            idle = not busy and (lane is None or not lane.batch)
            self._workers.release(worker, load.model, self._company, idle=idle)
            if lane is not None and await decide_lost(self._member, lane):
                suspect = True
            if suspect and not worker.orphaned:
                self._alone = True

    def _key(self, wanted: MemberTarget) -> str:
        """Of what was built for its variant. Raises LoadFailed."""
        try:
            return key_of(wanted, self._service.target.inputs, self.device, self.variant)
        except ValueError as error:
            raise LoadFailed(str(error)) from error

    def _attach(self, opened: OpenedLane, loaded: m.Loaded) -> Lane:
        self._on_loaded(self._service, self.index, loaded)
        lane = Lane(self._member, opened, (loaded.outputs,), self._timeouts.hang_s)
        lane.watch((self.probation,))
        self.lane = lane
        self.problem = ""
        if not self._stopping:
            self._member.attach(lane)
        self._on_ready(self._service)
        return lane


async def decide_lost(member: Member, lane: Lane) -> bool:
    """What becomes of the batch of a lane that is closed. Whether there was one, which may have ended its process."""
    if not lane.batch:
        return False
    worker = lane.worker
    # Its process may still be running: what it held is given out again only once it is gone.
    await _uninterrupted(worker.lost)
    # The process may have had other instances: all are to be known gone before any work is given out anew.
    await _uninterrupted(_next_turn())
    if worker.orphaned:
        # Several end of one cause, which is none of their requests: no suspicion falls on those.
        for work in lane.batch:
            work.kills -= 1
    member.lane_lost(lane)
    return True


def _next_turn() -> asyncio.Future[None]:
    """Done when whoever waits for the same as the caller has gone on."""
    loop = asyncio.get_running_loop()
    turn: asyncio.Future[None] = loop.create_future()
    loop.call_soon(turn.set_result, None)
    return turn


async def _uninterrupted(future: asyncio.Future[None]) -> None:
    """Wait for ``future`` whatever happens to this task; a cancellation meanwhile is for the caller to notice."""
    while not future.done():
        try:
            await asyncio.shield(future)
        except asyncio.CancelledError:
            continue
