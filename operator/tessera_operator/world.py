"""The objects of the cluster as the planner's facts: decoded once each, contradictions set aside.

Problem: one object that makes no sense must not keep a thousand others from being planned, and a cluster whose
counters move every few seconds must not look like another cluster each time. Approach: documents are decoded when
they change; those that cannot be, or that contradict others, are left out with the reason, which becomes their
condition; and what did not change stays the very same value, which is what the planner's memory goes by.

What runs on a node is what was ordered in its spec, and what its status still has beyond that: it is leaving, but
takes its place until it is gone.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from tessera_core.api import (
    FieldError,
    Instance,
    ModelProfile,
    ModelService,
    ObjectMeta,
    RuntimeNode,
    RuntimePool,
    SpecInvalid,
)
from tessera_core.api.errors import Report
from tessera_core.api.records import record
from tessera_core.api.runtimenode import DeviceStatus, Health, InstanceStatus
from tessera_core.gpu.mig import label
from tessera_core.plan.state import CPU, Budget, ClusterState, Policy
from tessera_core.plan.state_in import Objects, state_of
from tessera_core.plan.tenants_in import read_priority_class, read_quota
from tessera_operator.kinds import Key, key_of
from tessera_operator.remembered import Remembered
from tessera_operator.versions import pinned

_READ: Mapping[str, tuple[str, Callable[..., object]]] = {
    "ModelProfile": ("profiles", ModelProfile.from_dict),
    "ModelService": ("services", ModelService.from_dict),
    "PriorityClass": ("classes", read_priority_class),
    "ResourceQuota": ("quotas", read_quota),
    "RuntimeNode": ("nodes", RuntimeNode.from_dict),
    "RuntimePool": ("pools", RuntimePool.from_dict),
}
"""By kind: the list of ``Objects`` that it belongs to, and how it is decoded."""
ACTIVATOR_LABEL = "tessera.dev/activator"
"""On RuntimeNodes that hold requests and run nothing: none of the planner's."""

T = TypeVar("T")
_NAMED = re.compile(r"([A-Za-z]+)\[(\d+)\]")
_LIST_OF_PATH = {"priorityClasses": "classes"}


@dataclass(frozen=True, slots=True)
class Observed:
    """What is to be planned, and what is not, with the reasons."""

    state: ClusterState
    rejected: Mapping[Key, SpecInvalid]


