"""Kubernetes Events: what happened to an object, where its owner looks for it."""

from __future__ import annotations

import hashlib

from tessera_core.api import ClusterMeta, Condition, ObjectMeta
from tessera_operator.kinds import Document

_COMPONENT = "tessera-operator"
_MOST_MESSAGE = 1024
_CLUSTER_SCOPED = "default"
"""Namespace of Events about objects that have none, as Kubernetes itself has it."""


def event(
    kind: str, about: ObjectMeta | ClusterMeta, condition: Condition, now: str, *, warns: bool
) -> Document:
    """That ``condition`` of an object of one of Tessera's kinds has changed. ``now``: RFC 3339."""
    message = (
        f"{condition.type} is {condition.status.value}: {condition.message or condition.reason}"
    )
    content = f"{about.uid} {message} {condition.reason} {now}"
    namespace = about.namespace if isinstance(about, ObjectMeta) else None
    return {
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {
            "name": f"{about.name}.{hashlib.sha256(content.encode()).hexdigest()[:16]}",
            "namespace": namespace or _CLUSTER_SCOPED,
        },
        "involvedObject": {
            "apiVersion": "tessera.dev/v1alpha1",
            "kind": kind,
            "name": about.name,
            **({"namespace": namespace} if namespace else {}),
            "uid": about.uid,
            "resourceVersion": about.resource_version,
        },
        "type": "Warning" if warns else "Normal",
        "reason": condition.reason,
        "message": message[:_MOST_MESSAGE],
        "source": {"component": _COMPONENT},
        "reportingComponent": _COMPONENT,
        "firstTimestamp": now,
        "lastTimestamp": now,
        "count": 1,
    }
