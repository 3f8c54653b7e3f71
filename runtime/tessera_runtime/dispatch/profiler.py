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
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tessera_core.api.modelservice import Combine, OnTimeout
from tessera_core.api.stages import from_document
from tessera_runtime.datatypes import DATATYPES, encode_bytes
from tessera_runtime.devices.usage import gpu_usage
from tessera_runtime.dispatch.arena import ArenaSlot, InputArena
from tessera_runtime.dispatch.instances import load_message
from tessera_runtime.dispatch.mps import VISIBLE, MpsServers
from tessera_runtime.dispatch.processes import place_of
from tessera_runtime.dispatch.workers import LoadFailed, OpenedLane, Worker, WorkerLost, WorkerPool
from tessera_runtime.preprocess.examples import example
from tessera_runtime.target import (
    PREPROCESS,
    ProfileCell,
    ProfileReport,
    ProfileRequest,
    ServiceTarget,
)
from tessera_runtime.worker import messages as m

FEWEST_RUNS = 5
"""Batches per lane and cell, however slow they are."""

MOST_RUNS = 2_000

WARM_S = 0.1
"""Seconds that a batch size is run before it is measured: caches, allocators and the processor's clock settle."""

LOAD_TIMEOUT_S = 300.0
"""Most that a model may take to load and to run its first batch."""

MIB = 1 << 20

NOBODYS = ""
"""Namespace of what is measured: it shares no MPS server with what serves."""

NOISE_BYTES = 16 << 20
"""Of input to gather from, at most: more than the caches hold, less than the arena."""


@dataclass(frozen=True, slots=True)
class _Noise:
    """Rows of one input in the arena; batches take them in turn, as if each were a request."""

    name: str
    row_shape: tuple[int, ...]
    offset: int
    row_bytes: int
    rows: int

    def input(self, batch: int) -> m.Input:
        offsets = tuple([self.offset + i % self.rows * self.row_bytes for i in range(batch)])
        return m.Input(self.name, self.row_shape, offsets, (self.row_bytes,) * batch)


async def profile(
    pool: WorkerPool, mps: MpsServers, arena: InputArena, request: ProfileRequest
) -> ProfileReport:
    """Measure every (batch, instances) cell of ``request``: of a device that processes share through MPS, so, or not at
    all. Raises LoadFailed, WorkerLost, Overloaded.
    """
    session = _Session(pool, mps, arena, request)
    try:
        return await session.run()
    finally:
        await session.close()


