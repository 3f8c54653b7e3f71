from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pynvml
import pytest

from support.nvml_stand_in import OLD_DRIVER, StandIn, build, enable_mig
from tessera_core.gpu.mig import GpuModel
from tessera_core.gpu.tables import A30, A100_40, A100_80, H100_80_SXM, H200_141
from tessera_runtime.partitioner.cut import cut
from tessera_runtime.partitioner.gpu import MigGpu

REAL = "TESSERA_MIG_GPU"
"""Names the GPU that the tests may cut, by UUID: MIG on, no instances, nothing running."""

STAND_INS = (A100_40, A100_80, OLD_DRIVER, A30, H100_80_SXM, H200_141)


@pytest.fixture(scope="session")
def nvml_library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("nvml"))


Machine = Callable[..., StandIn]


@pytest.fixture
def machine(nvml_library: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    """A machine with these GPUs, which the bindings of this process see; called again, with other faults."""

    def make(*boards: GpuModel, faults: str = "") -> StandIn:
        made = StandIn(nvml_library, tmp_path / "machine", boards)
        made.load(monkeypatch, faults)
        return made

    return make


@pytest.fixture(
    params=[*STAND_INS, pytest.param(None, id="real", marks=pytest.mark.gpu_mig)],
    ids=lambda model: model.name,
)
def mig_gpu(request: pytest.FixtureRequest) -> Iterator[MigGpu]:
    """A GPU with MIG on and nothing cut: of the stand-in, and the real one where there is one for it."""
    if request.param is not None:
        request.getfixturevalue("machine")(request.param)
        pynvml.nvmlInit()
        handle = pynvml.nvmlDeviceGetHandleByIndex(0)
        enable_mig(handle)
        uuid = str(pynvml.nvmlDeviceGetUUID(handle))
        pynvml.nvmlShutdown()
    elif REAL in os.environ:
        uuid = os.environ[REAL]
    else:
        pytest.skip(f"needs a GPU with MIG on that may be cut: name it by UUID in {REAL}")
    with MigGpu(uuid) as gpu:
        if not gpu.mig_enabled() or gpu.slices():
            pytest.fail(f"{REAL}: GPU {uuid} has MIG off, or instances: expected on, and none")
        yield gpu
        cut(gpu, (), patience_s=10)
