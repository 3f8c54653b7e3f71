"""The present objects of the cluster, kept by list and watch.

Problem: a decision needs all objects at once, while the API server tells of one change at a time, forgets
changes that nobody asked for in time, and goes away now and then. Approach: one thread per kind lists, then
watches from the version of the list on. What a list lacks was deleted meanwhile, so nothing that is gone stays.
A watch is renewed before it is forgotten; errors are waited out, longer each time.
"""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from tessera_operator.cluster import ApiError, Cluster, ClusterError
from tessera_operator.kinds import Document, Key, Kind, forget_fields, key_of

_LOG = logging.getLogger(__name__)
WATCH_S = 240
"""Length of one watch; a new one goes on where it ended."""
LEAST_PAUSE_S, MOST_PAUSE_S = 0.5, 30.0
_ABSENT, _GONE = 404, 410
_COUNTERS = ("good", "total", "latencyBuckets", "corrections")
"""Of a service in a node's status: what moves with its traffic."""
_OWN_STATUS = ("ModelService", "PlacementPlan", "RuntimePool")
"""Kinds whose status is the operator's alone."""


class Expired(Exception):
    """The server does not remember the version any more: list again."""


@dataclass(frozen=True, slots=True)
class Source:
    """Which objects are followed."""

    kind: Kind
    namespace: str = ""
    """Empty: all."""
    labels: str = ""
    """A label selector."""


