"""A stand-in for the driver's library, for machines without a MIG GPU: tests/nvml/*.c with the core's tables as boards.

The real bindings (nvidia-ml-py) load it, so what is tested is what runs on a GPU. Its machine lies in a file, which
several processes may share and which outlives them; tests/nvml/machine.c says how faults are written.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import IntEnum
from pathlib import Path

import pynvml
import pytest

from support import c_library
from tessera_core.gpu.mig import MEDIA, GpuModel, Profile
from tessera_core.gpu.tables import A30, A100_40, A100_80, B200_180, MODELS

SOURCES = Path(__file__).parent.parent / "nvml"

OLD_DRIVER = replace(
    A100_80,
    name="A100-80-535",
    profiles=tuple(
        replace(
            profile,
            name=profile.name.replace(".40gb", ".39gb"),
            profile_id=profile.profile_id + 40,
        )
        for profile in A100_80.profiles
    ),
)
"""An A100-80 of a driver with other names and numbers (3g.39gb: mig-parted issue 31)."""

NO_TABLE = replace(A30, name="no-table", products=("NVIDIA-Unheard-Of",), pci_device_ids=(0xFFFF,))
"""A board that the core has no table of."""

BOARDS = (*MODELS, OLD_DRIVER, NO_TABLE)

UNPRIVILEGED = ";".join(
    f"{call} 1 {10**9} fail {pynvml.NVML_ERROR_NO_PERMISSION}"
    for call in (
        "nvmlDeviceCreateGpuInstanceWithPlacement",
        "nvmlDeviceGetGpuInstanceById",
        "nvmlDeviceGetGpuInstancePossiblePlacements_v2",
        "nvmlDeviceGetGpuInstances",
        "nvmlDeviceGetMemoryInfo",
        "nvmlDeviceSetMigMode",
    )
)
"""Faults of a process without CAP_SYS_ADMIN, as the documentation of NVML has them: of GPUs in MIG mode, that is."""


def jpeg_engines(board: GpuModel, profile: Profile) -> int:
    """Of one instance, as NVIDIA's MIG User Guide has it ("Supported MIG Profiles", hardware units) and ``nvidia-smi mig
    -lgip`` prints it for A100, A30 and H100: one in all on Ampere, as many as compute slices on Hopper, one each on B200.
    """
    if _is_ampere(board):
        return int(MEDIA in profile.attributes or profile is board.profiles[0])
    return 1 if board is B200_180 else profile.compute_slices


def _is_ampere(board: GpuModel) -> bool:
    return board in (A100_40, A100_80, A30, OLD_DRIVER, NO_TABLE)


_KINDS = {
    (1, 1, ()): pynvml.NVML_GPU_INSTANCE_PROFILE_1_SLICE,
    (1, 1, (MEDIA,)): pynvml.NVML_GPU_INSTANCE_PROFILE_1_SLICE_REV1,
    (1, 2, ()): pynvml.NVML_GPU_INSTANCE_PROFILE_1_SLICE_REV2,
    (2, 2, ()): pynvml.NVML_GPU_INSTANCE_PROFILE_2_SLICE,
    (2, 2, (MEDIA,)): pynvml.NVML_GPU_INSTANCE_PROFILE_2_SLICE_REV1,
    (3, 4, ()): pynvml.NVML_GPU_INSTANCE_PROFILE_3_SLICE,
    (4, 4, ()): pynvml.NVML_GPU_INSTANCE_PROFILE_4_SLICE,
    (7, 8, ()): pynvml.NVML_GPU_INSTANCE_PROFILE_7_SLICE,
}


def build(folder: Path) -> Path:
    """The library, compiled into ``folder`` under the name that the bindings look for."""
    rows = folder / "boards.c"
    rows.write_text(_boards(BOARDS))
    library = folder / "libnvidia-ml.so.1"
    sources = [*sorted(SOURCES.glob("*.c")), rows]
    c_library.build(library, sources, "-fvisibility=hidden", "-I", SOURCES)
    return library


@dataclass(frozen=True, slots=True)
class StandIn:
    """One machine with GPUs that are not there."""

    library: Path
    state: Path
    """The file that holds the machine."""
    boards: tuple[GpuModel, ...]
    number: int = 0
    """In the UUIDs of its GPUs and slices."""

    def environment(self, faults: str = "") -> dict[str, str]:
        """Of a process that shall see this machine when it loads NVML by name."""
        return {
            "LD_LIBRARY_PATH": str(self.library.parent),
            "NVML_STAND_IN_STATE": str(self.state),
            "NVML_STAND_IN_BOARDS": ",".join(board.name for board in self.boards),
            "NVML_STAND_IN_NUMBER": str(self.number),
            "NVML_STAND_IN_FAULTS": faults,
        }

    def load(self, patch: pytest.MonkeyPatch, faults: str = "") -> None:
        """Have the bindings of this process call the stand-in, from their next initialisation on."""
        for name, value in self.environment(faults).items():
            patch.setenv(name, value)
        patch.setattr(pynvml, "nvmlLib", ctypes.CDLL(str(self.library)))
        patch.setattr(pynvml, "_nvmlGetFunctionPointer_cache", {})


def outside(function: str, *arguments: object) -> None:
    """Something that happens to the machine without NVML: tests/nvml/outside.c. NVML must be initialised."""
    status = getattr(pynvml.nvmlLib, function)(*arguments)
    assert status == pynvml.NVML_SUCCESS, f"{function}: {status}"


def run_on(device: object, pid: int, *, listed: bool = True) -> None:
    """A process starts on a MIG device, or on a whole GPU."""
    outside("stand_in_run", device, pid, int(listed))


class Ailment(IntEnum):
    """What can be wrong with a GPU: ``enum ailment`` of tests/nvml/machine.h."""

    LOST = 0
    RECOVERY_ACTION = 1
    UNCORRECTED = 2
    ROW_PENDING = 3
    ROW_FAILED = 4
    PAGE_PENDING = 5
    CLOCKS = 6


def ail(index: int, ailment: Ailment, value: int = 1) -> None:
    """The GPU of ``index`` ails from now on, or, with 0, no longer."""
    outside("stand_in_ail", index, int(ailment), ctypes.c_ulonglong(value))


def xid(index: int, code: int, *, gpu_instance: int = pynvml.NVML_GPU_INSTANCE_ID_ANY) -> None:
    """The driver reports an Xid of the GPU of ``index``."""
    event(index, pynvml.nvmlEventTypeXidCriticalError, code, gpu_instance=gpu_instance)


def event(
    index: int, kind: int, data: int = 0, *, gpu_instance: int = pynvml.NVML_GPU_INSTANCE_ID_ANY
) -> None:
    """Any event that NVML knows."""
    outside(
        "stand_in_event",
        index,
        ctypes.c_ulonglong(kind),
        ctypes.c_ulonglong(data),
        ctypes.c_uint(gpu_instance),
        ctypes.c_uint(gpu_instance),
    )


def enable_mig(handle: object) -> None:
    """As an administrator would: set the mode, and reset the GPU."""
    pynvml.nvmlDeviceSetMigMode(handle, pynvml.NVML_DEVICE_MIG_ENABLE)
    outside("stand_in_reset", handle)


def _boards(models: Sequence[GpuModel]) -> str:
    rows = ",\n".join(_board(model) for model in models)
    return (
        '#include "machine.h"\n\n'
        f"const struct board BOARDS[] = {{\n{rows}\n}};\n"
        f"const unsigned BOARD_COUNT = {len(models)};\n"
    )


def _board(model: GpuModel) -> str:
    if _is_ampere(model):
        architecture, capability, cores_per_sm = pynvml.NVML_DEVICE_ARCH_AMPERE, (8, 0), 64
    elif model is B200_180:
        architecture, capability, cores_per_sm = pynvml.NVML_DEVICE_ARCH_BLACKWELL, (10, 0), 128
    else:
        architecture, capability, cores_per_sm = pynvml.NVML_DEVICE_ARCH_HOPPER, (9, 0), 128
    return _row(
        {
            "name": model.name,
            "product": model.products[0].replace("-", " ", 1),
            "pci_device": model.pci_device_ids[0],
            "architecture": architecture,
            "major": capability[0],
            "minor": capability[1],
            "sms": model.sm_count,
            "cores_per_sm": cores_per_sm,
            "memory_slices": model.memory_slices,
            "memory_mib": model.memory_mib,
            "profile_count": len(model.profiles),
            "profiles": [_profile(model, profile) for profile in model.profiles],
        }
    )


def _profile(board: GpuModel, profile: Profile) -> str:
    return _row(
        {
            "kind": _KINDS[profile.compute_slices, profile.memory_slices, profile.attributes],
            "id": profile.profile_id,
            "name": f"MIG {profile.name}",
            "slices": profile.compute_slices,
            "memory_slices": profile.memory_slices,
            "max": profile.max_count,
            "sms": profile.sm_count or 0,
            "copy_engines": profile.copy_engines,
            "jpegs": jpeg_engines(board, profile),
            "media": int(MEDIA in profile.attributes),
            "memory_mib": profile.memory_mib,
            "start_count": len(profile.starts),
            "starts": [str(start) for start in profile.starts],
        }
    )


def _row(fields: Mapping[str, str | int | Iterable[str]]) -> str:
    """A designated initialiser."""
    return "{" + ", ".join(f".{name} = {_literal(value)}" for name, value in fields.items()) + "}"


def _literal(value: str | int | Iterable[str]) -> str:
    if isinstance(value, int):
        return str(value)
    return f'"{value}"' if isinstance(value, str) else "{" + ", ".join(value) + "}"
