"""Writing what is wanted: only what differs from what is there, one object's failure leaving the others alone."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, MutableMapping
from typing import Any

from tessera_operator.cluster import ApiError, Cluster, ClusterError
from tessera_operator.kinds import KINDS, Document, Key, covers, key_of

_LOG = logging.getLogger(__name__)
_CONFLICT = 409


class Writer:
    """Writes of one operator. Not thread-safe."""

    def __init__(self, cluster: Cluster, documents: MutableMapping[Key, Document]) -> None:
        """``documents``: the objects as they are, kept current by the caller; what was written is put there, so
        that nothing is written again while the news of it is on its way.
        """
        self._cluster, self._documents = cluster, documents
        self._applied: dict[tuple[Key, str], tuple[str, object]] = {}
        """What was applied last, and the version that it made: the server may write a number its own way."""
        self.failed: list[str] = []
        """What went wrong since this was emptied."""
        self.writes = 0

    def put(self, document: Document, subresource: str = "") -> bool:
        """Make the object so; whether it is so now."""
        key = key_of(document)
        present = self._documents.get(key)
        if present is not None and covers(_part(present, document), _part(document, document)):
            return True
        if present is not None and self._is_applied(key, subresource, document, present):
            return True
        return self._do("apply", key, lambda: self._apply(key, document, subresource))

    def create(self, document: Document) -> bool:
        """Make an object that nobody has made; False: somebody has, or it failed."""
        key = key_of(document)
        return self._do("create", key, lambda: self._note(key, self._cluster.create(document)))

    def merge(self, document: Document) -> bool:
        """Change the given fields; with a resource version only where the object is of that version."""
        key = key_of(document)
        return self._do("patch", key, lambda: self._note(key, self._cluster.merge(document)))

    def remove(self, key: Key, *, known: bool = True) -> bool:
        """Delete an object if it is there. ``known``: whether the documents would have it then."""
        if known and key not in self._documents:
            return True
        kind, namespace, name = key
        metadata = {"name": name, **({"namespace": namespace} if namespace else {})}
        document = {"apiVersion": KINDS[kind].api_version, "kind": kind, "metadata": metadata}
        return self._do("delete", key, lambda: self._cluster.delete(document))

    def _apply(self, key: Key, document: Document, subresource: str) -> None:
        answer = self._cluster.apply(document, subresource)
        self._applied[key, subresource] = _digest(document), _version(answer)
        self._note(key, answer)

    def _note(self, key: Key, answer: dict[str, Any]) -> None:
        if key[0] != "Event":
            answer["metadata"].pop("managedFields", None)
            self._documents[key] = answer

    def _is_applied(
        self, key: Key, subresource: str, document: Document, present: Document
    ) -> bool:
        digest, version = self._applied.get((key, subresource), ("", None))
        return version == _version(present) and digest == _digest(document)

    def _do(self, what: str, key: Key, call: Callable[[], None]) -> bool:
        self.writes += 1
        try:
            call()
        except ClusterError as error:
            if what == "create" and isinstance(error, ApiError) and error.status == _CONFLICT:
                return False
            kind, namespace, name = key
            where = f"{namespace}/{name}" if namespace else name
            self.failed.append(f"{what} {kind} {where}: {str(error)[:300]}")
            _LOG.warning("%s", self.failed[-1])
            return False
        return True


def _part(document: Document, wanted: Document) -> dict[str, Any]:
    """What of ``document`` is compared: not the head, and of the metadata what is wanted."""
    found = {
        name: document.get(name)
        for name in wanted
        if name not in ("apiVersion", "kind", "metadata")
    }
    metadata = document["metadata"]
    for name in ("labels", "annotations", "ownerReferences"):
        if name in wanted["metadata"]:
            found[f"metadata.{name}"] = metadata.get(name)
    return found


def _version(document: Document) -> object:
    metadata = document["metadata"]
    return metadata.get("generation", metadata.get("resourceVersion"))


def _digest(document: Document) -> str:
    return hashlib.sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()
