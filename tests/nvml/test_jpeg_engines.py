"""JPEG engines are counted by NVML, for a whole GPU and for each slice, and never concluded from a name."""

from __future__ import annotations

from collections.abc import Callable

import pynvml
import pytest

from support.nvml_stand_in import UNPRIVILEGED, StandIn, enable_mig, jpeg_engines
from tessera_core.gpu.geometry import Placement, maximal_layouts
from tessera_core.gpu.mig import GpuModel, find_profile
from tessera_core.gpu.tables import A30, A100_40, B200_180, H100_80_SXM, H200_141
from tessera_runtime.devices.inventory import Gpu, inventory, look_again
from tessera_runtime.partitioner.cut import cut
from tessera_runtime.partitioner.gpu import MigGpu

Machine = Callable[..., StandIn]
PATIENCE_S = 30.0


def cuttable(machine: Machine, model: GpuModel) -> str:
    """The UUID of the machine's one GPU."""
    machine(model)
    pynvml.nvmlInit()
    handle = pynvml.nvmlDeviceGetHandleByIndex(0)
    enable_mig(handle)
    uuid = str(pynvml.nvmlDeviceGetUUID(handle))
    pynvml.nvmlShutdown()
    return uuid


def cut_into(machine: Machine, model: GpuModel, uuid: str, layout: tuple[Placement, ...]) -> Gpu:
    """As a process without privilege sees it."""
    machine(model)
    with MigGpu(uuid) as gpu:
        cut(gpu, layout, patience_s=PATIENCE_S)
    machine(model, faults=UNPRIVILEGED)
    (found,) = inventory().gpus
    return found


@pytest.mark.parametrize(
    ("model", "engines"),
    [(A100_40, 1), (A30, 1), (H100_80_SXM, 7), (H200_141, 7), (B200_180, 1)],
    ids=lambda each: getattr(each, "name", str(each)),
)
def test_a_whole_gpu_has_those_of_its_widest_instance(
    model: GpuModel, engines: int, machine: Machine
) -> None:
    machine(model)
    (gpu,) = inventory().gpus
    assert (gpu.mig_enabled, gpu.jpeg_engines) == (False, engines)


@pytest.mark.parametrize("model", [A100_40, A30, H100_80_SXM], ids=lambda model: model.name)
def test_a_slice_has_those_that_the_driver_tells_of_it(model: GpuModel, machine: Machine) -> None:
    uuid = cuttable(machine, model)
    for layout in maximal_layouts(model)[:4]:
        gpu = cut_into(machine, model, uuid, layout)
        for each in gpu.slices:
            profile = find_profile(model, each.placement.profile)
            assert profile is not None
            assert each.jpeg_engines == jpeg_engines(model, profile), each


def test_a_small_slice_of_an_a100_has_one_with_media_extensions_only(machine: Machine) -> None:
    layout = (Placement("1g.5gb+me", 0), Placement("1g.5gb", 1), Placement("3g.20gb", 4))
    gpu = cut_into(machine, A100_40, cuttable(machine, A100_40), layout)
    assert {each.placement.profile: each.jpeg_engines for each in gpu.slices} == {
        "1g.5gb+me": 1,
        "1g.5gb": 0,
        "3g.20gb": 0,
    }
    assert look_again(inventory()) == inventory()


@pytest.mark.parametrize(
    ("faults", "engines"),
    [("", 1), ("nvmlDeviceGetJpgUtilization 1 99 fail 3", 0)],
    ids=["its load is measured", "nothing to measure"],
)
def test_of_a_gpu_that_cannot_be_cut_only_whether_it_has_one_is_known(
    faults: str, engines: int, machine: Machine
) -> None:
    not_cut = "nvmlDeviceGetGpuInstanceProfileInfoV 1 99 fail 3"
    machine(H100_80_SXM, faults=";".join(filter(None, (not_cut, faults))))
    (gpu,) = inventory().gpus
    assert gpu.jpeg_engines == engines
