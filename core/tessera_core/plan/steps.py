"""Ordered steps from the present to the wanted state, each of which is legal by itself.

Problem: a plan says where everything shall run, not how to get there. A copy can only start where memory,
cores and a slice are free; it may only stop when another one serves; a GPU is only cut where nobody sits. So
copies wait for each other, and where they wait in a circle somebody has to step aside.

Approach: a simulation that starts what can start and stops what may stop (create before destroy), and that
writes down for each step which earlier ones it relied on. When nothing can move any more, every copy that
remains waits for another one, and following the waits ends in a circle. Each circle is broken within itself,
by the first of these that works:

1. a member whose new copies outnumber the old ones that are gone gives up one more old copy;
2. the GPU is cut in two goes, first those wanted slices that fit beside the occupied ones;
3. a copy moves to a temporary home (``homes.py``) until its own place is free;
4. the copy whose absence costs least stops before its successor starts: an :class:`Interruption`.

Copies of members that only grow come last; they can wait for the moves, and a move may need their place as a
temporary home. A *copy* is all instances of one member in one part of a device. Quotas and spread are the
plan's: while it is carried out, a member has its old and its new copies.

What the steps guarantee, in their order and in every other order that respects ``requires`` (so an executor
may do at once whatever has its requirements done):

- memory, cores, slices, isolation and trust hold after every step; what shares a room during a change is
  counted together, a copy that gets other settings with the larger of both;
- a member never has fewer serving copies than the smaller of its numbers before and afterwards, unless an
  interruption says so; without one it only loses instances after all its new copies serve, or one for one;
- a device is cut only when everyone has left the slices that go, and slices that stay are not touched; where
  whole nodes are cut, everyone has left the node, and comes back when all its cuts are done.

What a step means: Launch loads instances, or gives those that are there another batch cap and number while
they go on serving, and is done when they are ready. Route makes every copy of the service that is ready get
requests. Unload takes a copy from the routes, drains it and unloads it. Partition leaves exactly its geometry.
Lost devices (unhealthy, or not in the plan) need no steps, and what ran there does not count as serving.
"""

from __future__ import annotations

from dataclasses import dataclass

from tessera_core.api.placementplan import Step
from tessera_core.gpu.geometry import Geometry, canonical
from tessera_core.plan.decision import DevicePlan, Plan
from tessera_core.plan.nodes import Located, slice_name
from tessera_core.plan.ordering import Change, Interruption, Ordering
from tessera_core.plan.site import Key, Memory, Site, measured_memory, overlap, slices_of, spot_of
from tessera_core.plan.state import ClusterState, DeviceState, Running


@dataclass(frozen=True, slots=True)
class Steps:
    """How to carry out a plan."""

    steps: tuple[Step, ...] = ()
    """Every step after those that it requires; empty: nothing changes."""
    interruptions: tuple[Interruption, ...] = ()
    """In the order of their steps."""


def steps_to(plan: Plan, state: ClusterState, memory_mib: Memory | None = None) -> Steps:
    """The steps from what runs in ``state`` to ``plan``.

    ``memory_mib``: what copies take; as measured when absent. Raises ValueError naming the device where the
    plan is not for this state (a device that is missing or unhealthy) or where its own final state is not
    legal: memory, slices that its geometry lacks, cores used by two sets.
    """
    planned = _planned(plan, state)
    site = Site(state, planned, memory_mib or measured_memory(state))
    emptied = {
        key[0]
        for key, device in planned.items()
        if device.recut
        and site.cut_as_a_whole(key[0])
        and _planned_geometry(device) != site.geometry(key)
    }
    changes = [
        change
        for key, device in planned.items()
        for change in [_change(site, key, device, emptied=key[0] in emptied)]
        if change is not None
    ]
    if not changes:
        return Steps()
    ordering = Ordering(plan, state, site, changes)
    ordering.run()
    return Steps(tuple(ordering.script.steps), tuple(ordering.interruptions))


def _planned(plan: Plan, state: ClusterState) -> dict[Key, DevicePlan]:
    """The plan's devices in order."""
    healthy = {
        (node.name, device.uuid): device.healthy for node in state.nodes for device in node.devices
    }
    planned = {(device.node, device.uuid): device for device in plan.devices}
    for (node, uuid), device in planned.items():
        if not healthy.get((node, uuid), False):
            found = "an unhealthy device" if (node, uuid) in healthy else "an unknown device"
            raise ValueError(
                f"plan.devices[{node}/{device.uuid}]: {found}, expected a healthy one of the state:"
                " plan anew"
            )
    return dict(sorted(planned.items()))


def _planned_geometry(planned: DevicePlan) -> Geometry | None:
    return canonical(planned.geometry) or None


def _change(site: Site, key: Key, planned: DevicePlan, *, emptied: bool) -> Change | None:
    """``emptied``: whether all that runs there has to leave, and to come back, for a cut of the node."""
    device = site.devices[key]
    if not emptied and not planned.recut and _runs_already(planned, device):
        return None
    now = site.geometry(key)
    geometry = _planned_geometry(planned) if planned.recut else now
    wanted = [
        Located(*key, Running(each.service, each.member, each.slice, each.batch, each.instances))
        for each in planned.assignments
    ]
    present = {spot_of(copy): copy for copy in site.held(key).values()}
    after = {spot_of(copy): copy for copy in wanted}
    launched: list[Located] = []
    reduced: list[tuple[Located, Located | None]] = []
    for spot, copy in sorted(after.items()):
        old = present.get(spot)
        if emptied or old is None or _exceeds(copy.running, old.running):
            launched.append(copy)
        elif old != copy:
            reduced.append((old, copy))
    reduced += [
        (copy, None) for spot, copy in sorted(present.items()) if emptied or spot not in after
    ]
    if geometry == now and not launched and not reduced:
        return None
    _check(site, device, geometry, wanted)
    return Change(key, geometry, tuple(launched), tuple(reduced))


def _runs_already(planned: DevicePlan, device: DeviceState) -> bool:
    """Whether the device runs what is planned, in the same order. Builds nothing, because nearly every
    device of a large fleet is as it should be.
    """
    return len(planned.assignments) == len(device.running) and all(
        one.service == other.service
        and one.member == other.member
        and one.batch == other.batch
        and one.instances == other.instances
        and one.slice == other.slice
        for one, other in zip(planned.assignments, device.running, strict=True)
    )


def _exceeds(new: Running, old: Running) -> bool:
    return new.batch > old.batch or new.instances > old.instances


def _check(
    site: Site, device: DeviceState, geometry: Geometry | None, wanted: list[Located]
) -> None:
    for copy in wanted:
        path = f"plan.devices[{copy.node}/{copy.device}]"
        who = f"{copy.running.service}/{copy.running.member} in {slice_name(copy.running.slice)}"
        room = [other for other in wanted if site.room_of(copy) == site.room_of(other)]
        used, free = sum(map(site.mib, room)), site.room_mib(copy)
        if used > free:
            raise ValueError(f"{path}: {who} and its neighbours take {used} MiB of {free} MiB")
        if not device.is_cpu and copy.running.slice not in slices_of(geometry):
            raise ValueError(f"{path}: {who}, a slice that the planned geometry does not have")
        if any(overlap(copy.running.slice, other.running.slice) for other in room):
            raise ValueError(f"{path}: {who} shares cores with another set")
