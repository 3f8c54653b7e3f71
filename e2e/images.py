"""The images of the cluster's pods, as archives that a node can load.

Where Docker runs, it builds them as a user would. Elsewhere buildah does, which needs no daemon, on a base that is
made from Debian's packages instead of pulled from a registry. An archive is kept under a hash of all that goes into
it; and the layers are kept, so that a change of the sources costs seconds: the dependencies have a layer of their own.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from e2e.native import packages

_ROOT = Path(__file__).parents[1]
_DOCKERFILES = {
    "operator": "operator/Dockerfile",
    "runtime": "runtime/Dockerfile",
    "runtime-cpu": "runtime/Dockerfile.cpu",
}
_SUITE = "bookworm"
_BASES = {
    "base": "python3,ca-certificates",
    "build-base": "python3-venv,python3-dev,gcc,libc6-dev,ca-certificates",
}
"""Debian packages by image; only the second, which no pod runs, can make virtual environments and compile."""
_BASE_OPTIONS = (
    *(f"--dpkgopt=path-exclude=/usr/share/{each}/*" for each in ("doc", "locale", "man")),
    "--dpkgopt=path-include=/usr/share/doc/*/copyright",
    # Copies of this machine's.
    '--customize-hook=rm --force "$1/etc/resolv.conf" "$1/etc/hostname"',
)
_BASE_FILE = """\
FROM scratch
ADD root.tar /
ENV PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
CMD ["python3"]
"""
_RUN_ROOT = Path("/run/tessera-e2e-images")
"""buildah's notes of what is mounted, gone after a restart of the machine as the mounts are."""
_MOST_KEPT_KIB = 30 << 20
"""Of layers, downloads and archives: they are 3 GiB after the first builds, some 22 with the image of torch."""
_TIMEOUT_S = 20 * 60
_LOG_TAIL = 4000


def tag(name: str) -> str:
    """What pods call the image: ``operator``, ``runtime`` or ``runtime-cpu``."""
    return f"localhost/tessera-{name}:e2e"


def build(
    names: Sequence[str] = ("operator", "runtime-cpu"), *, docker: bool = False
) -> dict[str, Path]:
    """By name a docker-archive, which holds the image under its :func:`tag`.

    Built with Docker, or else with buildah, which takes root and is installed where it is missing. Raises
    RuntimeError: an unknown name, no way to build, or the end of what a failed build said.
    """
    for name in names:
        if name not in _DOCKERFILES:
            raise RuntimeError(f"no image {name!r}: there are {', '.join(_DOCKERFILES)}")
    folder = _cache() / "images"
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # another run may be building them
        engine = _Docker() if docker else _Buildah(folder)
        return {name: _archive(engine, folder, name) for name in names}


class _Engine(Protocol):
    @property
    def recipe(self) -> str:
        """What it builds on, empty for the base that the Dockerfiles name."""

    def prepare(self) -> None:
        """Get ready to build. Raises RuntimeError."""

    def build(self, name: str, dockerfile: Path, secrets: Sequence[str], log: Path) -> None:
        """Build the image ``tag(name)``. Raises RuntimeError."""

    def save(self, name: str, archive: Path, log: Path) -> None:
        """Write that image. Raises RuntimeError."""


def _archive(engine: _Engine, folder: Path, name: str) -> Path:
    dockerfile = _ROOT / _DOCKERFILES[name]
    archive = folder / f"{name}-{_fingerprint(engine.recipe, dockerfile)}.tar"
    if archive.exists():
        return archive
    started = time.monotonic()
    engine.prepare()
    _say(f"building {tag(name)}")
    log = folder / f"{name}.log"
    log.write_bytes(b"")
    engine.build(name, dockerfile, _secrets(), log)
    partial = folder / f"{name}.partial"
    partial.unlink(missing_ok=True)
    engine.save(name, partial, log)
    for older in folder.glob(f"{name}-{'?' * 12}.tar"):
        older.unlink()
    partial.rename(archive)
    size, seconds = archive.stat().st_size / 1e6, time.monotonic() - started
    _say(f"built {tag(name)}: {size:.0f} MB in {seconds:.0f} s")
    return archive


def _fingerprint(recipe: str, dockerfile: Path) -> str:
    """A hash of all that a build reads: the base's recipe, the Dockerfile, and what .dockerignore lets in."""
    ignore = _ROOT / ".dockerignore"
    admitted = [_ROOT / line[1:] for line in ignore.read_text().splitlines() if line[:1] == "!"]
    digest = hashlib.sha256(recipe.encode())
    for path in (dockerfile, ignore, *_files(admitted)):
        content = path.read_bytes()
        digest.update(f"{path.relative_to(_ROOT)} {len(content)}\n".encode() + content)
    return digest.hexdigest()[:12]


