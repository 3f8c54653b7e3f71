"""Which worker process an instance runs in, and when a process ends.

Only instances of one namespace and one place ever share a process. On a CPU the first of them get a process each: Python's
lock would make small models take turns, and a fork that has the libraries loaded is cheap. But an idle process takes 3 MiB,
so where there are many the next ones join those that run: more than a few times the cores cannot be busy at once. On a
GPU all share one process, because several only take turns on it; under MPS they do not, and the first have one each there too.

What one instance does, its neighbours feel. So instances of one model are kept apart, one that has ended a process, or may
have, gets the next to itself, and a process that leaks is left by all its instances: nobody joins it any more.
"""

from __future__ import annotations

import asyncio
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tessera_runtime.dispatch.mps import MpsServers
from tessera_runtime.dispatch.workers import Place, Worker, WorkerPool
from tessera_runtime.target import DeviceTarget

FEWEST_PROCESSES = 16
"""Of a namespace on a CPU, before any is shared: 50 MiB at most, and a process that ends takes one in 16 along."""

PROCESSES_PER_CORE = 2
"""On a device of many cores: so that those that are busy at once, one a core, seldom lie in the same process."""


@dataclass(frozen=True, slots=True)
class Newcomer:
    """An instance that needs a process."""

    model: str
    company: str | None = None
    """Instances of one company share a process."""
    alone: bool = False
    """Whether it may have no neighbours but its company."""


@dataclass(slots=True)
class Tenants:
    """Who uses a process."""

    models: Counter[str] = field(default_factory=Counter)
    """Instances by model."""
    companies: Counter[str] = field(default_factory=Counter)
    exclusive: bool = False
    """Whether it was started for one that is to be alone."""

    def add(self, newcomer: Newcomer) -> None:
        if not self.models:
            self.exclusive = newcomer.alone
        self.models[newcomer.model] += 1
        if newcomer.company is not None:
            self.companies[newcomer.company] += 1

    def remove(self, model: str, company: str | None) -> None:
        _less(self.models, model)
        if company is not None:
            _less(self.companies, company)


def most_processes(place: Place, cores: int, *, mps: bool = False) -> int:
    """Processes that the instances of a namespace get at ``place`` before they share. ``cores``: of the machine; ``mps``:
    whether they share the place through it.
    """
    if mps:
        return place.mps_clients
    if place.kind != "cpu":
        return 1
    return max(FEWEST_PROCESSES, PROCESSES_PER_CORE * (len(place.cores) or cores))


def choose(processes: Sequence[Tenants], newcomer: Newcomer, most: int) -> int | None:
    """Index of the process that ``newcomer`` joins, None for a new one.

    ``processes``: those of its namespace and place that may be joined; ``most``: so many are started before any is
    shared. Of those the one is chosen with the fewest instances of the same model, then with the fewest of all.
    """
    if newcomer.company is not None:
        for index, tenants in enumerate(processes):
            if tenants.companies[newcomer.company]:
                return index
    shared = [index for index, tenants in enumerate(processes) if not tenants.exclusive]
    if newcomer.alone or len(shared) < most:
        return None
    return min(
        shared,
        key=lambda index: (
            processes[index].models[newcomer.model],
            processes[index].models.total(),
        ),
    )


def place_of(device: DeviceTarget) -> Place:
    return Place(
        device.id,
        device.kind,
        device.cores,
        device.threads,
        device.memory_mib,
        device.environment,
        device.mps_clients,
    )


@dataclass(slots=True, eq=False)
class _Process:
    place: Place
    namespace: str
    mps: bool
    """Whether it is a client of MPS."""
    start: asyncio.Task[Worker]
    tenants: Tenants = field(default_factory=Tenants)

    @property
    def worker(self) -> Worker | None:
        """None until it has started, and when it could not."""
        done = self.start.done() and not self.start.cancelled() and self.start.exception() is None
        return self.start.result() if done else None

    @property
    def open(self) -> bool:
        """Whether it may be joined."""
        worker = self.worker
        if worker is None:
            return not self.start.done()
        return worker.alive and not worker.retired


class Workers:
    """Who uses which worker process."""

    def __init__(self, pool: WorkerPool, mps_root: Path | None = None) -> None:
        """``mps_root``: as in :class:`~tessera_runtime.dispatch.mps.MpsServers`."""
        self.living: dict[int, Worker] = {}
        """By incarnation."""
        self.mps = MpsServers(pool, mps_root)
        self._pool = pool
        self._processes: list[_Process] = []

    async def acquire(
        self,
        device: DeviceTarget,
        namespace: str,
        model: str,
        *,
        company: str | None = None,
        alone: bool = False,
    ) -> Worker:
        """A worker on ``device`` for one instance of ``model``. Raises WorkerLost.

        ``company``: instances of the namespace for which it is equal share one process there, which counts as any other.
        ``alone``: on a CPU, no others are to share it.
        """
        place = place_of(device)
        process = self._join(
            place, namespace, Newcomer(model, company, alone and place.kind == "cpu")
        )
        try:
            return await asyncio.shield(process.start)
        except BaseException:
            self._leave(process, model, company)
            raise

    def release(
        self, worker: Worker, model: str, company: str | None = None, *, idle: bool = True
    ) -> None:
        """One instance less: the last of a model unloads it, the last of a process ends it. ``idle``: whether nothing of it
        runs there.
        """
        process = next(process for process in self._processes if process.worker is worker)
        self._leave(process, model, company, idle)

    def _join(self, place: Place, namespace: str, newcomer: Newcomer) -> _Process:
        there = [
            process
            for process in self._processes
            if process.namespace == namespace and process.place == place and process.open
        ]
        # Beside a process that does without MPS, clients of it would only take turns with that one.
        mps = self.mps.works(place, namespace) and all(process.mps for process in there)
        most = most_processes(place, os.cpu_count() or 1, mps=mps)
        index = choose([process.tenants for process in there], newcomer, most)
        if index is None:
            start = asyncio.create_task(self._start(place, namespace if mps else None))
            start.add_done_callback(_notice)
            process = _Process(place, namespace, mps, start)
            self._processes.append(process)
        else:
            process = there[index]
        process.tenants.add(newcomer)
        return process

    def _leave(self, process: _Process, model: str, company: str | None, idle: bool = True) -> None:
        process.tenants.remove(model, company)
        worker = process.worker
        if not process.tenants.models:
            self._processes.remove(process)
            process.start.cancel()
            if worker is not None and idle:
                worker.finish()
            elif worker is not None:
                worker.kill()
        elif worker is not None and not process.tenants.models[model]:
            worker.unload(model)

    async def _start(self, place: Place, mps_of: str | None) -> Worker:
        """``mps_of``: the namespace with which it shares the place through MPS."""
        if mps_of is None:
            worker = await self._pool.start(place)
        else:
            worker = await self.mps.start(place, mps_of)
        self.living[worker.incarnation] = worker
        worker.lost.add_done_callback(lambda _: self.living.pop(worker.incarnation, None))
        return worker


def _less(counter: Counter[str], key: str) -> None:
    counter[key] -= 1
    if not counter[key]:
        del counter[key]


def _notice(start: asyncio.Task[Worker]) -> None:
    """Whoever waited for it may have gone: an exception that nobody takes is no error then."""
    if not start.cancelled():
        start.exception()
