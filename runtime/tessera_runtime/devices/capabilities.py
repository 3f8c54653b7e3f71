"""Whether this container was given what lets it use a MIG instance: device nodes (:mod:`tessera_core.gpu.capabilities`).

They are given to a container when it is made. Where GPUs are cut by partitioners, server and agent of a pod ask for the same, so
that what the agent can open, workers can.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from tessera_core.gpu.capabilities import DRIVER, Capability, access_minors, node_name

MINORS = Path("/proc/driver") / DRIVER / "mig-minors"
NODES = Path("/dev") / DRIVER

HELP = "delete the runtime pod so that it is made with all of them, see docs/mig.md"


def known_rights() -> dict[Capability, int]:
    """What the driver tells of capabilities, with the minors of their nodes; nothing where there is no driver."""
    try:
        return access_minors(MINORS.read_text())
    except OSError:
        return {}


def obstacle(rights: Mapping[Capability, int], wanted: Capability) -> str:
    """Why this process cannot use an instance, given its compute instance; empty: it can, or ``rights`` say nothing of it."""
    for right in (Capability(wanted.gpu, wanted.gpu_instance), wanted):
        if (minor := rights.get(right)) is None:
            continue
        path = NODES / node_name(minor)
        try:
            os.close(os.open(path, os.O_RDONLY | os.O_CLOEXEC))
        except OSError as error:
            return f"{path}: {error.strerror}"
    return ""
