"""Runs in LitServe's environment: one worker, batches of up to the cap."""

from __future__ import annotations

import base64
from typing import Any

import litserve
import numpy as np
from bench.peers.apps.settings import CAP, PORT, ROW_SHAPE, WAIT_MS, model


class Served(litserve.LitAPI):  # type: ignore[misc]
    def setup(self, device: str) -> None:
        self._model = model()

    def decode_request(self, request: dict[str, str]) -> Any:
        return np.frombuffer(base64.b64decode(request["row"]), "<f4").reshape(ROW_SHAPE)

    def batch(self, inputs: list[Any]) -> Any:
        return np.stack(inputs)

    def predict(self, batch: Any) -> Any:
        return self._model(batch)

    def unbatch(self, output: Any) -> Any:
        return list(output)

    def encode_response(self, output: Any) -> Any:
        return {"row": base64.b64encode(output.tobytes()).decode()}


if __name__ == "__main__":
    api = Served(max_batch_size=CAP, batch_timeout=WAIT_MS / 1e3)
    server = litserve.LitServer(api, accelerator="cpu", workers_per_device=1, timeout=30)
    server.run(host="127.0.0.1", port=PORT, log_level="warning", generate_client_file=False)
