"""`tessera serve` of a service that takes encoded images."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import tritonclient.http

from support.clients import infer_http
from support.local import serving, tessera
from support.media import PHOTOGRAPHS, encoded
from support.server import wait_until
from tessera_core.api.preprocess import ImagePreprocess
from tessera_runtime.preprocess.image import ImageStage

MODEL = """
class Model:
    inputs = {"x": ("FP32", (3, 32, 32))}
    outputs = {"y": ("FP32", (3,))}
    def __call__(self, batch):
        return {"y": batch["x"].mean(axis=(2, 3))}

def load(device, options):
    return Model()
"""

SERVICE = """
apiVersion: tessera.dev/v1alpha1
kind: ModelService
metadata: {name: colours, namespace: vision}
spec:
  members:
  - {name: mean, model: {uri: "file://./mean.py", format: Python}, batch: {max: 8}}
  preprocess: {image: {size: [32, 32], resize: 40, mean: ["0.5"], std: ["0.5"]}}
  slo: {objectives: [{target: 500ms, percent: "99"}]}
  traffic: {requestsPerSecond: 5}
"""


def test_a_service_of_images_is_measured_planned_and_served(tmp_path: Path) -> None:
    (tmp_path / "mean.py").write_text(MODEL)
    path = tmp_path / "service.yaml"
    path.write_text(SERVICE)
    data = encoded(PHOTOGRAPHS[0], "JPEG")
    stage = ImageStage(ImagePreprocess(size=(32, 32), resize=40, mean=(0.5,), std=(0.5,)))
    row = np.empty(stage.row_shape, np.float32)
    stage.into(data, row)
    with serving(path) as (status, _):
        client = tritonclient.http.InferenceServerClient(status["http"].removeprefix("http://"))
        answer = infer_http(client, "colours", np.array([data], dtype=object), "image")
        np.testing.assert_allclose(answer.as_numpy("y")[0], row.mean(axis=(1, 2)), atol=1e-5)
        client.close()
        state = str(tmp_path / "state")

        def members() -> list[str]:
            found = json.loads(tessera("status", "--state-dir", state, "-o", "json").stdout)
            return [each["name"] for each in found["services"][0]["members"]]

        wait_until(lambda: members() == ["mean", "preprocess"], "both in the status")
