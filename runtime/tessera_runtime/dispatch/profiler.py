"""Measuring a member on a device: the batch time that the queue model, the planner and the dispatcher use.

Measured through the very path that serves (:mod:`tessera_runtime.dispatch.measured`). What is left out is the dispatcher's own
work per request and all queueing, which the queue model adds.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence

import numpy as np

from tessera_runtime.artefacts import ArtefactStore, key_of
from tessera_runtime.devices.usage import gpu_usage
from tessera_runtime.dispatch.arena import InputArena
from tessera_runtime.dispatch.measured import Bench, Measured, Noise, batch_of
from tessera_runtime.dispatch.mps import VISIBLE, MpsServers
from tessera_runtime.dispatch.processes import place_of
from tessera_runtime.dispatch.workers import LoadFailed, OpenedLane, Worker, WorkerPool
from tessera_runtime.target import ProfileCell, ProfileReport, ProfileRequest
from tessera_runtime.worker import messages as m

WARM_S = 0.1
"""Seconds that a batch size is run before it is measured: caches, allocators and the processor's clock settle."""

MIB = 1 << 20


async def profile(
    pool: WorkerPool,
    mps: MpsServers,
    arena: InputArena,
    store: ArtefactStore,
    request: ProfileRequest,
) -> ProfileReport:
    """Measure every (batch, instances) cell of ``request``: of a device that processes share through MPS, so, or not at
    all. Raises LoadFailed, WorkerLost, Overloaded.
    """
    measured = Measured(request.member, request.inputs, request.outputs, request.hang_s)
    session = _Session(Bench(pool, mps, arena, measured), store, request)
    try:
        return await session.run()
    finally:
        await session.bench.close()


class _Session:
    def __init__(self, bench: Bench, store: ArtefactStore, request: ProfileRequest) -> None:
        self.bench = bench
        self._store = store
        self._place = place_of(request.device)
        self._request = request
        self._workers: list[Worker] = []
        self._lanes: list[OpenedLane] = []
        self._memory_mib = 0.0
        self._used_before_mib = 0.0
        """Of the device, where processes on it have contexts that no engine counts."""

    async def run(self) -> ProfileReport:
        request = self._request
        cells: list[ProfileCell] = []
        self._used_before_mib = await self._used_mib()
        first, signature = await self._start_worker()
        largest = min(max(request.batches), signature.max_rows or max(request.batches))
        batches = tuple(sorted({min(batch, largest) for batch in request.batches}))
        inputs = self.bench.noise(signature, largest)
        for instances in sorted(set(request.instances)):
            while len(self._lanes) < instances:
                await self._open_lane(first, signature, largest)
            for batch in batches:
                cells.append(await self._measure(batch, instances, inputs))
                if cells[-1].p50_ms > request.most_ms:
                    break
        return ProfileReport(signature.engine, tuple(cells), largest)

    async def _start_worker(self) -> tuple[Worker, m.Loaded]:
        worker = await self.bench.worker(self._place)
        self._workers.append(worker)
        request = self._request
        try:
            key = key_of(request.member, request.inputs, request.device, request.variant)
        except ValueError as error:
            raise LoadFailed(str(error)) from error
        with self._store.found(key) as artefact:
            loaded = await self.bench.load(worker, request.variant, artefact)
        self._memory_mib += loaded.memory_mib
        return worker, loaded

    async def _open_lane(self, first: Worker, signature: m.Loaded, largest: int) -> None:
        worker = first
        most = self._place.mps_clients
        if self._lanes and (len(self._lanes) < most if most else self._place.kind == "cpu"):
            worker, _ = await self._start_worker()  # as when serving: a process per instance
        elif most:
            worker = self._workers[len(self._lanes) % most]
        self._lanes.append(await self.bench.lane(worker, signature, largest))

    async def _measure(self, batch: int, instances: int, inputs: Sequence[Noise]) -> ProfileCell:
        run = batch_of(inputs, batch)
        lanes = self._lanes[:instances]
        await self._drive_all(lanes, run, WARM_S)  # not counted
        started = time.perf_counter()
        each = await self._drive_all(lanes, run, self._request.cell_s)
        elapsed = time.perf_counter() - started
        times = np.array([ms for lane in each for ms in lane])
        return ProfileCell(
            batch=batch,
            instances=instances,
            p50_ms=float(np.percentile(times, 50)),
            p99_ms=float(np.percentile(times, 99)),
            throughput=batch * len(times) / elapsed,
            memory_mib=max(
                self._memory_mib * instances / max(1, len(self._workers)),
                await self._used_mib() - self._used_before_mib,
            ),
        )

    async def _used_mib(self) -> float:
        """Memory in use on a GPU under MPS, where each process has a context; 0 elsewhere, and where nobody tells."""
        if not self._place.mps_clients or self._place.kind == "cpu":
            return 0.0
        usage = await asyncio.to_thread(gpu_usage)
        mine = self._place.environment.get(VISIBLE)
        return sum(each.memory_used_bytes for each in usage if each.uuid == mine) / MIB

    async def _drive_all(
        self, lanes: Sequence[OpenedLane], run: m.Run, seconds: float
    ) -> list[list[float]]:
        return await asyncio.gather(*(self.bench.drive(lane, run, seconds) for lane in lanes))
