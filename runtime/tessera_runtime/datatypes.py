"""Tensor datatypes of the Open Inference Protocol, as numpy sees them.

Front ends, dispatcher, workers and engines all have to agree on what ``FP16`` or ``BYTES`` means and may
not import each other, so the one table lives here. Every datatype but BYTES is a fixed-size little-endian
element. A BYTES element is its length as a little-endian 32-bit integer followed by that many bytes
(binary tensor data extension, "Tensor data"); in memory it is an object array of ``bytes``.

BF16 is left out: numpy has no such type. Engines answer bfloat16 outputs as FP32.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from types import MappingProxyType

import numpy as np

BYTES = "BYTES"

DATATYPES: Mapping[str, np.dtype] = MappingProxyType(
    {
        "BOOL": np.dtype(np.bool_),
        "UINT8": np.dtype("<u1"),
        "UINT16": np.dtype("<u2"),
        "UINT32": np.dtype("<u4"),
        "UINT64": np.dtype("<u8"),
        "INT8": np.dtype("<i1"),
        "INT16": np.dtype("<i2"),
        "INT32": np.dtype("<i4"),
        "INT64": np.dtype("<i8"),
        "FP16": np.dtype("<f2"),
        "FP32": np.dtype("<f4"),
        "FP64": np.dtype("<f8"),
        BYTES: np.dtype(np.object_),
    }
)
"""Datatype name to the numpy dtype of its elements in memory."""

_NAMES = {dtype: name for name, dtype in DATATYPES.items()}
_LENGTH = struct.Struct("<I")


def datatype_of(dtype: np.dtype) -> str:
    """The datatype that a numpy dtype is sent as; ``S`` and ``U`` arrays are BYTES. Raises ValueError."""
    if dtype.kind in "SU":
        return BYTES
    name = _NAMES.get(dtype.newbyteorder("<"))
    if name is None:
        raise ValueError(f"no datatype for numpy {dtype}; allowed: {', '.join(DATATYPES)}")
    return name


def element_size(datatype: str) -> int:
    """Bytes of one element; 0 for BYTES, whose elements differ. Raises ValueError for an unknown name."""
    dtype = DATATYPES.get(datatype)
    if dtype is None:
        raise ValueError(f"unknown datatype {datatype!r}; allowed: {', '.join(DATATYPES)}")
    return 0 if datatype == BYTES else dtype.itemsize


def encode_bytes(array: np.ndarray) -> bytes:
    """Elements of a BYTES tensor in C order, each preceded by its length; ``str`` becomes UTF-8.

    Raises ValueError for an element that is neither ``bytes`` nor ``str``.
    """
    parts: list[bytes] = []
    for index, element in enumerate(array.ravel()):
        if isinstance(element, str):
            element = element.encode()
        elif not isinstance(element, bytes):
            raise ValueError(f"element {index} is {type(element).__name__}; allowed: bytes, str")
        parts.append(_LENGTH.pack(len(element)))
        parts.append(element)
    return b"".join(parts)


def decode_bytes(buffer: bytes | bytearray | memoryview, count: int) -> np.ndarray:
    """Read exactly ``count`` length-prefixed elements into a 1-D object array of ``bytes``.

    Raises ValueError when the buffer is too short, holds an element that runs past its end, or has bytes
    left over. Nothing is allocated for ``count`` before the buffer is known to be large enough for it.
    """
    view = memoryview(buffer).cast("B")
    size = len(view)
    if count < 0 or count * _LENGTH.size > size:
        raise ValueError(
            f"{count} elements need at least {count * _LENGTH.size} bytes, found {size}"
        )
    array = np.empty(count, dtype=np.object_)
    at = 0
    for index in range(count):
        if size - at < _LENGTH.size:
            raise ValueError(f"element {index}: its length is cut off at byte {at} of {size}")
        (length,) = _LENGTH.unpack_from(view, at)
        at += _LENGTH.size
        if length > size - at:
            raise ValueError(f"element {index}: length {length} but only {size - at} bytes left")
        array[index] = bytes(view[at : at + length])
        at += length
    if at != size:
        raise ValueError(f"{size - at} bytes left over after {count} elements")
    return array