class Facts:
    """Documents by key. Thread-safe; ``changed`` tells what is new since the last call."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._wake = threading.Event()
        self._documents: dict[Key, Document] = {}
        self._changed: set[Key] = set()
        self._since_s: float | None = None
        """When the oldest change that nobody has asked for came."""

    def put(self, document: dict[str, Any]) -> None:
        self._note(key_of(document), _trimmed(document))

    def remove(self, key: Key) -> None:
        self._note(key, None)

    def replace(self, source: Source, documents: Iterable[dict[str, Any]]) -> None:
        """Take over a complete list: what is not in it is gone."""
        listed = {key_of(document): document for document in documents}
        with self._lock:
            known = [
                key
                for key in self._documents
                if key[0] == source.kind.name and source.namespace in ("", key[1])
            ]
            old = {key: self._documents[key]["metadata"]["resourceVersion"] for key in known}
        for key in known:
            if key not in listed:
                self.remove(key)
        for key, document in listed.items():
            if old.get(key) != document["metadata"]["resourceVersion"]:
                self.put(document)

    def changed(self) -> dict[Key, Document | None]:
        """What is new, changed or, with None, gone since the last call."""
        with self._lock:
            self._wake.clear()
            self._since_s = None
            found = {key: self._documents.get(key) for key in self._changed}
            self._changed.clear()
            return found

    def wait(self, timeout_s: float, quiet_s: float, most_s: float) -> bool:
        """Wait for a change, then until none came for ``quiet_s`` or the first is ``most_s`` old.

        False: nothing came for ``timeout_s``.
        """
        if not self._wake.wait(timeout_s):
            return False
        while True:
            with self._lock:
                since_s = self._since_s
                self._wake.clear()
            if since_s is None:
                return True
            left_s = since_s + most_s - time.monotonic()
            if left_s <= 0 or not self._wake.wait(min(quiet_s, left_s)):
                return True

    @property
    def has_changed(self) -> bool:
        """Whether ``changed`` would tell something, be it what can wait, for which ``wait`` does not return."""
        return bool(self._changed)

    def wake(self) -> None:
        """Make ``wait`` return although nothing changed."""
        self._wake.set()

    def _note(self, key: Key, document: Document | None) -> None:
        with self._lock:
            if document is None:
                if self._documents.pop(key, None) is None:
                    return
            else:
                before = self._documents.get(key)
                self._documents[key] = document
                if before is not None and _says_the_same(before, document):
                    return
                if before is not None and _can_wait(before, document):
                    self._changed.add(key)
                    return
            self._changed.add(key)
            if self._since_s is None:
                self._since_s = time.monotonic()
            self._wake.set()


def _trimmed(document: dict[str, Any]) -> dict[str, Any]:
    """``document`` without what nobody asks for, which of large clusters is most of it."""
    metadata = document["metadata"]
    forget_fields(document)
    match document["kind"]:
        case "Node":
            metadata.pop("annotations", None)
            taints = document.get("spec", {}).get("taints")
            return {**document, "spec": {"taints": taints} if taints else {}, "status": {}}
        case "Pod":
            spec, status = document.get("spec", {}), document.get("status", {})
            return {
                **document,
                "spec": {"nodeName": spec.get("nodeName")},
                "status": {"phase": status.get("phase")},
            }
    return document


def _says_the_same(one: Document, other: Document) -> bool:
    """Whether only the version differs: nodes and pods change more often than what is kept of them."""
    if one["kind"] not in ("Node", "Pod"):
        return False
    old, new = dict(one["metadata"]), dict(other["metadata"])
    old.pop("resourceVersion", None)
    new.pop("resourceVersion", None)
    return old == new and one["spec"] == other["spec"] and one["status"] == other["status"]


def _can_wait(one: Document, other: Document) -> bool:
    """Whether a node has only counted further, which of many nodes one does at any moment, or the status has changed
    of what nobody else reports on, mostly because it was just written.
    """
    kind = one["kind"]
    if kind != "RuntimeNode" and kind not in _OWN_STATUS:
        return False
    return _what_matters(one) == _what_matters(other)


def _what_matters(document: Document) -> dict[str, Any]:
    metadata = dict(document["metadata"])
    metadata.pop("resourceVersion", None)
    if document["kind"] in _OWN_STATUS:
        return {**document, "metadata": metadata, "status": None}
    status = dict(document.get("status") or {})
    status["services"] = [
        {name: value for name, value in each.items() if name not in _COUNTERS}
        for each in status.get("services") or ()
    ]
    return {**document, "metadata": metadata, "status": status}


class Follower(threading.Thread):
    """Keeps the facts of one source current until the process ends."""

    def __init__(self, cluster: Cluster, source: Source, facts: Facts) -> None:
        super().__init__(name=f"follow-{source.kind.plural}", daemon=True)
        self._cluster, self._source, self._facts = cluster, source, facts
        self.listed = threading.Event()
        """Set once everything there was is in the facts."""
        self.absent = threading.Event()
        """Set where the API server has no such kind."""

    @property
    def kind(self) -> Kind:
        return self._source.kind

    def run(self) -> None:
        version, pause_s = "", 0.0
        while True:
            try:
                if not version:
                    version = self._list()
                version = self._watch(version)
                pause_s = 0.0
                continue
            except Expired:
                version, pause_s = "", max(pause_s, LEAST_PAUSE_S)
            except ClusterError as failed:
                pause_s = min(MOST_PAUSE_S, max(LEAST_PAUSE_S, 2 * pause_s))
                _LOG.warning(
                    "%s: %s; again in %.1f s", self._source.kind.plural, str(failed)[:200], pause_s
                )
                if isinstance(failed, ApiError):
                    if failed.status == _ABSENT:
                        self.absent.set()
                    pause_s = max(pause_s, min(failed.retry_after_s, MOST_PAUSE_S))
                    # Another server may have another history.
                    version = ""
            # Not all at once, where many wait for the same server.
            time.sleep(pause_s * random.uniform(0.75, 1.25))

    def _list(self) -> str:
        source = self._source
        documents, version = self._cluster.list(source.kind, source.namespace, source.labels)
        self._facts.replace(source, documents)
        self.listed.set()
        return version

    def _watch(self, version: str) -> str:
        """The version up to which everything is known. Raises Expired, ClusterError."""
        source = self._source
        try:
            for event in self._cluster.watch(
                source.kind, source.namespace, source.labels, version, WATCH_S
            ):
                document = event["object"]
                if event["type"] == "ERROR":
                    if document.get("code") == _GONE:
                        raise Expired
                    raise ApiError(document.get("code", 500), document.get("message", ""))
                version = document["metadata"]["resourceVersion"]
                if event["type"] == "DELETED":
                    self._facts.remove(key_of(document))
                elif event["type"] != "BOOKMARK":
                    self._facts.put(document)
        except ApiError as error:
            if error.status == _GONE:
                raise Expired from error
            raise
        return version
