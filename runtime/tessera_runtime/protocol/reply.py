"""HTTP answers as bytes. The heads of the two that matter are filled into precomputed templates."""

from __future__ import annotations

from http import HTTPStatus

from tessera_runtime.dataplane import InferReply
from tessera_runtime.protocol.compression import MAX_DEFLATED, deflate
from tessera_runtime.protocol.head import Head
from tessera_runtime.protocol.rest import Response
from tessera_runtime.protocol.v2json import Encoding, encode_reply

CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"

_CLIENT_CLOSED = 499
_REASONS = {status.value: status.phrase for status in HTTPStatus} | {
    _CLIENT_CLOSED: "Client Closed Request"
}
_LINES = {code: f"HTTP/1.1 {code} {text}\r\n".encode() for code, text in _REASONS.items()}
_JSON = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n"
_BINARY = (
    b"HTTP/1.1 200 OK\r\nContent-Type: application/octet-stream\r\n"
    b"Inference-Header-Content-Length: %d\r\nContent-Length: %d\r\n"
)
_JOINED = 64 * 1024
"""Answers up to this many bytes go out as one buffer: cheaper to copy than to write in pieces."""
_TOO_BUSY = (429, 503)


def infer_answer(
    head: Head, reply: InferReply, encoding: Encoding, close: bool
) -> list[bytes | memoryview]:
    """An answered inference in pieces to write: one, unless large.

    Raises InvalidRequest when an output that was asked for as JSON cannot be written as JSON.
    """
    text, tail = encode_reply(reply, encoding)
    json_size = len(text)
    size = json_size + sum(map(len, tail))
    if head.reply_encoding and size <= MAX_DEFLATED:
        coded = deflate(b"".join((text, *tail)), head.reply_encoding)
        start = _infer_head(head, json_size if tail else None, len(coded), close, True)
        return [start + coded]
    start = _infer_head(head, json_size if tail else None, size, close, False)
    if size <= _JOINED:
        return [b"".join((start, text, *tail))]
    return [start, text, *tail]


def _infer_head(head: Head, json_size: int | None, size: int, close: bool, coded: bool) -> bytes:
    """``size`` bytes, JSON alone where ``json_size`` is None."""
    text = _JSON % size if json_size is None else _BINARY % (json_size, size)
    if coded:
        text += b"Content-Encoding: %b\r\n" % head.reply_encoding.encode()
    return text + _connection(head, close)


def plain_answer(head: Head | None, response: Response, close: bool) -> bytes:
    """Any other answer; bodies are JSON. ``head`` is None when it could not be parsed."""
    text = _LINES[response.status]
    size = len(response.body)
    if response.allow:
        text += f"Allow: {response.allow}\r\n".encode()
    if response.status == HTTPStatus.UNAUTHORIZED:
        text += b"WWW-Authenticate: Bearer\r\n"
    if response.status in _TOO_BUSY:
        text += b"Retry-After: 1\r\n"
    if size:
        text += b"Content-Type: application/json\r\n"
    if response.status != HTTPStatus.NO_CONTENT:
        text += b"Content-Length: %d\r\n" % size
    text += _connection(head, close)
    return text if head is not None and head.method == "HEAD" else text + response.body


def _connection(head: Head | None, close: bool) -> bytes:
    """The end of a head: what becomes of the connection, and the blank line."""
    if close:
        return b"Connection: close\r\n\r\n"
    if head is not None and head.http_1_0:
        return b"Connection: keep-alive\r\n\r\n"
    return b"\r\n"
