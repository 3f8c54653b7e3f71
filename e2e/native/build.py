"""Builds Kubernetes from its Go modules into a cache folder: once per version, for all later runs.

Only a Go tool chain and a module proxy are needed, no image registry and no release server. The first build
takes some five minutes on two cores and downloads about 1.5 GB of sources; the folder keeps 150 MB.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
from pathlib import Path

VERSION = "v1.34.4"
COMPONENTS = (
    "etcd",
    "kube-apiserver",
    "kube-controller-manager",
    "kube-proxy",
    "kube-scheduler",
    "kubectl",
    "kubelet",
)
_SOURCES = Path(__file__).parent / "kubernetes"
_TIMEOUT_S = 45 * 60
_STAMPED = ("k8s.io/component-base/version", "k8s.io/client-go/pkg/version")


def kubernetes() -> Path:
    """A folder with a program per component, built when it is not there yet.

    Raises RuntimeError with the remedy where there is no Go, or with what the compiler said.
    """
    content = b"".join((_SOURCES / name).read_bytes() for name in ("go.mod", "go.sum", "main.go"))
    folder = _cache() / f"kubernetes-{VERSION}-{hashlib.sha256(content).hexdigest()[:12]}"
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # another run may be building it
        if not (folder / COMPONENTS[-1]).exists():
            _build(folder)
    return folder


def _cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "tessera-e2e"


def _build(folder: Path) -> None:
    go = shutil.which("go")
    if go is None:
        raise RuntimeError("no `go` in PATH: install Go 1.24 or newer; Kubernetes is built with it")
    print(f"building Kubernetes {VERSION} into {folder}: minutes, once", flush=True)
    major, minor, _ = VERSION.removeprefix("v").split(".")
    stamps = [f"-X {package}.gitVersion={VERSION}" for package in _STAMPED]
    stamps += [f"-X {_STAMPED[0]}.gitMajor={major}", f"-X {_STAMPED[0]}.gitMinor={minor}"]
    program = folder / "kubernetes"
    subprocess.run(
        [go, "build", "-trimpath", "-ldflags", " ".join(["-s -w", *stamps]), "-o", program, "."],
        cwd=_SOURCES,
        check=True,
        timeout=_TIMEOUT_S,
        env=os.environ | {"CGO_ENABLED": "0"},
    )
    for name in COMPONENTS:
        link = folder / name
        link.unlink(missing_ok=True)
        link.symlink_to(program.name)


if __name__ == "__main__":
    print(kubernetes())
