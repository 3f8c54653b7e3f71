"""What a RuntimePool becomes: a Deployment of runtime pods, one per node. Pure.

One pod per node takes all GPUs of the node, so that they are never given away twice; pods that find no node are what
cluster autoscalers wait for. Serving needs no privilege: the pod runs as nobody, with a read-only file system, and
only its agent has a token.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from tessera_core.api import RuntimePool
from tessera_core.api.quantities import Quantity
from tessera_core.api.records import record
from tessera_core.api.runtimepool import (
    CAPABILITIES_RESOURCE,
    GPU_RESOURCE,
    PartitionBackend,
    Sharing,
    Toleration,
)
from tessera_core.plan.state_in import POOL_LABEL
from tessera_operator import pod_tls
from tessera_operator.mig_manager import AWAY_LABEL
from tessera_operator.routes import GRPC_PORT, HTTP_PORT, MANAGED_BY

NAME_LABEL = "app.kubernetes.io/name"
RUNTIME = "tessera-runtime"
ACTIVATOR = "tessera-activator"
METRICS_PORT = 8002
NOBODY = 65532
SHUTDOWN_DELAY_S, DRAIN_S = 8, 30
"""Seconds that a server goes on after SIGTERM, so that clients look away first; and that it then has to finish."""
AGENT_REQUESTS = {"cpu": "50m", "memory": "128Mi"}
PROTECTED = {
    "karpenter.sh/do-not-disrupt": "true",
    "cluster-autoscaler.kubernetes.io/safe-to-evict": "false",
}
"""Annotations of pods whose nodes autoscalers leave alone: https://karpenter.sh/docs/concepts/disruption/#pod-level-controls,
https://github.com/kubernetes/autoscaler/blob/master/cluster-autoscaler/FAQ.md (what prevents a node from being removed)."""


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
    headroom_class: str = ""
    """PriorityClass of pods that hold room for runtime pods, below theirs."""
    has_buffers: bool = False
    """Whether the API server knows CapacityBuffers."""
    agent_args: tuple[str, ...] = ()
    """Further options of the agents."""
    server_args: tuple[str, ...] = ()
    """Further options of the servers."""
    tls: pod_tls.Tls | None = None
    """Of the servers; None: in clear."""
    partitioner_args: tuple[str, ...] = ()
    """Further options of the partitioners."""


def is_cut_here(pool: RuntimePool) -> bool:
    """Whether the pool's GPUs are cut by partitioners."""
    partition = pool.spec.partition
    return partition is not None and partition.backend is PartitionBackend.NVML


def deployment_name(pool: RuntimePool) -> str:
    """Of the Deployment of ``pool``."""
    return f"{RUNTIME}-{pool.metadata.name}"


def deployment(pool: RuntimePool, replicas: int, where: Installation) -> dict[str, Any]:
    """The Deployment of ``pool``."""
    name = deployment_name(pool)
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
                # Until somebody has seen that nothing is there, nobody may take the node away.
                "metadata": {"labels": {**MANAGED_BY, **labels}, "annotations": PROTECTED},
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
            "name": deployment_name(pool),
            "namespace": where.namespace,
            "labels": {**MANAGED_BY, **labels},
            "ownerReferences": [owner_of(pool)],
        },
        "spec": {"maxUnavailable": 1, "selector": {"matchLabels": labels}},
    }


def image_of(pool: RuntimePool, where: Installation) -> str:
    """What the pods of ``pool`` run."""
    has_gpus = GPU_RESOURCE in dict(pool.spec.node.resources)
    return where.images.gpu if has_gpus else where.images.cpu


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
    image = image_of(pool, where)
    spec: dict[str, Any] = {
        "serviceAccountName": where.service_account,
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "terminationGracePeriodSeconds": SHUTDOWN_DELAY_S + DRAIN_S + 22,
        "nodeSelector": dict(shape.selector),
        "tolerations": [record(Toleration).encode(each) for each in shape.tolerations],
        "affinity": {
            **kept_away(pool),
            "podAntiAffinity": {
                "requiredDuringSchedulingIgnoredDuringExecution": [
                    {
                        "topologyKey": "kubernetes.io/hostname",
                        "labelSelector": {"matchLabels": {NAME_LABEL: RUNTIME}},
                    }
                ]
            },
        },
        "securityContext": POD_SECURITY,
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


def kept_away(pool: RuntimePool) -> dict[str, Any]:
    """The node affinity of pods that hold GPUs which NVIDIA's MIG manager cuts: on nodes that it is to cut they do not start."""
    partition = pool.spec.partition
    if partition is None or partition.backend is not PartitionBackend.MIG_MANAGER:
        return {}
    term = {"matchExpressions": [{"key": AWAY_LABEL, "operator": "DoesNotExist"}]}
    required = {"nodeSelectorTerms": [term]}
    return {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": required}}


def _server(pool: RuntimePool, image: str, where: Installation) -> dict[str, Any]:
    resources = {name: each.text for name, each in pool.spec.node.resources}
    resources |= _instances_to_come(pool)
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
        "securityContext": RESTRICTED,
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
            *(["--mps"] if pool.spec.sharing is Sharing.MPS else []),
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
            "requests": AGENT_REQUESTS | _instances_to_come(pool),
            "limits": {"memory": "512Mi"} | _instances_to_come(pool),
        },
        "securityContext": RESTRICTED,
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


def _instances_to_come(pool: RuntimePool) -> dict[str, str]:
    """What a container asks for, which is not made anew when GPUs are cut, to use and see the instances of later."""
    return {CAPABILITIES_RESOURCE: "1"} if is_cut_here(pool) else {}


POD_SECURITY: dict[str, Any] = {
    "runAsNonRoot": True,
    "runAsUser": NOBODY,
    "runAsGroup": NOBODY,
    "fsGroup": NOBODY,
    "seccompProfile": {"type": "RuntimeDefault"},
}
_SEES_GPUS = [
    # Of NVIDIA's container runtime: NVML for all GPUs of the node, which the server alone asks the scheduler for.
    {"name": "NVIDIA_VISIBLE_DEVICES", "value": "all"},
    {"name": "NVIDIA_DRIVER_CAPABILITIES", "value": "utility"},
]

RESTRICTED: dict[str, Any] = {
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
