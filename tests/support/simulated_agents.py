"""Agents that carry out what their RuntimeNodes say, one small change at a time, and report it some time later.

They hold copies and geometries and know nothing of plans or steps. What would be impossible on a real node, or
would break what was promised to users, is an AssertionError.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from random import Random

from support.step_executor import Rules, Where
from tessera_core.api import Device, RuntimeNode, RuntimeNodeSpec
from tessera_core.api.placementplan import Action, Step
from tessera_core.api.runtimenode import (
    DeviceStatus,
    Instance,
    InstanceStatus,
    MigMode,
    SliceStatus,
)
from tessera_core.gpu.geometry import Placement, canonical
from tessera_core.plan import ClusterState, Plan, parse_slice, slice_name, state_to_dict
from tessera_core.plan.site import Memory
from tessera_core.plan.steps import Steps
from tessera_operator.orders import Present, advance, ordered

Copy = tuple[str, str, str, str, str]
"""(node, device, slice, service, member)."""
MOST_CHANGES = 5000
"""After which a rollout counts as stuck."""


def nodes_of(state: ClusterState) -> dict[str, RuntimeNode]:
    """The objects of a cluster that was told exactly what it runs."""
    found = {}
    for document in state_to_dict(state)["nodes"]:
        node = RuntimeNode.from_dict(document)
        devices = tuple(
            Device(
                device.uuid,
                _geometry(device),
                instances=tuple(
                    Instance(e.service, e.member, e.slice, e.batch, e.state, e.count)
                    for e in device.instances
                ),
            )
            for device in node.status.devices
            if device.instances
        )
        found[node.metadata.name] = replace(node, spec=RuntimeNodeSpec(0, devices=devices))
    return found


@dataclass(frozen=True)
class Promise:
    """How many serving copies each member keeps while a plan is carried out (see ``plan/steps.py``)."""

    least: Mapping[tuple[str, str], int]

    @classmethod
    def of(cls, state: ClusterState, plan: Plan, steps: Steps) -> Promise:
        usable = {(device.node, device.uuid) for device in plan.devices}
        first = Counter(
            (each.service, each.member)
            for node in state.nodes
            for device in node.devices
            if (node.name, device.uuid) in usable
            for each in device.running
        )
        last = Counter((each.service, each.member) for each in plan.assignments)
        least = {member: min(first[member], last[member]) for member in first}
        for each in steps.interruptions:
            member = each.service, each.member
            least[member] = min(each.serving, least.get(member, each.serving))
        return cls(least)


class Agents:
    """The nodes of one cluster: what they were told, what they have, and what of it they have reported."""

    def __init__(
        self, state: ClusterState, promise: Promise, memory_mib: Memory, order: Random
    ) -> None:
        self.nodes = nodes_of(state)
        self.has: dict[Where, DeviceStatus] = {
            (name, device.uuid): device
            for name, node in self.nodes.items()
            for device in node.status.devices
        }
        self.routed = set(self._serving())
        self._promise, self._order = promise, order
        self._rules = Rules.of(state, memory_mib)

    def follow(self, steps: Sequence[Step], most: int = MOST_CHANGES) -> frozenset[str]:
        """Go on until all ``steps`` are done and nothing is left to do, or for ``most`` rounds; what is done."""
        done: frozenset[str] = frozenset()
        for _ in range(most):
            present = Present(self.nodes, routed=self.is_routed)
            begun, now_done = advance(steps, done, present)
            assert done <= now_done
            done = now_done
            told = {name: ordered(node, begun) for name, node in self.nodes.items()}
            self.tell(told)
            again = {name: ordered(node, begun) for name, node in self.nodes.items()}
            assert again == told, "orders that are applied twice change something"
            for _ in range(self._order.randint(1, 3)):
                changed = self.change()
            if not changed and len(done) == len(steps):
                break
        return done

    def assert_runs(self, plan: Plan) -> None:
        """Exactly what is planned runs, and all of it answers."""
        wanted = {
            (each.node, each.device, slice_name(each.slice), each.service, each.member): (
                each.batch,
                each.instances,
                each.instances,
            )
            for each in plan.assignments
        }
        assert wanted == {
            (*where, each.slice, each.service, each.member): (each.batch, each.count, each.ready)
            for where, device in self.has.items()
            for each in device.instances
        }

    def promise(self, plan: Plan, interrupted: Collection[tuple[str, str]]) -> None:
        """From now on a member serves no less than the operator knows of now or than in ``plan``, unless it is
        ``interrupted``. Copies that were told to end are not counted, as they may be gone at any time.
        """
        self.routed.update(self._serving())
        first = Counter(
            (each.service, each.member)
            for name, node in self.nodes.items()
            for device in node.status.devices
            for each in device.instances
            if each.ready and _key(each) in map(_key, self._told((name, device.uuid)).instances)
        )
        last = Counter((each.service, each.member) for each in plan.assignments)
        self._promise = Promise(
            {member: min(first[member], last[member]) for member in first.keys() - interrupted}
        )

    def tell(self, devices: Mapping[str, tuple[Device, ...]]) -> None:
        for name, told in devices.items():
            node = self.nodes[name]
            if told != node.spec.devices:
                metadata = replace(node.metadata, generation=(node.metadata.generation or 0) + 1)
                spec = replace(node.spec, devices=told)
                self.nodes[name] = replace(node, metadata=metadata, spec=spec)

    def is_routed(self, service: str) -> bool:
        return all(copy in self.routed for copy in self._serving() if copy[3] == service)

    def change(self) -> bool:
        """Do one thing that is possible now; False: there is nothing to do."""
        possible = [*self._reports(), *self._loads(), *self._leaves(), *self._cuts()]
        if not set(self._serving()) <= self.routed:
            possible.append(lambda: self.routed.update(self._serving()))
        if possible:
            self._order.choice(possible)()
        return bool(possible)

    def _serving(self) -> list[Copy]:
        return [
            (*where, each.slice, each.service, each.member)
            for where, device in self.has.items()
            for each in device.instances
            if each.ready
        ]

    def _told(self, where: Where) -> Device:
        found = (each for each in self.nodes[where[0]].spec.devices if each.uuid == where[1])
        return next(found, Device(where[1]))

    def _reports(self) -> list[Callable[[], None]]:
        return [
            lambda name=name, fresh=fresh: self._report(name, fresh)  # type: ignore[misc]
            for name, node in self.nodes.items()
            if (
                (fresh := tuple(d for (at, _), d in self.has.items() if at == name))
                != node.status.devices
                or node.status.observed_generation != node.metadata.generation
            )
        ]

    def _report(self, name: str, devices: tuple[DeviceStatus, ...]) -> None:
        node = self.nodes[name]
        status = replace(node.status, devices=devices, observed_generation=node.metadata.generation)
        self.nodes[name] = replace(node, status=status)

    def _loads(self) -> list[Callable[[], None]]:
        found: list[Callable[[], None]] = []
        for where, device in self.has.items():
            present = {_key(each): each for each in device.instances}
            for wanted in self._told(where).instances:
                old = present.get(_key(wanted))
                if old is None and not _exists(device, wanted.slice):
                    continue
                new = InstanceStatus(
                    wanted.service, wanted.member, wanted.slice, wanted.batch, count=wanted.count
                )
                if old is not None:
                    new = replace(new, ready=min(old.ready, wanted.count))
                    if new == replace(old, memory_mib=0):
                        if old.ready == old.count:
                            continue
                        new = replace(new, ready=old.ready + 1)
                found.append(lambda where=where, new=new: self._load(where, new))  # type: ignore[misc]
        return found

    def _load(self, where: Where, new: InstanceStatus) -> None:
        others = [each for each in self.has[where].instances if _key(each) != _key(new)]
        self.has[where] = replace(self.has[where], instances=(*others, new))
        copies = {
            (*at, parse_slice(each.slice), each.service, each.member): (each.batch, each.count)
            for at, device in self.has.items()
            for each in device.instances
        }
        broken = self._rules.broken(copies)
        assert broken is None, broken

    def _leaves(self) -> list[Callable[[], None]]:
        return [
            lambda where=where, each=each: self._leave(where, each)  # type: ignore[misc]
            for where, device in self.has.items()
            for each in device.instances
            if _key(each) not in map(_key, self._told(where).instances)
        ]

    def _leave(self, where: Where, leaving: InstanceStatus) -> None:
        others = tuple(each for each in self.has[where].instances if each is not leaving)
        self.has[where] = replace(self.has[where], instances=others)
        self.routed.discard((*where, leaving.slice, leaving.service, leaving.member))
        serving = Counter(copy[3:] for copy in self._serving() if copy in self.routed)
        member = leaving.service, leaving.member
        least = self._promise.least.get(member, 0)
        assert serving[member] >= least, f"{serving[member]} of {member} serve, {least} promised"

    def _cuts(self) -> list[Callable[[], None]]:
        found: list[Callable[[], None]] = []
        for where, device in self.has.items():
            wanted = canonical(self._told(where).geometry)
            if (
                self._told(where).cut
                and wanted != _geometry(device)
                and _may_be_cut(device, wanted)
            ):
                found.append(lambda where=where, wanted=wanted: self._cut(where, wanted))  # type: ignore[misc]
        return found

    def _cut(self, where: Where, wanted: tuple[Placement, ...]) -> None:
        self.has[where] = replace(
            self.has[where],
            mig_mode=MigMode.ENABLED if wanted else MigMode.DISABLED,
            slices=tuple(
                SliceStatus(f"{where[1]}/{each.start}", each.profile, each.start) for each in wanted
            ),
        )


def carry_out(
    state: ClusterState, plan: Plan, steps: Steps, memory_mib: Memory, order: Random
) -> None:
    """Carry out ``steps`` as the operator does, with all checks; it ends with exactly ``plan``."""
    agents = Agents(state, Promise.of(state, plan, steps), memory_mib, order)
    done = agents.follow(steps.steps)
    assert len(done) == len(steps.steps), [each for each in steps.steps if each.id not in done]
    agents.assert_runs(plan)
    cuts = {(s.target.node, s.target.device) for s in steps.steps if s.action is Action.PARTITION}
    for device in plan.devices:
        if (device.node, device.uuid) in cuts:
            assert _geometry(agents.has[device.node, device.uuid]) == canonical(device.geometry)


def _key(instance: Instance) -> tuple[str, str, str]:
    return instance.slice, instance.service, instance.member


def _geometry(device: DeviceStatus) -> tuple[Placement, ...]:
    return canonical(tuple(Placement(each.profile, each.start) for each in device.slices))


def _exists(device: DeviceStatus, piece: str) -> bool:
    if piece.startswith("cpu"):
        return True
    if piece == "full":
        return device.mig_mode is MigMode.DISABLED
    return piece in {f"{each.profile}@{each.start}" for each in device.slices}


def _may_be_cut(device: DeviceStatus, wanted: tuple[Placement, ...]) -> bool:
    """Whether nobody is in the way."""
    stays = {f"{each.profile}@{each.start}" for each in wanted}
    switched = (device.mig_mode is MigMode.ENABLED) != bool(wanted)
    return not device.instances if switched else {e.slice for e in device.instances} <= stays
