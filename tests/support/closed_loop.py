"""Clients that ask again as soon as they are answered, while something changes, and what they were answered."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import numpy as np
import tritonclient.http as http_client
from tritonclient.utils import InferenceServerException

from tessera_runtime.target import Ports

PATIENCE_S = 60.0


class ClosedLoop:
    """From entry to exit of the ``with`` block; rows are those of :func:`numpy.random.Generator.standard_normal`."""

    def __init__(
        self,
        ports: Ports,
        model: str,
        answer: Callable[[np.ndarray], np.ndarray],
        *,
        input_name: str = "x",
        width: int = 6,
        clients: int = 4,
    ) -> None:
        """``answer``: of the untuned model."""
        self.answered = 0
        self.failed: list[str] = []
        self.worst = 0.0
        """Largest difference of an answer from what it should be."""
        self._ports, self._model, self._answer = ports, model, answer
        self._input, self._width = input_name, width
        self._changed = threading.Condition()
        self._stop = False
        self._threads = [
            threading.Thread(target=self._ask, args=(seed,), name=f"client-{seed}")
            for seed in range(clients)
        ]

    def __enter__(self) -> ClosedLoop:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop = True
        for thread in self._threads:
            thread.join(PATIENCE_S)
            assert not thread.is_alive(), "a client hangs"

    def wait_answers(self, more: int) -> None:
        """Until so many further requests have been answered, one way or the other."""
        with self._changed:
            until = self.answered + len(self.failed) + more
            there = self._changed.wait_for(
                lambda: self.answered + len(self.failed) >= until, PATIENCE_S
            )
        assert there, f"{more} more answers"

    def _ask(self, seed: int) -> None:
        random = np.random.default_rng(seed)
        client = http_client.InferenceServerClient(f"127.0.0.1:{self._ports.http}")
        with client:
            while not self._stop:
                rows = random.standard_normal((1 + seed % 3, self._width), dtype=np.float32)
                given = http_client.InferInput(self._input, list(rows.shape), "FP32")
                given.set_data_from_numpy(rows)
                problem, found = "", None
                try:
                    answer = client.infer(self._model, [given])
                    found = answer.as_numpy(answer.get_response()["outputs"][0]["name"])
                except (InferenceServerException, OSError) as error:
                    problem = str(error)
                    time.sleep(
                        0.01
                    )  # a server that refuses at once is not to be asked a thousand times a second
                with self._changed:
                    if found is None:
                        self.failed.append(problem)
                    else:
                        self.answered += 1
                        difference = float(np.max(np.abs(found - self._answer(rows))))
                        self.worst = max(self.worst, difference)
                    self._changed.notify_all()
