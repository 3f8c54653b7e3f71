"""The in-process loop: the same networks called in one process on the server's core, which is the limit.

It is a process of its own because the allocator is set by environment variables that are read at start: the
naive loop has glibc's defaults, under which large buffers are unmapped after every call and their pages
faulted in again; the tuned one keeps them.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from bench.dataplane.children import Answerer, Child, answer_questions
from bench.models.served import Model, load
from bench.peers.base import NETWORKS, WORKS, Work

TUNED = {
    "MALLOC_MMAP_THRESHOLD_": "4000000000",
    "MALLOC_TRIM_THRESHOLD_": "4000000000",
}
WARM_CALLS = 3


class Loop(Child):
    """Runs batches when told. ``naive`` is the modules as written, eager."""

    def __init__(
        self, work: Work, models: Path, cores: tuple[int, ...], tuned: bool, naive: bool = False
    ) -> None:
        arguments = [work.name, str(models), *(["naive"] if naive else [])]
        super().__init__("bench.dataplane.loop", arguments, cores, TUNED if tuned else {})

    def rate(self, batch: int, seconds: float) -> float:
        """Rows per second. Raises ChildFailed."""
        return float(self.ask(batch=batch, seconds=seconds)["rows_per_s"])

    def answer(self, rows: Any) -> Any:
        """Raises ChildFailed."""
        return np.array(self.ask(rows=rows.tolist())["answer"], np.float32)


def rows_per_s(model: Model, rows: Any, seconds: float) -> float:
    for _ in range(WARM_CALLS):
        model(rows)
    calls, begin = 0, time.perf_counter()
    while (spent := time.perf_counter() - begin) < seconds:
        model(rows)
        calls += 1
    return calls * len(rows) / spent


def _model(name: str, models: Path, naive: bool) -> Model:
    if not naive:
        return load(models, NETWORKS[name])
    import torch
    from bench.models.networks import network

    torch.set_num_threads(1)
    (module,) = (network(each) for each in NETWORKS[name])

    def run(rows: Any) -> Any:
        with torch.inference_mode():
            return module(torch.from_numpy(rows)).numpy()

    return run


def main() -> None:
    name, models, *rest = sys.argv[1:]
    shape = WORKS[name].row_shape

    def start() -> Answerer:
        model = _model(name, Path(models), bool(rest))

        def answer(question: dict[str, Any]) -> dict[str, Any]:
            if "rows" in question:
                return {"answer": model(np.array(question["rows"], "f4")).tolist()}
            rows = np.random.default_rng(0).standard_normal((question["batch"], *shape), "f4")
            return {"rows_per_s": rows_per_s(model, rows, question["seconds"])}

        return answer

    answer_questions(start)


if __name__ == "__main__":
    main()
