"""What is in use right now: by a process, by a GPU."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pynvml

from tessera_runtime.devices.mig import is_cut, mig_devices

_TICKS = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True)
class ProcessUsage:
    private_bytes: int
    """Memory that would be free without this process: what it shares with the zygote is left out."""
    cpu_seconds: float


@dataclass(frozen=True, slots=True)
class GpuUsage:
    uuid: str
    """Of a GPU, or of a slice where it is in MIG mode."""
    memory_used_bytes: int
    utilisation: float | None
    """0 to 1; None of a slice: NVML has none."""


def process_usage(pid: int) -> ProcessUsage | None:
    """Usage of a process; None when it has ended."""
    proc = Path("/proc") / str(pid)
    try:
        stat = (proc / "stat").read_text()
        rollup = (proc / "smaps_rollup").read_text()
    except OSError:
        return None
    # Fields 14 and 15 of proc_pid_stat(5), counted after the command name, which may hold spaces.
    fields = stat.rpartition(")")[2].split()
    ticks = int(fields[11]) + int(fields[12])
    private_kib = sum(
        int(line.split()[1]) for line in rollup.splitlines() if line.startswith("Private_")
    )
    return ProcessUsage(private_kib * 1024, ticks / _TICKS)


def gpu_usage() -> tuple[GpuUsage, ...]:
    """Usage of each GPU that answers, or of its slices; none without a driver."""
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return ()
    try:
        count = pynvml.nvmlDeviceGetCount()
        return tuple(usage for index in range(count) for usage in _usage(index))
    finally:
        pynvml.nvmlShutdown()


def _usage(index: int) -> tuple[GpuUsage, ...]:
    try:
        handle = pynvml.nvmlDeviceGetHandleByIndex(index)
        if is_cut(handle):
            return tuple(_used(device, None) for device in mig_devices(handle))
        return (_used(handle, pynvml.nvmlDeviceGetUtilizationRates(handle).gpu / 100),)
    except pynvml.NVMLError:
        return ()


def _used(handle: Any, utilisation: float | None) -> GpuUsage:
    """Raises NVMLError."""
    used = pynvml.nvmlDeviceGetMemoryInfo(handle).used
    return GpuUsage(str(pynvml.nvmlDeviceGetUUID(handle)), used, utilisation)
