"""What processes of a node talk to, in a thread of its own: an API server with one RuntimeNode, and a store of models.

As far as they go: one object is read and watched, several managers apply their parts of its status, and Leases are taken
and forgotten.
"""

from __future__ import annotations

import copy
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

_NODES = "/apis/tessera.dev/v1alpha1/runtimenodes"
PARTITIONER = "tessera-partitioner"


class NodeApi:
    """Made by :func:`node_api`; its methods are for the test, in the place of operator and partitioner."""

    def __init__(self, name: str) -> None:
        self.url = ""
        self.files: dict[str, str] = {}
        """Of the store, by path."""
        self._document: dict[str, Any] = {
            "apiVersion": "tessera.dev/v1alpha1",
            "kind": "RuntimeNode",
            "metadata": {"name": name, "uid": "u", "generation": 0, "resourceVersion": "0"},
            "spec": {"epoch": 1},
        }
        self._applied: dict[str, dict[str, Any]] = {}
        """What each manager has said of the status; none says what another does."""
        self._changed = threading.Condition()
        self._closed = False

    def order(self, **spec: object) -> None:
        """Write the spec."""
        with self._changed:
            self._document["metadata"]["generation"] += 1
            self._document["spec"] = {"epoch": 1, **spec}
            self._count()

    def tell_cuts(self, *cuts: dict[str, object]) -> None:
        """Write what the partitioner says."""
        self.apply_status(PARTITIONER, {"cuts": list(cuts)})

    def status(self) -> dict[str, Any]:
        with self._changed:
            return copy.deepcopy(self._document.get("status") or {})

    def close(self) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def document(self) -> dict[str, Any]:
        with self._changed:
            return copy.deepcopy(self._document)

    def changes(self, version: str) -> Iterator[dict[str, Any]]:
        """The object after every change that follows ``version``, until this is closed."""
        while True:
            with self._changed:
                while not self._closed and self._version() == version:
                    self._changed.wait()
                if self._closed:
                    return
                version = self._version()
                found = copy.deepcopy(self._document)
            yield found

    def apply_status(self, manager: str, status: dict[str, Any]) -> None:
        """All that ``manager`` says of it; what it has said before and says no more is gone."""
        with self._changed:
            self._applied[manager] = status
            said = [field for each in self._applied.values() for field in each.items()]
            self._document["status"] = dict(said)
            assert len(said) == len(self._document["status"]), "two managers write one field"
            self._count()

    def _version(self) -> str:
        return str(self._document["metadata"]["resourceVersion"])

    def _count(self) -> None:
        self._document["metadata"]["resourceVersion"] = str(int(self._version()) + 1)
        self._changed.notify_all()


@contextmanager
def node_api(name: str) -> Iterator[NodeApi]:
    """One on loopback."""
    api = NodeApi(name)

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_: object) -> None: ...

        def do_GET(self) -> None:
            url = urlsplit(self.path)
            if url.path in api.files:
                self._answer(200, api.files[url.path].encode())
            elif url.path == f"{_NODES}/{name}":
                self._answer(200, json.dumps(api.document()).encode())
            elif url.path == _NODES:
                self.send_response(200)
                self.end_headers()
                for each in api.changes(parse_qs(url.query)["resourceVersion"][0]):
                    event = {"type": "MODIFIED", "object": each}
                    self.wfile.write(json.dumps(event).encode() + b"\n")
            else:
                self._answer(404, b"{}")

        do_HEAD = do_GET

        def do_PATCH(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            url = urlsplit(self.path)
            if url.path == f"{_NODES}/{name}/status":
                api.apply_status(parse_qs(url.query)["fieldManager"][0], body["status"])
            self._answer(200, b"{}")

        def _answer(self, code: int, body: bytes) -> None:
            self.send_response(code)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    api.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield api
    finally:
        api.close()
        server.shutdown()
        thread.join()
        server.server_close()
