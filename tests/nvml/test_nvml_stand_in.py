"""The stand-in for the driver's library has the core's tables and the driver's rules."""

from __future__ import annotations

import ctypes
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pynvml
import pytest

from support import c_library
from support.nvml_stand_in import BOARDS, StandIn, enable_mig, jpeg_engines, outside, run_on
from tessera_core.gpu.geometry import Placement, layouts, violations
from tessera_core.gpu.mig import GpuModel, Profile
from tessera_core.gpu.tables import A30, A100_80, H100_80_SXM, H200_141, MODELS, model_of

Machine = Callable[..., StandIn]


@pytest.fixture
def gpus(machine: Machine) -> Iterator[Callable[..., list[object]]]:
    """Initialises NVML on a machine of these boards; gives the handles."""

    def start(*boards: GpuModel, faults: str = "") -> list[object]:
        machine(*boards, faults=faults)
        pynvml.nvmlInit()
        return [
            pynvml.nvmlDeviceGetHandleByIndex(index) for index in range(pynvml.nvmlDeviceGetCount())
        ]

    yield start
    pynvml.nvmlShutdown()


def create(gpu: object, profile: Profile, start: int) -> object:
    place = pynvml.c_nvmlGpuInstancePlacement_t(start, profile.memory_slices)
    return pynvml.nvmlDeviceCreateGpuInstanceWithPlacement(
        gpu, profile.profile_id, ctypes.byref(place)
    )


def fill(instance: object, profile: Profile) -> object:
    """The compute instance that spans it."""
    for kind in range(pynvml.NVML_COMPUTE_INSTANCE_PROFILE_7_SLICE + 1):
        try:
            info = pynvml.nvmlGpuInstanceGetComputeInstanceProfileInfo(instance, kind, 0)
        except pynvml.NVMLError_NotSupported:
            continue
        if info.sliceCount == profile.compute_slices:
            return pynvml.nvmlGpuInstanceCreateComputeInstance(instance, info.id)
    raise AssertionError(f"no compute instance spans {profile.name}")


def profiles_told(gpu: object) -> Iterator[tuple[object, ...]]:
    for kind in range(pynvml.NVML_GPU_INSTANCE_PROFILE_COUNT):
        try:
            info = pynvml.nvmlDeviceGetGpuInstanceProfileInfo(gpu, kind)
        except pynvml.NVMLError_NotSupported:
            continue
        count = ctypes.c_uint()
        places = (pynvml.c_nvmlGpuInstancePlacement_t * 8)()
        pynvml.nvmlDeviceGetGpuInstancePossiblePlacements(gpu, info.id, places, ctypes.byref(count))
        yield (
            info.name,
            info.id,
            info.sliceCount,
            {place.size for place in places[: count.value]},
            tuple(place.start for place in places[: count.value]),
            info.instanceCount,
            info.multiprocessorCount,
            info.memorySizeMB,
            info.copyEngineCount,
            bool(info.ofaCount),
            info.jpegCount,
        )


@pytest.mark.parametrize("model", BOARDS, ids=lambda model: model.name)
def test_every_profile_and_place_is_that_of_the_core(
    model: GpuModel, gpus: Callable[..., list[object]]
) -> None:
    (gpu,) = gpus(model)
    expected = [
        (
            f"MIG {each.name}",
            each.profile_id,
            each.compute_slices,
            {each.memory_slices},
            each.starts,
            each.max_count,
            each.sm_count or 0,
            each.memory_mib,
            each.copy_engines,
            bool(each.attributes),
            jpeg_engines(model, each),
        )
        for each in model.profiles
    ]
    assert sorted(profiles_told(gpu), key=str) == sorted(expected, key=str)


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.name)
def test_every_board_is_found_by_name_and_by_pci_id(
    model: GpuModel, gpus: Callable[..., list[object]]
) -> None:
    (gpu,) = gpus(model)
    pci_device_id = pynvml.nvmlDeviceGetPciInfo(gpu).pciDeviceId
    assert model_of(pynvml.nvmlDeviceGetName(gpu)) is model
    assert model_of("renamed", pci_device_id) is model


