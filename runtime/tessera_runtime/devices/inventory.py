"""What this node has: processor cores that may be used, memory, NVIDIA GPUs."""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass
from pathlib import Path

import pynvml

MIB = 1 << 20

CORES_64 = frozenset({(6, 0), (7, 0), (7, 2), (7, 5), (8, 0)})
"""Compute capabilities with 64 FP32 cores per SM; the others since Pascal have 128 (CUDA C++ programming
guide, arithmetic instructions per capability). NVML counts cores, not SMs."""


@dataclass(frozen=True, slots=True)
class Gpu:
    """One GPU as NVML reports it."""

    index: int
    uuid: str
    product: str
    memory_mib: int
    sm_count: int
    mig_enabled: bool


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


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        key, _, value = line.partition(":")
        if key.strip() == "model name":
            return value.strip()
    return platform.machine()  # Arm lists part numbers instead of a name


def _memory_mib() -> int:
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = Path("/sys/fs/cgroup/memory.max")
    if limit.exists():
        text = limit.read_text().strip()
        if text.isdigit():
            total = min(total, int(text))
    return total // MIB


def _gpus() -> tuple[str, tuple[Gpu, ...]]:
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return "", ()
    try:
        driver = str(pynvml.nvmlSystemGetDriverVersion())
        count = pynvml.nvmlDeviceGetCount()
        return driver, tuple(_gpu(index) for index in range(count))
    finally:
        pynvml.nvmlShutdown()


def _gpu(index: int) -> Gpu:
    handle = pynvml.nvmlDeviceGetHandleByIndex(index)
    try:
        mig = pynvml.nvmlDeviceGetMigMode(handle)[0] == pynvml.NVML_DEVICE_MIG_ENABLE
    except pynvml.NVMLError:
        mig = False  # a GPU without MIG answers "not supported"
    capability = tuple(pynvml.nvmlDeviceGetCudaComputeCapability(handle))
    cores_per_sm = 64 if capability in CORES_64 else 128
    return Gpu(
        index=index,
        uuid=str(pynvml.nvmlDeviceGetUUID(handle)),
        product=str(pynvml.nvmlDeviceGetName(handle)),
        memory_mib=pynvml.nvmlDeviceGetMemoryInfo(handle).total // MIB,
        sm_count=pynvml.nvmlDeviceGetNumGpuCores(handle) // cores_per_sm,
        mig_enabled=mig,
    )
