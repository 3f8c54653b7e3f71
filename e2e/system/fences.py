"""The chart installed on a real API server, and everybody who is tried on it.

Agents have real tokens, made for pods as kubelets ask for them; no pod has to run for that. Tenants are tried with
more rights than anybody should give them, so that it is the policy that refuses.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from e2e.chart import CHART, NAMESPACE, Client, Object, Refused, helm, rendered
from e2e.native.control_plane import control_plane
from e2e.native.processes import wait_until

NODES = ("node-1", "node-2")
GPU_OPERATOR = "gpu-operator"
DEVICE_PLUGINS = "/var/lib/kubelet/device-plugins"
OURS = {"app.kubernetes.io/managed-by": "tessera"}
MIG_CONFIG = {"metadata": {"labels": {"nvidia.com/mig.config": "all-1g.10gb"}}}
SUCCESS = {"metadata": {"labels": {"nvidia.com/mig.config.state": "success"}}}
REPARTITION = {"tessera.dev/repartition": "true"}


class Installed(NamedTuple):
    """The chart, and who asks."""

    admin: Client
    operator: Client
    uninstall: Client
    tenant: Client
    """Everything on every kind of Tessera."""
    agents: dict[str, Client]
    """By pod. ``tessera-runtime-N`` and ``tessera-activator-N`` are on ``node-N``."""
    partitioner: Client
    """On ``node-1``."""


@contextmanager
def fences(binaries: Path, folder: Path) -> Iterator[Installed]:
    """All of it; data and logs are in ``folder``."""
    with control_plane(binaries, folder) as access:
        admin = Client(access)
        kubeconfig = access.kubeconfig(folder / "kubeconfig")
        for name in ("vision", GPU_OPERATOR):
            admin.create({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}})
        helm(
            *("install", "tessera", str(CHART), f"--namespace={NAMESPACE}", "--create-namespace"),
            "--set=partition.migManager.enabled=true",
            *(f"--set=config.gateway.{key}=edge" for key in ("name", "namespace", "domain")),
            kubeconfig=kubeconfig,
        )
        for document in rendered("everything-values"):
            # Rights of hooks, as if all of them ran.
            if "helm.sh/hook" in document["metadata"].get("annotations", {}) and (
                document["kind"] not in ("Job", "Pod")
            ):
                admin.apply(document)
        give_everything(admin, "tenant")
        agents = {}
        for number, node in enumerate(NODES, start=1):
            admin.create(node_object(node))
            for kind in ("runtime", "activator"):
                pod = f"tessera-{kind}-{number}"
                agents[pod] = admin.with_token(pod_token(admin, "tessera-agent", pod, node))
        partitioner = admin.with_token(
            pod_token(admin, "tessera-partitioner", "tessera-partitioner-1", NODES[0])
        )
        operator, uninstall = (
            admin.with_token(token(admin, f"tessera-{name}", {}))
            for name in ("operator", "uninstall")
        )
        tenant = admin.acting_for("tenant")
        found = Installed(admin, operator, uninstall, tenant, agents, partitioner)
        wait_for_policies(found)
        yield found
        for each in (admin, operator, uninstall, tenant, partitioner, *agents.values()):
            each.close()


def give_everything(admin: Client, user: str) -> None:
    """All rights on the kinds of Tessera, in a role of its own."""
    metadata = {"name": f"everything-{user}"}
    rules = [{"apiGroups": ["tessera.dev"], "resources": ["*"], "verbs": ["*"]}]
    version = "rbac.authorization.k8s.io/v1"
    role = {"apiVersion": version, "kind": "ClusterRole", "metadata": metadata}
    admin.create({**role, "rules": rules})
    admin.create(
        {
            "apiVersion": version,
            "kind": "ClusterRoleBinding",
            "metadata": metadata,
            "roleRef": {"apiGroup": version.partition("/")[0], "kind": "ClusterRole", **metadata},
            "subjects": [{"apiGroup": version.partition("/")[0], "kind": "User", "name": user}],
        }
    )


def pod_token(admin: Client, account: str, name: str, node: str) -> str:
    pod = admin.create(
        {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": name, "namespace": NAMESPACE},
            "spec": {
                "serviceAccountName": account,
                "nodeName": node,
                "containers": [{"name": "agent", "image": "none"}],
            },
        }
    )
    bound = {"apiVersion": "v1", "kind": "Pod", "name": name, "uid": pod["metadata"]["uid"]}
    return token(admin, account, {"boundObjectRef": bound})


def token(admin: Client, account: str, bound: Object) -> str:
    request = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": bound}
    path = f"/api/v1/namespaces/{NAMESPACE}/serviceaccounts/{account}/token"
    return str(admin.call("POST", path, request)["status"]["token"])


def wait_for_policies(found: Installed) -> None:
    """A policy is in force a moment after it was written; each is tried with what it alone refuses."""
    admin, agent = found.admin, found.agents["tessera-runtime-1"]
    for name in (*NODES, "tessera-activator-1", "tessera-activator-2"):
        admin.create(runtime_node(name))
    admin.create(plan())
    foreign = service("vision", "foreign", labels={})
    tries: dict[str, Callable[[], object]] = {
        "tessera-agents": lambda: agent.apply(lease("tessera-operator"), dry=True),
        "tessera-partitioners": lambda: found.partitioner.apply(
            status_of("node-1"), "status", dry=True
        ),
        "tessera-placement": lambda: found.tenant.apply(runtime_node("other"), dry=True),
        "tessera-privilege": lambda: found.operator.create(daemon_set(image="other"), dry=True),
        "tessera-operator": lambda: found.operator.create(foreign, dry=True),
        "tessera-node-labels": lambda: found.operator.merge(node_object("node-1"), MIG_CONFIG),
    }
    for policy, attempt in tries.items():
        wait_until(lambda: policy in refusal(attempt), 30, policy)  # noqa: B023  # called at once


def refusal(attempt: Callable[[], object]) -> str:
    """What the API server says against it; empty when it does not."""
    try:
        attempt()
    except Refused as refused:
        return str(refused)
    return ""


def node_object(name: str, **labels: str) -> Object:
    return {"apiVersion": "v1", "kind": "Node", "metadata": {"name": name, "labels": labels}}


def runtime_node(name: str, **spec: Any) -> Object:
    return {
        "apiVersion": "tessera.dev/v1alpha1",
        "kind": "RuntimeNode",
        "metadata": {"name": name},
        "spec": {"epoch": 1, **spec},
    }


def status_of(name: str) -> Object:
    document = {**runtime_node(name), "status": {"agentVersion": "1.0"}}
    del document["spec"]
    return document


def cuts_of(name: str) -> Object:
    """As a partitioner tells them."""
    return {**status_of(name), "status": {"cuts": [{"uuid": "GPU-1", "generation": 1}]}}


def daemon_set(of_host: str = "/dev", **container: Any) -> Object:
    """What the operator makes for a pool whose GPUs are cut, with a container that may differ."""
    version = yaml.safe_load((CHART / "Chart.yaml").read_text())["appVersion"]
    labels = {"app.kubernetes.io/name": "tessera-partitioner"}
    made = {
        "name": "partitioner",
        "image": f"tessera-runtime:{version}",
        "command": ["python", "-m", "tessera_runtime.partitioner"],
        "args": ["--patience=120"],
        "env": [{"name": "NVIDIA_VISIBLE_DEVICES", "value": "all"}],
        "securityContext": {"privileged": True},
        "volumeMounts": [
            {"name": "host", "mountPath": "/dev"},
            {"name": "device-plugins", "mountPath": DEVICE_PLUGINS},
        ],
    }
    return {
        "apiVersion": "apps/v1",
        "kind": "DaemonSet",
        "metadata": {
            "name": "tessera-partitioner-gpu",
            "namespace": NAMESPACE,
            "labels": {**OURS, **labels},
        },
        "spec": {
            "selector": {"matchLabels": labels},
            "template": {
                "metadata": {"labels": labels},
                "spec": {
                    "serviceAccountName": "tessera-partitioner",
                    "hostPID": True,
                    "containers": [{**made, **container}],
                    "volumes": [
                        {"name": "host", "hostPath": {"path": of_host}},
                        {"name": "device-plugins", "hostPath": {"path": DEVICE_PLUGINS}},
                    ],
                },
            },
        },
    }


def lease(name: str) -> Object:
    return {
        "apiVersion": "coordination.k8s.io/v1",
        "kind": "Lease",
        "metadata": {"name": name, "namespace": NAMESPACE},
        "spec": {"holderIdentity": "somebody"},
    }


def plan(name: str = "00ff") -> Object:
    return {
        "apiVersion": "tessera.dev/v1alpha1",
        "kind": "PlacementPlan",
        "metadata": {"name": name},
        "spec": {
            "epoch": 1,
            "basis": "sha256:ab01",
            "cost": "1",
            "lowerBound": "1",
            "gapPercent": "0",
            "diff": ["node-1: nothing -> something"],
        },
    }


def service(namespace: str, name: str, labels: dict[str, str] = OURS, **spec: Any) -> Object:
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": name, "namespace": namespace, "labels": labels},
        "spec": {"type": "ClusterIP", "ports": [{"port": 80}], **spec},
    }


def endpoints(name: str, labels: dict[str, str]) -> Object:
    return {
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {"name": name, "namespace": "vision", "labels": labels},
        "addressType": "IPv4",
        "endpoints": [{"addresses": ["10.244.1.7"]}],
    }
