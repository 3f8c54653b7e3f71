"""Packs what the GPU's rows and tests need, for a machine that has torch and a GPU but no registry: ``make bench-gpu-bundle``.

The archive holds Tessera, compiled for that machine's Python, and the wheels of its lock file, without torch and numpy,
which are that machine's own. It is unpacked beside a checkout of the same revision::

    mkdir /tmp/site && tar -xzf .gpu-bundle/site.tar.gz -C /tmp/site && export PYTHONPATH=/tmp/site
    python3 bench/dataplane/main.py --only gpu --peers none --write gpu.json
    python3 -m pytest -m gpu tests/engines tests/faults tests/worker
    python3 bench/preprocess/gpu_decode.py --write gpu-decode.json

The last one needs torchvision too, of that machine's torch: without it, it says so and measures nothing.
The server needs ``python3`` to be the Python that the bundle was made for, on x86-64 Linux.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path

ROOT = Path(__file__).parents[1]
ARCHIVE = ROOT / ".gpu-bundle" / "site.tar.gz"

MOST_MIB = 60.0

OF_THE_MACHINE = frozenset({"torch", "numpy"})

TESTS = frozenset(
    {
        "brotli", "certifi", "gevent", "geventhttpclient", "greenlet", "iniconfig", "ml-dtypes", "packaging", "pluggy",
        "pytest", "pytest-asyncio", "pytest-timeout", "python-rapidjson", "tritonclient", "urllib3", "zope-event",
        "zope-interface",
    }
)  # fmt: skip
"""Of the packages for tests: the runner and the reference client."""

PLATFORM = "x86_64-manylinux_2_28"

_CHECK = """
import pytest, pytest_asyncio, pytest_timeout, tritonclient.grpc, tritonclient.http
import tessera_cli.loadgen, tessera_runtime.dispatch.main, tessera_runtime.supervisor, tessera_runtime.worker.zygote
from tessera_runtime.dispatch import service
assert service.__file__.endswith(".so"), "not compiled"
"""
"""By a Python that has nothing but numpy beside the bundle."""

_PINNED = re.compile(r"([A-Za-z0-9._-]+)==\S+")


def wanted(exported: Iterable[str], only: frozenset[str] | None = None) -> list[str]:
    """Requirements among the lines of ``uv export``: those of ``only``, and never the machine's own."""
    found = []
    for line in exported:
        match = _PINNED.match(line)
        if match is None:
            continue
        name = match[1].lower()
        if name not in OF_THE_MACHINE and (only is None or name in only):
            found.append(line.strip())
    return found


def pins(uv: str) -> list[str]:
    def exported(*which: str) -> list[str]:
        argv = [uv, "export", "--quiet", "--frozen", "--no-hashes", "--no-emit-project", *which]
        return _run(argv).splitlines()

    serve = wanted(exported("--extra", "serve"))
    tests = wanted(exported("--only-group", "test"), TESTS)
    return list(dict.fromkeys([*serve, *tests]))


def pack(site: Path, archive: Path) -> float:
    """Its size, MiB. Byte code is left out: other machines make their own."""

    def kept(member: tarfile.TarInfo) -> tarfile.TarInfo | None:
        member.uid = member.gid = 0
        member.uname = member.gname = ""
        return None if "__pycache__" in member.name else member

    archive.parent.mkdir(exist_ok=True)
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(site, ".", filter=kept)
    return archive.stat().st_size / 2**20


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0])
    parser.add_argument("--uv", default="uv", help="the program")
    parser.add_argument(
        "--python", default="3.12", metavar="VERSION", help="of the machine; one is needed here too"
    )
    parser.add_argument("--archive", type=Path, default=ARCHIVE)
    chosen = parser.parse_args(argv)
    with tempfile.TemporaryDirectory(prefix="bundle-") as name:
        folder = Path(name)
        python, site = folder / "environment" / "bin" / "python", folder / "site"
        requirements = folder / "pins.txt"
        requirements.write_text("\n".join(pins(chosen.uv)))
        install = [chosen.uv, "pip", "install", "--quiet"]
        for_machine = ["--python-version", chosen.python, "--python-platform", PLATFORM]
        exact = ["--no-deps", "--only-binary", ":all:", "-r", str(requirements)]
        print(f"wheels for Python {chosen.python}", file=sys.stderr)
        _run([*install, "--target", str(site), *for_machine, *exact])
        # The compiler reads the types of what is imported, numpy's among them.
        _run([chosen.uv, "venv", "--quiet", "--python", chosen.python, str(folder / "environment")])
        _run([*install, "--python", str(python), "numpy", "-r", str(requirements)])
        print("compiling Tessera, some minutes", file=sys.stderr)
        own = ["--no-deps", "--reinstall-package", "tessera", "--target", str(site), str(ROOT)]
        _run([*install, "--python", str(python), *own], {"TESSERA_COMPILE": str(python)})
        bare = folder / "bare" / "bin" / "python"
        _run([chosen.uv, "venv", "--quiet", "--python", chosen.python, str(folder / "bare")])
        _run([*install, "--python", str(bare), "numpy"])
        _run([str(bare), "-c", _CHECK], {"PYTHONPATH": str(site)})
        size = pack(site, chosen.archive)
    if size > MOST_MIB:
        print(f"{chosen.archive} has {size:.0f} MiB; at most {MOST_MIB:.0f}", file=sys.stderr)
        return 1
    print(f"{chosen.archive}: {size:.1f} MiB for Python {chosen.python}")
    return 0


def _run(argv: Sequence[str], environment: dict[str, str] | None = None) -> str:
    done = subprocess.run(
        argv, env=os.environ | (environment or {}), stdout=subprocess.PIPE, text=True, cwd=ROOT
    )
    if done.returncode:
        sys.exit(f"{' '.join(argv)}: status {done.returncode}")
    return done.stdout


if __name__ == "__main__":
    sys.exit(main())
