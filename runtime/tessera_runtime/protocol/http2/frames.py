"""HTTP/2 frames as bytes (RFC 9113 sections 4 and 6), and the two ways in which a peer can be wrong."""

from __future__ import annotations

import enum
import struct
from typing import Final

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
HEADER = struct.Struct(">HBBBI")
"""Length (16 high and 8 low bits), kind, flags, stream."""
HEADER_SIZE: Final = 9

# Final, one by one: so they are constants of the compiled code, not look-ups in a module.
DATA: Final = 0
HEADERS: Final = 1
PRIORITY: Final = 2
RST_STREAM: Final = 3
SETTINGS: Final = 4
PUSH_PROMISE: Final = 5
PING: Final = 6
GOAWAY: Final = 7
WINDOW_UPDATE: Final = 8
CONTINUATION: Final = 9

END_STREAM: Final = 0x1
ACK: Final = 0x1
END_HEADERS: Final = 0x4
PADDED: Final = 0x8
PRIORITISED: Final = 0x20

MAX_STREAM: Final = 2**31 - 1
MAX_WINDOW: Final = 2**31 - 1
DEFAULT_WINDOW: Final = 65_535
SMALLEST_MAX_FRAME: Final = 2**14
LARGEST_MAX_FRAME: Final = 2**24 - 1


class Code(enum.IntEnum):
    """RFC 9113 section 7."""

    NO_ERROR = 0
    PROTOCOL_ERROR = 1
    INTERNAL_ERROR = 2
    FLOW_CONTROL_ERROR = 3
    STREAM_CLOSED = 5
    FRAME_SIZE_ERROR = 6
    REFUSED_STREAM = 7
    CANCEL = 8
    COMPRESSION_ERROR = 9
    ENHANCE_YOUR_CALM = 11


class Setting(enum.IntEnum):
    """RFC 9113 section 6.5.2."""

    HEADER_TABLE_SIZE = 1
    ENABLE_PUSH = 2
    MAX_CONCURRENT_STREAMS = 3
    INITIAL_WINDOW_SIZE = 4
    MAX_FRAME_SIZE = 5
    MAX_HEADER_LIST_SIZE = 6


class BadConnection(Exception):
    """The peer broke the protocol in a way that ends the connection (GOAWAY)."""

    def __init__(self, code: Code, message: str) -> None:
        super().__init__(message)
        self.code = code


class BadStream(Exception):
    """The peer broke the protocol in a way that ends one stream (RST_STREAM)."""

    def __init__(self, code: Code, message: str) -> None:
        super().__init__(message)
        self.code = code


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    size = len(payload)
    return HEADER.pack(size >> 8, size & 0xFF, kind, flags, stream) + payload


def frame_header(size: int, kind: int, flags: int, stream: int) -> bytes:
    return HEADER.pack(size >> 8, size & 0xFF, kind, flags, stream)


def settings_frame(values: dict[Setting, int]) -> bytes:
    payload = b"".join(struct.pack(">HI", *one) for one in values.items())
    return frame(SETTINGS, 0, 0, payload)


def window_update(stream: int, credit: int) -> bytes:
    return frame(WINDOW_UPDATE, 0, stream, credit.to_bytes(4, "big"))


def reset(stream: int, code: Code) -> bytes:
    return frame(RST_STREAM, 0, stream, code.to_bytes(4, "big"))


def goaway(last: int, code: Code, message: str = "") -> bytes:
    payload = struct.pack(">II", last, code) + message.encode("ascii", "replace")
    return frame(GOAWAY, 0, 0, payload)


def read_settings(payload: bytes) -> list[tuple[int, int]]:
    """Identifiers and values of a SETTINGS frame, unknown ones included. Raises BadConnection."""
    if len(payload) % 6:
        raise BadConnection(Code.FRAME_SIZE_ERROR, "SETTINGS of an odd size")
    found = list(struct.iter_unpack(">HI", payload))
    for identifier, value in found:
        match identifier:
            case Setting.ENABLE_PUSH if value > 1:
                raise BadConnection(Code.PROTOCOL_ERROR, "ENABLE_PUSH is neither 0 nor 1")
            case Setting.INITIAL_WINDOW_SIZE if value > MAX_WINDOW:
                raise BadConnection(Code.FLOW_CONTROL_ERROR, "INITIAL_WINDOW_SIZE is over 2^31-1")
            case Setting.MAX_FRAME_SIZE if not SMALLEST_MAX_FRAME <= value <= LARGEST_MAX_FRAME:
                raise BadConnection(Code.PROTOCOL_ERROR, "MAX_FRAME_SIZE is outside 2^14..2^24-1")
    return found


def unpadded(payload: bytes) -> bytes:
    """The payload of a frame with the PADDED flag, without its padding. Raises BadConnection."""
    if not payload or payload[0] >= len(payload):
        raise BadConnection(Code.PROTOCOL_ERROR, "padding is longer than its frame")
    return payload[1 : len(payload) - payload[0]]
