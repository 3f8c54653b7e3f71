"""The in-process loop: the same networks called in one process on the server's core, which is the limit.

It is a process of its own because the allocator is set by environment variables that are read at start: the
naive loop has glibc's defaults, under which large buffers are unmapped after every call and their pages
faulted in again; the tuned one keeps them.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from bench.models.served import Model, load
from bench.peers.base import NETWORKS, ONE_THREAD, ROOT, WORKS, Work
from bench.processes import start_session

TUNED = {
    "MALLOC_MMAP_THRESHOLD_": "4000000000",
    "MALLOC_TRIM_THRESHOLD_": "4000000000",
}
WARM_CALLS = 3


class Loop:
    """A process that runs batches when told; a context manager. ``naive`` is the modules as written, eager."""

    def __init__(
        self, work: Work, models: Path, cores: tuple[int, ...], tuned: bool, naive: bool = False
    ) -> None:
        argv = [sys.executable, "-m", "bench.dataplane.loop", work.name, str(models)]
        self._process = start_session(
            [*argv, "naive"] if naive else argv,
            cores,
            ONE_THREAD | {"PYTHONPATH": str(ROOT)} | (TUNED if tuned else {}),
            subprocess.PIPE,
            stdin=subprocess.PIPE,
        )

    def __enter__(self) -> Loop:
        return self

    def __exit__(
        self, _: type[BaseException] | None, __: BaseException | None, ___: TracebackType | None
    ) -> None:
        for stream in (self._process.stdin, self._process.stdout):
            assert stream is not None, "pipes"
            stream.close()
        self._process.wait()

    def rate(self, batch: int, seconds: float) -> float:
        """Rows per second."""
        return float(self._ask({"batch": batch, "seconds": seconds})["rows_per_s"])

    def answer(self, rows: Any) -> Any:
        return np.array(self._ask({"rows": rows.tolist()})["answer"], np.float32)

    def _ask(self, question: dict[str, Any]) -> dict[str, Any]:
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None, "a pipe"
        assert stdout is not None, "a pipe"
        stdin.write(json.dumps(question).encode() + b"\n")
        stdin.flush()
        line = stdout.readline()
        if not line:
            raise RuntimeError(f"the loop ended with status {self._process.wait()}")
        answer: dict[str, Any] = json.loads(line)
        return answer


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
    """Answer questions from standard input until it ends."""
    name, models, *rest = sys.argv[1:]
    model = _model(name, Path(models), bool(rest))
    shape = WORKS[name].row_shape
    for line in sys.stdin:
        question = json.loads(line)
        if "rows" in question:
            answer: dict[str, Any] = {"answer": model(np.array(question["rows"], "f4")).tolist()}
        else:
            rows = np.random.default_rng(0).standard_normal((question["batch"], *shape), "f4")
            answer = {"rows_per_s": rows_per_s(model, rows, question["seconds"])}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
