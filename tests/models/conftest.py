"""A real HTTP store on loopback whose files, faults and requests the test controls."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest


@dataclass
class Store:
    """What the server serves and what it was asked."""

    base: str = ""
    files: dict[str, bytes] = field(default_factory=dict)
    ranges: bool = True
    etags: bool = True
    token: str | None = None
    status: int | None = None
    hold_after: int | None = None
    """Bodies beyond this many bytes of a file are held back until ``released``."""
    held: threading.Event = field(default_factory=threading.Event)
    released: threading.Event = field(default_factory=threading.Event)
    gets: list[tuple[str, int]] = field(default_factory=list)
    """Path and first byte of every GET that was answered with a body."""
    break_at: set[int] = field(default_factory=set)
    """First bytes whose answers are cut off, once each."""

    def url(self, name: str) -> str:
        return f"{self.base}/{name}"


@pytest.fixture
def store() -> Iterator[Store]:
    state = Store()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None: ...

        def do_HEAD(self) -> None:
            self._answer(body=False)

        def do_GET(self) -> None:
            self._answer(body=True)

        def _answer(self, *, body: bool) -> None:
            path = self.path.partition("?")[0].lstrip("/")
            data = state.files.get(path)
            if state.token is not None and self.headers.get("Authorization") != state.token:
                return self._status(403)
            if state.status is not None:
                return self._status(state.status)
            if data is None:
                return self._status(404)
            first, last = 0, len(data) - 1
            wanted = self.headers.get("Range")
            partial = wanted is not None and state.ranges
            if partial:
                left, _, right = wanted.removeprefix("bytes=").partition("-")
                first, last = int(left), min(int(right or last), last)
                if first > last:
                    return self._status(416)
            part = data[first : last + 1]
            self.send_response(206 if partial else 200)
            self.send_header("Content-Length", str(len(part)))
            if state.ranges:
                self.send_header("Accept-Ranges", "bytes")
            if partial:
                self.send_header("Content-Range", f"bytes {first}-{last}/{len(data)}")
            if state.etags:
                self.send_header("ETag", f'"{hash(data):x}"')
            self.end_headers()
            if not body:
                return None
            if state.hold_after is not None and last > state.hold_after:
                state.held.set()
                assert state.released.wait(60)
            state.gets.append((path, first))
            if first in state.break_at:
                state.break_at.remove(first)
                self.wfile.write(part[: len(part) // 2])
                self.close_connection = True
                return None
            try:
                self.wfile.write(part)
            except (BrokenPipeError, ConnectionResetError):
                self.close_connection = True
            return None

        def _status(self, status: int) -> None:
            self.send_response(status)
            self.send_header("Content-Length", "0")
            self.end_headers()

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    server.handle_error = lambda *_: None  # clients are killed on purpose
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    state.base = f"http://127.0.0.1:{server.server_address[1]}"
    yield state
    state.released.set()
    server.shutdown()
    thread.join()
    server.server_close()
