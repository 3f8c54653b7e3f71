"""Instances that share a process, as on a GPU: a request that ends it ends what the others run, and is alone to blame."""

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
from tessera_runtime.target import DeviceTarget, ServerTarget

POISON, SLOW = 9001.0, 500.0

_MODEL = """
import os, time
import numpy as np

class Model:
    inputs = {"x": ("FP32", (4,))}
    outputs = {"y": ("FP32", (4,))}

    def __call__(self, batch):
        x = batch["x"]
        if POISON in x[:, 0]:
            time.sleep(0.3)
            os._exit(1)
        if SLOW in x[:, 0]:
            time.sleep(0.6)
        return {"y": x * np.float32(2)}

def load(device, options):
    return Model()
"""


def shared(folder: Path, *names: str, **settings: object) -> ServerTarget:
    """Three instances of each service, all in one process: they are of one namespace."""
    path = folder / "slow.py"
    path.write_text(_MODEL.replace("POISON", str(POISON)).replace("SLOW", str(SLOW)))
    # It is never asked for: nothing here touches a device.
    devices = (DeviceTarget("gpu-0", "cuda"),)
    services = [service(n, member("a", path, instances={"gpu-0": 3}, **settings)) for n in names]
    return target(*services, devices=devices)


@pytest.mark.slow
@pytest.mark.parametrize("cap", [1, 8], ids=["in batches of their own", "in one batch"])
def test_what_shares_a_process_with_a_poison_request_is_answered(
    server: Server, crowd: Crowd, tmp_path: Path, cap: int
):
    server.apply(shared(tmp_path, "m", cap=cap))
    mates = [crowd.ask("test.m", rows(SLOW)) for _ in range(3)]
    poison = crowd.ask("test.m", told(POISON))
    mates += [crowd.ask("test.m", rows(SLOW)) for _ in range(3)]
    for each in mates:
        np.testing.assert_array_equal(each.result(), rows(SLOW) * 2)
    with pytest.raises(InferenceServerException, match=r"INTERNAL.*2 instances ended"):
        poison.result()


@pytest.mark.slow
def test_other_models_of_the_process_are_answered(server: Server, crowd: Crowd, tmp_path: Path):
    server.apply(shared(tmp_path, "m", "n"))
    mates = [crowd.ask("test.n", rows(SLOW)) for _ in range(3)]
    poison = crowd.ask("test.m", told(POISON))
    for each in mates:
        np.testing.assert_array_equal(each.result(), rows(SLOW) * 2)
    with pytest.raises(InferenceServerException, match=r"INTERNAL.*2 instances ended"):
        poison.result()
    for name in ("test.m", "test.n"):
        np.testing.assert_array_equal(crowd.ask(name, rows(3)).result(), rows(3) * 2)
