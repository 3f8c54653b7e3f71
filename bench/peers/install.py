"""Installs the servers and load generators that the data plane is measured beside: ``make bench-peers``.

Each in an environment of its own below ``.bench``, pinned in ``environments.toml``. One that cannot be
installed is reported and left out: the bench shows it as not run, with the reason.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))  # `python bench/peers/install.py` as well as -m

from bench.peers.base import ENVIRONMENTS, ROOT
from bench.peers.triton import build_identity
from rich.console import Console

PINS = Path(__file__).with_name("environments.toml")
PYTHON = "3.11"


def uv() -> str:
    found = shutil.which("uv") or str(ROOT / ".uv" / "bin" / "uv")
    if not Path(found).exists():
        raise FileNotFoundError("uv: run `make env-test` first")
    return found


def pins(path: Path = PINS) -> dict[str, dict[str, Any]]:
    return tomllib.loads(path.read_text())


def install(name: str, wanted: dict[str, Any]) -> str:
    """Make one environment; why that failed, or nothing. One that has the same pins is left alone."""
    folder, note, made = (ENVIRONMENTS / f"{name}{suffix}" for suffix in ("", ".failed", ".pins"))
    packages = list(wanted["packages"])
    if wanted.get("torch"):
        packages.append(f"torch=={metadata.version('torch').partition('+')[0]}")
    if made.exists() and made.read_text() == repr(packages):
        return ""
    for leftover in (note, made):
        leftover.unlink(missing_ok=True)
    python = wanted.get("python", PYTHON)
    for argv in (
        [uv(), "venv", "--quiet", "--clear", "--python", python, str(folder)],
        [uv(), "pip", "install", "--quiet", "--python", str(folder / "bin" / "python"), *packages],
    ):
        done = subprocess.run(argv, capture_output=True, text=True)
        if done.returncode:
            why = done.stderr.strip() or f"status {done.returncode}"
            note.write_text(f"not installed: {why}\n")
            return why
    made.write_text(repr(packages))
    return ""


def install_system(packages: list[str], programs: tuple[str, ...] = ("wrk", "h2load")) -> str:
    """Debian packages, as root only; why not, or nothing."""
    there = all(map(shutil.which, programs)) and any(Path("/usr/lib").glob("*/libb64.so.0d"))
    if there:
        return ""
    if os.getuid() != 0 or shutil.which("apt-get") is None:
        return f"needs root and apt: apt-get install {' '.join(packages)}"
    for argv in (["apt-get", "update"], ["apt-get", "install", "--yes", *packages]):
        done = subprocess.run(argv, capture_output=True, text=True)
        if done.returncode:
            return done.stderr.strip()
    return ""


def main() -> int:
    console = Console()
    ENVIRONMENTS.mkdir(parents=True, exist_ok=True)
    failed = 0
    for name, wanted in pins().items():
        console.print(f"{name}: {' '.join(wanted['packages'])} … ", end="", markup=False)
        why = install_system(wanted["packages"]) if name == "apt" else install(name, wanted)
        if name == "triton" and not why:
            why = build_identity()
        failed += bool(why)
        console.print(f"left out: {why}" if why else "ready", markup=False)
    if failed:
        console.print(f"{failed} left out; `make bench-dataplane` runs what is there")
    return 0


if __name__ == "__main__":
    sys.exit(main())
