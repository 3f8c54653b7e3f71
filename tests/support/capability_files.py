"""What NVIDIA's driver says in /proc of the device nodes of MIG capabilities, as files of a folder.

The nodes are of the driver ``mem``, which every Linux has: they can be opened, and cost nothing.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping
from pathlib import Path

import pytest

MEM = 1
"""Major of the driver whose minors 3, 5 and 7 are null, zero and full."""

MINORS = {
    "config": 1,
    "monitor": 2,
    "gpu0/gi0/access": 3,
    "gpu0/gi0/ci0/access": 5,
    "gpu0/gi1/access": 7,
    "gpu1/gi0/access": 8,
    "gpu1/gi0/ci0/access": 9,
}
"""As the driver has them, for two of its GPUs."""


def need_mknod(folder: Path) -> None:
    """Skip the test where device nodes cannot be made and opened."""
    path = folder / "probe"
    try:
        os.mknod(path, stat.S_IFCHR | 0o600, os.makedev(MEM, 3))
        path.open("rb").close()
    except PermissionError as error:
        pytest.skip(f"device nodes cannot be made here: {error}")
    finally:
        path.unlink(missing_ok=True)


def load_driver(
    proc: Path,
    *,
    major: int | None = MEM,
    gpus: Mapping[str, int] | None = None,
    minors: Mapping[str, int] = MINORS,
) -> None:
    """``proc``: as /proc; ``major``: None for a driver that is not loaded; ``gpus``: their minors by bus id."""
    of_driver = "" if major is None else f"{major:3} nvidia-caps\n"
    proc.mkdir(exist_ok=True)
    (proc / "devices").write_text(
        f"Character devices:\n  5 /dev/tty\n195 nvidia\n{of_driver}"
        "235 nvidia-caps-imex-channels\n\nBlock devices:\n  7 loop\n259 nvidia-caps\n"
    )
    for bus, minor in (gpus if gpus is not None else {"0000:07:00.0": 0}).items():
        folder = proc / "driver/nvidia/gpus" / bus
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "information").write_text(
            f"Model: \t\t NVIDIA H100 80GB HBM3\nIRQ:   \t\t 64\nDevice Minor: \t {minor}\n"
            "GPU Excluded:\t No\n"
        )
    folder = proc / "driver/nvidia-caps"
    folder.mkdir(parents=True, exist_ok=True)
    lines = [f"{name} {minor}\n" for name, minor in minors.items()]
    (folder / "mig-minors").write_text("".join(lines))
