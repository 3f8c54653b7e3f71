"""Shared libraries of C for tests, compiled by a package of their environment: a machine needs no compiler of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

_COMPILER = (sys.executable, "-m", "ziglang", "cc")

# It brings libc's headers and start-up files, and compiles the latter once: they stay with the environment.
_CACHE = {"ZIG_GLOBAL_CACHE_DIR": str(Path(sys.prefix) / "zig-cache")}

_STRICT = ("-std=c11", "-Wall", "-Wextra", "-Wpedantic", "-Werror", "-O1")


def build(library: Path, sources: Sequence[Path], *options: str | Path) -> None:
    """Compile ``sources`` into the shared library ``library``; what does not compile fails the test."""
    built = subprocess.run(
        [*_COMPILER, *_STRICT, "-fPIC", "-shared", *options, "-o", library, *sources],
        env=os.environ | _CACHE,
        capture_output=True,
        text=True,
        check=False,
    )
    if built.returncode != 0:
        pytest.fail(f"{library.name} does not compile:\n{built.stderr}")
