"""One instance of a model: receives a batch, gathers it, runs it, writes the answers.

A lane is a thread that blocks on its own socket, so a batch costs one wake-up here and one in the
dispatcher. The gather from the input arena into the batch buffer is done here and not by the dispatcher,
which copies no tensor. Outputs go to a region that this lane owns; at most one batch is in flight, and the
dispatcher has taken the answers out before it sends the next, so the region needs no bookkeeping.

What a batch of so many rows needs, where rows have one fixed shape, is the same every time: it is worked out for the
first one and kept as a :class:`_Plan`, so that the next ones only compare, copy and run.
"""

from __future__ import annotations

import gc
import math
import mmap
import os
import socket
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from tessera_runtime.datatypes import DATATYPES, decode_bytes, encode_bytes
from tessera_runtime.engines.base import EngineLane, Signature
from tessera_runtime.memory import create_region, give_back_freed_memory
from tessera_runtime.worker import messages as m

WARM_RUNS = 3
"""Runs per batch size while warming; the first pays for allocations and code paths, the best is reported."""

WARM_MS = 500.0
"""A batch size that takes longer is not run again: its first run has paid for what can be paid for."""


@dataclass(frozen=True, slots=True)
class _Plan:
    """A batch of one size: what it must look like to go by this plan, and where its bytes go."""

    shapes: Mapping[str, tuple[int, ...]]
    staged: Mapping[str, np.ndarray]
    """The engine's buffers for ``shapes``; others mean that the plan is of memory no longer used."""
    inputs: tuple[tuple[str, tuple[int, ...], memoryview], ...]
    """Name and row shape of each, and the bytes of its buffer."""
    outputs: tuple[tuple[str, np.ndarray], ...]
    """Places in the region."""
    told: tuple[m.Output, ...]


