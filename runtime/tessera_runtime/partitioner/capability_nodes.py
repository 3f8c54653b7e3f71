"""Device nodes of the rights to use MIG instances, of all instances that the GPUs of this machine can ever have.

Problem: a container has the device nodes that were there when it was made, and the driver's library makes those of an
instance when the instance is. Approach: they are made beforehand, as the driver would
(:mod:`tessera_core.gpu.capabilities`), so that containers can be given all of them.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tessera_core.gpu.capabilities import DRIVER, access_minors, major, node_name

MODE = 0o444
"""As the driver says of these nodes (``DeviceFileMode`` in /proc/driver/nvidia/capabilities): who has it may use it."""

_MOST_BYTES = 1 << 20
"""Of one file; mig-minors has some 4300 lines, 130 KB, for the 32 GPUs that a driver can have."""
_MINOR = re.compile(r"^Device Minor:\s*(\d{1,4})\s*$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Machine:
    """Where the machine's own files are."""

    proc: Path = Path("/proc")
    dev: Path = Path("/dev")

    @property
    def nodes(self) -> Path:
        return self.dev / DRIVER


class NoCapabilities(Exception):
    """There are no such nodes to be had; says what is missing."""


def make_nodes(machine: Machine) -> tuple[str, ...]:
    """Names of the nodes in ``machine.nodes`` that let a process use any instance of any GPU, sorted by minors.

    Those that are missing are made, and those of another driver's major replaced. Raises NoCapabilities.
    """
    number = major(_read(machine.proc / "devices"))
    if number is None:
        raise NoCapabilities(
            f"/proc/devices: no {DRIVER}, expected NVIDIA's driver of 450 or newer to be loaded"
        )
    gpus = frozenset(_gpus(machine.proc))
    if not gpus:
        raise NoCapabilities("/proc/driver/nvidia/gpus: no GPU with a device minor")
    rights = access_minors(_read(machine.proc / "driver" / DRIVER / "mig-minors"))
    minors = sorted(minor for right, minor in rights.items() if right.gpu in gpus)
    if not minors:
        raise NoCapabilities(f"/proc/driver/{DRIVER}/mig-minors: no instances of these GPUs")
    try:
        machine.nodes.mkdir(mode=0o755, exist_ok=True)
        for minor in minors:
            _make(machine.nodes / node_name(minor), os.makedev(number, minor))
    except OSError as error:
        raise NoCapabilities(f"device nodes cannot be made: {error}") from error
    return tuple(map(node_name, minors))


def _make(path: Path, device: int) -> None:
    """Raises OSError."""
    try:
        found = path.lstat()
    except FileNotFoundError:
        pass
    else:
        if stat.S_ISCHR(found.st_mode) and found.st_rdev == device:
            return
        path.unlink()
    try:
        os.mknod(path, stat.S_IFCHR | MODE, device)
    except FileExistsError:
        return  # the driver's library has made it meanwhile
    path.chmod(MODE)  # whatever the umask


def _gpus(proc: Path) -> Iterator[int]:
    """Their minors. Raises NoCapabilities."""
    for information in (proc / "driver/nvidia/gpus").glob("*/information"):
        yield from map(int, _MINOR.findall(_read(information)))


def _read(path: Path) -> str:
    try:
        with path.open("rb") as file:
            text = file.read(_MOST_BYTES + 1)
    except OSError as error:
        raise NoCapabilities(str(error)) from error
    if len(text) > _MOST_BYTES:
        raise NoCapabilities(f"{path}: found more than the {_MOST_BYTES} bytes that are read")
    return text.decode(errors="replace")
