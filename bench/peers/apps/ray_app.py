"""Runs in Ray's environment: one replica, batches of up to the cap."""

from __future__ import annotations

import signal
from typing import Any

import numpy as np
import ray
from bench.peers.apps.settings import CAP, PORT, ROW_SHAPE, WAIT_MS, model
from ray import serve
from starlette.requests import Request
from starlette.responses import Response


class Served:
    def __init__(self) -> None:
        self._model = model()

    @serve.batch(max_batch_size=CAP, batch_wait_timeout_s=WAIT_MS / 1e3)  # type: ignore[untyped-decorator]
    async def run(self, rows: list[Any]) -> list[Any]:
        return list(self._model(np.stack(rows)))

    async def __call__(self, request: Request) -> Response:
        row = np.frombuffer(await request.body(), "<f4").reshape(ROW_SHAPE)
        return Response((await self.run(row)).tobytes())


if __name__ == "__main__":
    ray.init(num_cpus=1, include_dashboard=False, logging_level="error")
    serve.start(http_options={"host": "127.0.0.1", "port": PORT})
    options = {"num_replicas": 1, "max_ongoing_requests": 64, "ray_actor_options": {"num_cpus": 0}}
    serve.run(serve.deployment(**options)(Served).bind())
    signal.pause()
