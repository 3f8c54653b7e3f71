"""What this node has: processor cores that may be used, memory, NVIDIA GPUs."""

from __future__ import annotations

import logging
import os
import platform
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pynvml

from tessera_core.gpu.geometry import Placement
from tessera_core.gpu.mig import GpuModel
from tessera_core.gpu.mps import under_mps
from tessera_core.gpu.tables import model_of
from tessera_runtime.devices.mig import MigSlice, find_slices, is_cut, placed

log = logging.getLogger(__name__)

MIB = 1 << 20

CORES_64 = frozenset({(6, 0), (7, 0), (7, 2), (7, 5), (8, 0)})
"""Compute capabilities with 64 FP32 cores per SM; the others since Pascal have 128 (CUDA C++ programming
guide, arithmetic instructions per capability). NVML counts cores, not SMs."""


SERVER_MIB = 512
"""Of a pod's memory that is not for models: the arena (256 MiB) and the processes of the server and the agent."""


@dataclass(frozen=True, slots=True)
class Gpu:
    """One GPU as NVML reports it."""

    index: int
    uuid: str
    product: str
    memory_mib: int
    sm_count: int
    mig_enabled: bool
    jpeg_engines: int = 0
    """Of the whole GPU. At least 1 is all that the driver tells of one that cannot be cut."""
    slices: tuple[MigSlice, ...] = ()
    """What it is cut into and can be used, in the order of places."""
    problem: str = ""
    """Why something else that it is cut into cannot be used here."""


@dataclass(frozen=True, slots=True)
class Inventory:
    cores: tuple[int, ...]
    """Cores that this process may run on."""
    memory_mib: int
    """Memory of the machine, or of the container where that is less."""
    gpus: tuple[Gpu, ...]
    processor: str = ""
    """Model name: what is measured on one processor does not hold on another."""
    driver: str = ""


def inventory() -> Inventory:
    """Look at this machine. Without an NVIDIA driver there are no GPUs, which is no error."""
    driver, gpus = _gpus()
    cores = tuple(sorted(os.sched_getaffinity(0)))
    return Inventory(cores, _memory_mib(), gpus, _processor(), driver)


def look_again(seen: Inventory) -> Inventory:
    """``seen`` with its GPUs as they are cut now.

    A process keeps the GPUs that it was given: one that does not answer stays as it was, and its health tells.
    """
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return seen
    try:
        # By index: a look for one UUID fails while any of the GPUs is lost.
        handles = dict(_handle(index) for index in range(pynvml.nvmlDeviceGetCount()))
        return replace(
            seen, gpus=tuple(_look_again(gpu, handles.get(gpu.uuid)) for gpu in seen.gpus)
        )
    except pynvml.NVMLError:
        return seen
    finally:
        pynvml.nvmlShutdown()


def located(
    seen: Inventory, told: Mapping[str, Placement], before: Mapping[str, Placement]
) -> Inventory:
    """``seen`` with its slices named as :func:`~tessera_core.gpu.locate.locate` does, by their UUIDs."""
    return replace(
        seen,
        gpus=tuple(
            replace(gpu, slices=placed(model, gpu.slices, told, before))
            if (model := model_of(gpu.product)) is not None
            else gpu
            for gpu in seen.gpus
        ),
    )


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        key, _, value = line.partition(":")
        if key.strip() == "model name":
            return value.strip()
    return platform.machine()  # Arm lists part numbers instead of a name


def _memory_mib() -> int:
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = memory_limit(Path("/sys/fs/cgroup"))
    return (total if limit is None else min(total, limit)) // MIB


def memory_limit(cgroups: Path) -> int | None:
    """Bytes that the container may use: of its cgroup of version 2 or 1; None where nothing says so."""
    for name in ("memory.max", "memory/memory.limit_in_bytes"):
        try:
            text = (cgroups / name).read_text().strip()
        except OSError:
            continue
        return (
            int(text) if text.isdigit() else None
        )  # "max" is no limit; version 1 has a huge number
    return None


