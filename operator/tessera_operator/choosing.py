"""Plans that cut GPUs beside plans that do not: what they are made from, and which one is carried out. Pure.

A plan starts from where the transaction under way leads, and may cut what the rules let it cut. It is compared with the
best plan that cuts nothing, as cutting disturbs: it has to serve what the other does not, or to save enough.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from dataclasses import replace

from tessera_core.api.placementplan import Action, Step
from tessera_core.gpu.geometry import Geometry, canonical
from tessera_core.plan.decision import Plan
from tessera_core.plan.ordering import Loss
from tessera_core.plan.state import ClusterState, DeviceState, Running
from tessera_core.plan.state_in import parse_slice
from tessera_core.plan.steps import steps_to
from tessera_operator.cuts import Key
from tessera_operator.recutting import Rules


def allowed(state: ClusterState, cuttable: Collection[Key]) -> ClusterState:
    """``state`` where only the GPUs ``cuttable`` may be cut anew; the same parts where nothing changes."""
    nodes = {node for node, _ in cuttable}
    pools = {node.pool for node in state.nodes if node.name in nodes}
    found = replace(
        state,
        pools=tuple(replace(each, partition=each.name in pools) for each in state.pools),
    )

    def marked(node: str, device: DeviceState) -> DeviceState:
        may = (node, device.uuid) in cuttable
        return device if device.cuttable is may else replace(device, cuttable=may)

    return _with_devices(found, marked, pools)


def as_promised(state: ClusterState, rules: Rules) -> ClusterState:
    """``state`` as if the transaction under way were done, and cuts that failed undone: plans start from where it leads,
    since in its middle another end may look nearer.
    """
    promised = rules.promised
    if not promised and not rules.steps:
        return state
    moves: dict[Key, list[Step]] = {}
    for step in rules.steps:
        if step.action in (Action.LAUNCH, Action.UNLOAD):
            moves.setdefault((step.target.node or "", step.target.device or ""), []).append(step)

    def done(node: str, device: DeviceState) -> DeviceState:
        key = node, device.uuid
        if key in moves:
            device = replace(device, running=_moved(device.running, moves[key]))
        if key in promised and device.model is not None:
            goal, geometry = promised[key], device.geometry
            if goal is not None and (goal or geometry is not None):
                geometry = goal
            device = replace(device, cuttable=False, geometry=geometry)
        return device

    return _with_devices(state, done, None)


def _moved(running: tuple[Running, ...], steps: Iterable[Step]) -> tuple[Running, ...]:
    """What runs on a device after its ``steps``."""
    found = {(each.slice, each.service, each.member): each for each in running}
    for step in steps:
        target = step.target
        spot = parse_slice(target.slice or ""), target.service or "", target.member or ""
        found.pop(spot, None)
        if step.action is Action.LAUNCH:
            piece, service, member = spot
            found[spot] = Running(service, member, piece, target.batch or 1, target.count or 1)
    return tuple(sorted(found.values()))


def from_present(plan: Plan, state: ClusterState, promised: Collection[Key]) -> Plan:
    """``plan``, made for ``as_promised(state)``, as one for ``state``: it cuts what is not as promised yet."""
    if not promised:
        return plan
    present = {
        (node.name, device.uuid): canonical(device.geometry or ())
        for node in state.nodes
        for device in node.devices
    }
    return replace(
        plan,
        devices=tuple(
            replace(each, recut=canonical(each.geometry) != present[each.node, each.uuid])
            if (each.node, each.uuid) in promised
            else each
            for each in plan.devices
        ),
    )


def made_whole(plan: Plan, state: ClusterState) -> frozenset[Key]:
    """GPUs of ``state`` that ``plan`` would have MIG switched off on. That takes a reset, which is the administrator's."""
    divided = {
        (node.name, device.uuid)
        for node in state.nodes
        for device in node.devices
        if device.geometry is not None
    }
    whole = {(each.node, each.uuid) for each in plan.devices if each.recut and not each.geometry}
    return frozenset(divided & whole)


def uncut(state: ClusterState) -> ClusterState:
    """``state`` where nothing may be cut."""
    return replace(state, pools=tuple(replace(each, partition=False) for each in state.pools))


def new_cuts(plan: Plan, promised: Collection[Key]) -> dict[Key, Geometry]:
    """What ``plan`` cuts beyond what is ``promised``."""
    return {
        (each.node, each.uuid): canonical(each.geometry)
        for each in plan.devices
        if each.recut and (each.node, each.uuid) not in promised
    }


def pays(cut: Plan, kept: Plan, rules: Rules, nodes: Iterable[str]) -> bool:
    """Whether ``cut``, which cuts GPUs of ``nodes``, is so much better than ``kept``, which cuts none: it serves what
    the other refuses or leaves short, or saves what the pools want saved at least.
    """
    lacking, without = _lacking(cut), _lacking(kept)
    if lacking - without:
        return False
    if without - lacking:
        return True
    percent = max(
        (
            rules.partitions[node].disruption.min_gain_percent
            for node in nodes
            if node in rules.partitions
        ),
        default=0.0,
    )
    return cut.cost < kept.cost and cut.cost <= kept.cost * (1 - percent / 100)


def silences(plan: Plan, state: ClusterState, rules: Rules) -> bool:
    """Whether ``plan`` takes the last copy of a member away for cuts that nobody was asked about. A person may want that."""
    unasked = any(rules.needs_nobody(node) for node, _ in new_cuts(plan, rules.pins))
    return unasked and any(each.loss is Loss.OUTAGE for each in steps_to(plan, state).interruptions)


def _lacking(plan: Plan) -> set[str]:
    refused = {service for service, _, _ in plan.refused}
    return refused | {each.service for each in plan.services if each.short is not None}


def _with_devices(
    state: ClusterState,
    change: Callable[[str, DeviceState], DeviceState],
    pools: Collection[str] | None,
) -> ClusterState:
    """``state`` with changed devices on the nodes of ``pools`` (None: all); what did not change is the same value."""
    nodes = []
    for node in state.nodes:
        if pools is not None and node.pool not in pools:
            nodes.append(node)
            continue
        devices = tuple(change(node.name, device) for device in node.devices)
        same = all(new is old for new, old in zip(devices, node.devices, strict=True))
        nodes.append(node if same else replace(node, devices=devices))
    same = all(new is old for new, old in zip(nodes, state.nodes, strict=True))
    return state if same else replace(state, nodes=tuple(nodes))
