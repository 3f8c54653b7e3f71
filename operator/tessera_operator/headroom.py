"""Spare nodes of a pool, which autoscalers bring before they are needed.

Problem: a CapacityBuffer says what should be spare, but that the API server takes it does not mean that anybody acts on
it. Approach: it is believed once its conditions say so. Where they do not in time, and where the kind is not served,
pods of low priority that do nothing hold the room, and a runtime pod that needs it preempts one. Whoever finds such
pods keeps to them, so that a new leader does not give the room away to try again.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from tessera_core.api import RuntimePool
from tessera_core.api.records import record
from tessera_core.api.runtimepool import Toleration
from tessera_operator import pools
from tessera_operator.kinds import CAPACITY_BUFFER, Document, Key
from tessera_operator.pools import AGENT_REQUESTS, NAME_LABEL, RUNTIME, Installation
from tessera_operator.routes import MANAGED_BY
from tessera_operator.write import Writer

HEADROOM = "tessera-headroom"
"""Prefix and label of what holds room."""
POOL = "tessera.dev/headroom"
RESOLVED_S = 120.0
"""For an autoscaler to say that it understands a buffer: Karpenter takes seconds, Cluster Autoscaler its loop of 10 s."""
PROVISIONED_S = 900.0
"""For it to say that the room is there: machines with GPUs start in minutes."""
_PROVIDED = "buffer.x-k8s.io/active-capacity"
_HOSTNAME = "kubernetes.io/hostname"


class Held(StrEnum):
    """Who holds the room of a pool; the reason of its condition."""

    BUFFER = "CapacityBuffer"
    WAITING = "CapacityBufferNotReady"
    """The buffer is there, and nobody has said yet that the room is."""
    PODS = "PlaceholderPods"
    NOBODY = "NoPriorityClass"


class Headroom:
    """What holds spare nodes, and since when buffers have been waited for. Not thread-safe."""

    def __init__(self, where: Installation) -> None:
        self._where = where
        self._since: dict[str, tuple[int, float]] = {}
        """By pool, the generation of its buffer, and since when that is, s."""
        self._worked: set[str] = set()
        """Pools whose buffer has held all of its room."""

    def keep(
        self,
        writer: Writer,
        documents: Mapping[Key, Document],
        pool: RuntimePool,
        nodes: int,
        now_s: float,
    ) -> Held | None:
        """Have ``nodes`` spare nodes; None where the pool wants none."""
        name, namespace = pool.metadata.name, self._where.namespace
        pods = "Deployment", namespace, f"{HEADROOM}-{name}"
        buffer = CAPACITY_BUFFER.name, namespace, f"{HEADROOM}-{name}"
        if not pool.spec.size.headroom.spare_nodes:
            self._since.pop(name, None)
            self._worked.discard(name)
            self._empty(writer, documents, buffer, pool)
            writer.remove(pods)
            return None
        if self._where.has_buffers and pods not in documents:
            writer.put(buffer_document(pool, nodes, self._where))
            document = documents.get(buffer, {})
            found = Conditions.of(document)
            if found.provisioning:
                self._worked.add(name)
            held = Held.BUFFER if name in self._worked else Held.WAITING
            if found.is_ready and held is Held.BUFFER:
                return held
            generation = document.get("metadata", {}).get("generation", 0)
            if self._since.get(name, (None,))[0] != generation:
                self._since[name] = generation, now_s
            waited_s = now_s - self._since[name][1]
            if not nodes or waited_s < (PROVISIONED_S if found.is_ready else RESOLVED_S):
                return held
        if not self._where.headroom_class:
            return Held.NOBODY
        writer.put(placeholders(pool, nodes, self._where))
        self._empty(writer, documents, buffer, pool)
        return Held.PODS

    def _empty(
        self, writer: Writer, documents: Mapping[Key, Document], buffer: Key, pool: RuntimePool
    ) -> None:
        """Have the buffer of ``pool`` hold nothing. Of one that is deleted, Karpenter 1.14 goes on counting the pods, and
        keeps their nodes, until it next places something.
        """
        if buffer in documents:
            writer.put(buffer_document(pool, 0, self._where))


@dataclass(frozen=True, slots=True)
class Conditions:
    """What an autoscaler says of a buffer."""

    is_ready: bool | None = None
    """Whether it understands it; None: it says nothing."""
    provisioning: bool = False
    """Whether all of the room is there."""

    @classmethod
    def of(cls, document: Document) -> Conditions:
        """Of the present generation; older ones are about another buffer."""
        status = document.get("status") or {}
        generation = document.get("metadata", {}).get("generation", 0)
        found = {
            each["type"]: each["status"] == "True"
            for each in status.get("conditions") or ()
            if each.get("observedGeneration", generation) >= generation
        }
        return cls(found.get("ReadyForProvisioning"), found.get("Provisioning", False))


def buffer_document(pool: RuntimePool, nodes: int, where: Installation) -> dict[str, Any]:
    """A CapacityBuffer of ``nodes`` times what the pool's Deployment asks for.

    https://github.com/kubernetes/autoscaler/blob/master/cluster-autoscaler/proposals/buffers.md
    """
    return {
        "apiVersion": CAPACITY_BUFFER.api_version,
        "kind": CAPACITY_BUFFER.name,
        "metadata": _metadata(pool, where),
        "spec": {
            "provisioningStrategy": _PROVIDED,
            "scalableRef": {
                "apiGroup": "apps",
                "kind": "Deployment",
                "name": pools.deployment_name(pool),
            },
            "replicas": nodes,
        },
    }


def placeholders(pool: RuntimePool, nodes: int, where: Installation) -> dict[str, Any]:
    """A Deployment of pods that ask for what runtime pods do, do nothing, and go at once."""
    shape = pool.spec.node
    labels = {NAME_LABEL: HEADROOM, POOL: pool.metadata.name}
    resources = {name: each.text for name, each in shape.resources}
    image = pools.image_of(pool, where)
    spec: dict[str, Any] = {
        "serviceAccountName": where.service_account,
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "terminationGracePeriodSeconds": 0,
        "priorityClassName": where.headroom_class,
        "nodeSelector": dict(shape.selector),
        "tolerations": [record(Toleration).encode(each) for each in shape.tolerations],
        "affinity": {
            **pools.kept_away(pool),
            "podAntiAffinity": {
                "requiredDuringSchedulingIgnoredDuringExecution": [
                    {
                        "topologyKey": _HOSTNAME,
                        "labelSelector": {
                            "matchExpressions": [
                                {
                                    "key": NAME_LABEL,
                                    "operator": "In",
                                    "values": [HEADROOM, RUNTIME],
                                }
                            ]
                        },
                    }
                ]
            },
        },
        "securityContext": pools.POD_SECURITY,
        "containers": [
            _sleeper("server", image, where, resources, resources),
            _sleeper("agent", image, where, AGENT_REQUESTS, {"memory": AGENT_REQUESTS["memory"]}),
        ],
    }
    if shape.runtime_class_name:
        spec["runtimeClassName"] = shape.runtime_class_name
    if where.images.pull_secrets:
        spec["imagePullSecrets"] = [{"name": each} for each in where.images.pull_secrets]
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": _metadata(pool, where),
        "spec": {
            "replicas": nodes,
            "selector": {"matchLabels": labels},
            "strategy": {"type": "Recreate"},
            "template": {"metadata": {"labels": {**MANAGED_BY, **labels}}, "spec": spec},
        },
    }


def _metadata(pool: RuntimePool, where: Installation) -> dict[str, Any]:
    return {
        "name": f"{HEADROOM}-{pool.metadata.name}",
        "namespace": where.namespace,
        "labels": {**MANAGED_BY, NAME_LABEL: HEADROOM, POOL: pool.metadata.name},
        "ownerReferences": [pools.owner_of(pool)],
    }


def _sleeper(
    name: str,
    image: str,
    where: Installation,
    requests: Mapping[str, str],
    limits: Mapping[str, str],
) -> dict[str, Any]:
    return {
        "name": name,
        "image": image,
        "imagePullPolicy": where.images.pull_policy,
        "command": ["python", "-c", "import signal; signal.pause()"],
        "resources": {"requests": dict(requests), "limits": dict(limits)},
        "securityContext": pools.RESTRICTED,
    }
