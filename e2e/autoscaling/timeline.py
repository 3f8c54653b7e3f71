"""What happened to objects of some kinds, in the order in which the API server stored it."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tessera_operator.cluster import Cluster, ClusterError, connect
from tessera_operator.kinds import Kind

_WATCH_S = 3600
_PAUSE_S = 0.2

Document = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Event:
    """One object as it was after one change; of one that went, as it was last."""

    revision: int
    """Of the store: of all kinds together it tells what came first."""
    kind: str
    name: str
    gone: bool
    document: Document


class Timeline:
    """Follows until the test ends, or until ``end``. Thread-safe."""

    def __init__(self, kubeconfig: Path, *watched: tuple[Kind, str]) -> None:
        """``watched``: kinds, each with a namespace, empty for kinds that are of none."""
        self._cluster = Cluster(connect(str(kubeconfig)))
        self._events: list[Event] = []
        self._lock = threading.Lock()
        self._ended = False
        self._listed = threading.Barrier(len(watched) + 1)
        for kind, namespace in watched:
            threading.Thread(target=self._follow, args=(kind, namespace), daemon=True).start()
        self._listed.wait(30)

    def end(self) -> None:
        """Note nothing more, and follow no longer than until the next change."""
        self._ended = True

    def events(self) -> list[Event]:
        """So far, in order."""
        with self._lock:
            return sorted(self._events, key=lambda each: each.revision)

    def _follow(self, kind: Kind, namespace: str) -> None:
        documents, version = self._cluster.list(kind, namespace)
        for document in documents:
            self._note(kind, "ADDED", document)
        self._listed.wait(30)
        while not self._ended:
            try:
                for event in self._cluster.watch(kind, namespace, "", version, _WATCH_S):
                    if self._ended:
                        return
                    document = event["object"]
                    version = document["metadata"]["resourceVersion"]
                    if event["type"] != "BOOKMARK":
                        self._note(kind, event["type"], document)
            except ClusterError:
                time.sleep(_PAUSE_S)  # it goes on where it ended

    def _note(self, kind: Kind, what: str, document: Document) -> None:
        metadata = document["metadata"]
        revision, gone = int(metadata["resourceVersion"]), what == "DELETED"
        with self._lock:
            self._events.append(Event(revision, kind.name, metadata["name"], gone, document))


@dataclass(slots=True)
class Moment:
    """Everything at one revision."""

    event: Event
    """What has just happened."""
    objects: dict[tuple[str, str], Document]
    """By (kind, name), after it."""

    def runtime_pods(self) -> list[Document]:
        """Those that have a node."""
        return [
            each
            for (kind, _), each in self.objects.items()
            if kind == "Pod"
            and "tessera.dev/pool" in each["metadata"].get("labels", {})
            and each["spec"].get("nodeName")
        ]

    def told(self, node: str) -> bool:
        """Whether the runtime pod of ``node`` is told to run something."""
        spec = self.objects.get(("RuntimeNode", node), {}).get("spec", {})
        return any(each.get("instances") for each in spec.get("devices", ()))

    def runs(self, node: str) -> bool:
        """Whether it runs something that is ready."""
        status = self.objects.get(("RuntimeNode", node), {}).get("status", {})
        return any(
            instance["ready"]
            for device in status.get("devices", ())
            for instance in device.get("instances", ())
        )


def moments(events: list[Event]) -> Iterator[Moment]:
    """One after another; ``objects`` is the same mapping, changed in place."""
    objects: dict[tuple[str, str], Document] = {}
    for event in events:
        key = event.kind, event.name
        if event.gone:
            objects.pop(key, None)
        else:
            objects[key] = event.document
        yield Moment(event, objects)
