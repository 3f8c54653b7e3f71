"""`tessera serve` on a machine whose GPU is in MIG mode: it serves on the slices as they are; and under MPS."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pynvml
import pytest
import tritonclient.http

from support.local import serving
from support.mps_stand_in import MpsStandIn
from support.nvml_stand_in import StandIn, enable_mig
from tessera_core.gpu.geometry import Placement
from tessera_core.gpu.tables import H100_80_SXM
from tessera_runtime.devices.inventory import inventory
from tessera_runtime.partitioner.cut import cut
from tessera_runtime.partitioner.gpu import MigGpu

MODEL = """
import numpy as np
class Model:
    inputs = {"x": ("FP32", (4,))}
    outputs = {"y": ("FP32", (4,))}
    def __call__(self, batch):
        return {"y": batch["x"] * np.float32(2)}
def load(device, options):
    return Model()
"""
SERVICE = """
apiVersion: tessera.dev/v1alpha1
kind: ModelService
metadata: {name: scaled, namespace: vision}
spec:
  members:
  - {name: m, model: {uri: "file://./m.py", format: Python}, batch: {max: 1}}
  slo: {objectives: [{target: 500ms, percent: "99"}]}
"""


def test_a_gpu_in_mig_mode_is_served_by_its_slices(
    machine: Callable[..., StandIn], tmp_path: Path
) -> None:
    machine(H100_80_SXM)
    pynvml.nvmlInit()
    handle = pynvml.nvmlDeviceGetHandleByIndex(0)
    enable_mig(handle)
    uuid = str(pynvml.nvmlDeviceGetUUID(handle))
    pynvml.nvmlShutdown()
    with MigGpu(uuid) as gpu:
        cut(gpu, [Placement("1g.10gb", 0), Placement("1g.10gb", 1)], patience_s=10)
    before = inventory()
    (tmp_path / "m.py").write_text(MODEL)
    (tmp_path / "service.yaml").write_text(SERVICE)
    with serving(tmp_path / "service.yaml", "--gpus-on-cores") as (status, _):
        client = tritonclient.http.InferenceServerClient(status["http"].removeprefix("http://"))
        x = tritonclient.http.InferInput("x", [1, 4], "FP32")
        x.set_data_from_numpy(np.ones((1, 4), np.float32))
        assert client.infer("scaled", [x]).as_numpy("y").tolist() == [[2.0] * 4]
        client.close()
    [member] = status["services"][0]["members"]
    assert {f"{uuid}/1g.10gb@0", f"{uuid}/1g.10gb@1"} >= set(member["device"].split(","))
    assert inventory() == before, "nothing is cut locally"
    assert "no GPU is used" in (tmp_path / "serve.log").read_text()
    folders = {each.name for each in (tmp_path / "state").iterdir()}
    assert "profiles-on-cores" in folders
    assert "profiles" not in folders


def test_locally_mps_is_asked_for_by_an_option(
    machine: Callable[..., StandIn], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine(H100_80_SXM)
    mps = MpsStandIn(tmp_path / "mps")
    for name, value in mps.environment.items():
        monkeypatch.setenv(name, value)
    (tmp_path / "m.py").write_text(MODEL)
    (tmp_path / "service.yaml").write_text(SERVICE)
    with serving(tmp_path / "service.yaml", "--gpus-on-cores", "--mps"):
        (daemon,) = mps.wait_living(1)
        (gpu,) = inventory().gpus
        assert daemon.visible == gpu.uuid
    mps.wait_living(0)
    profiles = (tmp_path / "state" / "profiles-on-cores").iterdir()
    products = {json.loads(e.read_text())["spec"]["deviceClass"]["product"] for e in profiles}
    assert products == {"NVIDIA-H100-80GB-HBM3-MPS"}
