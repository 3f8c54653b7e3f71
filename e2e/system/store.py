"""A model store that pods fetch from, over plain HTTP, on an address of this machine."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Store:
    """Files by name; the name is part of what a model's URI says."""

    def __init__(self, address: str) -> None:
        self._files: dict[str, bytes] = {}
        store = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            timeout = 30

            def log_message(self, *_: object) -> None: ...

            def do_GET(self) -> None:
                data = store._files.get(self.path.removeprefix("/"))
                self.send_response(404 if data is None else 200)
                self.send_header("Content-Length", str(len(data or b"")))
                if data is not None:
                    self.send_header("ETag", f'"{hashlib.sha256(data).hexdigest()}"')
                self.end_headers()
                if self.command == "GET" and data is not None:
                    self.wfile.write(data)

            do_HEAD = do_GET

        class Server(ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, *_: object) -> None:
                """A pod that ends in the middle of a download is no fault of the store."""

        self.server = Server((address, 0), Handler)
        self.port: int = self.server.server_address[1]
        self.prefix = f"http://{address}:{self.port}/"

    def put(self, name: str, file: bytes) -> str:
        """The URI of ``file``, which replaces what had the name."""
        self._files[name] = file
        return self.prefix + name

    def remove(self, name: str) -> None:
        """Answer 404 from now on."""
        del self._files[name]


@contextmanager
def store(address: str) -> Iterator[Store]:
    """A store on a port of ``address`` that nobody has, until the context ends."""
    found = Store(address)
    thread = threading.Thread(target=found.server.serve_forever, args=(0.05,), name="store")
    thread.start()
    try:
        yield found
    finally:
        found.server.shutdown()
        thread.join()
        found.server.server_close()