class _Session:
    def __init__(
        self, pool: WorkerPool, mps: MpsServers, arena: InputArena, request: ProfileRequest
    ) -> None:
        self._pool = pool
        self._mps = mps
        self._place = place_of(request.device)
        self._arena = arena
        self._request = request
        self._workers: list[Worker] = []
        self._lanes: list[OpenedLane] = []
        self._engine = ""
        self._memory_mib = 0.0
        self._used_before_mib = 0.0
        """Of the device, where processes on it have contexts that no engine counts."""

    async def run(self) -> ProfileReport:
        request = self._request
        cells: list[ProfileCell] = []
        self._used_before_mib = await self._used_mib()
        first, signature = await self._start_worker()
        self._engine = signature.engine
        largest = min(max(request.batches), signature.max_rows or max(request.batches))
        batches = tuple(sorted({min(batch, largest) for batch in request.batches}))
        slots, inputs = self._fill_arena(signature, largest)
        try:
            for instances in sorted(set(request.instances)):
                while len(self._lanes) < instances:
                    await self._open_lane(first, signature, largest)
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
            worker.finish()  # whatever runs there: under MPS they share a daemon with nobody else
        for worker in self._workers:
            await asyncio.shield(worker.lost)

    async def _start_worker(self) -> tuple[Worker, m.Loaded]:
        worker = (
            await self._mps.start(self._place, NOBODYS)
            if self._place.mps_clients
            else await self._pool.start(self._place)
        )
        self._workers.append(worker)
        load = load_message(
            self._request.member, _service(self._request), variant=self._request.variant
        )
        async with _limit(LOAD_TIMEOUT_S, "loading"):
            loaded = await worker.load(load)
        self._memory_mib += loaded.memory_mib
        return worker, loaded

    async def _open_lane(self, first: Worker, signature: m.Loaded, largest: int) -> None:
        worker = first
        most = self._place.mps_clients
        if self._lanes and (len(self._lanes) < most if most else self._place.kind == "cpu"):
            worker, _ = await self._start_worker()  # as when serving: a process per instance
        elif most:
            worker = self._workers[len(self._lanes) % most]
        shapes = {t.name: _concrete(t, self._request) for t in signature.inputs}
        # Only the smallest batch is warmed here: larger ones may be too slow to be measured at all.
        async with _limit(LOAD_TIMEOUT_S, "the first batch"):
            lane = await worker.open_lane((signature.model,), largest, (1,), shapes)
        lane.sock.setblocking(False)
        self._lanes.append(lane)

    def _fill_arena(
        self, signature: m.Loaded, largest: int
    ) -> tuple[list[ArenaSlot], list[_Noise]]:
        """Values are noise: zeros make some kernels faster than they are."""
        rng = np.random.default_rng(0)
        element = _element(self._request)
        slots: list[ArenaSlot] = []
        inputs: list[_Noise] = []
        for tensor in signature.inputs:
            row_shape = _concrete(tensor, self._request)
            row_bytes = len(_noise(rng, tensor.datatype, row_shape, element))
            rows = max(1, min(largest, NOISE_BYTES // max(1, row_bytes)))
            data = _noise(rng, tensor.datatype, (rows, *row_shape), element)
            slot = self._arena.allocate(len(data))
            slot.view[:] = data
            slots.append(slot)
            inputs.append(_Noise(tensor.name, row_shape, slot.offset, row_bytes, rows))
        return slots, inputs

    async def _measure(self, batch: int, instances: int, inputs: Sequence[_Noise]) -> ProfileCell:
        run = m.Run(0, (1,) * batch, tuple(noise.input(batch) for noise in inputs))
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
        until = time.monotonic() + seconds
        return await asyncio.gather(*(self._drive(lane, run, until) for lane in lanes))

    async def _drive(self, lane: OpenedLane, run: m.Run, until: float) -> list[float]:
        """Batch times of one lane in ms: the next batch is sent as soon as one is back."""
        times: list[float] = []
        while len(times) < FEWEST_RUNS or (len(times) < MOST_RUNS and time.monotonic() < until):
            times.append(await self._once(lane, run))
        return times

    async def _once(self, lane: OpenedLane, run: m.Run) -> float:
        started = time.perf_counter()
        m.send(lane.sock, run)
        async with _limit(self._request.hang_s, f"a batch of {len(run.rows)}"):
            answer = await _answer(lane.worker, lane.sock)
        if isinstance(answer, m.Failed):
            raise LoadFailed(f"the model failed while it was measured: {answer.reason}")
        return (time.perf_counter() - started) * 1e3


@asynccontextmanager
async def _limit(seconds: float, what: str) -> AsyncIterator[None]:
    """Raises LoadFailed when ``what`` takes longer."""
    try:
        async with asyncio.timeout(seconds):
            yield
    except TimeoutError as error:
        raise LoadFailed(f"{what} took over {seconds:g} s while it was measured") from error


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


def _element(request: ProfileRequest) -> bytes:
    """Of an input of BYTES. Raises LoadFailed for a stage that is none."""
    if request.member.format != PREPROCESS:
        return b"measure"
    try:
        return example(from_document(Path(request.member.path).read_bytes()))
    except (OSError, ValueError) as error:
        raise LoadFailed(f"the preprocessing stage is refused: {error}") from error


def _noise(
    rng: np.random.Generator, datatype: str, shape: tuple[int, ...], element: bytes
) -> bytes:
    if datatype == "BYTES":
        elements = np.empty(shape, dtype=object)
        elements.fill(element)
        return encode_bytes(elements.reshape(-1))
    dtype = DATATYPES[datatype]
    if dtype.kind == "f":
        return rng.standard_normal(shape).astype(dtype).tobytes()
    # Small non-negative integers are valid indices for any embedding.
    return rng.integers(0, 2, math.prod(shape)).astype(dtype).tobytes()