class World:
    """The present objects. Not thread-safe: one loop owns it."""

    def __init__(self) -> None:
        self._decoded: dict[str, dict[Key, object]] = {kind: {} for kind in _READ}
        self._undecoded: dict[Key, SpecInvalid] = {}
        self._remembered = Remembered()
        self._heads: dict[Key, ObjectMeta] = {}
        """Of services that could never be read."""
        self._last: tuple[Objects, ClusterState] | None = None
        self._nodes: dict[Key, tuple[RuntimeNode, bool, RuntimeNode]] = {}
        """By key: a node as decoded, whether it was lost, and what the planner was shown."""

    def put(self, document: Mapping[str, Any]) -> None:
        """Take over an object that is new or has changed; other kinds than those of the planner are ignored.

        One that can no longer be read counts as it was last: what it describes may be running.
        """
        key = key_of(document)
        if key[0] not in _READ:
            return
        _, read = _READ[key[0]]
        try:
            # A field that a newer version wrote is none of ours to refuse.
            self._decoded[key[0]][key] = read(document, strict=False)
        except SpecInvalid as invalid:
            self._undecoded[key] = invalid
            if key[0] == "ModelService" and key not in self._decoded[key[0]]:
                self._keep_head(key, document)
        else:
            self._undecoded.pop(key, None)
            self._heads.pop(key, None)

    def remove(self, key: Key) -> None:
        """Forget an object; nothing happens when it is not known."""
        self._undecoded.pop(key, None)
        self._heads.pop(key, None)
        self._nodes.pop(key, None)
        if key[0] in _READ:
            self._decoded[key[0]].pop(key, None)

    @property
    def nodes(self) -> tuple[RuntimeNode, ...]:
        """As they are, by name."""
        return self._of(RuntimeNode)

    @property
    def pools(self) -> tuple[RuntimePool, ...]:
        return self._of(RuntimePool)

    @property
    def profiles(self) -> tuple[ModelProfile, ...]:
        """Of models as they are loaded."""
        return tuple(each for each in self._of(ModelProfile) if not each.spec.variant)

    @property
    def tuned(self) -> tuple[ModelProfile, ...]:
        """Of variants of models."""
        return tuple(each for each in self._of(ModelProfile) if each.spec.variant)

    @property
    def services(self) -> tuple[ModelService, ...]:
        """One that could never be read, perhaps because a newer operator wrote it, is as it runs, if it does."""
        if not self._heads:
            return self._of(ModelService)
        running = pinned(self.nodes)
        unread = (
            ModelService(head, served.spec)
            for (_, namespace, name), head in sorted(self._heads.items())
            if (served := running.get(f"{namespace}.{name}")) is not None
        )
        return *self._of(ModelService), *unread

    @property
    def undecoded(self) -> Mapping[Key, SpecInvalid]:
        """Objects whose present document cannot be read."""
        return self._undecoded

    def observe(
        self,
        policy: Policy,
        budget: Budget,
        services: Collection[ModelService] | None = None,
        lost: Collection[str] = (),
        more: Iterable[ModelProfile] = (),
    ) -> Observed:
        """The facts as of now. Raises SpecInvalid only for what no single object is to blame for.

        ``services``: what to plan for, where that is not what the objects say. ``lost``: nodes that nobody
        hears of; nothing is planned there. ``more``: measurements that no object holds.
        """
        rejected = dict(self._undecoded)
        decoded = {kind: dict(found) for kind, found in self._decoded.items()}
        if services is not None:
            decoded["ModelService"] = {
                ("ModelService", each.metadata.namespace, each.metadata.name): each
                for each in services
            }
        decoded["RuntimeNode"] = {
            key: self._shown(key, node, key[2] in lost)
            for key, node in self._decoded["RuntimeNode"].items()
            if isinstance(node, RuntimeNode) and not is_activator(node)
        }
        decoded["ModelProfile"].update(
            (("ModelProfile", "", each.metadata.name), each)
            for each in (*self._remembered.missing(self.nodes, self.profiles), *more)
        )
        present = {kind: sorted(found) for kind, found in decoded.items()}
        while True:
            report = Report(strict=False)
            objects = Objects(
                **{  # type: ignore[arg-type]  # each reader gives what its list holds
                    name: tuple(decoded[kind][key] for key in present[kind])
                    for kind, (name, _) in _READ.items()
                }
            )
            state = state_of(objects, (), policy, budget, report)
            if not report.errors:
                return Observed(self._same(objects, state), rejected)
            blamed = _blamed(present, report.errors)
            if not blamed:
                raise SpecInvalid(report.errors)
            for key, errors in blamed.items():
                rejected[key] = SpecInvalid(errors)
                present[key[0]].remove(key)

    def _keep_head(self, key: Key, document: Mapping[str, Any]) -> None:
        report = Report(strict=False)
        head = record(ObjectMeta).decode(document["metadata"], "metadata", report)
        if not report.errors and isinstance(head, ObjectMeta):
            self._heads[key] = head

    def _of(self, cls: type[T]) -> tuple[T, ...]:
        found = self._decoded[cls.__name__]
        return tuple(each for key in sorted(found) if isinstance(each := found[key], cls))

    def _shown(self, key: Key, node: RuntimeNode, lost: bool) -> RuntimeNode:
        """``node`` as the planner is to see it; the same value as before where nothing changed."""
        known = self._nodes.get(key)
        if known is None or known[0] is not node or known[1] != lost:
            known = self._nodes[key] = node, lost, as_ordered(node, lost)
        return known[2]

    def _same(self, objects: Objects, state: ClusterState) -> ClusterState:
        """``state``, its parts those of the last one where they are equal."""
        if self._last is not None:
            before, then = self._last
            # Status counters are no facts of the planner: nodes are compared as the planner sees them.
            known = {node.name: node for node in then.nodes}
            nodes = tuple(
                old if (old := known.get(node.name)) == node else node for node in state.nodes
            )
            state = replace(
                state,
                nodes=then.nodes if nodes == then.nodes else nodes,
                measured=then.measured if objects.profiles == before.profiles else state.measured,
            )
        self._last = objects, state
        return state


def is_activator(node: RuntimeNode) -> bool:
    """Whether ``node`` is no place to run anything."""
    return any(name == ACTIVATOR_LABEL for name, _ in node.metadata.labels)


def as_ordered(node: RuntimeNode, lost: bool) -> RuntimeNode:
    """``node`` with the instances of its spec, and those that it has not yet let go, as what it runs."""
    wanted = {device.uuid: device.instances for device in node.spec.devices}
    devices = tuple(
        replace(
            device,
            instances=tuple(
                InstanceStatus(
                    each.service, each.member, each.slice, each.batch, each.state, each.count
                )
                for each in wanted.get(device.uuid, ())
            )
            + leaving(device, wanted.get(device.uuid, ())),
            health=Health.UNHEALTHY if lost else device.health,
        )
        for device in node.status.devices
    )
    # Cores that are no device of their own have no health that could be bad.
    cores_too = not lost or any(label(device.product) == CPU for device in devices)
    cpu = node.status.cpu if cores_too else None
    return replace(node, status=replace(node.status, devices=devices, cpu=cpu))


def leaving(device: DeviceStatus, wanted: Collection[Instance]) -> tuple[InstanceStatus, ...]:
    """Instances that the device still has although they are not ``wanted``."""
    ordered = {(each.service, each.member, each.slice) for each in wanted}
    return tuple(
        each for each in device.instances if (each.service, each.member, each.slice) not in ordered
    )


def _blamed(
    present: Mapping[str, list[Key]], errors: list[FieldError]
) -> dict[Key, list[FieldError]]:
    """Errors by the object that they name, their paths relative to it."""
    kinds = {name: kind for kind, (name, _) in _READ.items()}
    found: dict[Key, list[FieldError]] = {}
    for error in errors:
        named = _NAMED.match(error.path)
        if named is None:
            continue
        kind = kinds[_LIST_OF_PATH.get(named[1], named[1])]
        key = present[kind][int(named[2])]
        rest = error.path[named.end() :].removeprefix(".")
        found.setdefault(key, []).append(replace(error, path=rest))
    return found
