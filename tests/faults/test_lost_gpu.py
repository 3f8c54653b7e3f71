"""A process that its GPU has given up ends: it would refuse all that it is asked, and look alive.

The GPU here is a module in torch's place that answers as torch does after a kernel's fault, told by a request.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from tritonclient.utils import InferenceServerException

from support.clients import Crowd
from support.model_files import rows, told
from support.server import Server
from support.targets import member, service
from support.targets import server as target
from tessera_runtime.target import DeviceTarget

FAULT, RAISE, SLOW = 9001.0, 9002.0, 500.0

_MODEL = """
import sys, time, types
import numpy as np

def ill(*_):
    raise RuntimeError("CUDA error: device-side assert triggered")

def gpu(healthy):
    stream = types.SimpleNamespace(synchronize=(lambda: None) if healthy else ill)
    cuda = types.SimpleNamespace(is_initialized=lambda: True, Stream=lambda: stream)
    return types.SimpleNamespace(cuda=cuda)

class Model:
    inputs = {"x": ("FP32", (4,))}
    outputs = {"y": ("FP32", (4,))}

    def __call__(self, batch):
        x = batch["x"]
        if SLOW in x[:, 0]:
            time.sleep(0.6)
        if FAULT in x[:, 0]:
            time.sleep(0.3)
            sys.modules["torch"] = gpu(healthy=False)
            ill()
        if RAISE in x[:, 0]:
            raise ValueError("told to raise")
        return {"y": x * np.float32(2)}

def load(device, options):
    sys.modules["torch"] = gpu(healthy=True)
    return Model()
"""


@pytest.fixture
def served(server: Server, tmp_path: Path) -> Server:
    """Two services whose instances share one process, as on a GPU."""
    path = tmp_path / "faulting.py"
    source = _MODEL
    for name, value in (("FAULT", FAULT), ("RAISE", RAISE), ("SLOW", SLOW)):
        source = source.replace(name, str(value))
    path.write_text(source)
    services = [service(n, member("a", path, instances={"gpu-0": 2}, cap=1)) for n in "mn"]
    server.apply(target(*services, devices=(DeviceTarget("gpu-0", "cuda"),)))
    return server


@pytest.mark.slow
def test_what_shares_a_gpu_with_a_faulting_request_is_answered(served: Server, crowd: Crowd):
    before = served.worker_pids()
    mates = [crowd.ask("test.n", rows(SLOW)) for _ in range(2)]
    fault = crowd.ask("test.m", told(FAULT))
    for each in mates:
        np.testing.assert_array_equal(each.result(), rows(SLOW) * 2)
    with pytest.raises(InferenceServerException, match=r"INTERNAL.*2 instances ended"):
        fault.result()
    for name in ("test.m", "test.n"):
        np.testing.assert_array_equal(crowd.ask(name, rows(3)).result(), rows(3) * 2)
    assert not before & served.worker_pids()


@pytest.mark.slow
def test_an_error_of_a_model_whose_gpu_answers_ends_no_process(served: Server, crowd: Crowd):
    before = served.worker_pids()
    with pytest.raises(InferenceServerException, match="told to raise"):
        crowd.ask("test.m", told(RAISE)).result()
    np.testing.assert_array_equal(crowd.ask("test.m", rows(3)).result(), rows(3) * 2)
    assert served.worker_pids() == before
