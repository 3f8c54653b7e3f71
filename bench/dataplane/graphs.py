"""The in-process loop on a GPU, which is the limit: the file that is served, as one CUDA graph per batch size.

A batch begins in pinned memory and ends there, as a server's does: copy in, graph, copy out. With several slots, each
with a stream and buffers of its own, copies of one batch run beside another's kernels, which is how one computes
offline. On a processor the same steps run one after the other, so that all but the calls of CUDA can be tested there.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from bench.dataplane.children import Answerer, answer_questions
from bench.peers.base import WORKS, Work
from torch.export.passes import move_to_device_pass

WARM_RUNS = 3

STEPS = ("copy_in", "kernel", "copy_out")


class Slot(Protocol):
    """Buffers of one batch on its way."""

    given: Any
    """The batch on the host, to be filled."""
    answer: Any
    """Its outputs on the host, after :meth:`wait`."""

    def launch(self, mark: Callable[[], Any] = ...) -> None:
        """Start the three steps; ``mark`` is called before, between and after them."""

    def wait(self) -> None: ...

    def mark(self) -> Any: ...

    def between_ms(self, first: Any, last: Any) -> float:
        """Of two marks, after :meth:`wait`."""


def _no_mark() -> None:
    return None


class HostSlot:
    """On a processor."""

    def __init__(self, module: Any, example: Any) -> None:
        self._module = module
        self.given = torch.zeros_like(example)
        self._static = torch.zeros_like(example)
        self.answer = torch.zeros_like(module(example))

    def launch(self, mark: Callable[[], Any] = _no_mark) -> None:
        mark()
        self._static.copy_(self.given)
        mark()
        result = self._module(self._static)
        mark()
        self.answer.copy_(result)
        mark()

    def wait(self) -> None:
        pass

    def mark(self) -> Any:
        return time.perf_counter()

    def between_ms(self, first: Any, last: Any) -> float:
        return float(last - first) * 1e3


class GraphSlot:
    """On a GPU: a stream, a graph, and memory at fixed places on both sides."""

    def __init__(self, module: Any, example: Any) -> None:
        self._stream = torch.cuda.Stream()
        self._done = torch.cuda.Event()
        self.given = torch.zeros(example.shape, dtype=example.dtype, pin_memory=True)
        with torch.cuda.stream(self._stream):
            self._static = torch.zeros(example.shape, dtype=example.dtype, device="cuda")
            for _ in range(WARM_RUNS):
                result = module(self._static)
        self._stream.synchronize()
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph, stream=self._stream):
            self._result = module(self._static)
        self.answer = torch.zeros(result.shape, dtype=result.dtype, pin_memory=True)

    def launch(self, mark: Callable[[], Any] = _no_mark) -> None:
        with torch.cuda.stream(self._stream):
            mark()
            self._static.copy_(self.given, non_blocking=True)
            mark()
            self._graph.replay()
            mark()
            self.answer.copy_(self._result, non_blocking=True)
            mark()
            self._done.record(self._stream)

    def wait(self) -> None:
        self._done.synchronize()

    def mark(self) -> Any:
        event = torch.cuda.Event(enable_timing=True)
        event.record(self._stream)
        return event

    def between_ms(self, first: Any, last: Any) -> float:
        return float(first.elapsed_time(last))


def rows_per_s(slots: Sequence[Slot], seconds: float) -> float:
    """All slots busy for ``seconds``; the one that was launched first is waited for."""
    for slot in slots:
        slot.launch()
    for slot in slots:  # the first batches are no measure
        slot.wait()
        slot.launch()
    done, began = 0, time.perf_counter()
    while (spent := time.perf_counter() - began) < seconds:
        slot = slots[done % len(slots)]
        slot.wait()
        slot.launch()
        done += 1
    for slot in slots:
        slot.wait()
    return done * len(slots[0].given) / spent


def parts_ms(slot: Slot, runs: int) -> dict[str, float]:
    """Medians of a batch alone: each step on the device, and what the host adds to them."""
    found: dict[str, list[float]] = {name: [] for name in (*STEPS, "host")}
    for _ in range(runs):
        marks: list[Any] = []

        def mark(marks: list[Any] = marks) -> None:
            marks.append(slot.mark())

        began = time.perf_counter()
        slot.launch(mark)
        slot.wait()
        whole = (time.perf_counter() - began) * 1e3
        for name, first, last in zip(STEPS, marks, marks[1:], strict=False):
            found[name].append(slot.between_ms(first, last))
        found["host"].append(max(0.0, whole - slot.between_ms(marks[0], marks[-1])))
    return {f"{name}_ms": statistics.median(each) for name, each in found.items()}


class Graphs:
    """The file of a work on a device, and slots by batch size, made when asked for."""

    def __init__(self, work: Work, models: Path, device: str) -> None:
        self._work = work
        self._device = device
        program = torch.export.load(models / f"{work.networks[0]}.pt2")
        if device == "cuda":
            program = move_to_device_pass(program, "cuda:0")  # as its tensors name theirs
        else:
            torch.set_num_threads(1)
        self._module = program.module()
        self._slots: dict[int, list[Slot]] = {}

    def __call__(self, question: dict[str, Any]) -> dict[str, Any]:
        with torch.inference_mode():
            match question:
                case {"rows": rows}:
                    return {"answer": self._answer(np.array(rows, self._work.dtype)).tolist()}
                case {"batch": batch, "runs": runs}:
                    return parts_ms(self._some(batch, 1)[0], runs)
                case {"batch": batch, "slots": slots, "seconds": seconds}:
                    return {"rows_per_s": rows_per_s(self._some(batch, slots), seconds)}
        raise ValueError(f"not a question: {question}")

    def _answer(self, rows: Any) -> Any:
        (slot,) = self._some(len(rows), 1)
        slot.given.copy_(torch.from_numpy(rows))
        slot.launch()
        slot.wait()
        return slot.answer

    def _some(self, batch: int, count: int) -> list[Slot]:
        slots = self._slots.setdefault(batch, [])
        while len(slots) < count:
            made = (GraphSlot if self._device == "cuda" else HostSlot)(
                self._module, self._example(batch)
            )
            made.given.copy_(self._example(batch))
            slots.append(made)
        return slots[:count]

    def _example(self, batch: int) -> Any:
        random = np.random.default_rng(batch)
        shape = (batch, *self._work.row_shape)
        if self._work.dtype == "u1":
            return torch.from_numpy(random.integers(0, 256, shape, np.uint8))
        return torch.from_numpy(random.standard_normal(shape, np.float32))


def main() -> None:
    name, models, device = sys.argv[1:]

    def start() -> Answerer:
        return Graphs(WORKS[name], Path(models), device)

    answer_questions(start)


if __name__ == "__main__":
    main()