@pytest.mark.parametrize("model", [A30, H100_80_SXM], ids=lambda model: model.name)
def test_it_creates_an_instance_exactly_where_the_core_calls_it_legal(
    model: GpuModel, gpus: Callable[..., list[object]]
) -> None:
    (gpu,) = gpus(model)
    enable_mig(gpu)
    by_name = {profile.name: profile for profile in model.profiles}
    places = [(each, start) for each in model.profiles for start in range(model.memory_slices)]
    every = layouts(model)
    for layout in every[:: 1 + len(every) // 100]:
        held = [create(gpu, by_name[each.profile], each.start) for each in layout]
        for profile, start in places:
            legal = not violations(model, (*layout, Placement(profile.name, start)))
            try:
                pynvml.nvmlGpuInstanceDestroy(create(gpu, profile, start))
            except pynvml.NVMLError_InsufficientResources:
                assert not legal, f"{profile.name}@{start} beside {layout}"
            else:
                assert legal, f"{profile.name}@{start} beside {layout}"
        for instance in held:
            pynvml.nvmlGpuInstanceDestroy(instance)


def test_before_hopper_the_mode_waits_for_a_reset(gpus: Callable[..., list[object]]) -> None:
    for gpu in gpus(A100_80, A30):
        activated = pynvml.nvmlDeviceSetMigMode(gpu, pynvml.NVML_DEVICE_MIG_ENABLE)
        assert activated == pynvml.NVML_ERROR_RESET_REQUIRED
        assert pynvml.nvmlDeviceGetMigMode(gpu) == [0, 1]
        outside("stand_in_reset", gpu)
        assert pynvml.nvmlDeviceGetMigMode(gpu) == [1, 1]


def test_from_hopper_on_the_mode_changes_at_once_unless_something_runs(
    gpus: Callable[..., list[object]],
) -> None:
    idle, used = gpus(H100_80_SXM, H200_141)
    assert pynvml.nvmlDeviceSetMigMode(idle, 1) == pynvml.NVML_SUCCESS
    assert pynvml.nvmlDeviceGetMigMode(idle) == [1, 1]
    run_on(used, 4711)
    assert pynvml.nvmlDeviceSetMigMode(used, 1) == pynvml.NVML_ERROR_IN_USE
    assert pynvml.nvmlDeviceGetMigMode(used) == [0, 1]


def test_instances_need_mig(gpus: Callable[..., list[object]]) -> None:
    (gpu,) = gpus(H100_80_SXM)
    with pytest.raises(pynvml.NVMLError_NotSupported):
        create(gpu, H100_80_SXM.profiles[0], 0)
    assert pynvml.nvmlDeviceGetMaxMigDeviceCount(gpu) == 0


def test_what_is_inside_or_runs_has_to_go_first(gpus: Callable[..., list[object]]) -> None:
    (gpu,) = gpus(H100_80_SXM)
    enable_mig(gpu)
    half = H100_80_SXM.profiles[1]
    instance = create(gpu, half, 0)
    compute = fill(instance, half)
    device = pynvml.nvmlDeviceGetMigDeviceHandleByIndex(gpu, 0)
    run_on(device, 4711)
    with pytest.raises(pynvml.NVMLError_InUse):
        pynvml.nvmlGpuInstanceDestroy(instance)
    with pytest.raises(pynvml.NVMLError_InUse):
        pynvml.nvmlComputeInstanceDestroy(compute)
    with pytest.raises(pynvml.NVMLError_InUse):
        pynvml.nvmlDeviceSetMigMode(gpu, pynvml.NVML_DEVICE_MIG_DISABLE)
    outside("stand_in_end", 4711)
    pynvml.nvmlComputeInstanceDestroy(compute)
    pynvml.nvmlGpuInstanceDestroy(instance)
    with pytest.raises(pynvml.NVMLError_InvalidArgument):
        pynvml.nvmlGpuInstanceDestroy(instance)


def test_a_mig_device_has_another_uuid_after_each_creation(
    gpus: Callable[..., list[object]],
) -> None:
    (gpu,) = gpus(H100_80_SXM)
    enable_mig(gpu)
    whole = H100_80_SXM.profiles[0]
    uuids = set()
    for _ in range(3):
        instance = create(gpu, whole, 0)
        compute = fill(instance, whole)
        uuids.add(pynvml.nvmlDeviceGetUUID(pynvml.nvmlDeviceGetMigDeviceHandleByIndex(gpu, 0)))
        pynvml.nvmlComputeInstanceDestroy(compute)
        pynvml.nvmlGpuInstanceDestroy(instance)
    assert len(uuids) == 3


def test_no_two_machines_of_different_numbers_have_the_same_uuids(
    nvml_library: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uuids = set()
    for number in (1, 2):
        machine = StandIn(nvml_library, tmp_path / f"machine-{number}", (H100_80_SXM,), number)
        machine.load(monkeypatch)
        pynvml.nvmlInit()
        gpu = pynvml.nvmlDeviceGetHandleByIndex(0)
        enable_mig(gpu)
        fill(create(gpu, H100_80_SXM.profiles[0], 0), H100_80_SXM.profiles[0])
        device = pynvml.nvmlDeviceGetMigDeviceHandleByIndex(gpu, 0)
        uuids |= {pynvml.nvmlDeviceGetUUID(each) for each in (gpu, device)}
        pynvml.nvmlShutdown()
    assert len(uuids) == 4


def test_the_machine_is_there_for_processes_that_load_the_library_by_name(
    machine: Machine, gpus: Callable[..., list[object]]
) -> None:
    gpu, _ = gpus(H100_80_SXM, A30)
    enable_mig(gpu)
    look = (
        "import dataclasses, json\n"
        "from tessera_runtime.devices.inventory import inventory\n"
        "print(json.dumps([dataclasses.asdict(gpu) for gpu in inventory().gpus]))"
    )
    seen = subprocess.run(
        [sys.executable, "-c", look],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        capture_output=True,
        text=True,
        check=True,
    )
    found = json.loads(seen.stdout)
    assert [gpu["mig_enabled"] for gpu in found] == [True, False]
    assert [gpu["sm_count"] for gpu in found] == [H100_80_SXM.sm_count, A30.sm_count]
    assert [gpu["memory_mib"] for gpu in found] == [H100_80_SXM.memory_mib, A30.memory_mib]


def test_a_fault_strikes_the_calls_that_it_names(gpus: Callable[..., list[object]]) -> None:
    (gpu,) = gpus(A30, faults="nvmlDeviceGetName 2 3 fail 15; nvmlDeviceGetUUID 1 1 fail 999")
    outcomes = []
    for _ in range(4):
        try:
            outcomes.append(pynvml.nvmlDeviceGetName(gpu))
        except pynvml.NVMLError_GpuIsLost:
            outcomes.append(None)
    assert outcomes == ["NVIDIA A30", None, None, "NVIDIA A30"]
    with pytest.raises(pynvml.NVMLError_Unknown):
        pynvml.nvmlDeviceGetUUID(gpu)


def test_sources_that_do_not_compile_are_told_with_what_the_compiler_said(tmp_path: Path) -> None:
    source = tmp_path / "broken.c"
    source.write_text("int nvmlInit(void) { return absent; }\n")
    with pytest.raises(pytest.fail.Exception, match=r"broken\.c:1:29: .*'absent'"):
        c_library.build(tmp_path / "libbroken.so", [source])
