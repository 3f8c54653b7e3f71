"""A proxy in front of the API server that fails as servers and networks do, and counts what it is asked.

Clients speak plain HTTP to it, which they are told by their kubeconfig; it speaks TLS to the server and adds nothing
of its own, so that whoever asks keeps the name and the rights of its token. A rule decides for each call what becomes
of it, before the server hears of it.
"""

from __future__ import annotations

import json
import socket
import ssl
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.client import HTTPException, HTTPResponse, HTTPSConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import parse_qs, urlsplit

from e2e.native.control_plane import Access

_UPSTREAM_S = 300.0
_MOST_HANG_S = 120.0
_RESET = struct.pack(
    "ii", 1, 0
)  # close with RST, as a machine does that knows nothing of the connection
_HOP = {"connection", "keep-alive", "transfer-encoding", "content-length"}
LEASES = "leases"


@dataclass(frozen=True, slots=True)
class Call:
    """One request as it came."""

    method: str
    path: str
    plural: str
    """Of the resource: ``modelservices``."""
    name: str
    """Of the object, with its subresource; empty for lists."""
    is_watch: bool
    body: bytes = field(repr=False)

    @property
    def is_write(self) -> bool:
        """Whether it changes an object; renewals of leases are counted apart."""
        return self.method != "GET" and self.plural != LEASES


class Fault(Protocol):
    """What becomes of a call instead of an answer."""

    def happen(self, exchange: Exchange) -> None: ...


Rule = Callable[[Call], Fault | None]
"""Called in the order in which calls come, one at a time. None: the server answers."""


@dataclass(frozen=True, slots=True)
class Answer:
    """A refusal in the server's place."""

    status: int
    headers: tuple[tuple[str, str], ...] = ()

    def happen(self, exchange: Exchange) -> None:
        document = {
            "kind": "Status",
            "status": "Failure",
            "code": self.status,
            "message": "a fault",
        }
        exchange.answer(self.status, self.headers, json.dumps(document).encode())


@dataclass(frozen=True, slots=True)
class Reset:
    """The connection breaks; ``heard``: after the server has done what was asked."""

    heard: bool = False
    first: Callable[[], None] | None = None
    """Called before it breaks."""

    def happen(self, exchange: Exchange) -> None:
        if self.heard:
            exchange.ask().read()
        if self.first is not None:
            self.first()
        exchange.reset()


@dataclass(frozen=True, slots=True)
class Hold:
    """Nothing happens until ``until`` is set; then the call goes on, or nobody ever answers."""

    until: threading.Event
    goes_on: bool = True

    def happen(self, exchange: Exchange) -> None:
        self.until.wait(_MOST_HANG_S)
        if self.goes_on:
            exchange.forward()
        else:
            exchange.reset()


class Proxy:
    """One server on loopback. Thread-safe."""

    def __init__(self, access: Access) -> None:
        url = urlsplit(access.url)
        assert url.hostname is not None
        assert url.port is not None
        self._access, self._server = access, (url.hostname, url.port)
        self._tls = ssl.create_default_context(cafile=access.ca)
        self._lock = threading.Lock()
        self._watches: dict[Exchange, str] = {}
        self._rule: Rule | None = None
        self.calls: list[Call] = []
        """All that came, in their order."""
        self.answers: list[tuple[Call, int, bytes]] = []
        """What the server said to those that change something: status and body."""
        proxy = self

        class Handler(Exchange):
            owner = proxy

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._http.daemon_threads = True

    @property
    def access(self) -> Access:
        """The way through the proxy, as whom it leads to the server."""
        return Access(
            f"http://127.0.0.1:{self._http.server_address[1]}", self._access.ca, self._access.token
        )

    def kubeconfig(self, path: Path) -> Path:
        return self.access.kubeconfig(path)

    @contextmanager
    def running(self) -> Iterator[Proxy]:
        thread = threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield self
        finally:
            self._http.shutdown()
            thread.join()
            self._http.server_close()
            self.cut()

    @contextmanager
    def faulty(self, rule: Rule) -> Iterator[None]:
        """Have ``rule`` decide inside."""
        self.rule(rule)
        try:
            yield
        finally:
            self.rule(None)

    def rule(self, rule: Rule | None) -> None:
        """Have ``rule`` decide from now on; None: everything passes."""
        with self._lock:
            self._rule = rule

    def cut(self, plural: str | None = None) -> int:
        """Break the watches of a resource, or all, in the middle of what they are saying; how many there were."""
        with self._lock:
            found = [each for each, name in self._watches.items() if plural in (None, name)]
        for each in found:
            each.reset()
        return len(found)

    def tell(self, plural: str, event: dict[str, Any]) -> int:
        """Say something in the server's place to whoever watches; how many heard it."""
        with self._lock:
            found = [each for each, name in self._watches.items() if name == plural]
        for each in found:
            each.say(json.dumps(event).encode() + b"\n")
        return len(found)

    def watching(self, plural: str) -> bool:
        with self._lock:
            return plural in self._watches.values()

    def writes(self, since: int = 0) -> list[Call]:
        """Those of ``calls`` from number ``since`` on that change something."""
        return [call for call in self.calls[since:] if call.is_write]

    def decide(self, call: Call) -> Fault | None:
        with self._lock:
            self.calls.append(call)
            return None if self._rule is None else self._rule(call)

    def opened(self, exchange: Exchange, plural: str) -> None:
        with self._lock:
            self._watches[exchange] = plural

    def closed(self, exchange: Exchange) -> None:
        with self._lock:
            self._watches.pop(exchange, None)

    def connect(self) -> HTTPSConnection:
        return HTTPSConnection(*self._server, timeout=_UPSTREAM_S, context=self._tls)


