"""What each device of a plan did while its services were simulated."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from tessera_core.gpu.mig import GpuModel, find_profile
from tessera_core.plan.decision import Plan
from tessera_core.plan.state import ClusterState, Slice
from tessera_core.simulate.cluster import Result
from tessera_core.simulate.scenarios import Part


@dataclass(frozen=True, slots=True)
class DeviceLoad:
    """What one device did."""

    node: str
    device: str
    product: str
    rows_per_s: float
    busy: float
    """Share of it that ran batches, in the mean over the time; slices count by their compute."""
    members: tuple[str, ...]
    """``service/member``, sorted."""


def device_loads(
    plan: Plan, state: ClusterState, results: Sequence[Result]
) -> tuple[DeviceLoad, ...]:
    """By device of ``plan``, those that serve nothing that was simulated among them."""
    busy: dict[Part, float] = defaultdict(float)
    rows: dict[tuple[str, str], float] = defaultdict(float)
    members: dict[tuple[str, str], set[str]] = defaultdict(set)
    for result in results:
        for load in result.loads:
            for each in load.parts:
                device = each.part[:2]
                busy[each.part] += each.busy
                rows[device] += each.rows_per_s
                members[device].add(f"{result.scenario.service}/{load.queue.member}")
    whole = {(node.name, each.uuid): each for node in state.nodes for each in node.devices}
    found: dict[tuple[str, str], float] = defaultdict(float)
    for part, share in busy.items():
        model, cores = whole[part[:2]].model, whole[part[:2]].cores
        found[part[:2]] += min(1.0, share) * _share_of(part.slice, model, cores)
    return tuple(
        DeviceLoad(
            each.node,
            each.uuid,
            each.product,
            rows[each.node, each.uuid],
            found[each.node, each.uuid],
            tuple(sorted(members[each.node, each.uuid])),
        )
        for each in plan.devices
    )


def _share_of(piece: Slice, model: GpuModel | None, cores: int) -> float:
    """Of its device."""
    if piece.cores:
        return len(piece.cores) / cores
    profile = find_profile(model, piece.name) if model is not None else None
    if model is None or profile is None:
        return 1.0
    return profile.compute_slices / model.compute_slices
