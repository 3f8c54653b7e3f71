"""What the native environment takes from Debian: the programs that nodes and images need, where they are missing.

A package counts as there when its program is, so that other builds of a program are as good as Debian's.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass

_OUTSIDE_PATH = ("/usr/sbin", "/sbin", "/usr/lib/cni", "/opt/cni/bin")
_TIMEOUT_S = 900
_LOCK_S = 300


@dataclass(frozen=True, slots=True)
class Package:
    """A Debian package, the program that is wanted from it, and what for."""

    name: str
    program: str
    why: str


NODES = (
    Package("containerd", "containerd", "runs containers"),
    Package("runc", "runc", "starts them"),
    Package("containernetworking-plugins", "bridge", "connects pods"),
    Package("iproute2", "ip", "makes the network of the nodes"),
    Package("iptables", "iptables", "kube-proxy's rules, and cutting nodes off"),
    Package("conntrack", "conntrack", "kube-proxy forgets connections to pods that are gone"),
    Package("socat", "socat", "kubectl port-forward"),
    Package("util-linux", "nsenter", "runs the programs of a node in its network"),
)
IMAGES = (
    Package("buildah", "buildah", "builds images without a daemon"),
    Package("mmdebstrap", "mmdebstrap", "makes their base without a registry"),
)


def missing(wanted: Sequence[Package]) -> tuple[Package, ...]:
    """Those whose program is not there."""
    path = os.pathsep.join([os.environ.get("PATH", ""), *_OUTSIDE_PATH])
    return tuple(each for each in wanted if shutil.which(each.program, path=path) is None)


def obstacle(wanted: Sequence[Package]) -> str | None:
    """Why ``install`` would fail on this machine, with the remedy; None when nothing stands in its way."""
    lacking = missing(wanted)
    if not lacking:
        return None
    names = ", ".join(each.program for each in lacking)
    if shutil.which("apt-get") is None:
        return f"no {names}, and no apt-get to install them with: install them by hand"
    if os.geteuid() != 0:
        return f"no {names}: run as root, or `apt-get install {_names(lacking)}`"
    return None


def install(wanted: Sequence[Package]) -> None:
    """Install what is missing, saying what and why. Raises RuntimeError where it cannot be done."""
    lacking = missing(wanted)
    if problem := obstacle(wanted):
        raise RuntimeError(problem)
    if not lacking:
        return
    for package in lacking:
        print(f"installing {package.name}: {package.why}", flush=True)
    _apt("update", "--quiet")
    _apt("install", "--quiet", "--yes", "--no-install-recommends", *(each.name for each in lacking))
    if still := missing(lacking):
        raise RuntimeError(f"{_names(still)} installed, but not the programs that are wanted")


def _names(packages: Sequence[Package]) -> str:
    return " ".join(each.name for each in packages)


def _apt(*arguments: str) -> None:
    try:
        subprocess.run(
            ["apt-get", f"--option=DPkg::Lock::Timeout={_LOCK_S}", *arguments],
            check=True,
            timeout=_TIMEOUT_S,
            stdin=subprocess.DEVNULL,
            env=os.environ | {"DEBIAN_FRONTEND": "noninteractive"},
        )
    except subprocess.CalledProcessError as failed:
        raise RuntimeError(f"{failed}: see what it printed above") from failed
