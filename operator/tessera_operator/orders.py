"""Carrying out a plan: which steps are done, which are under way, and what nodes are then told. Pure.

A step is done when the cluster shows it after it was ordered, and it stays done: a later one may undo it. Only
steps whose requirements are done are looked at, as what a step takes away may not have been there before. Orders
are the steps under way, applied to what a node was told last; applying them twice changes nothing.

A GPU is told to be cut as long as its cut is under way or the plan that made it is: the slices that this plan loads
models into are to stay. All other GPUs are nobody's to cut.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace

from tessera_core.api import Device, Instance, RuntimeNode
from tessera_core.api.placementplan import Action, Step, Target
from tessera_core.api.runtimenode import DeviceStatus, InstanceState, InstanceStatus
from tessera_core.gpu.geometry import Geometry, Placement, canonical

Spot = tuple[str, str, str, str]
"""(device, slice, service, member)."""


@dataclass(frozen=True, slots=True)
class Present:
    """What steps are judged by."""

    nodes: Mapping[str, RuntimeNode]
    lost: Collection[str] = ()
    """Nodes that nobody hears of: nothing can be done there."""
    routed: Callable[[str], bool] = lambda service: True
    """Whether requests of a service reach every ready copy of it."""


def advance(
    steps: Sequence[Step], done: frozenset[str], present: Present, waiting: Collection[str] = ()
) -> tuple[tuple[Step, ...], frozenset[str]]:
    """The steps that are done or under way, in order, and the ids of those that are done.

    ``waiting``: ids of steps that are not begun now, although all that they require is done.
    """
    finished = set(done)
    begun: list[Step] = []
    for step in steps:  # requirements come earlier
        if not finished.issuperset(step.requires):
            continue
        if step.id not in finished and _shows(step, present):
            finished.add(step.id)
        if step.id in finished or step.id not in waiting:
            begun.append(step)
    return tuple(begun), frozenset(finished)


def ordered(node: RuntimeNode, begun: Sequence[Step]) -> tuple[Device, ...]:
    """What ``node`` is to be told after the ``begun`` steps: devices by id, their instances by spot.

    Devices that none of them cuts are to stay as they are, also where a plan that was given up had them cut.
    """
    cuts = {device.uuid: geometry_of(device) for device in node.status.devices}
    devices = {
        device.uuid: replace(device, geometry=cuts.get(device.uuid, device.geometry), cut=False)
        for device in node.spec.devices
    }
    for step in begun:
        target = step.target
        if target.node == node.metadata.name and target.device is not None:
            device = devices.get(target.device) or Device(
                target.device, cuts.get(target.device, ())
            )
            devices[target.device] = _after(device, step)
    return tuple(
        device
        for _, device in sorted(devices.items())
        if device.instances or device.geometry or device.cut
    )


def remaining(node: RuntimeNode, services: Collection[str]) -> tuple[Device, ...]:
    """What ``node`` is to be told while all but ``services`` leave it."""
    devices = (
        replace(
            device, instances=tuple(each for each in device.instances if each.service in services)
        )
        for device in node.spec.devices
    )
    return tuple(each for each in devices if each.instances or each.geometry or each.cut)


def held_back(steps: Sequence[Step], done: Collection[str], waiting: Collection[str]) -> set[str]:
    """Ids of steps that are not to be begun while the cuts ``waiting`` wait: these, and every Unload that nothing else
    needs. A copy that only makes way for a cut goes on serving until it has to.
    """
    stuck: set[str] = set()
    needed_by: dict[str, list[str]] = {}
    for step in steps:
        if step.id in waiting or not stuck.isdisjoint(step.requires):
            stuck.add(step.id)
        for each in step.requires:
            needed_by.setdefault(each, []).append(step.id)
    return set(waiting) | {
        step.id
        for step in steps
        if step.action is Action.UNLOAD
        and step.id not in done
        and (others := needed_by.get(step.id))
        and stuck.issuperset(others)
    }


def geometry_of(device: DeviceStatus) -> Geometry:
    """How ``device`` is cut, in the order in which geometries compare equal."""
    return canonical(Placement(each.profile, each.start) for each in device.slices)


def _after(device: Device, step: Step) -> Device:
    target = step.target
    if step.action is Action.PARTITION:
        return replace(device, geometry=canonical(target.geometry), cut=True)
    spot = _spot_of(target)
    others = {_spot(device.uuid, each): each for each in device.instances}
    others.pop(spot, None)
    if step.action is Action.LAUNCH:
        _, piece, service, member = spot
        others[spot] = Instance(service, member, piece, target.batch or 1, count=target.count or 1)
    return replace(device, instances=tuple(others[key] for key in sorted(others)))


def _shows(step: Step, present: Present) -> bool:
    target = step.target
    if step.action is Action.ROUTE:
        return present.routed(target.service or "")
    node = present.nodes.get(target.node or "")
    if node is None or target.node in present.lost:
        return step.action is not Action.LAUNCH  # nothing runs there that could be in the way
    if node.status.observed_generation != node.metadata.generation:
        return False  # what it says is of other orders
    device = next((each for each in node.status.devices if each.uuid == target.device), None)
    told = next((each for each in node.spec.devices if each.uuid == target.device), None)
    is_told = told is not None and _spot_of(target) in (
        _spot(told.uuid, each) for each in told.instances
    )
    match step.action:
        case Action.LAUNCH:
            found = _present(device, target)
            wanted = target.count or 1
            return (
                is_told
                and found is not None
                and (found.batch, found.count) == (target.batch, wanted)
                and found.ready >= wanted
            )
        case Action.UNLOAD:
            return not is_told and _present(device, target) is None
        case Action.PARTITION:
            wanted_cut = canonical(target.geometry)
            return (
                told is not None
                and told.cut
                and canonical(told.geometry) == wanted_cut
                and device is not None
                and geometry_of(device) == wanted_cut
                and _is_confirmed(node, device.uuid, wanted_cut)
            )
        case Action.DRAIN:
            return not any(each.instances for each in node.status.devices)


def _present(device: DeviceStatus | None, target: Target) -> InstanceStatus | None:
    if device is None:
        return None
    spot = _spot_of(target)
    return next(
        (
            each
            for each in device.instances
            if each.state is InstanceState.ACTIVE and _spot(device.uuid, each) == spot
        ),
        None,
    )


def _is_confirmed(node: RuntimeNode, uuid: str, wanted: Geometry) -> bool:
    """Whether the partitioner, where there is one, says that it has left ``wanted`` as it was told last."""
    cut = next((each for each in node.status.cuts if each.uuid == uuid), None)
    return cut is None or (
        cut.problem is None
        and cut.generation == node.metadata.generation
        and canonical(Placement(each.profile, each.start) for each in cut.slices) == wanted
    )


def _spot(uuid: str, instance: Instance) -> Spot:
    return uuid, instance.slice, instance.service, instance.member


def _spot_of(target: Target) -> Spot:
    return target.device or "", target.slice or "", target.service or "", target.member or ""
