"""Measuring a member on a device: the batch time that the queue model, the planner and the dispatcher use.

Measured through the very path that serves: a worker from the zygote, lanes, inputs in the arena, gather and
answer included. What is left out is the dispatcher's own work per request and all queueing, which the queue
model adds.
"""

from __future__ import annotations

import asyncio
import math
import socket
import time
from collections.abc import Sequence

import numpy as np

from tessera_core.api.modelservice import Combine, OnTimeout
from tessera_runtime.datatypes import DATATYPES, encode_bytes
from tessera_runtime.dispatch.arena import ArenaSlot, InputArena
from tessera_runtime.dispatch.instances import load_message, place_of
from tessera_runtime.dispatch.workers import LoadFailed, OpenedLane, Worker, WorkerLost, WorkerPool
from tessera_runtime.target import ProfileCell, ProfileReport, ProfileRequest, ServiceTarget
from tessera_runtime.worker import messages as m

FEWEST_RUNS = 5
"""Batches per lane and cell, however slow they are."""

MOST_RUNS = 2_000


async def profile(pool: WorkerPool, arena: InputArena, request: ProfileRequest) -> ProfileReport:
    """Measure every (batch, instances) cell of ``request``. Raises LoadFailed, WorkerLost, Overloaded."""
    session = _Session(pool, arena, request)
    try:
        return await session.run()
    finally:
        await session.close()


