"""Control groups: where a node's pods are, and what must be killed for nothing of it to be left.

Shims and containers outlive the programs that started them and have sessions of their own; a control group keeps
all of them together, also when the run that made it was killed. Version 1 has a tree per controller, version 2 one
for all; processes are looked up in one tree, the limits are in each.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_MOUNT = Path("/sys/fs/cgroup")
_END_S = 30.0
_POLL_S = 0.02


@dataclass(frozen=True, slots=True)
class Cgroup:
    """A control group by its path below the root, such as ``tessera-e2e-0/node-1``."""

    path: str

    def create(self) -> Cgroup:
        """Make it and what is above it, with all the cores there are."""
        for tree in _trees():
            folder = tree
            for part in Path(self.path).parts:
                _delegate(folder)
                parent, folder = folder, folder / part
                folder.mkdir(exist_ok=True)
                _inherit_cores(parent, folder)
        return self

    def add(self, pid: int) -> None:
        """Track process ``pid`` and what it starts from now on."""
        try:
            (_tracking() / self.path / "cgroup.procs").write_text(str(pid))
        except ProcessLookupError:
            pass  # it ended at once: whoever waits for it finds out

    def kill(self) -> None:
        """SIGKILL to everything in it and below; returns when it is empty. Raises RuntimeError if it never is."""
        deadline = time.monotonic() + _END_S
        while left := self._pids():
            if time.monotonic() > deadline:
                raise RuntimeError(f"cgroup {self.path}: processes {sorted(left)} do not end")
            for pid in left:
                try:
                    os.kill(pid, signal.SIGKILL)
                except ProcessLookupError:
                    pass
            time.sleep(_POLL_S)

    def remove(self) -> None:
        """Remove it and what is below, which must be empty; nothing happens where it does not exist."""
        deadline = time.monotonic() + _END_S
        trees = [_MOUNT] if _unified() else [each for each in _MOUNT.iterdir() if each.is_dir()]
        for tree in trees:
            for folder in reversed(list(_below(tree / self.path))):
                _remove(folder, deadline)

    def _pids(self) -> set[int]:
        found: set[int] = set()
        for folder in _below(_tracking() / self.path):
            try:
                found.update(map(int, (folder / "cgroup.procs").read_text().split()))
            except OSError:
                pass  # removed meanwhile
        return found


def _unified() -> bool:
    return (_MOUNT / "cgroup.controllers").exists()


def _trees() -> list[Path]:
    """The root of every tree that groups must be made in: not of the one beside those of version 1."""
    if _unified():
        return [_MOUNT]
    return sorted(each.parent for each in _MOUNT.glob("*/release_agent"))


def _tracking() -> Path:
    return _MOUNT if _unified() else _MOUNT / "pids"


def _delegate(folder: Path) -> None:
    """Let what is below ``folder`` have every controller that it has itself; version 1 always does."""
    offered = folder / "cgroup.controllers"
    if offered.exists():
        wanted = " ".join(f"+{each}" for each in offered.read_text().split())
        (folder / "cgroup.subtree_control").write_text(wanted)


def _inherit_cores(parent: Path, folder: Path) -> None:
    """A new group of version 1 has no cores and no memory nodes, and takes no process before it has."""
    if _unified():
        return
    for name in ("cpuset.cpus", "cpuset.mems"):
        setting = folder / name
        if setting.exists() and not setting.read_text().strip():
            setting.write_text((parent / name).read_text())


def _below(folder: Path) -> Iterator[Path]:
    """``folder`` and the groups in it, parents first."""
    if folder.is_dir():
        yield folder
        for path, names, _ in os.walk(folder):
            yield from (Path(path) / each for each in names)


def _remove(folder: Path, deadline: float) -> None:
    while True:
        try:
            folder.rmdir()
        except FileNotFoundError:
            return
        except OSError:  # the last process is gone but not yet let go
            if time.monotonic() > deadline:
                raise
            time.sleep(_POLL_S)
        else:
            return
