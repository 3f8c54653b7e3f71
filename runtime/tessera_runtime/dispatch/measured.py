"""A worker with a model that no request reaches: loaded, given noise, timed.

The very path that serves: a worker from the zygote, lanes, inputs in the arena, gather and answer included. Used to measure
(:mod:`tessera_runtime.dispatch.profiler`) and to tune (:mod:`tessera_runtime.dispatch.tuner`).
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
from tessera_runtime.datatypes import DATATYPES, decode_bytes, encode_bytes
from tessera_runtime.dispatch.arena import ArenaSlot, InputArena
from tessera_runtime.dispatch.instances import load_message
from tessera_runtime.dispatch.mps import MpsServers
from tessera_runtime.dispatch.workers import (
    LoadFailed,
    OpenedLane,
    Place,
    Worker,
    WorkerLost,
    WorkerPool,
)
from tessera_runtime.memory import map_readonly
from tessera_runtime.preprocess.examples import example
from tessera_runtime.target import PREPROCESS, MemberTarget, ServiceTarget, TensorTarget
from tessera_runtime.worker import messages as m

FEWEST_RUNS = 5
"""Batches per lane and cell, however slow they are."""

MOST_RUNS = 2_000

LOAD_TIMEOUT_S = 300.0
"""Most that a model may take to load and to run its first batch."""

NOBODYS = ""
"""Namespace of what is measured: it shares no MPS server with what serves."""

NOISE_BYTES = 16 << 20
"""Of input to gather from, at most: more than the caches hold, less than the arena."""


@dataclass(frozen=True, slots=True)
class Measured:
    """What is loaded, and as what."""

    member: MemberTarget
    inputs: tuple[TensorTarget, ...]
    outputs: tuple[TensorTarget, ...]
    hang_s: float
    """A batch that takes longer ends it."""

    def load(self, variant: str = "") -> m.Load:
        service = ServiceTarget(
            name="profile.profile",
            version="1",
            members=(self.member,),
            combine=Combine.NONE,
            min_members=1,
            on_timeout=OnTimeout.FAIL,
            slo_ms=0.0,
            percent=99.0,
            inputs=self.inputs,
            outputs=self.outputs,
        )
        return load_message(self.member, service, variant=variant)

    def concrete(self, tensor: m.Tensor) -> tuple[int, ...]:
        """A row shape without variable dimensions: the largest bucket, so that what is planned with is safe."""
        if -1 not in tensor.row_shape:
            return tensor.row_shape
        for declared in self.inputs:
            if declared.name == tensor.name and declared.buckets:
                return max(declared.buckets, key=math.prod)
        return tuple(1 if size == -1 else size for size in tensor.row_shape)


@dataclass(frozen=True, slots=True)
class Noise:
    """Rows of one input in the arena; batches take them in turn, as if each were a request."""

    name: str
    row_shape: tuple[int, ...]
    offset: int
    row_bytes: int
    rows: int

    def input(self, batch: int) -> m.Input:
        offsets = tuple([self.offset + i % self.rows * self.row_bytes for i in range(batch)])
        return m.Input(self.name, self.row_shape, offsets, (self.row_bytes,) * batch)


def batch_of(inputs: Sequence[Noise], rows: int) -> m.Run:
    """A batch of ``rows`` requests of one row."""
    return m.Run(0, (1,) * rows, tuple(noise.input(rows) for noise in inputs))


class Bench:
    """Workers, lanes and inputs of one measurement; :meth:`close` ends and frees them."""

    def __init__(
        self, pool: WorkerPool, mps: MpsServers, arena: InputArena, measured: Measured
    ) -> None:
        self._pool = pool
        self._mps = mps
        self._arena = arena
        self._measured = measured
        self._workers: list[Worker] = []
        self._lanes: list[OpenedLane] = []
        self._slots: list[ArenaSlot] = []
        self._inbox = m.Inbox()

    async def worker(self, place: Place) -> Worker:
        """A new one at ``place``, of a device that processes share through MPS so, or not at all. Raises WorkerLost,
        LoadFailed.
        """
        worker = (
            await self._mps.start(place, NOBODYS)
            if place.mps_clients
            else await self._pool.start(place)
        )
        self._workers.append(worker)
        return worker

    async def load(
        self, worker: Worker, variant: str = "", artefact: int | None = None
    ) -> m.Loaded:
        """Raises LoadFailed, WorkerLost."""
        async with limit(LOAD_TIMEOUT_S, "loading"):
            return await worker.load(self._measured.load(variant), artefact)

    async def lane(self, worker: Worker, loaded: m.Loaded, largest: int) -> OpenedLane:
        """Raises LoadFailed, WorkerLost."""
        shapes = {t.name: self._measured.concrete(t) for t in loaded.inputs}
        # Only the smallest batch is warmed here: larger ones may be too slow to be measured at all.
        async with limit(LOAD_TIMEOUT_S, "the first batch"):
            lane = await worker.open_lane((loaded.model,), largest, (1,), shapes)
        lane.sock.setblocking(False)
        self._lanes.append(lane)
        return lane

    def noise(self, loaded: m.Loaded, largest: int) -> list[Noise]:
        """Inputs for batches of up to ``largest`` rows. Values are noise: zeros make some kernels faster than they are.
        Raises Overloaded, LoadFailed.
        """
        rng = np.random.default_rng(0)
        element = _element(self._measured.member)
        inputs: list[Noise] = []
        for tensor in loaded.inputs:
            row_shape = self._measured.concrete(tensor)
            row_bytes = len(_values(rng, tensor.datatype, row_shape, element))
            rows = max(1, min(largest, NOISE_BYTES // max(1, row_bytes)))
            data = _values(rng, tensor.datatype, (rows, *row_shape), element)
            slot = self._arena.allocate(len(data))
            self._slots.append(slot)
            slot.view[:] = data
            inputs.append(Noise(tensor.name, row_shape, slot.offset, row_bytes, rows))
        return inputs

    async def drive(self, lane: OpenedLane, run: m.Run, seconds: float) -> list[float]:
        """Batch times in ms: the next batch is sent as soon as one is back. Raises LoadFailed, WorkerLost."""
        until = time.monotonic() + seconds
        times: list[float] = []
        while len(times) < FEWEST_RUNS or (len(times) < MOST_RUNS and time.monotonic() < until):
            started = time.perf_counter()
            await self.once(lane, run)
            times.append((time.perf_counter() - started) * 1e3)
        return times

    async def once(self, lane: OpenedLane, run: m.Run) -> m.Ran:
        """Raises LoadFailed when the model fails on the batch or takes too long, WorkerLost."""
        m.send(lane.sock, run)
        async with limit(self._measured.hang_s, f"a batch of {len(run.rows)}"):
            answer = await self._answer(lane)
        if isinstance(answer, m.Failed):
            raise LoadFailed(f"the model failed while it was measured: {answer.reason}")
        return answer

    async def answers(self, lane: OpenedLane, run: m.Run) -> dict[str, np.ndarray]:
        """What the model answers to a batch, by output. Raises as :meth:`once`."""
        found = {}
        for output in (await self.once(lane, run)).outputs:
            data = lane.region[output.offset : output.offset + output.nbytes]
            if output.datatype == "BYTES":
                array = decode_bytes(data, math.prod(output.shape))
            else:
                array = np.frombuffer(data, DATATYPES[output.datatype])
            found[output.name] = array.reshape(output.shape).copy()
        return found

    async def _answer(self, lane: OpenedLane) -> m.Ran | m.Failed:
        while True:
            await _readable(lane.sock)
            data, fds = self._inbox.receive(lane.sock)
            if not data:
                raise WorkerLost(f"worker {lane.worker.incarnation} ended while it was measured")
            message: m.FromLane = m.decode_from_lane(data)
            if not isinstance(message, m.Region):
                return message
            lane.region = memoryview(map_readonly(fds.pop(), message.region_size))

    async def close(self) -> None:
        """End all that was started, and wait until it is gone."""
        for lane in self._lanes:
            lane.sock.close()
        for worker in self._workers:
            worker.finish()  # whatever runs there: under MPS they share a daemon with nobody else
        for worker in self._workers:
            await asyncio.shield(worker.lost)
        for slot in self._slots:
            slot.release()
        self._workers.clear()
        self._lanes.clear()
        self._slots.clear()


@asynccontextmanager
async def limit(seconds: float, what: str) -> AsyncIterator[None]:
    """Raises LoadFailed when ``what`` takes longer."""
    try:
        async with asyncio.timeout(seconds):
            yield
    except TimeoutError as error:
        raise LoadFailed(f"{what} took over {seconds:g} s while it was measured") from error


async def _readable(sock: socket.socket) -> None:
    loop = asyncio.get_running_loop()
    ready: asyncio.Future[None] = loop.create_future()
    loop.add_reader(sock.fileno(), lambda: None if ready.done() else ready.set_result(None))
    try:
        await ready
    finally:
        loop.remove_reader(sock.fileno())


def _element(member: MemberTarget) -> bytes:
    """Of an input of BYTES. Raises LoadFailed for a stage that is none."""
    if member.format != PREPROCESS:
        return b"measure"
    try:
        return example(from_document(Path(member.path).read_bytes()))
    except (OSError, ValueError) as error:
        raise LoadFailed(f"the preprocessing stage is refused: {error}") from error


def _values(
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
