"""Device classes: the kinds of place an instance can run in.

Latency belongs to a class, not to a device: two 1g.10gb slices of two A100s are the same class, so one
measurement serves both. A class is what a ModelProfile is keyed by and what the planner counts.
"""

from __future__ import annotations

from dataclasses import dataclass

FULL = "full"
"""The slice name of a whole, unpartitioned device."""


@dataclass(frozen=True, slots=True, order=True)
class DeviceClass:
    """One kind of place: a whole GPU, a MIG slice of it, or a set of CPU cores.

    A GPU shared by n instances is not a class of its own: it is this class with ``instances = n`` in the
    profile, because sharing changes the latency and not the device. Under MPS it is another product (``gpu/mps.py``).
    """

    product: str
    """NVML product name, e.g. ``NVIDIA-H100-80GB-HBM3``; ``cpu`` for processor cores."""
    slice: str
    """``full``, a MIG profile name such as ``1g.10gb``, or ``cpu-N`` for N cores."""
    sm_count: int
    """Streaming multiprocessors; for a CPU class the number of cores. Never derived from the slice name:
    0 where no recording of the slice was found."""
    memory_mib: int
    """Usable device memory in MiB; for a CPU class the memory budget of the slice."""

    @property
    def is_cpu(self) -> bool:
        return self.product == "cpu"

    @property
    def is_mig(self) -> bool:
        return not self.is_cpu and self.slice != FULL

    def __str__(self) -> str:
        return self.slice if self.is_cpu else f"{self.product}/{self.slice}"


def cpu_class(cores: int, memory_mib: int) -> DeviceClass:
    """The class of a set of ``cores`` processor cores with ``memory_mib`` MiB to use."""
    if cores < 1:
        raise ValueError(f"a CPU device needs at least one core, found {cores}")
    return DeviceClass(product="cpu", slice=f"cpu-{cores}", sm_count=cores, memory_mib=memory_mib)
