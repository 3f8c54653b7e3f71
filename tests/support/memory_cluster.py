"""An API server in memory, as far as the operator's ``Cluster`` goes: of lists only those of conditions and GPUs are merged,
no defaults.
"""

from __future__ import annotations

import copy
import threading
from collections.abc import Iterator
from typing import Any

from tessera_operator.cluster import FIELD_MANAGER, ApiError, Cluster, ClusterError
from tessera_operator.kinds import Document, Key, Kind, key_of

_HEAD = {"apiVersion", "kind", "metadata"}


class MemoryCluster(Cluster):
    """Keeps objects and the calls that were made."""

    def __init__(self, *documents: Document) -> None:
        self.objects: dict[Key, dict[str, Any]] = {}
        self.calls: list[tuple[str, Key]] = []
        """Every write: (verb, object)."""
        self.failing: dict[Key, ClusterError] = {}
        """What a write of an object fails with."""
        self.served: set[str] = set()
        """Kinds that it has beyond those that are always there."""
        self._applied: dict[tuple[Key, str, str], Document] = {}
        self._version = 0
        self._lock = threading.RLock()
        for document in documents:
            self._store(key_of(document), copy.deepcopy(dict(document)))

    def copy(self) -> MemoryCluster:
        """Another server with the same objects."""
        found = MemoryCluster()
        found.objects, found._applied = copy.deepcopy((self.objects, self._applied))
        found._version = self._version
        return found

    def list(
        self, kind: Kind, namespace: str = "", labels: str = ""
    ) -> tuple[list[dict[str, Any]], str]:
        """``labels``: only of the form ``a=b,c=d`` or ``a in (b,c)``."""
        found = [
            copy.deepcopy(each)
            for key, each in sorted(self.objects.items())
            if key[0] == kind.name
            and namespace in ("", key[1])
            and _matches(each["metadata"].get("labels") or {}, labels)
        ]
        return found, str(self._version)

    def watch(
        self, kind: Kind, namespace: str, labels: str, version: str, timeout_s: int
    ) -> Iterator[dict[str, Any]]:
        yield from ()

    def apply(
        self, document: Document, subresource: str = "", manager: str = FIELD_MANAGER
    ) -> dict[str, Any]:
        key = self._called("apply", document)
        present = self.objects.get(key)
        if present is None and subresource:
            raise ApiError(404, f"{key} not found")
        before = self._applied.get((key, subresource, manager), {})
        wanted = copy.deepcopy(dict(document))
        self._applied[key, subresource, manager] = wanted
        stored = _merged(_without(present or {}, before, wanted) or {}, wanted)
        stored["metadata"]["managedFields"] = self._managers(key)
        return self._store(key, stored)

    def _managers(self, key: Key) -> list[dict[str, str]]:
        """Of all who have applied more than which object it is."""
        return [
            {"manager": manager, "subresource": subresource}
            for (other, subresource, manager), document in self._applied.items()
            if other == key
            and (document.keys() - _HEAD or document["metadata"].keys() - {"name", "namespace"})
        ]

    def merge(self, document: Document) -> dict[str, Any]:
        key = self._called("merge", document)
        present = self.objects.get(key)
        if present is None:
            raise ApiError(404, f"{key} not found")
        version = document["metadata"].get("resourceVersion")
        if version not in (None, present["metadata"]["resourceVersion"]):
            raise ApiError(409, f"{key} has changed")
        return self._store(key, _without_nulls(_merged(present, document)))

    def scale(self, key: Key, replicas: int) -> None:
        with self._lock:
            self.calls.append(("scale", key))
        self._store(key, _merged(self.objects[key], {"spec": {"replicas": replicas}}))

    def create(self, document: Document) -> dict[str, Any]:
        key = self._called("create", document)
        if key in self.objects:
            raise ApiError(409, f"{key} exists")
        return self._store(key, copy.deepcopy(dict(document)))

    def delete(self, document: Document) -> None:
        key, uid = self._called("delete", document), document["metadata"].get("uid")
        if uid is None or self.objects.get(key, {}).get("metadata", {}).get("uid") == uid:
            self.objects.pop(key, None)

    def serves(self, kind: Kind) -> bool:
        return kind.name in self.served

    def _called(self, verb: str, document: Document) -> Key:
        key = key_of(document)
        with self._lock:
            self.calls.append((verb, key))
        if key in self.failing:
            raise self.failing[key]
        return key

    def _store(self, key: Key, document: dict[str, Any]) -> dict[str, Any]:
        """As the server would: the version counts changes, the generation those of the spec."""
        with self._lock:
            return self._stored(key, document)

    def _stored(self, key: Key, document: dict[str, Any]) -> dict[str, Any]:
        before = self.objects.get(key)
        metadata = document["metadata"]
        if before is None or {**before, "metadata": None} != {**document, "metadata": None}:
            self._version += 1
            metadata["resourceVersion"] = str(self._version)
        if before is None:
            metadata["generation"] = metadata.get("generation", 1)
        elif before.get("spec") != document.get("spec"):
            metadata["generation"] = before["metadata"]["generation"] + 1
        self.objects[key] = document
        return copy.deepcopy(document)


def _by_key(items: Any) -> dict[str, Any] | None:
    """Conditions by their type, GPUs by their UUID; None for what is no list of these."""
    if not isinstance(items, list) or not all(isinstance(each, dict) for each in items):
        return None
    for key, others in (("type", {"status", "reason"}), ("uuid", set[str]())):
        if all({key} | others <= each.keys() for each in items):
            return {each[key]: each for each in items}
    return None


def _merged(present: Any, wanted: Any) -> Any:
    old, new = _by_key(present), _by_key(wanted)
    if old is not None and new is not None:
        return [*_merged(old, new).values()]
    if not isinstance(wanted, dict) or not isinstance(present, dict):
        return copy.deepcopy(wanted)
    return {**present, **{name: _merged(present.get(name), each) for name, each in wanted.items()}}


def _without_nulls(document: Any) -> Any:
    """A merge patch takes away what it says is null (RFC 7386)."""
    if not isinstance(document, dict):
        return document
    return {name: _without_nulls(each) for name, each in document.items() if each is not None}


def _without(present: Any, before: Any, wanted: Any) -> Any:
    """``present`` less what was applied before and is wanted no more; None where that leaves nothing."""
    items, applied = _by_key(present), _by_key(before)
    if items is not None and applied is not None:
        kept = _by_key(wanted) or {}
        return [
            _without(each, applied[name], kept[name]) if name in applied else each
            for name, each in items.items()
            if name not in applied or name in kept
        ]
    if not isinstance(present, dict) or not isinstance(before, dict):
        return None if wanted is None else present
    wants = wanted if isinstance(wanted, dict) else {}
    left = {
        name: _without(each, before[name], wants.get(name)) if name in before else each
        for name, each in present.items()
    }
    left = {name: each for name, each in left.items() if each is not None}
    return left if left or wanted is not None else None


def _matches(labels: dict[str, str], selector: str) -> bool:
    if " in " in selector:
        name, _, values = selector.partition(" in ")
        return labels.get(name) in values.strip("()").split(",")
    pairs = (each.partition("=") for each in selector.split(",") if each)
    return all(labels.get(name) == value for name, _, value in pairs)
