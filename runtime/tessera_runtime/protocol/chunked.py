"""Strict incremental decoding of the chunked transfer coding (RFC 9112 section 7.1).

llhttp does not say where in its input a message ended, which pipelined requests need, so the framing is
decoded here. Chunk extensions and trailers are ignored, within bounds.
"""

from __future__ import annotations

import enum
import re

_SIZE_LINE = re.compile(rb"([0-9A-Fa-f]{1,8})(?:[ \t]*;[^\x00-\x08\x0a-\x1f\x7f]*)?\r\n")
_MAX_LINE = 256
_MAX_TRAILERS = 32


class _Expect(enum.Enum):
    SIZE = enum.auto()
    DATA = enum.auto()
    DATA_END = enum.auto()
    TRAILER = enum.auto()
    NOTHING = enum.auto()


class ChunkDecoder:
    """Feed it what arrives; it hands back the payload and says how much it consumed."""

    __slots__ = ("_expect", "_left", "_line", "_trailers")

    def __init__(self) -> None:
        self._expect = _Expect.SIZE
        self._left = 0
        self._line = b""
        self._trailers = 0

    @property
    def done(self) -> bool:
        return self._expect is _Expect.NOTHING

    def feed(self, data: bytes) -> tuple[list[bytes], int]:
        """Pieces of payload in ``data`` and how many bytes belonged to this body: all, unless done.

        Raises ValueError for bad framing.
        """
        pieces: list[bytes] = []
        at = 0
        while at < len(data) and not self.done:
            if self._expect is _Expect.DATA:
                piece = data[at : at + self._left]
                pieces.append(piece)
                at += len(piece)
                self._left -= len(piece)
                if not self._left:
                    self._expect = _Expect.DATA_END
                continue
            newline = data.find(b"\n", at, at + _MAX_LINE)
            stop = newline + 1 if newline >= 0 else min(len(data), at + _MAX_LINE)
            self._line += data[at:stop]
            at = stop
            if len(self._line) > _MAX_LINE or (newline < 0 and len(self._line) == _MAX_LINE):
                raise ValueError(f"a line of the chunked body is longer than {_MAX_LINE} bytes")
            if newline >= 0:
                line, self._line = self._line, b""
                self._take(line)
        return pieces, at

    def _take(self, line: bytes) -> None:
        if not line.endswith(b"\r\n"):
            raise ValueError("a line of the chunked body ends without CR LF")
        if self._expect is _Expect.SIZE:
            match = _SIZE_LINE.fullmatch(line)
            if match is None:
                raise ValueError("a chunk size is not 1 to 8 hexadecimal digits")
            self._left = int(match[1], 16)
            self._expect = _Expect.DATA if self._left else _Expect.TRAILER
        elif self._expect is _Expect.DATA_END:
            if line != b"\r\n":
                raise ValueError("a chunk is longer than its size")
            self._expect = _Expect.SIZE
        elif line == b"\r\n":
            self._expect = _Expect.NOTHING
        else:
            self._trailers += 1
            if self._trailers > _MAX_TRAILERS:
                raise ValueError(f"more than {_MAX_TRAILERS} trailers after the chunked body")
