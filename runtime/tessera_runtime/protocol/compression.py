"""gzip and deflate bodies, both ways, bounded: a small request must not become a large allocation."""

from __future__ import annotations

import zlib

from tessera_runtime.errors import InvalidRequest, TooLarge

_WINDOW = {"gzip": 31, "deflate": 15}
"""zlib's ``wbits``: 15 is the zlib format, which is what HTTP calls deflate (RFC 9110 section 8.4.1.2)."""
_FASTEST = 1
MAX_DEFLATED = 1024 * 1024
"""Larger answers are sent plain: deflating a MiB of floats already holds the event loop for about 20 ms."""


def inflate(data: memoryview | bytes, coding: str, limit: int) -> bytes:
    """The one compressed stream in ``data``. Raises TooLarge over ``limit`` bytes, else InvalidRequest."""
    stream = zlib.decompressobj(_WINDOW[coding])
    try:
        plain = stream.decompress(data, limit + 1)
    except zlib.error as error:
        raise InvalidRequest(f"the body is not valid {coding}: {error}") from None
    if len(plain) > limit:
        raise TooLarge(f"the {coding} body inflates to more than the {limit} bytes allowed")
    if not stream.eof:
        raise InvalidRequest(f"the {coding} body is cut off")
    if stream.unused_data:
        raise InvalidRequest(f"the {coding} body is followed by other data")
    return plain


def deflate(data: bytes, coding: str) -> bytes:
    stream = zlib.compressobj(_FASTEST, zlib.DEFLATED, _WINDOW[coding])
    return stream.compress(data) + stream.flush()
