"""A store of models on loopback, which redirects, refuses and remembers what it was asked."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

IDENTITY = """
import numpy as np
class Model:
    inputs = {"x": ("FP32", (4,))}
    outputs = {"y": ("FP32", (4,))}
    def __call__(self, batch):
        return {"y": batch["x"] * np.float32(FACTOR)}
def load(device, options):
    return Model()
"""


@dataclass
class Store:
    """A model store on loopback."""

    url: str
    files: dict[str, str] = field(default_factory=dict)
    requests: list[tuple[str, str]] = field(default_factory=list)
    """Method and path."""
    authorization: str | None = None
    """What a request must carry."""


@contextmanager
def model_store() -> Iterator[Store]:
    """One with a model ``/m.py`` that doubles what it is given."""

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_: object) -> None: ...

        def do_GET(self) -> None:
            found.requests.append((self.command, self.path))
            if found.authorization not in (None, self.headers.get("Authorization")):
                self.send_response(403)
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            if self.path.startswith("/redirect/"):
                self.send_response(302)
                self.send_header("Location", f"http://{self.path.removeprefix('/redirect/')}/m.py")
                self.end_headers()
                return
            data = found.files.get(self.path, "").encode()
            self.send_response(200 if data else 404)
            self.send_header("Content-Length", str(len(data)))
            self.send_header("ETag", f'"{hash(data):x}"')
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(data)

        do_HEAD = do_GET

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    found = Store(f"http://127.0.0.1:{server.server_address[1]}")
    found.files["/m.py"] = IDENTITY.replace("FACTOR", "2")
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield found
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
