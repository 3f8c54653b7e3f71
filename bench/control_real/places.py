"""Where it is measured, with which networks, SLOs and settings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.peers.base import WORKS, Work

from tessera_core.control.setpoint import Setpoint
from tessera_runtime.target import DeviceTarget


@dataclass(frozen=True, slots=True)
class Task:
    """A network and how soon its answers are wanted."""

    work: Work
    slo_ms: float
    code: Path | None = None
    """A Python model in place of the work's network."""

    @property
    def name(self) -> str:
        return self.work.name


@dataclass(frozen=True, slots=True)
class Place:
    """A device of the machine, and the cores of those that wait for it."""

    device: DeviceTarget
    name: str
    dispatcher: tuple[int, ...]
    load: tuple[int, ...]
    """One generator on each."""
    tasks: tuple[Task, ...]
    caps: tuple[int, ...]
    counts: tuple[int, ...]

    @property
    def most(self) -> Setpoint:
        return Setpoint(max(self.caps), max(self.counts))

    @property
    def at_once(self) -> int:
        """Instances that compute beside each other."""
        return len(self.device.cores) // self.device.threads or 1

    @property
    def grid(self) -> tuple[Setpoint, ...]:
        """All static settings."""
        return tuple(Setpoint(cap, count) for count in self.counts for cap in self.caps)


# About five times a lone row's batch for the one whose rows cost most, more for those that gain by batches.
CPU_TASKS = (Task(WORKS["small"], 20.0), Task(WORKS["wide"], 60.0), Task(WORKS["deep"], 40.0))
CPU_CAPS = (1, 2, 4, 8, 16, 32, 64)
CPU_COUNTS = (1, 2, 4)
"""An instance on each of two cores, and more than there are cores."""

GPU_TASKS = (
    Task(WORKS["pixels_small"], 15.0),
    Task(WORKS["pixels_wide"], 60.0),
    Task(WORKS["pixels_deep"], 60.0),
)
GPU_CAPS = (1, 2, 4, 8, 16, 32, 64, 128)
GPU_COUNTS = (1, 2, 3, 4)
MOST_GENERATORS = 6


def on_processor(cores: Sequence[int]) -> Place:
    """The first core is the dispatcher's, the second the load's, the others the instances', who have all where there are
    no others.
    """
    first, second = cores[:1], cores[1:2] or cores
    of_instances = tuple(cores[2:]) or tuple(cores)
    device = DeviceTarget("cpu", "cpu", of_instances, threads=1)
    name = f"{len(of_instances)} cores, one thread for each instance"
    return Place(device, name, tuple(first), tuple(second), CPU_TASKS, CPU_CAPS, CPU_COUNTS)


def on_gpu(cores: Sequence[int], name: str) -> Place:
    """``name``: what the device is called. Half of the cores are the server's."""
    middle = max(1, len(cores) // 2)
    load = (tuple(cores[middle:]) or tuple(cores))[:MOST_GENERATORS]
    device = DeviceTarget("gpu-0", "cuda")
    return Place(device, name, tuple(cores[:middle]), load, GPU_TASKS, GPU_CAPS, GPU_COUNTS)