def _files(paths: Sequence[Path]) -> Iterator[Path]:
    for path in paths:
        for each in sorted(path.rglob("*")) if path.is_dir() else (path,):
            if each.is_file() and "__pycache__" not in each.parts:
                yield each


def _secrets() -> tuple[str, ...]:
    """The machine's own authorities where it names any: its package index may be signed for by one of them."""
    path = os.environ.get("SSL_CERT_FILE")
    return (f"--secret=id=ca,src={path}",) if path and Path(path).is_file() else ()


class _Docker:
    recipe = ""

    def prepare(self) -> None:
        if shutil.which("docker") is None:
            raise RuntimeError("no docker in PATH")

    def build(self, name: str, dockerfile: Path, secrets: Sequence[str], log: Path) -> None:
        words = ["docker", "build", *secrets, f"--file={dockerfile}", f"--tag={tag(name)}"]
        _run(log, [*words, str(_ROOT)], DOCKER_BUILDKIT="1")

    def save(self, name: str, archive: Path, log: Path) -> None:
        _run(log, ["docker", "save", f"--output={archive}", tag(name)])


@dataclass(frozen=True, slots=True)
class _Buildah:
    folder: Path
    recipe: str = repr((_SUITE, _BASES, _BASE_OPTIONS, _BASE_FILE))

    def prepare(self) -> None:
        if os.geteuid():
            raise RuntimeError("not root: buildah changes the root folder to build")
        packages.install(packages.IMAGES)
        used = subprocess.run(
            ["du", "--summarize", "--block-size=1K", self.folder], capture_output=True, check=True
        )
        if int(used.stdout.split()[0]) > _MOST_KEPT_KIB:
            _say(f"emptying {self.folder} of the layers of earlier builds")
            self._buildah(self.folder / "empty.log", "rmi", "--all", "--force")
            shutil.rmtree(self._temporary())

    def build(self, name: str, dockerfile: Path, secrets: Sequence[str], log: Path) -> None:
        arguments = [
            f"--build-arg=BASE={self._base('base')}",
            f"--build-arg=BUILD_BASE={self._base('build-base')}",
            *secrets,
            f"--file={dockerfile}",
            f"--tag={tag(name)}",
        ]
        self._buildah(log, "build", "--layers", *arguments, str(_ROOT))

    def save(self, name: str, archive: Path, log: Path) -> None:
        self._buildah(log, "push", tag(name), f"docker-archive:{archive}:{tag(name)}")

    def _base(self, name: str) -> str:
        """A minimal Debian with Python, made when it is not there yet."""
        recipe = repr((_SUITE, _BASES[name], _BASE_OPTIONS, _BASE_FILE)).encode()
        image = f"localhost/tessera-e2e-{name}:{hashlib.sha256(recipe).hexdigest()[:12]}"
        known = subprocess.run(
            [*self._command(), "inspect", "--type=image", image], capture_output=True, check=False
        )
        if known.returncode:
            _say(f"making {image} from Debian's packages")
            log = self.folder / f"{name}.log"
            log.write_bytes(b"")
            with tempfile.TemporaryDirectory() as context:
                include = f"--include={_BASES[name]}"
                words = ["mmdebstrap", "--variant=minbase", include, *_BASE_OPTIONS, _SUITE]
                _run(log, [*words, f"{context}/root.tar"])
                file = Path(context) / "Containerfile"
                file.write_text(_BASE_FILE)
                self._buildah(log, "build", f"--file={file}", f"--tag={image}", context)
        return image

    def _command(self) -> list[str]:
        return ["buildah", f"--root={self.folder / 'storage'}", f"--runroot={_RUN_ROOT}"]

    def _temporary(self) -> Path:
        """Where buildah keeps what Dockerfiles mount as caches."""
        path = self.folder / "tmp"
        path.mkdir(exist_ok=True)
        return path

    def _buildah(self, log: Path, *arguments: str) -> None:
        environment = {"BUILDAH_ISOLATION": "chroot", "TMPDIR": str(self._temporary())}
        _run(log, [*self._command(), *arguments], **environment)


def _run(log: Path, command: Sequence[str], **environment: str) -> None:
    with log.open("ab") as output:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=os.environ | environment,
            timeout=_TIMEOUT_S,
            check=False,
        )
    if done.returncode:
        said = log.read_text(errors="replace")[-_LOG_TAIL:]
        raise RuntimeError(f"{command[0]} ended with {done.returncode}, see {log}: {said}")


def _say(message: str) -> None:
    print(message, file=sys.stderr, flush=True)


def _cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "tessera-e2e"


if __name__ == "__main__":
    for built in build(sys.argv[1:] or ("operator", "runtime-cpu")).values():
        print(built)
