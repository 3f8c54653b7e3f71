"""A cluster that carries out steps one at a time and refuses what is not possible.

It knows nothing of the planner: it holds copies, routes and geometries, and checks after each step memory,
cores, tenants and serving copies.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from random import Random

from support.clusters import A100
from tessera_core.api import Isolation
from tessera_core.api.placementplan import Action, Step
from tessera_core.gpu.geometry import Geometry, Placement, violations
from tessera_core.gpu.mig import find_profile
from tessera_core.gpu.tables import model_of
from tessera_core.plan import (
    Assignment,
    ClusterState,
    DevicePlan,
    DeviceState,
    Plan,
    Running,
    Slice,
    parse_slice,
)
from tessera_core.plan.ordering import Loss
from tessera_core.plan.steps import Steps

Where = tuple[str, str]
"""(node, device)."""
Spot = tuple[str, str, Slice, str, str]
"""(node, device, slice, service, member)."""
Copies = Mapping[Spot, tuple[int, int]]
"""(batch cap, instances) of all copies."""
Cuts = Mapping[Where, Geometry | None]
Memory = Callable[[DeviceState, Running], int | None]


def holding(state: ClusterState, copies: Copies, cuts: Cuts | None = None) -> ClusterState:
    """``state`` with ``copies`` running, on devices that are cut like ``cuts``."""
    cuts = cuts or {}

    def filled(node: str, device: DeviceState) -> DeviceState:
        running = tuple(
            Running(service, member, piece, *setting)
            for (*where, piece, service, member), setting in sorted(copies.items())
            if where == [node, device.uuid]
        )
        geometry = cuts.get((node, device.uuid), device.geometry)
        return replace(device, running=running, geometry=geometry)

    return replace(
        state,
        nodes=tuple(
            replace(node, devices=tuple(filled(node.name, device) for device in node.devices))
            for node in state.nodes
        ),
    )


def planned(
    state: ClusterState, copies: Copies, cuts: Cuts | None = None, lost: set[Where] | None = None
) -> Plan:
    """The plan of having exactly ``copies``; ``cuts``: geometries; the others stay as they are."""
    cuts, devices = cuts or {}, []
    for node in state.nodes:
        for device in node.devices:
            where = node.name, device.uuid
            if where in (lost or ()):
                continue
            geometry = cuts.get(where, device.geometry)
            assignments = tuple(
                Assignment(service, member, *where, piece, "", batch, instances, 0.0, 0.0, 0.0)
                for (n, d, piece, service, member), (batch, instances) in sorted(copies.items())
                if (n, d) == where
            )
            recut = geometry != device.geometry
            devices.append(DevicePlan(*where, device.product, geometry or (), recut, assignments))
    return Plan("plan", tuple(devices), (), (), (), 0.0, 0.0, False)


@dataclass(frozen=True)
class Rules:
    """What holds at all times."""

    devices: Mapping[Where, DeviceState]
    isolation: Mapping[str, Isolation]
    private: bool
    whole_nodes: bool
    memory_mib: Memory

    @classmethod
    def of(cls, state: ClusterState, memory_mib: Memory) -> Rules:
        devices = {(node.name, d.uuid): d for node in state.nodes for d in node.devices}
        isolation = {s.served_name: s.spec.placement.isolation for s in state.services}
        pool = state.pools[0]
        private = not pool.shared_between_namespaces
        return cls(devices, isolation, private, pool.whole_nodes, memory_mib)

    def broken(self, copies: Copies) -> str | None:
        """The first rule that ``copies`` break."""
        used: Counter[object] = Counter()
        limits: dict[object, int] = {}
        for (node, device, piece, service, member), setting in copies.items():
            facts = self.devices[node, device]
            shared = facts.is_cpu or piece.name == "full"
            room = (node, device, None if shared else piece)
            limits[room] = facts.memory_mib if shared else slice_mib(piece.name)
            took = self.memory_mib(facts, Running(service, member, piece, *setting))
            used[room] += limits[room] if took is None else took
        for room, limit in limits.items():
            if used[room] > limit:
                return f"{room} has {limit} MiB, needs {used[room]}"
        spots = sorted(copies)
        for index, one in enumerate(spots):
            for other in spots[index + 1 :]:
                if one[0] == other[0] and (why := self.apart(one, other)):
                    return f"{one} and {other}: {why}"
        return None

    def apart(self, one: Spot, other: Spot) -> str | None:
        """Why two copies on one node may not be there at the same time."""
        tenants = one[3] != other[3]
        if tenants and self.private and one[3].split(".")[0] != other[3].split(".")[0]:
            return "another namespace on the node"
        if one[1] != other[1]:
            return None
        if one[2] != other[2] and set(one[2].cores) & set(other[2].cores):
            return "another set with the same cores"
        wishes = {self.isolation.get(one[3]), self.isolation.get(other[3])}
        if tenants and Isolation.EXCLUSIVE in wishes:
            return "another tenant on the device"
        if tenants and one[2] == other[2] and Isolation.PARTITION in wishes:
            return "another tenant in the slice"
        return None


def slice_mib(name: str) -> int:
    model = model_of(A100)
    assert model is not None
    profile = find_profile(model, name)
    assert profile is not None
    return profile.memory_mib


class Executor:
    """A cluster of A100s and CPU devices."""

    def __init__(self, state: ClusterState, plan: Plan, memory_mib: Memory) -> None:
        """Devices that are not in ``plan`` are lost, with what they hold."""
        self.rules = Rules.of(state, memory_mib)
        usable = {(device.node, device.uuid) for device in plan.devices}
        devices = {where: self.rules.devices[where] for where in usable}
        self.geometry = {where: device.geometry for where, device in devices.items()}
        self.copies = {
            (*where, r.slice, r.service, r.member): (r.batch, r.instances)
            for where, device in devices.items()
            for r in device.running
        }
        self.routed = set(self.copies)
        self.uncut = {
            (each.node, each.uuid)
            for each in plan.devices
            if each.recut and (each.geometry or None) != self.geometry[each.node, each.uuid]
        }

    def serving(self) -> Counter[tuple[str, str]]:
        """Serving copies by member."""
        return Counter((service, member) for *_, service, member in self.routed)

    def apply(self, step: Step) -> None:
        """Carry out one step; AssertionError where a cluster could not."""
        target = step.target
        if step.action is Action.ROUTE:
            self.routed |= {spot for spot in self.copies if spot[3] == target.service}
            return
        assert target.node is not None
        assert target.device is not None
        where = target.node, target.device
        if step.action is Action.PARTITION:
            self._partition(where, target.geometry or None)
            return
        assert target.slice is not None
        assert target.service is not None
        assert target.member is not None
        assert target.count is not None
        spot = (*where, parse_slice(target.slice), target.service, target.member)
        if step.action is Action.UNLOAD:
            assert self.copies.pop(spot)[1] == target.count
            self.routed.discard(spot)
            return
        assert step.action is Action.LAUNCH
        assert target.batch is not None
        assert self._exists(where, spot[2]), f"{spot}: there is no such slice"
        if self.rules.whole_nodes:
            assert target.node not in {node for node, _ in self.uncut}, f"{spot}: before the cuts"
        self.copies[spot] = (target.batch, target.count)
        broken = self.rules.broken(self.copies)
        assert broken is None, f"{step.id}: {broken}"

    def _exists(self, where: Where, piece: Slice) -> bool:
        if self.rules.devices[where].is_cpu:
            return True
        geometry = self.geometry[where]
        if geometry is None:
            return piece.name == "full"
        return Placement(piece.name, piece.start) in geometry

    def _partition(self, where: Where, wanted: Geometry | None) -> None:
        now = self.geometry[where]
        assert wanted != now, "a cut that changes nothing"
        held = {spot[2] for spot in self.copies if spot[:2] == where}
        if self.rules.whole_nodes:
            assert where[0] not in {spot[0] for spot in self.copies}, "a cut of a node in use"
        if wanted is None or now is None:
            assert not held, "MIG is switched on a GPU that is in use"
        else:
            model = model_of(A100)
            assert model is not None
            assert not violations(model, wanted)
            assert {Placement(piece.name, piece.start) for piece in held} <= set(wanted)
        self.geometry[where] = wanted
        self.uncut.discard(where)


def execute(
    state: ClusterState,
    plan: Plan,
    steps: Steps,
    memory_mib: Memory,
    order: Random | None = None,
) -> None:
    """Carry out ``steps`` as written, or in a random order that respects ``requires``, with all checks.

    Serving copies of a member never fall below the smaller of its numbers before and after, or below what an
    interruption that has begun says. In the end everything is as planned.
    """
    cluster = Executor(state, plan, memory_mib)
    first = cluster.serving()
    last = Counter((each.service, each.member) for each in plan.assignments)
    floor = {member: min(first[member], last[member]) for member in first}
    reports = {each.step: each for each in steps.interruptions}
    assert len(reports) == len(steps.interruptions)
    lowest: dict[tuple[str, str], int] = {}
    for report in steps.interruptions:
        member = report.service, report.member
        assert report.expected == floor[member]
        assert (report.loss is Loss.OUTAGE) == (report.serving == 0)
        lowest[member] = min(report.serving, lowest.get(member, report.serving))
    interrupted: set[tuple[str, str]] = set()
    done: set[str] = set()
    left = list(steps.steps)
    while left:
        ready = [step for step in left if done.issuperset(step.requires)]
        step = left[0] if order is None else order.choice(ready)
        assert step in ready, f"{step.id} requires a later step"
        left.remove(step)
        cluster.apply(step)
        done.add(step.id)
        serving = cluster.serving()
        if report := reports.get(step.id):
            interrupted.add((report.service, report.member))
            if order is None:
                assert serving[report.service, report.member] == report.serving
        for member, least in floor.items():
            allowed = min(least, lowest[member]) if member in interrupted else least
            assert serving[member] >= allowed, f"{step.id} leaves {serving[member]} of {member}"
    assert cluster.copies == {
        (each.node, each.device, each.slice, each.service, each.member): (
            each.batch,
            each.instances,
        )
        for each in plan.assignments
    }
    assert cluster.routed == set(cluster.copies)
    for device in plan.devices:
        where = device.node, device.uuid
        wanted = device.geometry or None if device.recut else cluster.rules.devices[where].geometry
        assert cluster.geometry[where] == wanted
