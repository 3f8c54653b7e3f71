"""What namespaces have of what their quotas allow, counted as the planner counts it.

Kubernetes counts what pods ask for, and here one pod serves all tenants of a node: the ``status.used`` of a ResourceQuota
stays 0 for the keys of ``tenants_in.py``, and this says what it would be.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

from tessera_core.gpu.classes import slice_class
from tessera_core.gpu.mig import find_profile
from tessera_core.plan.cost import namespace_of
from tessera_core.plan.nodes import Located
from tessera_core.plan.state import ClusterState, DeviceState, Policy, Quota, Slice


@dataclass(frozen=True, slots=True)
class QuotaUse:
    """What one namespace has."""

    slices: int
    """Parts of devices; one that several of its services share counts once."""
    shares: float
    """Whole devices, a part counting as its share of the device's SMs or cores."""
    quota: Quota
    """What it may have."""


def quota_use(state: ClusterState, held: Iterable[Located]) -> dict[str, QuotaUse]:
    """By namespace, sorted: those that hold something or have a quota."""
    devices = {(node.name, device.uuid): device for node in state.nodes for device in node.devices}
    parts: dict[str, set[tuple[str, str, Slice]]] = defaultdict(set)
    for each in held:
        space = namespace_of(each.running.service)
        parts[space].add((each.node, each.device, each.running.slice))
    quotas = {quota.namespace: quota for quota in state.quotas}
    return {
        space: QuotaUse(
            len(parts[space]),
            sum(
                share_of(devices[node, device], piece, state.policy)
                for node, device, piece in sorted(parts[space])
            ),
            quotas.get(space, Quota(space)),
        )
        for space in sorted(parts.keys() | quotas.keys())
    }


def share_of(device: DeviceState, piece: Slice, policy: Policy) -> float:
    """What a part counts of its whole device, as ``Problem.share_of``."""
    if device.is_cpu:
        whole, width = device.cores - policy.reserved_cores, len(piece.cores)
    else:
        model = device.model
        profile = find_profile(model, piece.name) if model is not None else None
        if model is None or profile is None:
            return 1.0
        whole, width = model.sm_count, slice_class(model, profile).sm_count
    return min(1.0, max(1, width) / max(1, whole))
