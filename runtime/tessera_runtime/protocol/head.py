"""One HTTP/1.x request head, from bytes to a frozen :class:`Head`, and everything that is refused in it.

A wrong idea of where a request ends lets one client write another's request (request smuggling), so a
head is refused, never repaired. llhttp, through httptools, refuses obsolete folding, bare line feeds, repeated or
contradictory Content-Length and Transfer-Encoding, and bad tokens; the checks here add what it leaves
to the application. A keep-alive client sends the very same bytes with every request, so the function
is pure and remembers its last answers: a repeated head costs one dictionary look-up.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from functools import lru_cache

import httptools

from tessera_runtime.dataplane import Keys
from tessera_runtime.protocol.bearer import keys_of
from tessera_runtime.protocol.routes import Endpoint, Route, route_of

_TRACEPARENT = re.compile(r"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}")
_CODINGS = frozenset({"gzip", "deflate"})
_ONCE = (
    "host",
    "authorization",
    "content-length",
    "transfer-encoding",
    "content-encoding",
    "inference-header-content-length",
)


class BadHead(Exception):
    """A head that ends the connection: ``status`` is the HTTP answer, the text says what was found."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True, slots=True)
class Head:
    method: str
    route: Route
    infer: bool
    """Whether it posts an inference, the one request whose body goes to the arena."""
    host: str
    keep_alive: bool
    http_1_0: bool
    content_length: int
    """Bytes of the body; 0 also for a chunked one."""
    chunked: bool
    expect_continue: bool
    json_length: int | None
    """Bytes of the JSON part (``Inference-Header-Content-Length``); None: the whole body."""
    content_encoding: str
    """``gzip``, ``deflate`` or empty."""
    reply_encoding: str
    """The same, for the answer."""
    traceparent: str
    """A well-formed W3C trace context, or empty."""
    keys: Keys = field(repr=False)
    """The bearer key, if there is one."""


class _Collector:
    """The callbacks that httptools wants."""

    def __init__(self) -> None:
        self.url = b""
        self.headers: list[tuple[str, str]] = []
        self.complete = False

    def on_url(self, url: bytes) -> None:
        self.url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers.append((name.decode("ascii").lower(), value.decode("latin-1").strip()))

    def on_headers_complete(self) -> None:
        self.complete = True


@lru_cache(maxsize=512)
def parse_head(head: bytes) -> Head:
    """Parse a head that ends with its blank line. Raises BadHead."""
    seen = _Collector()
    parser = httptools.HttpRequestParser(seen)
    try:
        parser.feed_data(head)
    except httptools.HttpParserUpgrade:
        pass  # RFC 9110 section 7.8: a server may ignore Upgrade; CONNECT is refused below as a method
    except httptools.HttpParserInvalidMethodError:
        raise BadHead(400, "unknown request method") from None
    except httptools.HttpParserError as error:
        raise BadHead(400, f"malformed request head: {error}") from None
    version = parser.get_http_version() if seen.complete else ""
    if version not in ("1.0", "1.1"):
        raise BadHead(400, "malformed request head: not HTTP/1.0 or HTTP/1.1")
    headers = _unique(seen.headers)
    if version == "1.1" and "host" not in headers:
        raise BadHead(400, "HTTP/1.1 request without a Host header")
    chunked = _chunked(headers, version)
    method = parser.get_method().decode("ascii")
    route = _route(seen.url)
    return Head(
        method=method,
        route=route,
        infer=route.endpoint is Endpoint.INFER and method == "POST",
        host=headers.get("host", ""),
        keep_alive=_keeps_alive(headers, version),
        http_1_0=version == "1.0",
        content_length=_length(headers, "content-length") or 0,
        chunked=chunked,
        expect_continue=_expects_continue(headers, version),
        json_length=_length(headers, "inference-header-content-length"),
        content_encoding=_content_encoding(headers),
        reply_encoding=_reply_encoding(headers),
        traceparent=traceparent_of(headers.get("traceparent", "")),
        keys=keys_of(headers.get("authorization", "")),
    )


def _unique(pairs: list[tuple[str, str]]) -> dict[str, str]:
    headers: dict[str, str] = {}
    for name, value in pairs:
        if name in headers and name in _ONCE:
            raise BadHead(400, f"header {name} is repeated")
        headers[name] = f"{headers[name]}, {value}" if name in headers else value
    return headers


@lru_cache(maxsize=512)
def _route(target: bytes) -> Route:
    path = target.decode("latin-1").split("?", 1)[0]
    if path.startswith("http://"):  # absolute form, RFC 9112 section 3.2.2
        path = "/" + path[len("http://") :].partition("/")[2]
    try:
        return route_of(path)
    except ValueError:
        raise BadHead(400, "the path is not percent-encoded UTF-8") from None


def _chunked(headers: dict[str, str], version: str) -> bool:
    coding = headers.get("transfer-encoding")
    if coding is None:
        return False
    if coding.lower() != "chunked" or version == "1.0" or "content-length" in headers:
        raise BadHead(
            400, "Transfer-Encoding must be 'chunked', in HTTP/1.1, without Content-Length"
        )
    return True


def _keeps_alive(headers: dict[str, str], version: str) -> bool:
    options = {option.strip() for option in headers.get("connection", "").lower().split(",")}
    return "close" not in options and (version == "1.1" or "keep-alive" in options)


def _length(headers: dict[str, str], name: str) -> int | None:
    text = headers.get(name)
    if text is None:
        return None
    if not text.isascii() or not text.isdigit() or len(text) > 15:
        raise BadHead(400, f"header {name} is not a number of bytes")
    return int(text)


def _expects_continue(headers: dict[str, str], version: str) -> bool:
    expect = headers.get("expect")
    if expect is None or version == "1.0":
        return False
    if expect.lower() != "100-continue":
        raise BadHead(417, "only 'Expect: 100-continue' is understood")
    return True


def _content_encoding(headers: dict[str, str]) -> str:
    coding = headers.get("content-encoding", "").lower()
    if coding in ("", "identity"):
        return ""
    if coding not in _CODINGS:
        raise BadHead(415, "Content-Encoding is not one of gzip, deflate, identity")
    return coding


def _reply_encoding(headers: dict[str, str]) -> str:
    """A single coding is a wish. A list is what client libraries announce unasked, and tensors hardly
    shrink: it is answered uncompressed, which every Accept-Encoding allows.
    """
    coding = headers.get("accept-encoding", "").lower()
    return coding if coding in _CODINGS else ""


def traceparent_of(value: str) -> str:
    """``value`` if it is a W3C trace context, else empty: it ends up in logs, so nothing else may pass."""
    return value if _TRACEPARENT.fullmatch(value) else ""
