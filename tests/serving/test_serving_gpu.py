"""A real GPU behind a real server: its workers are confined, and what they answer is what a processor would."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from support.clients import infer_grpc, infer_http
from support.server import running_server
from support.targets import member, service
from support.targets import server as target
from support.torch_nets import Cnn, export
from tessera_runtime.devices.inventory import inventory
from tessera_runtime.target import DeviceTarget
from tessera_runtime.worker.confine import landlock_abi

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.slow,
    pytest.mark.timeout(300),
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU"),
]

_CUDA_FROM_CODE = """
import numpy as np
import torch

class Model:
    inputs = {"x": ("FP32", (4,))}
    outputs = {"y": ("FP32", (4,))}

    def __init__(self):
        self.scale = torch.full((4,), 3.0, device="cuda")

    def __call__(self, batch):
        return {"y": (torch.from_numpy(batch["x"].copy()).cuda() * self.scale).cpu().numpy()}

def load(device, options):
    return Model()
"""


@pytest.mark.parametrize("confined", [True, False], ids=["confined", "not confined"])
def test_a_server_answers_from_a_gpu_named_by_uuid(tmp_path: Path, confined: bool):
    """The second case tells, where the first fails, whether confinement is to blame."""
    if confined and not landlock_abi():
        pytest.skip("this kernel has no Landlock")
    path = export(Cnn(), tmp_path / "cnn.pt2", (torch.zeros(2, 1, 8, 8),))
    code = tmp_path / "code.py"
    code.write_text(_CUDA_FROM_CODE)
    (gpu, *_) = inventory().gpus
    device = DeviceTarget("gpu-0", "cuda", environment={"CUDA_VISIBLE_DEVICES": gpu.uuid})
    on = {"instances": {"gpu-0": 2}}
    services = (
        service("cnn", member("a", path, **on, format="TorchExport", allow_code=False)),
        service("code", member("a", code, **on)),
    )
    options = () if confined else ("--workers-unconfined",)
    with running_server(tmp_path / "run", "--preload=torch", *options) as server:
        server.apply(target(*services, devices=(device,)))
        for seed in range(10):
            x = np.random.default_rng(seed).standard_normal((3, 1, 8, 8), dtype=np.float32)
            with torch.inference_mode():
                expected = Cnn().eval()(torch.from_numpy(x)).numpy()
            answers = (
                infer_http(server.http(), "test.cnn", x, "image"),
                infer_grpc(server.grpc(), "test.cnn", x, "image"),
            )
            for answer in answers:
                np.testing.assert_allclose(
                    answer.as_numpy("output_0"), expected, rtol=1e-3, atol=1e-4
                )
        x = np.arange(8, dtype=np.float32).reshape(2, 4)
        answer = infer_grpc(server.grpc(), "test.code", x).as_numpy("y")
        np.testing.assert_array_equal(answer, x * 3)
        said = "workers are confined" if confined else "workers are not confined"
        assert said in server.log()
