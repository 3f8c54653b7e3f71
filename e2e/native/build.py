"""Builds Kubernetes and the programs around it from their Go modules into a cache folder: once per version.

Only a Go tool chain and a module proxy are needed, no image registry and no release server. The first build of
Kubernetes takes some five minutes on two cores and downloads about 1.5 GB of sources; the folder keeps 150 MB.
The other programs take one to two minutes each.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
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
TOOLS = {
    "coredns": ("github.com/coredns/coredns", "v1.14.7"),
    "helm": ("helm.sh/helm/v3/cmd/helm", "v3.21.4"),
    "karpenter": ("sigs.k8s.io/karpenter/kwok", "v1.14.1"),
    "kwok": ("sigs.k8s.io/kwok/cmd/kwok", "v0.8.0"),
}
"""Package and version of the programs that come as they are."""
KEDA = ("github.com/kedacore/keda/v2", "v2.21.0")
"""Module and version. It replaces a module that it needs, so that ``go install`` refuses to build it from elsewhere."""
KEDAS = ("operator", "adapter")
_SOURCES = Path(__file__).parent / "kubernetes"
_TIMEOUT_S = 45 * 60
_STAMPED = ("k8s.io/component-base/version", "k8s.io/client-go/pkg/version")


def kubernetes() -> Path:
    """A folder with a program per component, built when it is not there yet.

    Raises RuntimeError with the remedy where there is no Go, or with what the compiler said.
    """
    content = b"".join((_SOURCES / name).read_bytes() for name in ("go.mod", "go.sum", "main.go"))
    folder = _cache() / f"kubernetes-{VERSION}-{hashlib.sha256(content).hexdigest()[:12]}"
    with _locked(folder):
        if not (folder / COMPONENTS[-1]).exists():
            _build(folder)
    return folder


def tool(name: str) -> Path:
    """The program of that name of TOOLS, built when it is not there yet. Raises as ``kubernetes`` does."""
    package, version = TOOLS[name]
    folder = _cache() / "bin"
    program = folder / f"{name}-{version}"
    with _locked(folder):
        if not program.exists():
            print(f"building {name} {version} into {folder}: a minute or two, once", flush=True)
            with tempfile.TemporaryDirectory(dir=folder) as fresh:
                arguments = ("install", "-trimpath", "-ldflags=-s -w", f"{package}@{version}")
                go(arguments, GOBIN=fresh)
                (built,) = Path(fresh).iterdir()  # named for its folder: two of them are "kwok"
                built.rename(program)
    return program


def keda() -> Path:
    """A folder with the programs KEDAS, built when they are not there yet. Raises as ``kubernetes`` does."""
    name, version = KEDA
    folder = _cache() / f"keda-{version}"
    with _locked(folder):
        if not all((folder / each).exists() for each in KEDAS):
            print(f"building KEDA {version} into {folder}: some minutes, once", flush=True)
            with tempfile.TemporaryDirectory(dir=folder) as fresh:
                packages = (f"./cmd/{each}" for each in KEDAS)
                arguments = ("build", "-trimpath", "-ldflags=-s -w", "-o", f"{fresh}/", *packages)
                go(arguments, module(name, version))
                for each in KEDAS:
                    (Path(fresh) / each).rename(folder / each)
    return folder


def module(name: str, version: str) -> Path:
    """The folder with the sources of a Go module, from the cache that building it has filled. Raises as ``tool`` does."""
    command = ["go", "mod", "download", "-json", f"{name}@{version}"]
    try:
        found = subprocess.run(command, capture_output=True, check=True, timeout=_TIMEOUT_S)
    except (OSError, subprocess.CalledProcessError) as failed:
        raise RuntimeError(f"{failed}: the sources of {name} are not to be had") from failed
    return Path(json.loads(found.stdout)["Dir"])


def go(arguments: Sequence[str | Path], folder: Path | None = None, **environment: str) -> None:
    """Run the Go tool for a static program. Raises RuntimeError where there is none or it fails."""
    program = shutil.which("go")
    if program is None:
        raise RuntimeError("no `go` in PATH: install Go 1.24 or newer; Kubernetes is built with it")
    try:
        subprocess.run(
            [program, *arguments],
            cwd=folder,
            check=True,
            timeout=_TIMEOUT_S,
            env=os.environ | {"CGO_ENABLED": "0"} | environment,
        )
    except subprocess.CalledProcessError as failed:
        raise RuntimeError(f"{failed}: see what it printed above") from failed


def _cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "tessera-e2e"


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Holds ``folder`` against another run that may be building into it."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _build(folder: Path) -> None:
    print(f"building Kubernetes {VERSION} into {folder}: minutes, once", flush=True)
    major, minor, _ = VERSION.removeprefix("v").split(".")
    stamps = [f"-X {package}.gitVersion={VERSION}" for package in _STAMPED]
    stamps += [f"-X {_STAMPED[0]}.gitMajor={major}", f"-X {_STAMPED[0]}.gitMinor={minor}"]
    program = folder / "kubernetes"
    flags = " ".join(["-s -w", *stamps])
    go(["build", "-trimpath", "-ldflags", flags, "-o", program, "."], _SOURCES)
    for name in COMPONENTS:
        link = folder / name
        link.unlink(missing_ok=True)
        link.symlink_to(program.name)


if __name__ == "__main__":
    print(kubernetes())
    for each in TOOLS:
        print(tool(each))
    print(keda())
