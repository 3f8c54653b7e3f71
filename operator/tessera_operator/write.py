"""Writing what is wanted: only what differs from what is there, one object's failure leaving the others alone."""

from __future__ import annotations

import hashlib
import json
import logging
import threading
from collections.abc import Callable, Iterable, MutableMapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

from tessera_operator.cluster import FIELD_MANAGER, ApiError, Cluster, ClusterError
from tessera_operator.kinds import (
    DAEMON_SET,
    DEPLOYMENT,
    KINDS,
    Document,
    Key,
    covers,
    forget_fields,
    head,
    key_of,
)

_LOG = logging.getLogger(__name__)
_CONFLICT = 409
_AT_ONCE = 8
"""Writes under way: the server takes tens of milliseconds for one, and more would crowd out agents."""
_MOST_GONE = 1000
"""Objects that are remembered although they are gone."""


class Writer:
    """Writes of one operator, by one thread; ``together`` has more of its own."""

    def __init__(self, cluster: Cluster, documents: MutableMapping[Key, Document]) -> None:
        """``documents``: the objects as they are, kept current by the caller; what was written is put there, so
        that nothing is written again while the news of it is on its way.
        """
        self._cluster, self._documents = cluster, documents
        self._lock = threading.Lock()
        self._threads = ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="write")
        self._applied: dict[tuple[Key, str, str], tuple[str, object]] = {}
        """What each manager has applied last, and the version that it made: the server may write a number its own way."""
        self.failed: list[str] = []
        """What went wrong since this was emptied."""
        self.writes = 0
        self.taken: set[Key] = set()
        """What somebody else had made when it was to be created."""

    def put(self, document: Document, subresource: str = "", manager: str = FIELD_MANAGER) -> bool:
        """Make the object so; whether it is so now. ``manager``: whose fields those of ``document`` are, all of them."""
        if self._is_so(document, subresource, manager):
            return True
        key = key_of(document)
        return self._do("apply", key, lambda: self._apply(key, document, subresource, manager))

    def put_all(self, documents: Iterable[Document]) -> None:
        """``put`` each of them, some at once."""
        self.together([partial(self.put, each) for each in documents if not self._is_so(each)])

    def together(self, writes: Sequence[Callable[[], object]]) -> None:
        """Make ``writes``, each of other objects than the rest, some at once. Returns when all are answered."""
        if len(writes) == 1:
            writes[0]()
        else:
            for done in [self._threads.submit(write) for write in writes]:
                done.result()

    def withdraw(self, key: Key, subresource: str, manager: str) -> bool:
        """Have all fields of an object go that are ``manager``'s alone; where it has none, that is a write all the same."""
        document = head(key)
        return self._do("apply", key, lambda: self._apply(key, document, subresource, manager))

    def create(self, document: Document) -> bool:
        """Make an object that nobody has made; False: somebody has, or it failed."""
        key = key_of(document)
        return self._do("create", key, lambda: self._note(key, self._cluster.create(document)))

    def merge(self, document: Document) -> bool:
        """Change the given fields; with a resource version only where the object is of that version."""
        key = key_of(document)
        return self._do("patch", key, lambda: self._note(key, self._cluster.merge(document)))

    def scale(self, key: Key, replicas: int) -> bool:
        """Set the replicas of an object that has a scale subresource."""
        return self._do("scale", key, lambda: self._cluster.scale(key, replicas))

    def remove(self, key: Key, *, known: bool = True, uid: str | None = None) -> bool:
        """Delete an object if it is there. ``known``: whether the documents would have it then; ``uid``: of the only
        object of that name that is meant.
        """
        if known and key not in self._documents:
            return True
        document = head(key)
        if uid is not None:
            document["metadata"]["uid"] = uid
        return self._do("delete", key, lambda: self._cluster.delete(document))

    def _apply(self, key: Key, document: Document, subresource: str, manager: str) -> None:
        answer = self._cluster.apply(document, subresource, manager)
        with self._lock:
            if len(self._applied) > 2 * len(self._documents) + _MOST_GONE:
                self._applied = {k: v for k, v in self._applied.items() if k[0] in self._documents}
            self._applied[key, subresource, manager] = _digest(document), _version(answer)
        self._note(key, answer)

    def _note(self, key: Key, answer: dict[str, Any]) -> None:
        if key[0] != "Event":
            forget_fields(answer)
            self._documents[key] = answer

    def _is_so(
        self, document: Document, subresource: str = "", manager: str = FIELD_MANAGER
    ) -> bool:
        """Whether nothing is to be written. A field that is wanted no more goes by applying without it."""
        key = key_of(document)
        present = self._documents.get(key)
        if present is None:
            return False
        applied = self._applied.get((key, subresource, manager))
        if applied is None:
            # Fields that the leader before had set, and that this one does not, look like the server's.
            return key[0] not in (DAEMON_SET.name, DEPLOYMENT.name) and _is_same(present, document)
        digest, version = applied
        if digest != _digest(document):
            return False
        return version == _version(present) or _is_same(present, document)

    def _do(self, what: str, key: Key, call: Callable[[], None]) -> bool:
        self.writes += 1
        try:
            call()
        except ClusterError as error:
            if what == "create" and isinstance(error, ApiError) and error.status == _CONFLICT:
                self.taken.add(key)
                return False
            kind, namespace, name = key
            where = f"{namespace}/{name}" if namespace else name
            self.failed.append(f"{what} {kind} {where}: {str(error)[:300]}")
            _LOG.warning("%s", self.failed[-1])
            return False
        self.taken.discard(key)
        return True


def _is_same(present: Document, wanted: Document) -> bool:
    """Whether ``present`` has what is wanted and, of the kinds that the server adds nothing to, nothing else."""
    found, asked = _part(present, wanted), _part(wanted, wanted)
    if not covers(found, asked):
        return False
    own = KINDS[present["kind"]].is_own
    return not own or all(covers(asked[name], found[name]) for name in asked if "." not in name)


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
