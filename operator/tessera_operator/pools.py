"""What a RuntimePool becomes: a Deployment of runtime pods, as many as are needed. Pure.

One pod per node takes all GPUs of the node, so that they are never given away twice; pods that find no node are what
cluster autoscalers wait for. Serving needs no privilege: the pod runs as nobody, with a read-only file system, and
only its agent has a token.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import ceil
from typing import Any

from tessera_core.api import ModelServiceSpec, RuntimePool
from tessera_core.api.quantities import Quantity
from tessera_core.api.records import record
from tessera_core.api.runtimepool import GPU_RESOURCE, Toleration
from tessera_core.gpu.mig import find_profile
from tessera_core.gpu.tables import model_of
from tessera_core.plan.decision import Plan, Why
from tessera_core.plan.state import CPU
from tessera_core.plan.state_in import POOL_LABEL
from tessera_operator import pod_tls
from tessera_operator.routes import GRPC_PORT, HTTP_PORT, MANAGED_BY

NAME_LABEL = "app.kubernetes.io/name"
RUNTIME = "tessera-runtime"
ACTIVATOR = "tessera-activator"
METRICS_PORT = 8002
NOBODY = 65532
SHUTDOWN_DELAY_S, DRAIN_S = 8, 30
"""Seconds that a server goes on after SIGTERM, so that clients look away first; and that it then has to finish."""
_AGENT_CPU, _AGENT_MEMORY = "50m", "128Mi"


@dataclass(frozen=True, slots=True)
class Images:
    """What runtime pods run, and how the images are got."""

    gpu: str
    cpu: str
    pull_policy: str = "IfNotPresent"
    pull_secrets: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Installation:
    """Where and as whom runtime pods run."""

    namespace: str
    images: Images
    service_account: str = "tessera-agent"
    priority_class: str = ""
    agent_args: tuple[str, ...] = ()
    """Further options of the agents."""
    server_args: tuple[str, ...] = ()
    """Further options of the servers."""
    tls: pod_tls.Tls | None = None
    """Of the servers; None: in clear."""
    partitioner_args: tuple[str, ...] = ()
    """Further options of the partitioners."""


def deployment(pool: RuntimePool, replicas: int, where: Installation) -> dict[str, Any]:
    """The Deployment of ``pool``."""
    name = f"{RUNTIME}-{pool.metadata.name}"
    labels = {NAME_LABEL: RUNTIME, POOL_LABEL: pool.metadata.name}
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {
            "name": name,
            "namespace": where.namespace,
            "labels": {**MANAGED_BY, **labels},
            "ownerReferences": [owner_of(pool)],
        },
        "spec": {
            "replicas": replicas,
            "selector": {"matchLabels": labels},
            # A second pod has no room on a node whose GPUs the first one has.
            "strategy": {"rollingUpdate": {"maxSurge": 0, "maxUnavailable": 1}},
            "minReadySeconds": 5,
            "template": {
                "metadata": {"labels": {**MANAGED_BY, **labels}},
                "spec": _pod(pool, where),
            },
        },
    }


def disruption_budget(pool: RuntimePool, where: Installation) -> dict[str, Any]:
    """At most one runtime pod of the pool is evicted at a time."""
    labels = {NAME_LABEL: RUNTIME, POOL_LABEL: pool.metadata.name}
    return {
        "apiVersion": "policy/v1",
        "kind": "PodDisruptionBudget",
        "metadata": {
            "name": f"{RUNTIME}-{pool.metadata.name}",
            "namespace": where.namespace,
            "labels": {**MANAGED_BY, **labels},
            "ownerReferences": [owner_of(pool)],
        },
        "spec": {"maxUnavailable": 1, "selector": {"matchLabels": labels}},
    }


def size(pool: RuntimePool, present: Collection[str], used: Collection[str], missing: int) -> int:
    """How many nodes ``pool`` is to have.

    ``present``: its nodes; ``used``: those that the plan runs something on; ``missing``: further nodes that would
    close the plan's shortfall. Nodes are given back only when nothing is missing.
    """
    bounds = pool.spec.size
    kept = ceil(len(used) * (1 + bounds.headroom.percent / 100) - 1e-9)
    wanted = len(present) + missing if missing else kept
    return min(bounds.max, max(bounds.min, wanted))


_CLOSED_BY_NODES = {Why.NO_DEVICE, Why.INSUFFICIENT_CAPACITY, Why.SPREAD_UNMET, Why.ISOLATION_UNMET}


def missing_nodes(
    pools: Sequence[RuntimePool],
    products: Mapping[str, Collection[str]],
    plan: Plan,
    services: Mapping[str, ModelServiceSpec] | None = None,
) -> dict[str, int]:
    """Further nodes, by pool, for what ``plan`` could not place or placed with too little.

    ``products``: of the devices that each pool has. ``services``: by name; only pools where one may run are asked
    for it. A shortfall names the kind of place that closes it at the least price. A pool that has shown no device
    is asked for one node, to find out and to measure there.
    """
    refusals = [(service, refusal) for service, _, refusal in plan.refused]
    refusals += [(each.service, each.short) for each in plan.services if each.short is not None]
    found: dict[str, int] = {}
    for service, refusal in refusals:
        spec = (services or {}).get(service)
        fitting = [pool for pool in pools if spec is None or _may_run(spec, pool)]
        if refusal.why in (Why.NO_DEVICE, Why.NO_PROFILE):
            unknown = (p.metadata.name for p in fitting if not products.get(p.metadata.name))
            found.update((name, max(1, found.get(name, 0))) for name in unknown)
        short = refusal.shortfall
        if refusal.why not in _CLOSED_BY_NODES or short is None:
            continue
        product, _, piece = short.device.partition("/")
        pool = next((p for p in fitting if product in products.get(p.metadata.name, ())), None)
        if pool is not None:
            nodes = ceil(short.devices / _places_per_node(pool, product, piece))
            found[pool.metadata.name] = max(found.get(pool.metadata.name, 0), nodes)
    return found


def _may_run(spec: ModelServiceSpec, pool: RuntimePool) -> bool:
    selector, labels = spec.placement.pool_selector, dict(pool.metadata.labels)
    if selector is not None and not dict(selector.match_labels).items() <= labels.items():
        return False
    return pool.spec.trust.allow_code or not any(m.model.format.is_code for m in spec.members)


def _places_per_node(pool: RuntimePool, product: str, piece: str) -> int:
    """Places of one kind that a node of ``pool`` brings."""
    if product == CPU:
        return max(1, cores_of(pool) // int(piece.removeprefix("cpu-")))
    gpus = dict(pool.spec.node.resources).get(GPU_RESOURCE)
    model = model_of(product)
    profile = find_profile(model, piece) if model is not None else None
    return max(1, int(gpus.value) if gpus is not None else 1) * (
        profile.max_count if profile is not None else 1
    )


def cores_of(pool: RuntimePool) -> int:
    """Whole cores that the pod of one node may use; 0: not said."""
    cpu = dict(pool.spec.node.resources).get("cpu")
    return 0 if cpu is None else int(cpu.value)


def conflicts(
    pools: Iterable[RuntimePool], nodes: Iterable[Mapping[str, Any]]
) -> dict[str, tuple[str, str]]:
    """Pools that select a node of an older one: by name, (the older pool, one such node)."""
    found: dict[str, tuple[str, str]] = {}
    by_age = sorted(
        pools, key=lambda pool: (pool.metadata.creation_timestamp or "", pool.metadata.name)
    )
    for node in nodes:
        labels = node["metadata"].get("labels") or {}
        selecting = [
            pool
            for pool in by_age
            if all(labels.get(name) == value for name, value in pool.spec.node.selector)
        ]
        for pool in selecting[1:]:
            found.setdefault(
                pool.metadata.name, (selecting[0].metadata.name, node["metadata"]["name"])
            )
    return found


def _pod(pool: RuntimePool, where: Installation) -> dict[str, Any]:
    shape = pool.spec.node
    image = where.images.gpu if GPU_RESOURCE in dict(shape.resources) else where.images.cpu
    spec: dict[str, Any] = {
        "serviceAccountName": where.service_account,
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "terminationGracePeriodSeconds": SHUTDOWN_DELAY_S + DRAIN_S + 22,
        "nodeSelector": dict(shape.selector),
        "tolerations": [record(Toleration).encode(each) for each in shape.tolerations],
        "affinity": {
            "podAntiAffinity": {
                "requiredDuringSchedulingIgnoredDuringExecution": [
                    {
                        "topologyKey": "kubernetes.io/hostname",
                        "labelSelector": {"matchLabels": {NAME_LABEL: RUNTIME}},
                    }
                ]
            }
        },
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": NOBODY,
            "runAsGroup": NOBODY,
            "fsGroup": NOBODY,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "containers": [_server(pool, image, where), _agent(pool, image, where)],
        "volumes": [*_volumes(shape.shared_memory), *pod_tls.volumes(where.tls)],
    }
    if shape.runtime_class_name:
        spec["runtimeClassName"] = shape.runtime_class_name
    if where.priority_class:
        spec["priorityClassName"] = where.priority_class
    if where.images.pull_secrets:
        spec["imagePullSecrets"] = [{"name": each} for each in where.images.pull_secrets]
    return spec


def _server(pool: RuntimePool, image: str, where: Installation) -> dict[str, Any]:
    resources = {name: each.text for name, each in pool.spec.node.resources}
    preload = "torch,onnxruntime" if GPU_RESOURCE in resources else "onnxruntime"
    return {
        "name": "server",
        "image": image,
        "imagePullPolicy": where.images.pull_policy,
        "command": ["python", "-m", "tessera_runtime.supervisor"],
        "args": [
            "--run-dir=/run/tessera/server",
            "--host=0.0.0.0",
            f"--http={HTTP_PORT}",
            f"--grpc={GRPC_PORT}",
            f"--metrics={METRICS_PORT}",
            f"--preload={preload}",
            f"--shutdown-delay={SHUTDOWN_DELAY_S}",
            f"--drain-timeout={DRAIN_S}",
            *pod_tls.options(where.tls),
            *where.server_args,
        ],
        "ports": [
            {"name": "http", "containerPort": HTTP_PORT},
            {"name": "grpc", "containerPort": GRPC_PORT},
            {"name": "metrics", "containerPort": METRICS_PORT},
        ],
        "readinessProbe": {
            **pod_tls.probe("/v2/health/ready", where.tls),
            "periodSeconds": 2,
            "timeoutSeconds": 2,
        },
        # It restarts what hangs inside itself; this is for when the front end does.
        "livenessProbe": {
            **pod_tls.probe("/v2/health/live", where.tls),
            "initialDelaySeconds": 20,
            "periodSeconds": 10,
            "timeoutSeconds": 5,
            "failureThreshold": 6,
        },
        "resources": {"requests": resources, "limits": resources},
        "securityContext": _RESTRICTED,
        "volumeMounts": [
            {"name": "run", "mountPath": "/run/tessera"},
            {"name": "models", "mountPath": "/models", "readOnly": True},
            {"name": "shm", "mountPath": "/dev/shm"},
            {"name": "server-tmp", "mountPath": "/tmp"},
            *pod_tls.mounts(where.tls),
        ],
    }


def _agent(pool: RuntimePool, image: str, where: Installation) -> dict[str, Any]:
    cores = cores_of(pool)
    return {
        "name": "agent",
        "image": image,
        "imagePullPolicy": where.images.pull_policy,
        "command": ["python", "-m", "tessera_runtime.agent.main"],
        "args": [
            "--run-dir=/run/tessera/server",
            "--models=/models",
            "--state=/state",
            *(["--allow-code"] if pool.spec.trust.allow_code else []),
            *where.agent_args,
        ],
        "env": [
            _field("NODE_NAME", "spec.nodeName"),
            _field("POD_NAME", "metadata.name"),
            _field("POD_NAMESPACE", "metadata.namespace"),
            _field("POD_IP", "status.podIP"),
            *([{"name": "TESSERA_CORES", "value": str(cores)}] if cores else []),
            *(_SEES_GPUS if GPU_RESOURCE in dict(pool.spec.node.resources) else []),
            {
                "name": "TESSERA_MEMORY_MIB",
                "valueFrom": {
                    "resourceFieldRef": {
                        "containerName": "server",
                        "resource": "limits.memory",
                        "divisor": "1Mi",
                    }
                },
            },
        ],
        "resources": {
            "requests": {"cpu": _AGENT_CPU, "memory": _AGENT_MEMORY},
            "limits": {"memory": "512Mi"},
        },
        "securityContext": _RESTRICTED,
        "volumeMounts": [
            {"name": "run", "mountPath": "/run/tessera"},
            {"name": "models", "mountPath": "/models"},
            {"name": "state", "mountPath": "/state"},
            {"name": "agent-tmp", "mountPath": "/tmp"},
            {
                "name": "token",
                "mountPath": "/var/run/secrets/kubernetes.io/serviceaccount",
                "readOnly": True,
            },
        ],
    }


_SEES_GPUS = [
    # Of NVIDIA's container runtime: NVML for all GPUs of the node, which the server alone asks the scheduler for.
    {"name": "NVIDIA_VISIBLE_DEVICES", "value": "all"},
    {"name": "NVIDIA_DRIVER_CAPABILITIES", "value": "utility"},
]

_RESTRICTED: dict[str, Any] = {
    "allowPrivilegeEscalation": False,
    "readOnlyRootFilesystem": True,
    "capabilities": {"drop": ["ALL"]},
}


def _volumes(shared_memory: Quantity | None) -> list[dict[str, Any]]:
    memory = {"medium": "Memory", "sizeLimit": shared_memory.text if shared_memory else "64Mi"}
    return [
        {"name": "run", "emptyDir": {"medium": "Memory", "sizeLimit": "16Mi"}},
        {"name": "models", "emptyDir": {}},
        {"name": "state", "emptyDir": {}},
        {"name": "shm", "emptyDir": memory},
        {"name": "server-tmp", "emptyDir": {}},
        {"name": "agent-tmp", "emptyDir": {}},
        token_volume(),  # the agent's alone: what serves tenants' models has no identity in the cluster
    ]


def token_volume() -> dict[str, Any]:
    """What a container finds its account by, for those that mount it."""
    return {
        "name": "token",
        "projected": {
            "defaultMode": 0o440,
            "sources": [
                {"serviceAccountToken": {"path": "token", "expirationSeconds": 3607}},
                {
                    "configMap": {
                        "name": "kube-root-ca.crt",
                        "items": [{"key": "ca.crt", "path": "ca.crt"}],
                    }
                },
                {
                    "downwardAPI": {
                        "items": [
                            {
                                "path": "namespace",
                                "fieldRef": {"fieldPath": "metadata.namespace"},
                            }
                        ]
                    }
                },
            ],
        },
    }


def _field(name: str, path: str) -> dict[str, Any]:
    return {"name": name, "valueFrom": {"fieldRef": {"fieldPath": path}}}


def owner_of(pool: RuntimePool) -> dict[str, Any]:
    """The owner reference of what is made for ``pool`` and goes with it."""
    return {
        "apiVersion": "tessera.dev/v1alpha1",
        "kind": "RuntimePool",
        "name": pool.metadata.name,
        "uid": pool.metadata.uid,
        "controller": True,
        "blockOwnerDeletion": True,
    }
