"""What cuts the GPUs of a RuntimePool: a DaemonSet of partitioners, where the pool's backend is NVML. Pure.

Cutting needs CAP_SYS_ADMIN and the processes of the whole node, so a partitioner is a privileged pod. It is therefore
apart from runtime pods: it loads no model, opens no port, and its account writes ``status.cuts`` of its own node alone.
To the kubelet it is a device plugin, of what runtime pods ask for to be able to use instances that are cut later.
A DaemonSet, since it asks for no GPU and so is no reason for an autoscaler to add a node or to keep one.
"""

from __future__ import annotations

from typing import Any

from tessera_core.api import RuntimePool
from tessera_core.api.records import record
from tessera_core.api.runtimepool import Toleration
from tessera_core.plan.state_in import POOL_LABEL
from tessera_operator.kinds import DAEMON_SET, Key
from tessera_operator.pools import NAME_LABEL, Installation, owner_of, token_volume
from tessera_operator.routes import MANAGED_BY

PARTITIONER = "tessera-partitioner"
COMMAND = ("python", "-m", "tessera_runtime.partitioner")
GRACE_S = 60
"""Seconds to end the step that is under way: the driver's calls cannot be cut short."""
DEVICE_PLUGINS = "/var/lib/kubelet/device-plugins"
"""Sockets of the kubelet and of its device plugins, at the same place on every node."""


def key_of_set(pool: RuntimePool, where: Installation) -> Key:
    """How the DaemonSet of ``pool`` is known."""
    return DAEMON_SET.name, where.namespace, f"{PARTITIONER}-{pool.metadata.name}"


def daemon_set(pool: RuntimePool, where: Installation) -> dict[str, Any]:
    """The DaemonSet of ``pool``, whose GPUs are to be cut by partitioners."""
    labels = {NAME_LABEL: PARTITIONER, POOL_LABEL: pool.metadata.name}
    kind, namespace, name = key_of_set(pool, where)
    return {
        "apiVersion": DAEMON_SET.api_version,
        "kind": kind,
        "metadata": {
            "name": name,
            "namespace": namespace,
            "labels": {**MANAGED_BY, **labels},
            "ownerReferences": [owner_of(pool)],
        },
        "spec": {
            "selector": {"matchLabels": labels},
            "template": {
                "metadata": {"labels": {**MANAGED_BY, **labels}},
                "spec": _pod(pool, where),
            },
        },
    }


def _pod(pool: RuntimePool, where: Installation) -> dict[str, Any]:
    shape = pool.spec.node
    spec: dict[str, Any] = {
        "serviceAccountName": PARTITIONER,
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "terminationGracePeriodSeconds": GRACE_S,
        "hostPID": True,  # NVML numbers processes as the host does, and messages name them
        "nodeSelector": dict(shape.selector),
        "tolerations": [record(Toleration).encode(each) for each in shape.tolerations],
        "containers": [
            {
                "name": "partitioner",
                "image": where.images.gpu,
                "imagePullPolicy": where.images.pull_policy,
                "command": list(COMMAND),
                "args": list(where.partitioner_args),
                "env": [
                    {
                        "name": "NODE_NAME",
                        "valueFrom": {"fieldRef": {"fieldPath": "spec.nodeName"}},
                    },
                    # All GPUs without asking the device plugin for one, and the right to configure MIG on them:
                    # https://github.com/NVIDIA/nvidia-container-runtime#nvidia_mig_config_devices
                    {"name": "NVIDIA_VISIBLE_DEVICES", "value": "all"},
                    {"name": "NVIDIA_MIG_CONFIG_DEVICES", "value": "all"},
                    {"name": "NVIDIA_DRIVER_CAPABILITIES", "value": "utility"},
                ],
                "resources": {
                    "requests": {"cpu": "10m", "memory": "80Mi"},
                    "limits": {"memory": "256Mi"},
                },
                "securityContext": {
                    "privileged": True,
                    "runAsUser": 0,
                    "runAsGroup": 0,
                    "readOnlyRootFilesystem": True,
                },
                "volumeMounts": [
                    {
                        "name": "token",
                        "mountPath": "/var/run/secrets/kubernetes.io/serviceaccount",
                        "readOnly": True,
                    },
                    {"name": "dev", "mountPath": "/dev"},
                    {"name": "device-plugins", "mountPath": DEVICE_PLUGINS},
                ],
            }
        ],
        "volumes": [
            token_volume(),
            # The driver's library makes the device nodes of new instances where it runs; pods find them on the host:
            # https://github.com/NVIDIA/gpu-operator/issues/117
            {"name": "dev", "hostPath": {"path": "/dev"}},
            {"name": "device-plugins", "hostPath": {"path": DEVICE_PLUGINS}},
        ],
    }
    if shape.runtime_class_name:
        spec["runtimeClassName"] = shape.runtime_class_name
    if where.priority_class:
        spec["priorityClassName"] = where.priority_class
    if where.images.pull_secrets:
        spec["imagePullSecrets"] = [{"name": each} for each in where.images.pull_secrets]
    return spec