class _Session:
    def __init__(self, pool: WorkerPool, arena: InputArena, request: ProfileRequest) -> None:
        self._pool = pool
        self._arena = arena
        self._request = request
        self._workers: list[Worker] = []
        self._lanes: list[OpenedLane] = []
        self._engine = ""
        self._memory_mib = 0.0

    async def run(self) -> ProfileReport:
        request = self._request
        cells: list[ProfileCell] = []
        first, signature = await self._start_worker()
        self._engine = signature.engine
        largest = min(max(request.batches), signature.max_rows or max(request.batches))
        batches = tuple(sorted({min(batch, largest) for batch in request.batches}))
        slots, inputs = self._fill_arena(signature, largest)
        try:
            for instances in sorted(set(request.instances)):
                while len(self._lanes) < instances:
                    await self._open_lane(first, signature, batches)
                for batch in batches:
                    cells.append(await self._measure(batch, instances, inputs))
                    if cells[-1].p50_ms > request.most_ms:
                        break
        finally:
            for slot in slots:
                slot.release()
        return ProfileReport(self._engine, tuple(cells), largest)

    async def close(self) -> None:
        for lane in self._lanes:
            lane.sock.close()
        for worker in self._workers:
            worker.kill()
        for worker in self._workers:
            await asyncio.shield(worker.lost)

    async def _start_worker(self) -> tuple[Worker, m.Loaded]:
        worker = await self._pool.start(place_of(self._request.device))
        self._workers.append(worker)
        loaded = await worker.load(load_message(self._request.member, _service(self._request)))
        self._memory_mib += loaded.memory_mib
        return worker, loaded

    async def _open_lane(
        self, first: Worker, signature: m.Loaded, batches: tuple[int, ...]
    ) -> None:
        worker = first
        if self._request.device.kind == "cpu" and self._lanes:
            worker, _ = await self._start_worker()  # as when serving: a process per instance
        shapes = {t.name: _concrete(t, self._request) for t in signature.inputs}
        self._lanes.append(await worker.open_lane(signature.model, batches, shapes))

    def _fill_arena(
        self, signature: m.Loaded, rows: int
    ) -> tuple[list[ArenaSlot], list[tuple[m.Tensor, tuple[int, ...], int, int]]]:
        """Inputs for ``rows`` rows. The values are noise: zeros make some kernels faster than they are."""
        rng = np.random.default_rng(0)
        slots: list[ArenaSlot] = []
        inputs: list[tuple[m.Tensor, tuple[int, ...], int, int]] = []
        for tensor in signature.inputs:
            row_shape = _concrete(tensor, self._request)
            data = _noise(rng, tensor.datatype, (rows, *row_shape))
            slot = self._arena.allocate(len(data))
            slot.view[:] = data
            slots.append(slot)
            inputs.append((tensor, row_shape, slot.offset, len(data) // rows))
        return slots, inputs

    async def _measure(
        self,
        batch: int,
        instances: int,
        inputs: Sequence[tuple[m.Tensor, tuple[int, ...], int, int]],
    ) -> ProfileCell:
        run = m.Run(
            0,
            (batch,),
            tuple(
                m.Input(tensor.name, row_shape, (offset,), (nbytes * batch,))
                for tensor, row_shape, offset, nbytes in inputs
            ),
        )
        until = time.monotonic() + self._request.cell_s
        started = time.perf_counter()
        each = await asyncio.gather(
            *(self._drive(lane, run, until) for lane in self._lanes[:instances])
        )
        elapsed = time.perf_counter() - started
        times = np.array([ms for lane in each for ms in lane])
        return ProfileCell(
            batch=batch,
            instances=instances,
            p50_ms=float(np.percentile(times, 50)),
            p99_ms=float(np.percentile(times, 99)),
            throughput=batch * len(times) / elapsed,
            memory_mib=self._memory_mib * instances / max(1, len(self._workers)),
        )

    async def _drive(self, lane: OpenedLane, run: m.Run, until: float) -> list[float]:
        """Batch times of one lane in ms: the next batch is sent as soon as one is back."""
        sock = lane.sock
        sock.setblocking(False)
        times: list[float] = []
        while len(times) < FEWEST_RUNS or (len(times) < MOST_RUNS and time.monotonic() < until):
            started = time.perf_counter()
            m.send(sock, run)
            answer = await _answer(lane.worker, sock)
            if isinstance(answer, m.Failed):
                raise LoadFailed(f"the model failed while it was measured: {answer.reason}")
            times.append((time.perf_counter() - started) * 1e3)
        return times


async def _answer(worker: Worker, sock: socket.socket) -> m.Ran | m.Failed:
    while True:
        data = await asyncio.get_running_loop().sock_recv(sock, m.MAX_PACKET)
        if not data:
            raise WorkerLost(f"worker {worker.incarnation} ended while it was measured")
        message: m.FromLane = m.decode_from_lane(data)
        if not isinstance(message, m.Region):  # the answers themselves are of no interest here
            return message


def _service(request: ProfileRequest) -> ServiceTarget:
    """A service of the one member, as loading wants it."""
    return ServiceTarget(
        name="profile.profile",
        version="1",
        members=(request.member,),
        combine=Combine.NONE,
        min_members=1,
        on_timeout=OnTimeout.FAIL,
        slo_ms=0.0,
        percent=99.0,
        inputs=request.inputs,
        outputs=request.outputs,
    )


def _concrete(tensor: m.Tensor, request: ProfileRequest) -> tuple[int, ...]:
    """A row shape without variable dimensions: the largest bucket, so that what is planned with is safe."""
    if -1 not in tensor.row_shape:
        return tensor.row_shape
    for declared in request.inputs:
        if declared.name == tensor.name and declared.buckets:
            return max(declared.buckets, key=math.prod)
    return tuple(1 if size == -1 else size for size in tensor.row_shape)


def _noise(rng: np.random.Generator, datatype: str, shape: tuple[int, ...]) -> bytes:
    if datatype == "BYTES":
        return encode_bytes(np.full(shape, b"measure", dtype=object))
    dtype = DATATYPES[datatype]
    if dtype.kind == "f":
        return rng.standard_normal(shape).astype(dtype).tobytes()
    # Small non-negative integers are valid indices for any embedding.
    return rng.integers(0, 2, math.prod(shape)).astype(dtype).tobytes()
