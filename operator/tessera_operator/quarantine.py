"""Devices that must not be used: who leaves them and when, and what is told of them. Pure.

Nothing is planned on an unhealthy device, and what runs there may still answer. So its copies leave like any that move: the new
ones are ready and reached first. Where a service has no room for all that it needs, its copies stay where they are, as an
unhealthy device that answers is better than none. A device that is healthy again is free, or has what stayed, which a plan keeps.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

from tessera_core.api import Condition, RuntimeNode
from tessera_core.api.meta import ConditionStatus
from tessera_core.api.placementplan import Action, Step, Target
from tessera_core.api.runtimenode import Health, SliceStatus
from tessera_core.gpu.mig import label
from tessera_core.plan.decision import Plan
from tessera_core.plan.state import CPU, ClusterState
from tessera_core.plan.steps import Steps

DEVICES_HEALTHY = "DevicesHealthy"
UNHEALTHY, HEALTHY = "DeviceUnhealthy", "DeviceHealthy"
"""Reasons of Events, and of the condition where it is False."""
_LEAVE = "leave-"
"""How the ids of steps begin that empty an unhealthy device."""
_MOST_NAMED = 5
"""Devices in one condition's message."""


@dataclass(frozen=True, slots=True)
class Sick:
    """A device that must not be used."""

    node: str
    device: str
    problem: str

    def __str__(self) -> str:
        return f"{self.device} of {self.node}: {self.problem or 'no reason was told'}"


def sick_of(nodes: Iterable[RuntimeNode]) -> tuple[Sick, ...]:
    """The unhealthy devices of ``nodes``, in order."""
    return tuple(
        Sick(node.metadata.name, device.uuid, device.problem)
        for node in nodes
        for device in node.status.devices
        if device.health is Health.UNHEALTHY
    )


def products(nodes: Iterable[RuntimeNode]) -> frozenset[str]:
    """Of the devices of one pool that may be used; none where all its GPUs are unhealthy, whatever processors it has."""
    found = {
        (label(device.product), device.health is not Health.UNHEALTHY)
        for node in nodes
        for device in node.status.devices
    }
    gpus = {is_well for product, is_well in found if product != CPU}
    return frozenset(product for product, is_well in found if is_well and gpus != {False})


def leave(steps: Steps, plan: Plan, state: ClusterState, nodes: Iterable[RuntimeNode]) -> Steps:
    """``steps`` and, after them, those that take away what ``nodes`` are told to run on unhealthy devices.

    ``state``: the facts of ``plan``. A node without any healthy device there, not even a processor, is one that leaves or that
    nobody hears of: it is told nothing new.
    """
    there = {node.name for node in state.nodes if any(device.healthy for device in node.devices)}
    reached = (node for node in nodes if node.metadata.name in there)
    staying = {service for service, _, _ in plan.refused} | {
        each.service for each in plan.services if each.short is not None
    }
    routes = {
        step.target.service: step.id for step in steps.steps if step.action is Action.ROUTE
    }  # the last of each service: it requires those before it
    unloads = (
        Step(
            f"{_LEAVE}{number}",
            Action.UNLOAD,
            target,
            (route,) if (route := routes.get(target.service)) is not None else (),
        )
        for number, target in enumerate(_present(reached, staying), start=1)
    )
    return replace(steps, steps=(*steps.steps, *unloads))


def leaving(steps: Steps) -> Iterator[str]:
    """What leaves unhealthy devices, as lines of a plan's difference."""
    for step in steps.steps:
        if step.id.startswith(_LEAVE):
            at = step.target
            where = f"{at.node}/{at.device} {at.slice}, which must not be used"
            yield f"- {at.service}/{at.member} {at.count} on {where}"


def _present(nodes: Iterable[RuntimeNode], staying: Collection[str]) -> Iterator[Target]:
    for node in nodes:
        sick = {each.device for each in sick_of([node])}
        for device in node.spec.devices:
            for each in device.instances if device.uuid in sick else ():
                if each.service not in staying:
                    yield Target(
                        *(node.metadata.name, device.uuid, each.slice, each.service, each.member),
                        count=each.count,
                    )


def condition(nodes: Iterable[RuntimeNode]) -> Condition:
    """Whether all devices of ``nodes`` may be used, and which may not."""
    sick = sick_of(nodes)
    if not sick:
        return Condition(DEVICES_HEALTHY, ConditionStatus.TRUE, "Healthy")
    named = [str(each) for each in sick[:_MOST_NAMED]]
    if len(sick) > _MOST_NAMED:
        named.append(f"and {len(sick) - _MOST_NAMED} more")
    return Condition(
        DEVICES_HEALTHY,
        ConditionStatus.FALSE,
        UNHEALTHY,
        f"{len(sick)} must not be used: {'; '.join(named)}"[:1024],
    )


class Healths:
    """What was known of devices, for telling what changed."""

    def __init__(self) -> None:
        self._known: dict[str, dict[str, bool]] = {}
        """By node and device: whether it may be used."""

    def changes(
        self, nodes: Iterable[RuntimeNode], *, expected: bool
    ) -> Iterator[tuple[RuntimeNode, Condition]]:
        """News of ``nodes``, each as the condition of one device.

        ``expected``: what was told of their devices before a node is seen for the first time: that all may be used.
        """
        for node in nodes:
            sick = {each.device: each.problem for each in sick_of([node])}
            before = self._known.get(node.metadata.name, {})
            now = {device.uuid: device.uuid not in sick for device in node.status.devices}
            for uuid, is_well in now.items():
                default = True if expected else is_well
                if before.get(uuid, default) != is_well:
                    yield node, _news(uuid, sick.get(uuid), is_well=is_well)
            self._known[node.metadata.name] = now

    def forget(self, nodes: Collection[str]) -> None:
        """Only ``nodes`` are there."""
        self._known = {name: found for name, found in self._known.items() if name in nodes}


class Geometries:
    """How GPUs are cut that the operator does not have cut: a MIG instance may go, or come back, by other hands."""

    def __init__(self) -> None:
        self._known: dict[tuple[str, str], frozenset[SliceStatus]] = {}

    def have_changed(self, nodes: Iterable[RuntimeNode]) -> bool:
        """Whether one is cut otherwise than it was, which calls for another plan. Devices that are new do so anyway."""
        known = {
            (node.metadata.name, device.uuid): frozenset(device.slices)
            for node in nodes
            for ordered in [{each.uuid for each in node.spec.devices if each.cut}]
            for device in node.status.devices
            if device.uuid not in ordered
        }
        before, self._known = self._known, known
        return any(before.get(key, found) != found for key, found in known.items())


def _news(uuid: str, problem: str | None, *, is_well: bool) -> Condition:
    if is_well:
        return Condition(DEVICES_HEALTHY, ConditionStatus.TRUE, HEALTHY, f"{uuid} is used again")
    return Condition(
        DEVICES_HEALTHY,
        ConditionStatus.FALSE,
        UNHEALTHY,
        f"{uuid} must not be used: {problem or 'no reason was told'}",
    )


def counts(by_pool: Mapping[str, Iterable[RuntimeNode]]) -> dict[tuple[str, str], int]:
    """Devices by pool and health."""
    return dict(
        Counter(
            (pool, device.health.value)
            for pool, nodes in by_pool.items()
            for node in nodes
            for device in node.status.devices
        )
    )
