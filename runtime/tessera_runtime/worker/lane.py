"""One instance of a model: receives a batch, gathers it, runs it, writes the answers.

A lane is a thread that blocks on its own socket, so a batch costs one wake-up here and one in the
dispatcher. The gather from the input arena into the batch buffer is done here and not by the dispatcher,
which copies no tensor. Outputs go to a region that this lane owns; at most one batch is in flight, and the
dispatcher has taken the answers out before it sends the next, so the region needs no bookkeeping.

Members of an ensemble that are placed alike are one lane of several parts: each batch goes through all of
them, one after the other, and is answered once.

What a batch of so many rows needs, where rows have one fixed shape, is the same every time: it is worked out for the
first one and kept as a :class:`_Plan`, so that the next ones only compare, copy and run.
"""

from __future__ import annotations

import gc
import mmap
import os
import socket
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from tessera_runtime.engines.base import InputRefused
from tessera_runtime.engines.device import end_if_lost
from tessera_runtime.memory import create_region, give_back_freed_memory
from tessera_runtime.worker import messages as m
from tessera_runtime.worker.part import Packed, Part, PlannedPart

WARM_RUNS = 3
"""Runs per batch size while warming; the first pays for allocations and code paths, the best is reported."""

WARM_MS = 500.0
"""A batch size that takes longer is not run again: its first run has paid for what can be paid for."""


@dataclass(frozen=True, slots=True)
class _Plan:
    """A batch of one size: what it must look like to go by this plan, and where its bytes go."""

    inputs: tuple[tuple[str, tuple[int, ...]], ...]
    """Name and row shape of each."""
    parts: tuple[PlannedPart, ...]
    told: tuple[m.Output, ...]


class Lane:
    """The worker's side of one instance."""

    def __init__(self, sock: socket.socket, incarnation: int, parts: Sequence[Part]) -> None:
        self._sock = sock
        self._inbox = m.Inbox()
        self._incarnation = incarnation
        self._parts = tuple(parts)
        self._fd = -1
        self._region: mmap.mmap | None = None
        self._region_size = 0
        self._plans: dict[int, _Plan] = {}
        """By rows."""
        self._plannable = all(part.plannable for part in parts)

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
                packed: list[Packed] = []
                for part in self._parts:
                    part.stage_zeros(rows, row_shapes)
                    packed += part.pack(part.engine.run())
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
        for part in self._parts:
            part.engine.close()
        self._sock.close()
        self._region = None
        if self._fd >= 0:
            os.close(self._fd)

    def _answer(self, run: m.Run) -> None:
        gather_ns = output_ns = 0
        infer_ns: list[int] = []
        results: list[Mapping[str, np.ndarray]] = []
        started = time.perf_counter_ns()
        try:
            rows = sum(run.rows)
            plan = self._plan(run, rows)
            fits = plan is not None
            for index, part in enumerate(self._parts):
                if plan is None:
                    part.gather(run, rows)
                else:
                    for given, target in zip(run.inputs, plan.parts[index].targets, strict=True):
                        part.copy_rows(given, target)
                gathered = time.perf_counter_ns()
                results.append(part.engine.run())
                inferred = time.perf_counter_ns()
                fits = fits and plan is not None and plan.parts[index].write(results[-1])
                written = time.perf_counter_ns()
                gather_ns += gathered - started
                infer_ns.append(inferred - gathered)
                output_ns += written - inferred
                started = written
            if fits and plan is not None:
                outputs = plan.told
            else:
                outputs = self._write(results)
                self._remember(run, rows, outputs)
        except Exception as error:
            # Whatever a model raises ends its batch, not its instance.
            end_if_lost(error)
            refused = isinstance(error, InputRefused)
            reason = f"{error}" if refused else f"{type(error).__name__}: {error}"
            model = min(len(infer_ns), len(self._parts) - 1)
            m.send(
                self._sock, m.Failed(self._incarnation, run.batch, reason[:1000], model, refused)
            )
            return
        output_ns += time.perf_counter_ns() - started
        m.send(
            self._sock,
            m.Ran(self._incarnation, run.batch, outputs, gather_ns, tuple(infer_ns), output_ns),
        )

    def _plan(self, run: m.Run, rows: int) -> _Plan | None:
        """The plan that this batch can go by; its buffers are then staged."""
        plan = self._plans.get(rows)
        if plan is None or len(run.inputs) != len(plan.inputs):
            return None
        for given, (name, row_shape) in zip(run.inputs, plan.inputs, strict=True):
            if given.name != name or given.row_shape != row_shape or given.row_shapes:
                return None
        for part, planned in zip(self._parts, plan.parts, strict=True):
            if part.engine.stage(planned.shapes) is not planned.staged:
                return None
        return plan

    def _remember(self, run: m.Run, rows: int, outputs: tuple[m.Output, ...]) -> None:
        """Keep what this batch needed, unless the next of its size may need something else."""
        if not self._plannable or any(i.row_shapes for i in run.inputs):
            return
        if any(o.datatype == "BYTES" or o.nbytes == 0 for o in outputs):
            return
        assert self._region is not None
        left = list(outputs)
        parts: list[PlannedPart] = []
        for part in self._parts:
            own = [left.pop(0) for _ in range(part.answers)]
            planned = part.plan(run, rows, own, self._region)
            if planned is None:
                return
            parts.append(planned)
        inputs = tuple((i.name, i.row_shape) for i in run.inputs)
        self._plans[rows] = _Plan(inputs, tuple(parts), outputs)

    def _write(self, results: Sequence[Mapping[str, np.ndarray]]) -> tuple[m.Output, ...]:
        packed: list[Packed] = []
        for part, answers in zip(self._parts, results, strict=True):
            packed += part.pack(answers)
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


def _aligned(nbytes: int) -> int:
    """Round up to 64, so that every output starts on a cache line."""
    return -(-nbytes // 64) * 64
