"""The objects of the cluster as the planner's facts: decoded once each, contradictions set aside.

Problem: one object that makes no sense must not keep a thousand others from being planned, and a cluster whose
counters move every few seconds must not look like another cluster each time. Approach: documents are decoded when
they change; those that cannot be, or that contradict others, are left out with the reason, which becomes their
condition; and what did not change stays the very same value, which is what the planner's memory goes by.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from tessera_core.api import (
    FieldError,
    ModelProfile,
    ModelService,
    RuntimeNode,
    RuntimePool,
    SpecInvalid,
)
from tessera_core.api.errors import Report
from tessera_core.plan.state import Budget, ClusterState, Policy
from tessera_core.plan.state_in import Objects, state_of
from tessera_core.plan.tenants_in import read_priority_class, read_quota

Key = tuple[str, str, str]
"""(kind, namespace, name); the namespace of a cluster-scoped object is empty."""

_READ: Mapping[str, tuple[str, Callable[..., object]]] = {
    "ModelProfile": ("profiles", ModelProfile.from_dict),
    "ModelService": ("services", ModelService.from_dict),
    "PriorityClass": ("classes", read_priority_class),
    "ResourceQuota": ("quotas", read_quota),
    "RuntimeNode": ("nodes", RuntimeNode.from_dict),
    "RuntimePool": ("pools", RuntimePool.from_dict),
}
"""By kind: the list of ``Objects`` that it belongs to, and how it is decoded."""
_NAMED = re.compile(r"([A-Za-z]+)\[(\d+)\]")
_LIST_OF_PATH = {"priorityClasses": "classes"}


def key_of(document: Mapping[str, Any]) -> Key:
    """How a document is known. Raises KeyError when it is no object."""
    metadata = document["metadata"]
    return document["kind"], metadata.get("namespace", ""), metadata["name"]


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
        self._last: tuple[Objects, ClusterState] | None = None

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
        else:
            self._undecoded.pop(key, None)

    def remove(self, key: Key) -> None:
        """Forget an object; nothing happens when it is not known."""
        self._undecoded.pop(key, None)
        if key[0] in _READ:
            self._decoded[key[0]].pop(key, None)

    def observe(self, policy: Policy, budget: Budget) -> Observed:
        """The facts as of now. Raises SpecInvalid only for what no single object is to blame for."""
        rejected = dict(self._undecoded)
        present = {kind: sorted(found) for kind, found in self._decoded.items()}
        while True:
            report = Report(strict=False)
            objects = Objects(
                **{  # type: ignore[arg-type]  # each reader gives what its list holds
                    name: tuple(self._decoded[kind][key] for key in present[kind])
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
