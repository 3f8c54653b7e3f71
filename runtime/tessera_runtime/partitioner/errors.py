"""Why a GPU is not cut as wanted.

PartitionError          what was tried on which GPU, what the driver said, what helps
├── NotPartitionable    no MIG, no table, or a driver that lacks the profile or place; another GPU or goal helps
├── ResetRequired       the mode only changes with a reset, which is the administrator's
├── InUse               processes hold what has to go; they have to end first
├── NoRoom              the driver has no place where the table has one: somebody else cuts too
├── NotPermitted        the driver wants more privilege
├── DriverLost          the driver or the GPU does not answer any more
└── Unfinished          steps are left; the same call goes on where this one ended
    ├── OutOfTime       the time is up
    └── Stopped         nobody wants it any more, or the process is to end
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from tessera_core.gpu.recut import Create, Destroy


class PartitionError(Exception):
    """A GPU that is not cut as wanted."""


class NotPartitionable(PartitionError):
    """A GPU, or its driver, that cannot be cut so."""


class ResetRequired(PartitionError):
    """The GPU has to be reset before MIG is on."""


@dataclass(frozen=True, slots=True)
class Process:
    """A process on a GPU, by its number where the partitioner runs (which should be the host's)."""

    pid: int
    name: str
    """Empty where it is not known."""

    def __str__(self) -> str:
        return f"{self.pid} ({self.name})" if self.name else str(self.pid)


class InUse(PartitionError):
    """What has to go, or to change its mode, is held by processes."""

    def __init__(self, what: str, processes: tuple[Process, ...]) -> None:
        holders = (
            f"processes {', '.join(map(str, processes))}"
            if processes
            else "a client that NVML does not list, such as a monitor (DCGM) or a CUDA MPS daemon"
        )
        super().__init__(f"{what}: in use by {holders}; end them first")
        self.processes = processes


class NoRoom(PartitionError):
    """The driver finds no place for an instance."""


class NotPermitted(PartitionError):
    """The driver refuses without more privilege."""


class DriverLost(PartitionError):
    """Nothing can be asked of the driver or the GPU."""


class Unfinished(PartitionError):
    """Steps are left, though none has failed."""

    WHY: ClassVar[str]

    def __init__(self, gpu: str, steps: tuple[Destroy | Create, ...]) -> None:
        left = ", ".join(f"{type(step).__name__.lower()} {step.placement}" for step in steps)
        super().__init__(f"GPU {gpu}: {self.WHY}; left to do: {left}. Cut again to go on")
        self.steps = steps


class OutOfTime(Unfinished):
    """The time is up."""

    WHY = "the time is up"


class Stopped(Unfinished):
    """It is not wanted any more, or the process is to end."""

    WHY = "it was stopped"
