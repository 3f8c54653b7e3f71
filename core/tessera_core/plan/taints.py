"""What the taints of a node mean for the instances that run, or would run, in its pod.

Problem: instances are not pods. The scheduler and the taint controller of Kubernetes act on the one pod that
serves a whole node; a plan that puts instances where that pod is about to be evicted, or onto a node that is
being drained, serves nobody. Approach: hold the node's taints against the tolerations that the pool gives
its pods, by the rules of Kubernetes
(https://kubernetes.io/docs/concepts/scheduling-eviction/taint-and-toleration/), and treat an instance as
Kubernetes would treat a pod of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum

from tessera_core.api.runtimepool import TaintEffect, Toleration, TolerationOperator
from tessera_core.plan.state import NodeState, PoolRules, Taint


class Admission(StrEnum):
    """Which instances a node may have; each value forbids what the ones before it forbid, and more."""

    OPEN = "Open"
    AVOID = "Avoid"
    """All, but new ones only where nothing else is left."""
    KEEP = "Keep"
    """Those that run there now."""
    CLOSED = "Closed"
    """None."""


_SEVERITY = {admission: rank for rank, admission in enumerate(Admission)}
_UNTOLERATED = {
    TaintEffect.PREFER_NO_SCHEDULE: Admission.AVOID,
    TaintEffect.NO_SCHEDULE: Admission.KEEP,
    TaintEffect.NO_EXECUTE: Admission.CLOSED,
}


def admission_of(node: NodeState, pool: PoolRules) -> Admission:
    """Which instances ``node`` may have, as a node of ``pool``: what its strictest taint allows."""
    verdicts = (_admission(taint, pool.tolerations) for taint in node.taints)
    return max(verdicts, key=_SEVERITY.__getitem__, default=Admission.OPEN)


def _admission(taint: Taint, tolerations: Sequence[Toleration]) -> Admission:
    found = next((each for each in tolerations if _tolerates(each, taint)), None)
    if found is None:
        return _UNTOLERATED[taint.effect]
    if taint.effect is TaintEffect.NO_EXECUTE and found.toleration_seconds is not None:
        # Tolerated for a while: the pod is evicted unless the taint goes. Zero seconds evict at once.
        return Admission.KEEP if found.toleration_seconds > 0 else Admission.CLOSED
    return Admission.OPEN


def _tolerates(toleration: Toleration, taint: Taint) -> bool:
    """``Toleration.ToleratesTaint`` of k8s.io/api/core/v1: what is absent matches everything."""
    if toleration.effect not in (None, taint.effect) or toleration.key not in (None, taint.key):
        return False
    exists = toleration.operator is TolerationOperator.EXISTS
    return exists or (toleration.value or "") == taint.value
