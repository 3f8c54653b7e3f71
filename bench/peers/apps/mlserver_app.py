"""Loaded by MLServer in its environment."""

from __future__ import annotations

import numpy as np
from bench.peers.apps.settings import ROW_SHAPE, model
from mlserver import MLModel
from mlserver.codecs import NumpyCodec
from mlserver.types import InferenceRequest, InferenceResponse


class Served(MLModel):  # type: ignore[misc]
    async def load(self) -> bool:
        self._served = model()
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        rows = NumpyCodec.decode_input(payload.inputs[0]).reshape(-1, *ROW_SHAPE)
        output = self._served(np.ascontiguousarray(rows, np.float32))
        return InferenceResponse(
            model_name=self.name, outputs=[NumpyCodec.encode_output("output", output)]
        )
