"""Cutting a GPU, through the real bindings: on a stand-in of the driver's library, and on a GPU where there is one."""

from __future__ import annotations

import random

import pynvml
import pytest

from tessera_core.gpu.geometry import Geometry, Placement, canonical, layouts, maximal_layouts
from tessera_core.gpu.mig import GpuModel
from tessera_runtime.partitioner.cut import cut
from tessera_runtime.partitioner.gpu import MigGpu, Slice

PATIENCE_S = 30.0


def geometry(slices: tuple[Slice, ...]) -> Geometry:
    return canonical(each.placement for each in slices)


def some_layouts(model: GpuModel, count: int) -> list[Geometry]:
    return random.Random(model.name).sample(layouts(model), count)


def of_width(model: GpuModel, memory_slices: int, start: int) -> Placement:
    name = next(each.name for each in model.profiles if each.memory_slices == memory_slices)
    return Placement(name, start)


def test_any_geometry_after_any_other_is_exactly_what_is_wanted(mig_gpu: MigGpu) -> None:
    for wanted in some_layouts(mig_gpu.model, 8):
        cut_as = cut(mig_gpu, wanted, patience_s=PATIENCE_S)
        assert geometry(cut_as) == wanted
        assert mig_gpu.slices() == cut_as


def test_every_slice_has_ids_of_its_own_and_a_uuid_that_leads_to_it(mig_gpu: MigGpu) -> None:
    fullest = max(maximal_layouts(mig_gpu.model), key=len)
    slices = cut(mig_gpu, fullest, patience_s=PATIENCE_S)
    assert len({each.gpu_instance for each in slices}) == len(fullest)
    assert len({each.uuid for each in slices}) == len(fullest)
    assert all(each.compute_instance is not None for each in slices)
    assert all(each.uuid is not None and each.uuid.startswith("MIG-") for each in slices)


def test_cutting_again_changes_nothing(mig_gpu: MigGpu) -> None:
    wanted = maximal_layouts(mig_gpu.model)[0]
    once = cut(mig_gpu, wanted, patience_s=PATIENCE_S)
    assert cut(mig_gpu, wanted, patience_s=PATIENCE_S) == once


def test_a_slice_that_stays_keeps_its_ids_and_its_uuid(mig_gpu: MigGpu) -> None:
    model = mig_gpu.model
    half = model.memory_slices // 2
    stays, goes = of_width(model, half // 2, half), of_width(model, half // 2, 0)
    before = cut(mig_gpu, (stays, goes), patience_s=PATIENCE_S)
    between = cut(mig_gpu, (stays,), patience_s=PATIENCE_S)
    after = cut(mig_gpu, (stays, goes), patience_s=PATIENCE_S)
    assert between == tuple(each for each in before if each.placement == stays)
    assert set(between) < set(after)


def test_an_instance_without_its_compute_instance_is_made_whole(mig_gpu: MigGpu) -> None:
    """What a partitioner leaves that was killed between the two creations."""
    placement = of_width(mig_gpu.model, mig_gpu.model.memory_slices // 2, 0)
    (whole,) = cut(mig_gpu, (placement,), patience_s=PATIENCE_S)
    empty(mig_gpu, whole)
    assert [(each.placement, each.uuid) for each in mig_gpu.slices()] == [(placement, None)]
    (again,) = cut(mig_gpu, (placement,), patience_s=PATIENCE_S)
    assert again.placement == placement
    assert again.uuid is not None


def test_an_instance_that_somebody_divided_is_made_whole(mig_gpu: MigGpu) -> None:
    placement = of_width(mig_gpu.model, mig_gpu.model.memory_slices // 2, 0)
    (whole,) = cut(mig_gpu, (placement,), patience_s=PATIENCE_S)
    empty(mig_gpu, whole)
    handle = gpu_instance(mig_gpu, whole)
    one_slice = pynvml.nvmlGpuInstanceGetComputeInstanceProfileInfo(
        handle, pynvml.NVML_COMPUTE_INSTANCE_PROFILE_1_SLICE, 0
    )
    for _ in range(2):
        pynvml.nvmlGpuInstanceCreateComputeInstance(handle, one_slice.id)
    assert [each.uuid for each in mig_gpu.slices()] == [None]
    (again,) = cut(mig_gpu, (placement,), patience_s=PATIENCE_S)
    assert again.uuid is not None


def test_nothing_wanted_leaves_nothing(mig_gpu: MigGpu) -> None:
    cut(mig_gpu, maximal_layouts(mig_gpu.model)[-1], patience_s=PATIENCE_S)
    assert cut(mig_gpu, (), patience_s=PATIENCE_S) == ()
    assert mig_gpu.mig_enabled()


@pytest.mark.parametrize("width", [1, 2])
def test_the_first_memory_slices_can_be_left_free(mig_gpu: MigGpu, width: int) -> None:
    """Counts alone would be filled from the start of the GPU."""
    last = mig_gpu.model.memory_slices // 2
    (only,) = cut(mig_gpu, (of_width(mig_gpu.model, width, last),), patience_s=PATIENCE_S)
    assert only.placement.start == last


def gpu_instance(gpu: MigGpu, of: Slice) -> object:
    device = pynvml.nvmlDeviceGetHandleByUUID(gpu.uuid)
    return pynvml.nvmlDeviceGetGpuInstanceById(device, of.gpu_instance)


def empty(gpu: MigGpu, of: Slice) -> None:
    """Destroy the compute instance, leave the GPU instance."""
    found = pynvml.nvmlGpuInstanceGetComputeInstanceById(gpu_instance(gpu, of), of.compute_instance)
    pynvml.nvmlComputeInstanceDestroy(found)
