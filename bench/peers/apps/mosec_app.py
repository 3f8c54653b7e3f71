"""Runs in mosec's environment: one worker, batches of up to the cap."""

from __future__ import annotations

from typing import Any

import numpy as np
from bench.peers.apps.settings import CAP, ROW_SHAPE, WAIT_MS, model
from mosec import Server, Worker


class Served(Worker):  # type: ignore[misc]
    def __init__(self) -> None:
        super().__init__()
        self._model = model()

    def deserialize(self, data: bytes) -> Any:
        return np.frombuffer(data, "<f4").reshape(ROW_SHAPE)

    def serialize(self, data: Any) -> Any:
        return data.tobytes()

    def forward(self, data: list[Any]) -> list[Any]:
        return list(self._model(np.stack(data)))


if __name__ == "__main__":
    server = Server()
    server.append_worker(Served, num=1, max_batch_size=CAP, max_wait_time=WAIT_MS)
    server.run()
