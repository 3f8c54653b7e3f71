"""Everything around the operator: a control plane, fake nodes, emulated agents, and the operator as a process.

The operator has the rights that the chart gives it and no others, and acts by a token of its service account; so the
audit log can tell what it wrote. Writing for the emulators and the tests is the administrator.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from e2e.chart import NAMESPACE, Client, rendered
from e2e.native.control_plane import ControlPlane
from e2e.native.processes import Process, free_ports, wait_until
from e2e.scale import audit, fleet, kwok

ACCOUNT = f"system:serviceaccount:{NAMESPACE}:tessera-operator"
_MANAGER, _SCHEDULER = "system:kube-controller-manager", "system:kube-scheduler"
_ROOT = Path(__file__).parents[2]
_KINDS = {
    "ClusterRole",
    "ClusterRoleBinding",
    "CustomResourceDefinition",
    "PriorityClass",
    "Role",
    "RoleBinding",
    "ServiceAccount",
    "ValidatingAdmissionPolicy",
    "ValidatingAdmissionPolicyBinding",
}
"""Of the chart, those that are no program."""
_READY_S = 120.0
_TICKS = os.sysconf("SC_CLK_TCK")


@dataclass(slots=True)
class Site:
    """What runs, for a test."""

    api: Client
    log: audit.Log
    folder: Path
    kubeconfig: Path
    """Of the administrator."""
    _agents: Process
    _operators: ExitStack
    _operator: Process | None = None
    _started: int = 0

    def services(self) -> list[dict[str, Any]]:
        return self._list("modelservices")

    def nodes(self) -> list[dict[str, Any]]:
        return self._list("runtimenodes")

    def plans(self) -> list[dict[str, Any]]:
        return self._list("placementplans")

    def start_operator(self) -> None:
        """Returns when it leads."""
        self._started += 1
        (port,) = free_ports(1)
        kubeconfig = self.folder / "operator.kubeconfig"
        kubeconfig.touch(mode=0o600)
        replace(self.api.access, token=self._token()).kubeconfig(kubeconfig)
        name = f"operator-{self._started}"
        self._operator = self._operators.enter_context(
            Process(
                name,
                [
                    *(sys.executable, "-m", "tessera_operator", f"--namespace={NAMESPACE}"),
                    *(f"--kubeconfig={kubeconfig}", f"--identity={name}", f"--port={port}"),
                    *("--runtime-image=none", "--runtime-cpu-image=none"),
                    "--headroom-priority-class=tessera-headroom",
                ],
                self.folder / f"{name}.log",
            )
        )
        self._operator.wait_until(lambda: "leads as" in self.operator.tail(), _READY_S)

    def stop_operator(self) -> None:
        self.operator.stop()
        self._operator = None

    @property
    def operator(self) -> Process:
        assert self._operator is not None
        return self._operator

    def cpu_s(self) -> float:
        """Processor seconds that the operator has used."""
        fields = Path(f"/proc/{self.operator.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / _TICKS

    def memory_mib(self) -> Mapping[str, float]:
        """Resident memory of the operator, now and at most."""
        lines = Path(f"/proc/{self.operator.pid}/status").read_text().splitlines()
        found = dict(line.split(":", 1) for line in lines if ":" in line)
        return {
            name: int(found[key].split()[0]) / 1024
            for name, key in (("now", "VmRSS"), ("peak", "VmHWM"))
        }

    def start_traffic(self) -> None:
        """Requests come to every service, and every node writes its counters every 30 s."""
        os.kill(self._agents.pid, signal.SIGUSR1)

    def _token(self) -> str:
        path = f"/api/v1/namespaces/{NAMESPACE}/serviceaccounts/tessera-operator/token"
        request = {
            "apiVersion": "authentication.k8s.io/v1",
            "kind": "TokenRequest",
            "spec": {"expirationSeconds": 6 * 3600},
        }
        return str(self.api.call("POST", path, request)["status"]["token"])

    def _list(self, plural: str) -> list[dict[str, Any]]:
        items: list[dict[str, Any]] = self.api.call("GET", f"/apis/{fleet.API}/{plural}")["items"]
        return items


@contextmanager
def site(binaries: Path, folder: Path, nodes: int, *, starts: bool = True) -> Iterator[Site]:
    """``nodes`` fake nodes that are Ready, an operator that leads if it ``starts``, nothing to serve.

    Raises RuntimeError.
    """
    log = folder / "audit.log"
    rules = folder / "audit-policy.json"
    rules.write_text(audit.policy(ACCOUNT))
    plane = ControlPlane(
        binaries,
        folder,
        users={_MANAGER: (), _SCHEDULER: ()},
        options=(
            f"--audit-policy-file={rules}",
            f"--audit-log-path={log}",
            "--audit-log-maxsize=10000",  # one file
            # 300 agents behind one connection pool are one flow; they have their own in a real cluster.
            "--max-requests-inflight=2000",
            "--max-mutating-requests-inflight=1000",
        ),
    )
    with plane.running(), ExitStack() as stack:
        access = plane.access()
        kubeconfig = access.kubeconfig(folder / "kubeconfig")
        for name, user, options in (
            (
                "kube-controller-manager",
                _MANAGER,
                (
                    "--use-service-account-credentials",
                    f"--root-ca-file={plane.ca}",
                    f"--service-account-private-key-file={plane.service_accounts}",
                    "--kube-api-qps=300",
                    "--kube-api-burst=600",
                ),
            ),
            ("kube-scheduler", _SCHEDULER, ()),
        ):
            (port,) = free_ports(1)
            command = [
                binaries / name,
                f"--kubeconfig={plane.access(user).kubeconfig(folder / f'{name}.kubeconfig')}",
                *("--bind-address=127.0.0.1", f"--secure-port={port}", "--leader-elect=false"),
                *options,
            ]
            stack.enter_context(Process(name, command, folder / f"{name}.log"))
        stack.enter_context(Process("kwok", kwok.command(kubeconfig, folder), folder / "kwok.log"))
        api = Client(access)
        stack.callback(api.close)
        _install(api)
        _add_nodes(api, nodes)
        token = folder / "token"
        token.touch(mode=0o600)
        token.write_text(access.token)
        emulators: list[str | Path] = [sys.executable, "-m", "e2e.scale.emulated_agents"]
        emulators += [access.url, access.ca, token]
        agents = Process("agents", emulators, folder / "agents.log", env={"PYTHONPATH": str(_ROOT)})
        stack.enter_context(agents)
        operators = stack.enter_context(ExitStack())
        running = Site(api, audit.Log(log), folder, kubeconfig, agents, operators)
        if starts:
            running.start_operator()
        yield running


def _install(api: Client) -> None:
    """What the chart installs but for programs, and the namespaces."""
    for name in (NAMESPACE, *fleet.NAMESPACES):
        api.create({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}})
    objects = [each for each in rendered() if each["kind"] in _KINDS]
    crds = [each for each in objects if each["kind"] == "CustomResourceDefinition"]
    for each in crds:
        api.apply(each)
    wait_until(
        lambda: all(map(partial(_is_established, api), crds)), _READY_S, "the CRDs are served"
    )
    for each in objects:
        if each not in crds:
            api.apply(each)
    for each in fleet.priority_classes():
        api.create(each)


def _is_established(api: Client, crd: dict[str, Any]) -> bool:
    conditions = api.read(crd).get("status", {}).get("conditions") or ()
    return any(each["type"] == "Established" and each["status"] == "True" for each in conditions)


def _add_nodes(api: Client, count: int) -> None:
    for node in kwok.nodes(count):
        api.create(node)

    def ready() -> bool:
        items = api.call("GET", "/api/v1/nodes")["items"]
        return len(items) == count and not any(each["spec"].get("taints") for each in items)

    wait_until(ready, _READY_S, f"{count} nodes are Ready")