def of_pod(seen: Inventory, cores: int | None, memory_mib: int | None) -> Inventory:
    """What of ``seen`` a runtime pod gives to models: its first ``cores`` cores, and ``memory_mib`` (where not
    given, what is seen) less what the server itself needs, which never is more than half.
    """
    memory = seen.memory_mib if memory_mib is None else memory_mib
    return replace(
        seen,
        cores=seen.cores[: max(1, cores)] if cores is not None else seen.cores,
        memory_mib=max(1, memory - min(SERVER_MIB, memory // 2)),
    )


def shared_by_mps(seen: Inventory) -> Inventory:
    """``seen`` with its GPUs called what they are under MPS."""
    return replace(
        seen, gpus=tuple(replace(gpu, product=under_mps(gpu.product)) for gpu in seen.gpus)
    )


def _gpus() -> tuple[str, tuple[Gpu, ...]]:
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return "", ()
    try:
        driver = str(pynvml.nvmlSystemGetDriverVersion())
        found = (_gpu(index) for index in range(pynvml.nvmlDeviceGetCount()))
        return driver, tuple(gpu for gpu in found if gpu is not None)
    finally:
        pynvml.nvmlShutdown()


def _gpu(index: int) -> Gpu | None:
    """None for a GPU that does not answer: nothing can be placed on what has no name."""
    try:
        handle = pynvml.nvmlDeviceGetHandleByIndex(index)
        capability = tuple(pynvml.nvmlDeviceGetCudaComputeCapability(handle))
        cores_per_sm = 64 if capability in CORES_64 else 128
        product = str(pynvml.nvmlDeviceGetName(handle))
        gpu = Gpu(
            index=index,
            uuid=str(pynvml.nvmlDeviceGetUUID(handle)),
            product=product,
            memory_mib=_gpu_memory_mib(handle, model_of(product)),
            sm_count=pynvml.nvmlDeviceGetNumGpuCores(handle) // cores_per_sm,
            mig_enabled=False,
            jpeg_engines=_jpeg_engines(handle),
        )
        return _as_cut(gpu, handle)
    except pynvml.NVMLError as error:
        log.error("GPU %d does not answer: %s", index, error)
        return None


def _jpeg_engines(handle: Any) -> int:
    """Of the widest instance that the GPU could be cut into. NVML counts them for instances only (nvmlGpuInstanceProfileInfo_t,
    which can also be asked while MIG is off); of others it tells whether there is something whose load it can measure.
    """
    found: list[tuple[int, int]] = []
    for kind in range(pynvml.NVML_GPU_INSTANCE_PROFILE_COUNT):
        try:
            info = pynvml.nvmlDeviceGetGpuInstanceProfileInfo(handle, kind)
        except pynvml.NVMLError:
            continue  # the board has no such profile, or the driver none at all
        found.append((info.sliceCount, info.jpegCount))
    if found:
        return max(found)[1]
    try:
        pynvml.nvmlDeviceGetJpgUtilization(handle)
    except pynvml.NVMLError:
        return 0
    return 1


def _gpu_memory_mib(handle: Any, model: GpuModel | None) -> int:
    """Raises NVMLError."""
    try:
        return int(pynvml.nvmlDeviceGetMemoryInfo(handle).total // MIB)
    except pynvml.NVMLError_NoPermission:
        # Of a whole GPU in MIG mode only the privileged are told.
        if model is None:
            raise
        return model.memory_mib


def _handle(index: int) -> tuple[str, Any]:
    """By UUID, which is empty of a GPU that does not answer."""
    try:
        handle = pynvml.nvmlDeviceGetHandleByIndex(index)
        return str(pynvml.nvmlDeviceGetUUID(handle)), handle
    except pynvml.NVMLError:
        return "", None


def _look_again(gpu: Gpu, handle: Any | None) -> Gpu:
    try:
        return _as_cut(gpu, handle) if handle is not None else gpu
    except pynvml.NVMLError:
        return gpu


def _as_cut(gpu: Gpu, handle: Any) -> Gpu:
    """Raises NVMLError."""
    cut = is_cut(handle)
    model = model_of(gpu.product)
    slices, problem = find_slices(handle, model) if cut and model is not None else ((), "")
    return replace(gpu, mig_enabled=cut, slices=slices, problem=problem)
