"""What an agent talks to beside its server: an API server with one RuntimeNode, and a store of model files.

As far as the agent goes: one object is read, watched and has its status applied; Leases are taken and forgotten.
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
_OF_OTHERS = ("cuts", "taints")
"""Fields of the status that are not the agent's, so that it does not take them away by leaving them out."""


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
        self._apply({**self.status(), "cuts": list(cuts)})

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

    def apply_status(self, status: dict[str, Any]) -> None:
        """As the agent does."""
        there = self.status()
        self._apply({**{name: there[name] for name in _OF_OTHERS if name in there}, **status})

    def _apply(self, status: dict[str, Any]) -> None:
        with self._changed:
            self._document["status"] = status
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
            if urlsplit(self.path).path == f"{_NODES}/{name}/status":
                api.apply_status(body["status"])
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
