"""Tensor data of a request: checked, converted, and placed in the input arena.

Shared by both front ends. JSON numbers are converted strictly: a value that the datatype cannot hold
is an error, never a wrap-around. Messages begin with the field of the tensor that is wrong; the caller,
who knows which tensor it is, puts its path in front.
"""

from __future__ import annotations

import types
from collections.abc import Sequence
from functools import lru_cache
from itertools import chain
from typing import Any

import msgspec
import numpy as np

from tessera_runtime.dataplane import DataPlane, Slot
from tessera_runtime.datatypes import BYTES, DATATYPES, decode_bytes, encode_bytes
from tessera_runtime.errors import InvalidRequest

MAX_RANK = 16
MAX_DIMENSION = 2**31 - 1
MAX_EXTENT = 2**40
"""Elements without the empty dimensions: numpy refuses shapes that overflow, also where nothing is in them."""
ALIGNMENT = 64
"""Bytes: a cache line, and what vectorised loads like."""


def count_elements(datatype: str, shape: Sequence[int]) -> int:
    """Elements of a tensor after checking its datatype and shape. Raises InvalidRequest."""
    if datatype not in DATATYPES:
        raise InvalidRequest(
            f"datatype: unknown datatype {datatype[:32]!r}; allowed: {', '.join(DATATYPES)}"
        )
    if len(shape) > MAX_RANK:
        raise InvalidRequest(f"shape: {len(shape)} dimensions; allowed: up to {MAX_RANK}")
    count = extent = 1
    for size in shape:
        if not 0 <= size <= MAX_DIMENSION:
            raise InvalidRequest(f"shape: {size} is outside 0..{MAX_DIMENSION}")
        count *= size
        extent *= size or 1
    if extent > MAX_EXTENT:
        raise InvalidRequest(f"shape: {list(shape)} spans more than {MAX_EXTENT} elements")
    return count


def check_raw(datatype: str, count: int, data: memoryview | bytes) -> None:
    """Whether ``data`` is exactly ``count`` elements on the wire. Raises InvalidRequest."""
    if datatype == BYTES:
        try:
            decode_bytes(data, count)
        except ValueError as error:
            raise InvalidRequest(f"data: malformed BYTES: {error}") from None
        return
    expected = count * DATATYPES[datatype].itemsize
    if len(data) != expected:
        raise InvalidRequest(
            f"data: {len(data)} bytes, but the shape and {datatype} need {expected}"
        )


@lru_cache(maxsize=128)
def _decoder(element: type, depth: int) -> msgspec.json.Decoder[Any]:
    kind: Any = element
    for _ in range(depth):
        kind = types.GenericAlias(list, (kind,))
    return msgspec.json.Decoder(kind)


_ELEMENTS = {"b": bool, "u": int, "i": int, "f": float, "O": str}
"""numpy kind to the JSON element that is accepted; a float takes integers too, nothing else converts."""


def from_json(datatype: str, shape: Sequence[int], data: msgspec.Raw) -> bytes:
    """Elements of a JSON ``data`` array, nested as ``shape`` or flat, in wire form.

    FP16 is accepted as numbers, which Triton refuses. Raises InvalidRequest.
    """
    count = count_elements(datatype, shape)
    element = _ELEMENTS[DATATYPES[datatype].kind]
    text = memoryview(data)
    nested = len(shape) > 1 and bytes(text[1:64]).lstrip()[:1] == b"["
    try:
        values = _decoder(element, len(shape) if nested else 1).decode(text)
        if nested:
            values = _flatten(values, shape)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise InvalidRequest(f"data: {error}") from None
    if len(values) != count:
        raise InvalidRequest(f"data: {len(values)} elements, but shape {list(shape)} needs {count}")
    return wire_bytes(datatype, values)


def _flatten(values: list[Any], shape: Sequence[int]) -> list[Any]:
    """Flatten lists nested exactly as ``shape``; the decoder has already checked the depth."""
    level = [values]
    for axis, size in enumerate(shape):
        for group in level:
            if len(group) != size:
                raise InvalidRequest(
                    f"data: {len(group)} elements on axis {axis}, but shape {list(shape)} needs {size}"
                )
        level = list(chain.from_iterable(level))
    return level


def wire_bytes(datatype: str, values: Sequence[Any]) -> bytes:
    """Python or numpy numbers, or strings, as the wire has them. Raises InvalidRequest out of range."""
    dtype = DATATYPES[datatype]
    try:
        if datatype == BYTES:
            return encode_bytes(np.array(values, dtype=np.object_))
        if dtype.kind != "f":
            return np.array(values, dtype=dtype).tobytes()
    except (ValueError, OverflowError) as error:
        raise InvalidRequest(f"data: {error}") from None
    wide = np.array(values, dtype=np.float64)
    with np.errstate(over="ignore"):
        narrow = wide.astype(dtype)
    if not np.array_equal(np.isfinite(wide), np.isfinite(narrow)):
        raise InvalidRequest(f"data: a value is out of range for {datatype}")
    return narrow.tobytes()


def place(plane: DataPlane, parts: Sequence[bytes]) -> tuple[Slot, list[int]]:
    """Copy ``parts`` into one new slot, each aligned, and say where each starts.

    Raises what :meth:`DataPlane.allocate` raises.
    """
    starts: list[int] = []
    end = 0
    for part in parts:
        start = -(-end // ALIGNMENT) * ALIGNMENT
        starts.append(start)
        end = start + len(part)
    slot = plane.allocate(max(end, 1))
    view = slot.view
    for start, part in zip(starts, parts, strict=True):
        view[start : start + len(part)] = part
    return slot, starts
