"""What is in use right now: by a process, by a GPU."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import pynvml

_TICKS = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True)
class ProcessUsage:
    private_bytes: int
    """Memory that would be free without this process: what it shares with the zygote is left out."""
    cpu_seconds: float


@dataclass(frozen=True, slots=True)
class GpuUsage:
    uuid: str
    memory_used_bytes: int
    utilisation: float
    """0 to 1."""


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
    """Usage of each GPU; none without a driver."""
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return ()
    try:
        handles = [pynvml.nvmlDeviceGetHandleByIndex(i) for i in range(pynvml.nvmlDeviceGetCount())]
        return tuple(
            GpuUsage(
                str(pynvml.nvmlDeviceGetUUID(handle)),
                pynvml.nvmlDeviceGetMemoryInfo(handle).used,
                pynvml.nvmlDeviceGetUtilizationRates(handle).gpu / 100,
            )
            for handle in handles
        )
    finally:
        pynvml.nvmlShutdown()
