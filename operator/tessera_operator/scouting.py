"""Which free GPUs are cut so that models are measured on slices that are not there yet. Pure.

Problem: plans cut GPUs into slices on which models were measured, and models are measured on slices that there are. A
pool whose GPUs are whole, or cut in one way, would never learn of anything better.

Approach: a GPU that nothing is placed on is cut into slices that models lack, as a step of the plan and by the rules
of all cuts, so that they are measured there like anywhere else. One GPU of a product and pool at a time, and only while
nothing is left to do for what serves: all is as planned, nobody lacks capacity, no better plan waits for its turn.

Each cut measures at least one model on one more kind of slice. Where all that ``lacking`` leaves is measured, a model
costs as many cuts as ``covers`` has geometries, three at most, and those that lack the same slices share them.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from tessera_core.api import RuntimeNode
from tessera_core.gpu.covers import covers
from tessera_core.gpu.geometry import Geometry
from tessera_core.plan.decision import DevicePlan, Plan, Why
from tessera_core.plan.nodes import diff
from tessera_core.plan.state import ClusterState, DeviceState
from tessera_operator.cuts import Key
from tessera_operator.lacking import Kind, Lack, Unseen
from tessera_operator.profiling import Trust, may_use
from tessera_operator.recutting import Rules


@dataclass(frozen=True, slots=True)
class Scout:
    """A GPU that is to be cut so that models are measured on its slices."""

    node: str
    device: str
    geometry: Geometry
    models: tuple[str, ...]
    """``service/member``, sorted."""

    @property
    def key(self) -> Key:
        return self.node, self.device


@dataclass(frozen=True, slots=True)
class Scouting:
    """What is cut for measuring, and what is not and why."""

    unseen: Unseen = field(default_factory=Unseen)
    begun: tuple[Scout, ...] = ()
    put_off: tuple[Scout, ...] = ()
    """Those that have to wait as any cut has to: for approval, a window, the interval."""
    why: Mapping[Kind, str] = field(default_factory=dict)
    """Of all kinds with lacks: what becomes of them, in words."""

    def may_begin(self, rules: Rules) -> bool:
        """Whether something that was put off need not wait any more."""
        return any(rules.waiting(each.key, each.geometry) is None for each in self.put_off)

    def models(self) -> Mapping[Key, tuple[str, ...]]:
        """By GPU that is or would be cut for it: what is to be measured on its slices."""
        return {each.key: each.models for each in (*self.begun, *self.put_off)}

    def words(self, service: str) -> str:
        """What ``service`` lacks and why, for its condition; empty: it was measured wherever that can help."""
        return "; ".join(
            f"{lack}: {self.why.get(lack.kind, '')}"
            for lack in self.unseen.lacks
            if lack.service == service
        )


def scout(
    found: Unseen,
    plan: Plan,
    state: ClusterState,
    nodes: Sequence[RuntimeNode],
    trust: Trust,
    rules: Rules,
    *,
    waits: bool,
) -> Scouting:
    """What to cut beside ``plan``, made for ``state``. ``trust``: with every service of the plan. ``waits``: whether there is
    a better plan, whose cuts have to wait.
    """
    if not found.lacks:
        return Scouting(found)
    served_first = not diff(plan, state).empty
    taken = {(each.node, each.device) for each in plan.assignments} | rules.promised.keys()
    begun, put_off, why = list[Scout](), list[Scout](), dict[Kind, str]()
    for kind in sorted({lack.kind for lack in found.lacks}):
        lacks = [lack for lack in found.lacks if lack.kind == kind]
        if kind in found.early:
            why[kind] = "what can be measured on present slices comes first"
        elif _is_cut(kind, state, rules):
            why[kind] = "a GPU is being cut"
        elif served_first:
            why[kind] = "a plan is carried out first"
        elif waits:
            why[kind] = "a better plan waits for its cuts, which come first"
        elif short := _short(kind, plan, trust):
            why[kind] = f"{short} lacks capacity, which comes first"
        elif (best := _best(kind, lacks, state, taken, trust, nodes, rules)) is None:
            why[kind] = f"no GPU of pool {kind[0]} is free to be cut for it"
        elif (waiting := rules.waiting(best.key, best.geometry)) is not None:
            put_off.append(best)
            why[kind] = str(waiting)
        else:
            begun.append(best)
            why[kind] = f"{best.node}/{best.device} is cut for it"
    return Scouting(found, tuple(begun), tuple(put_off), why)


def _is_cut(kind: Kind, state: ClusterState, rules: Rules) -> bool:
    return any(
        (pin := rules.pins.get((node.name, device.uuid))) is not None and pin.started_at is not None
        for node in state.nodes
        if node.pool == kind[0]
        for device in node.devices
        if device.product == kind[1]
    )


def _short(kind: Kind, plan: Plan, trust: Trust) -> str:
    """A service that a GPU of ``kind`` might serve more of; empty: there is none."""
    short = {
        service for service, _, refusal in plan.refused if refusal.why is Why.INSUFFICIENT_CAPACITY
    } | {
        each.service
        for each in plan.services
        if each.short is not None and each.short.why is Why.INSUFFICIENT_CAPACITY
    }
    return next((each for each in sorted(short) if _may_serve(each, kind, trust)), "")


def _may_serve(service: str, kind: Kind, trust: Trust) -> bool:
    pool, product = kind
    spec = trust.versions[service].service.spec
    return may_use(spec.placement, product) and any(
        trust.may_run(service, each.name, trust.pools[pool]) for each in spec.members
    )


def _best(
    kind: Kind,
    lacks: Sequence[Lack],
    state: ClusterState,
    taken: Collection[Key],
    trust: Trust,
    nodes: Sequence[RuntimeNode],
    rules: Rules,
) -> Scout | None:
    """On a GPU that may be cut now, rather than one that has to wait; then for most kinds of slices; then one whose MIG is on."""
    by_name = {node.metadata.name: node for node in nodes}
    found: list[tuple[tuple[bool, int, bool, Key], Scout]] = []
    for node in state.nodes:
        free = [
            device
            for device in node.devices
            if _is_free(device, kind) and (node.name, device.uuid) not in taken
        ]
        if node.pool != kind[0] or not free or node.name not in by_name:
            continue
        here = [
            each for each in lacks if trust.allows(each.service, each.member, by_name[node.name])
        ]
        wanted = {name for each in here for name in each.profiles}
        for device in free:
            if device.model is None or not wanted:
                continue
            geometry = covers(device.model, wanted)[0]
            kinds = {each.profile for each in geometry}
            models = {f"{e.service}/{e.member}" for e in here if not kinds.isdisjoint(e.profiles)}
            one = Scout(node.name, device.uuid, geometry, tuple(sorted(models)))
            waits = rules.waiting(one.key, geometry) is not None
            found.append(((waits, -len(geometry), device.geometry is None, one.key), one))
    return min(found, key=lambda each: each[0], default=(None, None))[1]


def _is_free(device: DeviceState, kind: Kind) -> bool:
    is_one = device.product == kind[1] and device.model is not None
    return is_one and device.cuttable and device.healthy and not device.running


def with_cuts(plan: Plan, scouts: Iterable[Scout]) -> Plan:
    """``plan`` that cuts the GPUs of ``scouts`` too, on which it places nothing."""
    goals = {each.key: each.geometry for each in scouts}

    def cut(device: DevicePlan) -> DevicePlan:
        goal = goals.get((device.node, device.uuid))
        return device if goal is None else replace(device, geometry=goal, recut=True)

    return replace(plan, devices=tuple(map(cut, plan.devices)))