class Lane:
    """The worker's side of one instance."""

    def __init__(
        self,
        sock: socket.socket,
        incarnation: int,
        arena: memoryview,
        signature: Signature,
        engine: EngineLane,
    ) -> None:
        self._sock = sock
        self._inbox = m.Inbox()
        self._incarnation = incarnation
        self._arena = arena
        self._signature = signature
        self._datatypes = {t.name: t.datatype for t in signature.inputs}
        self._engine = engine
        self._fd = -1
        self._region: mmap.mmap | None = None
        self._region_size = 0
        self._plans: dict[int, _Plan] = {}
        """By rows."""
        self._plannable = bool(signature.inputs) and all(
            -1 not in t.row_shape for t in signature.inputs
        )

    def warm(
        self, batches: Sequence[int], row_shapes: Mapping[str, tuple[int, ...]]
    ) -> tuple[int, int, tuple[float, ...]]:
        """Run each batch size on zeros. Returns the output region, its size and the fastest run of each, ms.

        Raises RunFailed when the model cannot run one of them.
        """
        fastest: list[float] = []
        needed = mmap.PAGESIZE
        for rows in batches:
            runs: list[float] = []
            while len(runs) < WARM_RUNS and sum(runs) < WARM_MS:
                started = time.perf_counter_ns()
                self._stage_zeros(rows, row_shapes)
                packed = self._pack(self._engine.run())
                runs.append((time.perf_counter_ns() - started) / 1e6)
                needed = max(needed, sum(_aligned(len(data)) for *_, data in packed))
            fastest.append(min(runs))
        self._grow(needed)
        gc.collect()
        gc.freeze()  # what the model and its libraries built stays; later collections need not walk it
        give_back_freed_memory()  # an instance that nobody asks holds no scratch memory of its warm-up
        return self._fd, self._region_size, tuple(fastest)

    def serve(self) -> None:
        """Run batches until the dispatcher closes the lane."""
        while True:
            try:
                data, _ = self._inbox.receive(self._sock)
                if not data:
                    break
                self._answer(m.decode_to_lane(data))
            except OSError:
                break
        self._plans.clear()
        self._engine.close()
        self._sock.close()
        self._region = None
        if self._fd >= 0:
            os.close(self._fd)

    def _answer(self, run: m.Run) -> None:
        started = time.perf_counter_ns()
        try:
            rows = sum(run.rows)
            plan = self._plan(run, rows)
            if plan is None:
                self._gather(run, rows)
            else:
                for given, (_, _, target) in zip(run.inputs, plan.inputs, strict=True):
                    self._copy_rows(given, target)
            gathered = time.perf_counter_ns()
            results = self._engine.run()
            inferred = time.perf_counter_ns()
            outputs = self._write_planned(plan, results)
            if outputs is None:
                outputs = self._write(self._pack(results))
                self._remember(run, rows, outputs)
        except Exception as error:
            # Whatever a model raises ends its batch, not its instance.
            reason = f"{type(error).__name__}: {error}"[:1000]
            m.send(self._sock, m.Failed(self._incarnation, run.batch, reason))
            return
        written = time.perf_counter_ns()
        m.send(
            self._sock,
            m.Ran(
                self._incarnation,
                run.batch,
                outputs,
                gathered - started,
                inferred - gathered,
                written - inferred,
            ),
        )

    def _plan(self, run: m.Run, rows: int) -> _Plan | None:
        """The plan that this batch can go by; its buffers are then staged."""
        plan = self._plans.get(rows)
        if plan is None or len(run.inputs) != len(plan.inputs):
            return None
        for given, (name, row_shape, _) in zip(run.inputs, plan.inputs, strict=True):
            if given.name != name or given.row_shape != row_shape or given.row_shapes:
                return None
        return plan if self._engine.stage(plan.shapes) is plan.staged else None

    def _remember(self, run: m.Run, rows: int, outputs: tuple[m.Output, ...]) -> None:
        """Keep what this batch needed, unless the next of its size may need something else."""
        if not self._plannable or any(i.row_shapes for i in run.inputs):
            return
        if any(o.datatype == "BYTES" or o.nbytes == 0 for o in outputs):
            return
        shapes = {i.name: (rows, *i.row_shape) for i in run.inputs}
        staged = self._engine.stage(shapes)
        if any(
            not b.flags.c_contiguous or b.dtype.kind == "O" or not b.size for b in staged.values()
        ):
            return
        assert self._region is not None
        self._plans[rows] = _Plan(
            shapes,
            staged,
            tuple((i.name, i.row_shape, _bytes_of(staged[i.name])) for i in run.inputs),
            tuple(
                (o.name, np.ndarray(o.shape, DATATYPES[o.datatype], self._region, o.offset))
                for o in outputs
            ),
            outputs,
        )

    def _stage_zeros(self, rows: int, row_shapes: Mapping[str, tuple[int, ...]]) -> None:
        shapes = {
            t.name: (rows, *row_shapes.get(t.name, (1 if n == -1 else n for n in t.row_shape)))
            for t in self._signature.inputs
        }
        for name, buffer in self._engine.stage(shapes).items():
            buffer.fill(b"" if self._datatypes[name] == "BYTES" else 0)

    def _gather(self, run: m.Run, rows: int) -> None:
        """Copy every request's rows from the arena into the batch buffer: the second copy of two."""
        staged = self._engine.stage({i.name: (rows, *i.row_shape) for i in run.inputs})
        for given in run.inputs:
            buffer = staged[given.name]
            datatype = self._datatypes[given.name]
            if datatype == "BYTES":
                self._gather_bytes(given, run.rows, buffer)
                continue
            dtype = DATATYPES[datatype]
            if not given.row_shapes and buffer.flags.c_contiguous:
                self._copy_rows(given, _bytes_of(buffer))
                continue
            first = 0
            for i, (count, offset) in enumerate(zip(run.rows, given.offsets, strict=True)):
                row_shape = given.row_shapes[i] if given.row_shapes else given.row_shape
                size = count * math.prod(row_shape)
                values = np.frombuffer(self._arena, dtype, size, offset).reshape(count, *row_shape)
                target = buffer[first : first + count]
                if row_shape != given.row_shape:
                    target.fill(0)
                    target = target[(slice(None), *(slice(n) for n in row_shape))]
                target[...] = values
                first += count

    def _copy_rows(self, given: m.Input, target: memoryview) -> None:
        """Rows that lie in the arena exactly as in the buffer: bytes follow each other, whatever they mean."""
        arena = self._arena
        first = 0
        for offset, nbytes in zip(given.offsets, given.nbytes, strict=True):
            last = first + nbytes
            target[first:last] = arena[offset : offset + nbytes]
            first = last
        if first != len(target):
            raise ValueError(f"input {given.name!r}: {first} bytes for a batch of {len(target)}")

    def _gather_bytes(self, given: m.Input, rows: Sequence[int], buffer: np.ndarray) -> None:
        first = 0
        width = math.prod(given.row_shape)
        for count, offset, nbytes in zip(rows, given.offsets, given.nbytes, strict=True):
            elements = decode_bytes(self._arena[offset : offset + nbytes], count * width)
            buffer[first : first + count] = elements.reshape(count, *given.row_shape)
            first += count

    def _pack(
        self, results: Mapping[str, np.ndarray]
    ) -> list[tuple[str, str, tuple[int, ...], memoryview | bytes]]:
        """The answers, which the engine has checked against the signature, as they are written."""
        packed: list[tuple[str, str, tuple[int, ...], memoryview | bytes]] = []
        for expected in self._signature.outputs:
            array = results[expected.name]
            data = (
                encode_bytes(array)
                if expected.datatype == "BYTES"
                else _bytes_of(np.ascontiguousarray(array))
            )
            packed.append((expected.name, expected.datatype, array.shape, data))
        return packed

    def _write_planned(
        self, plan: _Plan | None, results: Mapping[str, np.ndarray]
    ) -> tuple[m.Output, ...] | None:
        """None where the answers are not of the shapes that the plan has places for."""
        if plan is None:
            return None
        for name, place in plan.outputs:
            array = results[name]
            if array.shape != place.shape:
                return None
            np.copyto(place, array, casting="no")
        return plan.told

    def _write(
        self, packed: list[tuple[str, str, tuple[int, ...], memoryview | bytes]]
    ) -> tuple[m.Output, ...]:
        needed = sum(_aligned(len(data)) for *_, data in packed)
        if needed > self._region_size:
            self._grow(needed)
            m.send(self._sock, m.Region(self._incarnation, self._region_size), (self._fd,))
        assert self._region is not None
        outputs: list[m.Output] = []
        offset = 0
        for name, datatype, shape, data in packed:
            self._region[offset : offset + len(data)] = data
            outputs.append(m.Output(name, datatype, shape, offset, len(data)))
            offset += _aligned(len(data))
        return tuple(outputs)

    def _grow(self, needed: int) -> None:
        self._plans.clear()  # their places are in the region that is replaced
        # Unmapped when the last view of it goes, which may be in use further up.
        self._region = None
        if self._fd >= 0:
            os.close(self._fd)
        self._region_size = -(-needed // mmap.PAGESIZE) * mmap.PAGESIZE
        self._fd, self._region = create_region("tessera-outputs", self._region_size)


def _bytes_of(array: np.ndarray) -> memoryview:
    return array.reshape(-1).view(np.uint8).data


def _aligned(nbytes: int) -> int:
    """Round up to 64, so that every output starts on a cache line."""
    return -(-nbytes // 64) * 64
