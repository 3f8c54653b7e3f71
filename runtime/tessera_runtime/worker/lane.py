"""One instance of a model: receives a batch, gathers it, runs it, writes the answers.

A lane is a thread that blocks on its own socket, so a batch costs one wake-up here and one in the
dispatcher. The gather from the input arena into the batch buffer is done here and not by the dispatcher,
which copies no tensor. Outputs go to a region that this lane owns; at most one batch is in flight, and the
dispatcher has taken the answers out before it sends the next, so the region needs no bookkeeping.
"""

from __future__ import annotations

import gc
import math
import mmap
import os
import socket
import time
from collections.abc import Mapping, Sequence

import numpy as np

from tessera_runtime.datatypes import DATATYPES, decode_bytes, encode_bytes
from tessera_runtime.engines.base import EngineLane, RunFailed, Signature
from tessera_runtime.memory import create_region
from tessera_runtime.worker import messages as m

WARM_RUNS = 3
"""Runs per batch size while warming; the first pays for allocations and code paths, the best is reported."""

WARM_MS = 500.0
"""A batch size that takes longer is not run again: its first run has paid for what can be paid for."""


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
                packed = self._pack(self._engine.run(), rows)
                runs.append((time.perf_counter_ns() - started) / 1e6)
                needed = max(needed, sum(_aligned(len(data)) for *_, data in packed))
            fastest.append(min(runs))
        self._grow(needed)
        gc.collect()
        gc.freeze()  # what the model and its libraries built stays; later collections need not walk it
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
        self._engine.close()
        self._sock.close()
        if self._region is not None:
            self._region.close()
            os.close(self._fd)

    def _answer(self, run: m.Run) -> None:
        started = time.perf_counter_ns()
        try:
            rows = sum(run.rows)
            self._gather(run, rows)
            gathered = time.perf_counter_ns()
            results = self._engine.run()
            inferred = time.perf_counter_ns()
            outputs = self._write(self._pack(results, rows))
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
                self._gather_whole(given, buffer)
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

    def _gather_whole(self, given: m.Input, buffer: np.ndarray) -> None:
        """Rows that lie in the arena exactly as in the buffer: bytes follow each other, whatever they mean."""
        target = buffer.reshape(-1).view(np.uint8).data
        first = 0
        for offset, nbytes in zip(given.offsets, given.nbytes, strict=True):
            target[first : first + nbytes] = self._arena[offset : offset + nbytes]
            first += nbytes

    def _gather_bytes(self, given: m.Input, rows: Sequence[int], buffer: np.ndarray) -> None:
        first = 0
        width = math.prod(given.row_shape)
        for count, offset, nbytes in zip(rows, given.offsets, given.nbytes, strict=True):
            elements = decode_bytes(self._arena[offset : offset + nbytes], count * width)
            buffer[first : first + count] = elements.reshape(count, *given.row_shape)
            first += count

    def _pack(
        self, results: Mapping[str, np.ndarray], rows: int
    ) -> list[tuple[str, str, tuple[int, ...], memoryview | bytes]]:
        """Check the answers against the signature and lay them out for writing."""
        packed: list[tuple[str, str, tuple[int, ...], memoryview | bytes]] = []
        for expected in self._signature.outputs:
            array = results.get(expected.name)
            if array is None:
                raise RunFailed(f"output {expected.name!r} is missing from the model's answer")
            if array.ndim == 0 or array.shape[0] != rows:
                raise RunFailed(
                    f"output {expected.name!r} has shape {list(array.shape)} for a batch of {rows} rows"
                )
            data: memoryview | bytes
            if expected.datatype == "BYTES":
                data = encode_bytes(array)
            else:
                dtype = DATATYPES[expected.datatype]
                if array.dtype != dtype:
                    raise RunFailed(
                        f"output {expected.name!r} is {array.dtype}, the model declares {expected.datatype}"
                    )
                data = np.ascontiguousarray(array).reshape(-1).view(np.uint8).data
            packed.append((expected.name, expected.datatype, array.shape, data))
        return packed

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
        if self._region is not None:
            self._region.close()
            os.close(self._fd)
        self._region_size = -(-needed // mmap.PAGESIZE) * mmap.PAGESIZE
        self._fd, self._region = create_region("tessera-outputs", self._region_size)


def _aligned(nbytes: int) -> int:
    """Round up to 64, so that every output starts on a cache line."""
    return -(-nbytes // 64) * 64
