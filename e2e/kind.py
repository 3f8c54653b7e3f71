"""A cluster by kind, for machines with a Docker engine: the nodes are containers, and fail as those of `native` do."""

from __future__ import annotations

import shutil
from base64 import b64decode
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import yaml
from e2e.native.control_plane import Access, answers
from e2e.native.network import cut_rules
from e2e.native.processes import run, wait_until

_PROGRAMS = ("docker", "kind", "kubectl")
_NAME = "tessera-e2e"
_CONTROL_PLANE = f"{_NAME}-control-plane"
_API_PORT = 6443
_MANIFESTS = "/etc/kubernetes/manifests"
_CREATE_S = 600.0
_COMMAND_S = 600.0
_API_S = 120.0


def obstacle() -> str | None:
    """What kind lacks on this machine; None when it can run."""
    for program in _PROGRAMS:
        if shutil.which(program) is None:
            return f"no {program} in PATH"
    try:
        run("docker", "info")
    except RuntimeError as problem:
        return str(problem)
    return None


class KindNode:
    """One node, a container."""

    def __init__(self, name: str) -> None:
        self._name = name

    def signal_container(self, identifier: str, name: str) -> None:
        ctr = ("ctr", "--namespace", "k8s.io", "tasks", "kill", "--signal", name)
        _in(self._name, *ctr, identifier.rpartition("/")[2])

    def stop_kubelet(self) -> None:
        _in(self._name, "systemctl", "stop", "kubelet")

    def start_kubelet(self) -> None:
        _in(self._name, "systemctl", "start", "kubelet")

    def cut_off_from_api(self) -> None:
        self._cut("-A")

    def reconnect(self) -> None:
        self._cut("-D")

    def kill(self) -> None:
        run("docker", "kill", self._name)

    def revive(self) -> None:
        run("docker", "start", self._name)

    def _cut(self, change: str) -> None:
        path = "{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}"
        api = run("docker", "inspect", f"--format={path}", _CONTROL_PLANE).strip()
        for rule in cut_rules(api, _API_PORT):
            _in(self._name, "iptables", "-w", "-t", "mangle", change, *rule)


class KindCluster:
    """A running cluster, made by ``cluster``; what it offers is described in e2e/environment.py."""

    def __init__(self, kubeconfig: Path, nodes: int) -> None:
        self.kubeconfig = kubeconfig
        self.host: str | None = None  # Docker's networks do not route ClusterIPs
        self.nodes = tuple(f"{_NAME}-worker{'' if n == 1 else n}" for n in range(1, nodes + 1))
        self.kubectl("create", "serviceaccount", "e2e", "--namespace=kube-system")
        admin = ("--clusterrole=cluster-admin", "--serviceaccount=kube-system:e2e")
        self.kubectl("create", "clusterrolebinding", "e2e", *admin)
        token = self.kubectl("create", "token", "e2e", "--namespace=kube-system", "--duration=24h")
        server = yaml.safe_load(kubeconfig.read_text())["clusters"][0]["cluster"]
        ca = kubeconfig.with_name("ca.crt")
        ca.write_bytes(b64decode(server["certificate-authority-data"]))
        self.access = Access(server["server"], ca, token.strip())

    def node(self, name: str) -> KindNode:
        if name not in self.nodes:
            raise KeyError(name)
        return KindNode(name)

    def kubectl(self, *arguments: str, stdin: str | None = None) -> str:
        command = ("kubectl", f"--kubeconfig={self.kubeconfig}", *arguments)
        return run(*command, stdin=stdin, timeout_s=_COMMAND_S)

    def load_image(self, archive: Path) -> None:
        run("kind", "load", "image-archive", archive, f"--name={_NAME}", timeout_s=_COMMAND_S)

    def fetch(self, url: str, timeout_s: float = 5.0) -> str:
        limit = f"--max-time={timeout_s}"
        return _in(_CONTROL_PLANE, "curl", "--fail", "--silent", "--show-error", limit, url)

    def stop_api_server(self) -> None:
        _in(_CONTROL_PLANE, "mv", f"{_MANIFESTS}/kube-apiserver.yaml", "/etc/kubernetes")
        wait_until(lambda: not self._ready(), _API_S, "the API server ends")

    def start_api_server(self) -> None:
        _in(_CONTROL_PLANE, "mv", "/etc/kubernetes/kube-apiserver.yaml", _MANIFESTS)
        wait_until(self._ready, _API_S, "the API server is ready")

    def _ready(self) -> bool:
        return answers(f"{self.access.url}/readyz", self.access)


@contextmanager
def cluster(folder: Path, nodes: int = 2) -> Iterator[KindCluster]:
    """A fresh cluster with ``nodes`` workers. Raises RuntimeError with what kind complained of."""
    roles = [{"role": "control-plane"}, *[{"role": "worker"}] * nodes]
    configuration = folder / "kind.yaml"
    configuration.write_text(
        yaml.safe_dump({"kind": "Cluster", "apiVersion": "kind.x-k8s.io/v1alpha4", "nodes": roles})
    )
    name, kubeconfig = f"--name={_NAME}", folder / "kubeconfig"
    options = (f"--config={configuration}", f"--kubeconfig={kubeconfig}", "--wait=5m")
    run("kind", "delete", "cluster", name)  # of an earlier run that was killed
    try:
        run("kind", "create", "cluster", name, *options, timeout_s=_CREATE_S)
        yield KindCluster(kubeconfig, nodes)
    finally:
        run("kind", "delete", "cluster", name)


def _in(node: str, *command: str) -> str:
    return run("docker", "exec", node, *command, timeout_s=_COMMAND_S)
