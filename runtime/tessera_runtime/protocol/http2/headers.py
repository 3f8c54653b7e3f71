"""Header blocks (HPACK, RFC 7541) in both directions.

The clients of a server send the same few header blocks over and over. A block that leaves the dynamic table
as it was means the same until the table changes, so its reading is kept by its bytes: a request with known
headers costs one dictionary look-up, any other a full decoding by the ``hpack`` library (some 20 µs).

What is sent is built once from literals that no table remembers: nothing to keep in step with the peer.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

from hpack import Decoder, HPACKError, OversizedHeaderListError
from hpack.table import HeaderTable

from tessera_runtime.protocol.http2.frames import BadConnection, BadStream, Code

# The library writes every field that it decodes to the debug log: bearer keys do not belong there.
logging.getLogger("hpack").setLevel(logging.WARNING)

_KEPT = 32
"""Readings kept for each connection; a client that varies more than that is read anew from time to time."""
_KEPT_BYTES = 512
"""Of a block: a bound of what a client can make a connection hold."""

_NAME = re.compile(rb"[!#$%&'*+\-.^_`|~0-9a-z]+")
_BAD_VALUE = re.compile(rb"[\0\r\n]")
_CONNECTION_SPECIFIC = frozenset(
    {b"connection", b"keep-alive", b"proxy-connection", b"transfer-encoding", b"upgrade"}
)
_REQUIRED = (b":method", b":scheme", b":path")
_PSEUDO = frozenset({*_REQUIRED, b":authority"})

Fields = list[tuple[bytes, bytes]]
_Head = TypeVar("_Head")


@dataclass(frozen=True, slots=True)
class Request:
    """The headers of a well-formed request (RFC 9113 section 8.3)."""

    method: str
    path: str
    authority: str
    length: int | None
    """Its content-length."""
    fields: tuple[tuple[str, str], ...]
    """Without the pseudo-header fields, in order; bytes outside ASCII as in Latin 1."""


def read_request(fields: Fields) -> Request:
    """Raises BadStream for a request that is malformed."""
    pseudo: dict[bytes, bytes] = {}
    plain: list[tuple[str, str]] = []
    length: int | None = None
    for name, value in fields:
        if name.startswith(b":"):
            if plain or name not in _PSEUDO or name in pseudo:
                raise BadStream(Code.PROTOCOL_ERROR, "an unexpected pseudo-header field")
            pseudo[name] = value
            continue
        _check_field(name, value)
        if name == b"content-length":
            if not value.isdigit() or len(value) > 18 or length not in (None, int(value)):
                raise BadStream(Code.PROTOCOL_ERROR, "a malformed content-length")
            length = int(value)
        plain.append((name.decode("ascii"), value.decode("latin-1")))
    if not all(pseudo.get(name) for name in _REQUIRED):
        raise BadStream(Code.PROTOCOL_ERROR, "a pseudo-header field is missing")
    method, path, authority = (
        pseudo.get(name, b"").decode("latin-1") for name in (b":method", b":path", b":authority")
    )
    return Request(method, path, authority, length, tuple(plain))


def check_trailers(fields: Fields) -> None:
    """Raises BadStream for trailers that a request cannot have."""
    for name, value in fields:
        _check_field(name, value)


def _check_field(name: bytes, value: bytes) -> None:
    if not _NAME.fullmatch(name) or _BAD_VALUE.search(value):
        raise BadStream(Code.PROTOCOL_ERROR, "a malformed header field")
    if name in _CONNECTION_SPECIFIC or (name == b"te" and value != b"trailers"):
        raise BadStream(Code.PROTOCOL_ERROR, "a connection-specific header field")


class _Table(HeaderTable):
    """A dynamic table that can tell whether it is still the same."""

    def __init__(self) -> None:
        super().__init__()
        self._added = 0

    def add(self, name: bytes, value: bytes) -> None:
        self._added += 1
        super().add(name, value)

    @property
    def version(self) -> tuple[int, int, int]:
        return self._added, len(self.dynamic_entries), self.maxsize


class HeaderReader(Generic[_Head]):
    """The header blocks of one connection's requests, each read to what ``interpret`` makes of it."""

    __slots__ = ("_decoder", "_interpret", "_table", "known")

    def __init__(self, interpret: Callable[[Request], _Head], largest: int) -> None:
        """``largest``: bytes of one header list, as RFC 9113 counts SETTINGS_MAX_HEADER_LIST_SIZE."""
        self._interpret = interpret
        self._decoder = Decoder(largest)
        self._table = self._decoder.header_table = _Table()
        self.known: dict[bytes, _Head] = {}
        """Readings that hold while the table stays as it is."""

    def read(self, block: bytes) -> _Head:
        """For a block that is not ``known``. Raises BadConnection or, with the table in step, BadStream."""
        version = self._table.version
        head = self._interpret(read_request(self.decode(block)))
        if version == self._table.version and len(block) <= _KEPT_BYTES:
            if len(self.known) >= _KEPT:
                self.known.clear()
            self.known[block] = head
        return head

    def decode(self, block: bytes) -> Fields:
        """Every block has to be decoded, also those of streams that are not wanted. Raises BadConnection."""
        version = self._table.version
        try:
            return list(self._decoder.decode(block, raw=True))
        except OversizedHeaderListError:
            raise BadConnection(Code.ENHANCE_YOUR_CALM, "a header list over the limit") from None
        except (HPACKError, IndexError, ValueError):
            raise BadConnection(
                Code.COMPRESSION_ERROR, "a header block cannot be decoded"
            ) from None
        finally:
            if version != self._table.version:
                self.known.clear()


def literal(name: bytes, value: bytes) -> bytes:
    """One header field that no table remembers (RFC 7541 section 6.2.2), without Huffman coding."""
    return b"\0" + _length(len(name)) + name + _length(len(value)) + value


def _length(value: int) -> bytes:
    """An integer with a 7-bit prefix (RFC 7541 section 5.1)."""
    if value < 0x7F:
        return bytes((value,))
    coded = bytearray((0x7F,))
    value -= 0x7F
    while value > 0x7F:
        coded.append(value & 0x7F | 0x80)
        value >>= 7
    coded.append(value)
    return bytes(coded)
