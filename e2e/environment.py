"""Where the end-to-end tests find a Kubernetes cluster of two real nodes: kind, or this machine itself.

kind needs a Docker engine that runs privileged containers and its node image; the native environment needs root on
Linux, Go and apt, and no image registry. Tests know only `Cluster`, and run in both.
``TESSERA_E2E=kind|native|auto`` chooses; ``auto``, the default, takes the first that this machine can run.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from e2e import kind
from e2e.native import build, packages
from e2e.native import cluster as native
from e2e.native.control_plane import Access

VARIABLE = "TESSERA_E2E"
_AUTO = "auto"


class Node(Protocol):
    """One node, and the ways in which nodes fail."""

    def signal_container(self, identifier: str, name: str) -> None:
        """Send SIGKILL, SIGTERM, … to the first process of a container, whose containerID is given."""

    def stop_kubelet(self) -> None:
        """Containers go on."""

    def start_kubelet(self) -> None: ...

    def cut_off_from_api(self) -> None:
        """Nothing of the node and its pods reaches the API server, nor the other way; all else goes on."""

    def reconnect(self) -> None:
        """Undo ``cut_off_from_api``."""

    def kill(self) -> None:
        """A power failure: every process ends at once, and the network does not answer for the node any more."""

    def revive(self) -> None:
        """Start after ``kill`` with the disk as it was."""


class Cluster(Protocol):
    """A running cluster, seen by its administrator."""

    kubeconfig: Path
    access: Access

    host: str | None
    """Address by which pods reach this machine, from which it reaches pods and ClusterIPs; None: it does not."""

    @property
    def nodes(self) -> tuple[str, ...]:
        """Names of the nodes that pods run on."""

    def node(self, name: str) -> Node: ...

    def kubectl(self, *arguments: str, stdin: str | None = None) -> str:
        """What kubectl printed. Raises RuntimeError with what it complained of."""

    def load_image(self, archive: Path) -> None:
        """Give every node the images of an archive as `docker save` writes it."""

    def fetch(self, url: str, timeout_s: float = 5.0) -> str:
        """What an HTTP GET answers, with addresses of pods and Services reachable. Raises OSError or RuntimeError."""

    def stop_api_server(self) -> None:
        """What runs goes on; nobody reads or writes the cluster's state."""

    def start_api_server(self) -> None:
        """Returns when it is ready, with the address and the data that it had."""


@dataclass(frozen=True, slots=True)
class Environment:
    """A way to have a cluster."""

    name: str
    obstacle: Callable[[], str | None]
    """Why this machine cannot run it; None when it can."""
    prepare: Callable[[], None]
    """Builds and installs what it needs: minutes the first time. Says what it does; raises RuntimeError."""
    cluster: Callable[[Path], AbstractContextManager[Cluster]]
    """A fresh cluster with its files in an empty folder. Raises RuntimeError."""


def choose() -> Environment:
    """The environment for this run. Raises Unavailable with what is missing, ValueError for a bad choice."""
    wanted = os.environ.get(VARIABLE) or _AUTO
    names = [each.name for each in _ENVIRONMENTS]
    if wanted not in (_AUTO, *names):
        raise ValueError(f"{VARIABLE}={wanted}: allowed are {', '.join([*names, _AUTO])}")
    obstacles: list[str] = []
    for environment in _ENVIRONMENTS:
        if wanted in (_AUTO, environment.name):
            obstacle = environment.obstacle()
            if obstacle is None:
                before = f", since there is {'; '.join(obstacles)}" if obstacles else ""
                print(f"end-to-end tests use {environment.name}{before}", flush=True)
                return environment
            obstacles.append(f"no {environment.name} ({obstacle})")
    raise Unavailable(f"no cluster to test with: {'; '.join(obstacles)}")


class Unavailable(Exception):
    """No environment runs on this machine; the message says what each of them lacks."""


def _native_obstacle() -> str | None:
    if sys.platform != "linux":
        return f"nodes run on Linux, this is {sys.platform}"
    if os.geteuid() != 0:
        return "not root: nodes make network namespaces and control groups"
    if shutil.which("go") is None:
        return "no go in PATH: Kubernetes is built with it"
    return packages.obstacle(packages.NODES)


def _prepare_native() -> None:
    packages.install(packages.NODES)
    build.kubernetes()
    build.tool("coredns")


def _prepare_kind() -> None:
    """Its images come with the first cluster."""


_ENVIRONMENTS = (
    Environment("kind", kind.obstacle, _prepare_kind, kind.cluster),
    Environment("native", _native_obstacle, _prepare_native, native.cluster),
)
