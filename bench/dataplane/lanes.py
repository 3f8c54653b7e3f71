"""Lanes of Tessera's own engine in one process, each driven by a thread as a worker drives it.

A lane on a GPU is a stream and its graphs. A small network leaves most of a GPU idle, so several lanes should do more
than one; several processes too, where MPS lets their kernels run at once.
"""

from __future__ import annotations

import statistics
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from bench.dataplane.children import Answerer, answer_questions
from bench.peers.base import WORKS

from tessera_runtime.engines.base import Engine, EngineDevice, EngineLane, ModelFile
from tessera_runtime.engines.loading import load_engine

EDGE_S = 0.3
"""Before and after what is counted: processes that are told to begin together do not quite."""


class Driven:
    """A lane with a batch that is run again and again."""

    def __init__(self, lane: EngineLane, work: str, batch: int) -> None:
        self.lane = lane
        self.batches = 0
        self.error: Exception | None = None
        meta, random = WORKS[work], np.random.default_rng(batch)
        for buffer in lane.stage({meta.input: (batch, *meta.row_shape)}).values():
            if meta.dtype == "u1":
                buffer[...] = random.integers(0, 256, buffer.shape, np.uint8)
            else:
                buffer[...] = random.standard_normal(buffer.shape, np.float32)

    def run(self, stop: threading.Event) -> None:
        try:
            while not stop.is_set():
                self.lane.run()
                self.batches += 1
        except Exception as error:
            self.error = error


def rows_per_s(lanes: Sequence[Driven], batch: int, seconds: float) -> float:
    """All lanes at once. Raises what a lane raised."""
    stop = threading.Event()
    threads = [threading.Thread(target=lane.run, args=(stop,)) for lane in lanes]
    for thread in threads:
        thread.start()
    time.sleep(EDGE_S)
    before, began = sum(lane.batches for lane in lanes), time.perf_counter()
    time.sleep(seconds)
    done, spent = sum(lane.batches for lane in lanes) - before, time.perf_counter() - began
    time.sleep(EDGE_S)
    stop.set()
    for thread in threads:
        thread.join()
    for lane in lanes:
        if lane.error is not None:
            raise lane.error
    return done * batch / spent


class Lanes:
    """Engines by work and lanes by batch size, made when asked for."""

    def __init__(self, models: Path, device: str) -> None:
        self._models = models
        self._device = EngineDevice(device)
        self._engines: dict[str, Engine] = {}
        self._lanes: dict[tuple[str, int], list[Driven]] = {}

    def __call__(self, question: dict[str, Any]) -> dict[str, Any]:
        match question:
            case {"work": work, "batch": batch, "open": count}:
                return {"lanes": len(self._some(work, batch, count))}
            case {"work": work, "batch": batch, "runs": runs}:
                return {"run_ms": self._alone_ms(self._some(work, batch, 1)[0].lane, runs)}
            case {"work": work, "batch": batch, "lanes": count, "seconds": seconds}:
                return {
                    "rows_per_s": rows_per_s(self._some(work, batch, count), batch, seconds),
                }
        raise ValueError(f"not a question: {question}")

    def _alone_ms(self, lane: EngineLane, runs: int) -> float:
        took = []
        for _ in range(runs):
            began = time.perf_counter()
            lane.run()
            took.append((time.perf_counter() - began) * 1e3)
        return statistics.median(took)

    def _some(self, work: str, batch: int, count: int) -> list[Driven]:
        lanes = self._lanes.setdefault((work, batch), [])
        while len(lanes) < count:
            lanes.append(Driven(self._engine(work).lane(batch), work, batch))
        return lanes[:count]

    def _engine(self, work: str) -> Engine:
        if work not in self._engines:
            (name,) = WORKS[work].networks
            file = ModelFile(str(self._models / f"{name}.pt2"), "TorchExport", allow_code=False)
            self._engines[work] = load_engine(file, self._device)
        return self._engines[work]


def main() -> None:
    models, device = sys.argv[1:]

    def start() -> Answerer:
        return Lanes(Path(models), device)

    answer_questions(start)


if __name__ == "__main__":
    main()