class Exchange(BaseHTTPRequestHandler):
    """The calls of one connection."""

    owner: Proxy
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def setup(self) -> None:
        super().setup()
        self._upstream = self.owner.connect()
        self._saying = threading.Lock()
        self._is_broken = False

    def finish(self) -> None:
        self._upstream.close()
        try:
            super().finish()
        except (OSError, ValueError):
            pass  # the connection was reset

    def handle(self) -> None:
        try:
            super().handle()
        except (OSError, ValueError):
            self.close_connection = True

    def do_GET(self) -> None:
        self._body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self._call = _call(self.command, self.path, self._body)
        fault = self.owner.decide(self._call)
        if fault is not None:
            fault.happen(self)
            return
        try:
            self.forward()
        except (HTTPException, ConnectionError, TimeoutError):
            self._upstream.close()
            self.reset()  # the server is not there, or went away

    do_DELETE = do_PATCH = do_POST = do_PUT = do_GET

    def ask(self) -> HTTPResponse:
        """What the server answers; an idle connection that it has closed meanwhile is opened anew."""
        headers = {name: value for name, value in self.headers.items() if name.lower() != "host"}
        for _ in range(2):
            try:
                self._upstream.request(self.command, self.path, self._body or None, headers)
                return self._upstream.getresponse()
            except (HTTPException, ConnectionError):
                self._upstream.close()
        raise ConnectionError("the API server does not answer")

    def forward(self) -> None:
        answer = self.ask()
        if self._call.is_watch and answer.status == 200:
            self._stream(answer)
        else:
            headers = tuple(each for each in answer.getheaders() if each[0].lower() not in _HOP)
            body = answer.read()
            if self._call.is_write:
                self.owner.answers.append((self._call, answer.status, body))
            self.answer(answer.status, headers, body)

    def answer(self, status: int, headers: tuple[tuple[str, str], ...], body: bytes) -> None:
        self.send_response_only(status)
        for name, value in (*headers, ("Content-Length", str(len(body)))):
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def _stream(self, answer: HTTPResponse) -> None:
        self.send_response_only(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        self.owner.opened(self, self._call.plural)
        try:
            while data := answer.read1(1 << 16):
                self.say(data)
            if not self._is_broken:
                self.say(b"")
        except (HTTPException, OSError, ValueError):
            self.reset()
        finally:
            self.owner.closed(self)

    def say(self, data: bytes) -> None:
        """A part of a watch; an empty one is its end."""
        with self._saying:
            try:
                self.wfile.write(b"%x\r\n%b\r\n" % (len(data), data))
            except (OSError, ValueError):
                self.close_connection = True

    def reset(self) -> None:
        """Break the connection; another thread that is forwarding a watch here stops."""
        self.close_connection = self._is_broken = True
        server = self._upstream.sock
        try:
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            if server is not None:
                socket.socket.shutdown(server, socket.SHUT_RDWR)  # TLS would want to say farewell
        except OSError:
            pass  # it is broken already

    def log_message(self, *_: object) -> None:
        pass


def _call(method: str, target: str, body: bytes) -> Call:
    url = urlsplit(target)
    parts = url.path.strip("/").split("/")
    parts = parts[2:] if parts[0] == "api" else parts[3:]
    if parts[:1] == ["namespaces"] and len(parts) > 2:
        parts = parts[2:]
    watch = "watch" in parse_qs(url.query)
    return Call(method, url.path, parts[0] if parts else "", "/".join(parts[1:]), watch, body)
