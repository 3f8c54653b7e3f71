"""The API server for threads of tests and of emulated agents: kinds by name, broken connections opened anew."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from http.client import HTTPException
from typing import Any

from e2e.chart import Client, Object, Refused
from e2e.native.control_plane import Access

from tessera_operator.kinds import KINDS

API = "tessera.dev/v1alpha1"
NAMESPACE = "tessera-system"
WAIT_S = 60.0
_POLL_S = 0.03
_RESTART_S = 10.0
_NOT_YET = (429, 503)
"""What a server says that has just started."""


class Gap(Exception):
    """The server has forgotten a part of the history that was asked for."""


class Kube(Client):
    """One user. Thread-safe."""

    def __init__(self, access: Access, token: str = "") -> None:
        super().__init__(access, token)
        self._lock = threading.RLock()

    def call(
        self, method: str, path: str, body: Object | None = None, kind: str = "application/json"
    ) -> Object:
        """Raises Refused; ConnectionError where the server is away for longer than a restart takes."""
        give_up = time.monotonic() + _RESTART_S
        while True:
            try:
                with self._lock:
                    return super().call(method, path, body, kind)
            except Refused as refused:
                if refused.code not in _NOT_YET or time.monotonic() > give_up:
                    raise
            except (HTTPException, OSError) as failed:
                self.close()
                if time.monotonic() > give_up:
                    raise ConnectionError(f"{method} {path}: {failed}") from failed
            time.sleep(_POLL_S)

    def all(self, kind: str, namespace: str = "") -> list[Object]:
        """The objects of a kind, by namespace and name."""
        found = self.call("GET", KINDS[kind].folder(namespace))["items"]
        head = {"apiVersion": KINDS[kind].api_version, "kind": kind}
        objects = [{**head, **each} for each in found]
        return sorted(objects, key=_place)

    def get(self, kind: str, name: str, namespace: str = "") -> Object | None:
        """None where there is none."""
        try:
            return self.call("GET", KINDS[kind].path(namespace, name))
        except Refused as refused:
            if refused.code == 404:
                return None
            raise

    def put_status(self, document: Object, manager: str) -> None:
        """Server-side apply of ``document``'s status. Raises Refused."""
        path = f"{self._path(document)}/status?fieldManager={manager}&force=true"
        self.call("PATCH", path, document, "application/apply-patch+yaml")

    def clear(self, kind: str) -> None:
        """Delete all objects of a kind, finalizers or not."""
        for each in self.all(kind):
            if each["metadata"].get("finalizers"):
                self.merge(each, {"metadata": {"finalizers": None}})
            try:
                self.end(each)
            except Refused as refused:
                if refused.code != 404:
                    raise

    def end(self, document: Object) -> None:
        """Delete at once: there is no kubelet that would let a pod end by itself. Raises Refused."""
        self.call("DELETE", f"{self._path(document)}?gracePeriodSeconds=0")

    def watch(self, kind: str, version: str, stopped: threading.Event) -> Iterator[Object]:
        """Events after ``version``, over a connection of its own, until ``stopped``; after "0" what there is comes
        first. Raises Gap.
        """
        other = Kube(self.access)
        query = f"watch=1&timeoutSeconds=1&allowWatchBookmarks=true&resourceVersion={version}"
        while not stopped.is_set():
            connection = other._connection
            headers = {"Authorization": f"Bearer {self.access.token}"}
            try:
                connection.request("GET", f"{KINDS[kind].folder()}?{query}", headers=headers)
                answer = connection.getresponse()
                while line := answer.readline():
                    event = json.loads(line)
                    if event.get("kind") == "Status":
                        break  # it is starting
                    if event["type"] == "ERROR":
                        raise Gap(f"{kind}: {event['object'].get('message')}")
                    version = event["object"]["metadata"]["resourceVersion"]
                    if event["type"] != "BOOKMARK":
                        yield event
            except (HTTPException, OSError):
                stopped.wait(_POLL_S)
            finally:
                other.close()
            query = query.rpartition("=")[0] + f"={version}"

    def _folder(self, document: Object) -> str:
        kind = KINDS.get(document["kind"])
        if kind is None:
            return super()._folder(document)
        return kind.folder(document["metadata"].get("namespace", ""))


def until(
    condition: Callable[[], Any], what: Callable[[], object] | str, wait_s: float = WAIT_S
) -> Any:
    """What ``condition`` says first that is true. Raises AssertionError with ``what`` was waited for."""
    give_up = time.monotonic() + wait_s
    while not (found := condition()):
        if time.monotonic() > give_up:
            words = what if isinstance(what, str) else what()
            raise AssertionError(f"waited {wait_s:g} s for: {words}")
        time.sleep(_POLL_S)
    return found


def _place(document: Object) -> tuple[str, str]:
    metadata = document["metadata"]
    return metadata.get("namespace", ""), metadata["name"]
