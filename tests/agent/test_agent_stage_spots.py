"""Where preprocessing is measured on one machine, by what decodes there."""

from __future__ import annotations

from dataclasses import replace

import pytest

from support.clusters import service
from tessera_core.api.members import ModelFormat
from tessera_core.api.preprocess import Decoder
from tessera_core.gpu.geometry import Placement
from tessera_core.plan.state import Policy
from tessera_runtime.agent import profiles
from tessera_runtime.agent.observe import cluster_state, stage_spots
from tessera_runtime.agent.profiles import engine_version, spots_of
from tessera_runtime.devices.inventory import Gpu, Inventory
from tessera_runtime.devices.mig import MigSlice

PRODUCT = "NVIDIA-A100-SXM4-40GB"
WHOLE = Gpu(0, "GPU-0", "NVIDIA A100-SXM4-40GB", 40960, 108, mig_enabled=False, jpeg_engines=1)
SLICES = (
    MigSlice("MIG-a", Placement("1g.5gb+me", 0), 14, 4864, jpeg_engines=1),
    MigSlice("MIG-b", Placement("1g.5gb", 1), 14, 4864, jpeg_engines=0),
)
CUT = replace(WHOLE, mig_enabled=True, slices=SLICES)
CORES, FULL = "cpu-1@3", "full"
WITH_ENGINE, WITHOUT = "1g.5gb+me@0", "1g.5gb@1"


def machine(*gpus: Gpu) -> Inventory:
    return Inventory((0, 1, 2, 3), 4096, gpus)


@pytest.mark.parametrize(
    ("gpu", "decoder", "places"),
    [
        (CUT, Decoder.AUTO, [WITH_ENGINE, CORES]),
        (CUT, Decoder.CPU, [CORES]),
        (CUT, Decoder.GPU, [WITHOUT, WITH_ENGINE]),
        (WHOLE, Decoder.AUTO, [FULL, CORES]),
        (replace(WHOLE, jpeg_engines=0), Decoder.AUTO, [CORES]),
        (replace(WHOLE, jpeg_engines=0), Decoder.GPU, [FULL]),
    ],
)
def test_images_are_tried_on_cores_and_on_parts_of_gpus_with_an_engine(
    gpu: Gpu, decoder: Decoder, places: list[str]
) -> None:
    found = stage_spots(machine(gpu), (1,), decoder)
    assert [each.slice for each in found] == places


def measured(device: str, *, installed: bool, patch: pytest.MonkeyPatch) -> list[str]:
    of_images = service("s", preprocess={"image": {"size": [8, 8], "device": device}})
    patch.setattr(profiles, "is_installed", lambda library: installed)
    stage = of_images.spec.placed[-1]
    return [each.slice for each in spots_of(stage, of_images.spec, machine(WHOLE), (1,))]


def test_without_the_decoder_a_service_that_may_choose_stays_on_cores(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert measured("Auto", installed=True, patch=monkeypatch) == [FULL, CORES]
    assert measured("Auto", installed=False, patch=monkeypatch) == [CORES]
    # Whoever asks for GPUs is told what is missing.
    assert measured("GPU", installed=False, patch=monkeypatch) == [FULL]


def test_members_are_measured_where_they_were() -> None:
    of_images = service("s", preprocess={"image": {"size": [8, 8]}})
    found = spots_of(of_images.spec.members[0], of_images.spec, machine(WHOLE), (1,))
    assert [each.slice for each in found] == [FULL]


def test_a_stage_is_profiled_under_the_library_that_decodes_there() -> None:
    assert engine_version(ModelFormat.PREPROCESS).startswith("simplejpeg-")
    assert engine_version(ModelFormat.PREPROCESS, PRODUCT).startswith("torchvision-")
    assert engine_version(ModelFormat.TORCH_EXPORT, PRODUCT).startswith("torch-")


def test_the_planner_is_told_the_engines_of_each_part() -> None:
    state = cluster_state(machine(CUT), (), (), {}, Policy(), allow_code=True)
    (node,) = state.nodes
    assert node.devices[0].jpeg_engines == (("1g.5gb", 0), ("1g.5gb+me", 1))
