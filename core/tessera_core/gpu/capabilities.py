"""Which device node lets a process use which MIG instance. Pure.

A process may use an instance if it can open the device nodes of two *capabilities*: of the GPU instance, and of the compute
instance in it. The driver numbers those of every instance that there can be when it is loaded, and never anew until it is
loaded again: ``/proc/driver/nvidia-caps/mig-minors`` has the minors, ``/proc/devices`` the major. So nodes that are made
before an instance is are of that instance.

https://docs.nvidia.com/datacenter/tesla/mig-user-guide/#device-nodes-and-capabilities
"""

from __future__ import annotations

import re
from dataclasses import dataclass

DRIVER = "nvidia-caps"
"""In ``/proc/devices``, and the folder of the nodes in ``/dev``."""

_ACCESS = re.compile(r"gpu(\d{1,4})/gi(\d{1,4})(?:/ci(\d{1,4}))?/access (\d{1,7})")
_CHARACTER, _BLOCK = "Character devices:", "Block devices:"


@dataclass(frozen=True, slots=True)
class Capability:
    """The right to use an instance."""

    gpu: int
    """Minor of the GPU, as in ``/dev/nvidia0``; NVML's index may be another."""
    gpu_instance: int
    compute_instance: int | None = None
    """None: the right to the GPU instance, which each of its compute instances needs too."""


def access_minors(text: str) -> dict[Capability, int]:
    """What ``mig-minors`` says. Left out are ``config`` and ``monitor``, the rights to cut and to watch all GPUs, and lines
    of a form that is not known.
    """
    found = {}
    for line in text.splitlines():
        if match := _ACCESS.fullmatch(line.strip()):
            gpu, instance, compute, minor = match.groups()
            right = Capability(int(gpu), int(instance), None if compute is None else int(compute))
            found[right] = int(minor)
    return found


def major(text: str) -> int | None:
    """What ``/proc/devices`` says of the driver's character devices; None: it has none, or is not loaded."""
    for line in text.partition(_CHARACTER)[2].partition(_BLOCK)[0].splitlines():
        number, _, name = line.strip().partition(" ")
        if name == DRIVER and number.isdigit():
            return int(number)
    return None


def node_name(minor: int) -> str:
    """Of a device node, in the folder :data:`DRIVER`."""
    return f"nvidia-cap{minor}"
