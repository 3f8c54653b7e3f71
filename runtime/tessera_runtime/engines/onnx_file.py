"""Finds what an ONNX file refers to outside itself, without the onnx package.

A tensor may keep its values in another file, named relative to the model's. The model cache holds single
files by digest, so there is nothing such a name could rightly mean there, and a crafted one
(``../../etc/…``) would read the host. Any reference is refused.

An ONNX file is one protobuf message. The scan walks the fields that lead to tensors, by number, as in
``onnx.proto`` of ONNX 1.19; everything else is skipped by its length.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from tessera_runtime.engines.base import LoadRefused

MAX_DEPTH = 64
"""Of nested graphs; protobuf itself stops at 100 messages."""

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5

# Message kinds and, per field number, the kind of the message in that field.
_CHILDREN: Mapping[str, Mapping[int, str]] = {
    "model": {7: "graph", 20: "training", 25: "function"},
    "training": {1: "graph", 2: "graph"},
    "function": {7: "node", 11: "attribute"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
    "tensor": {},
}
_TENSOR_EXTERNAL_DATA, _TENSOR_DATA_LOCATION = 13, 14
_GRAPH = 7
_INITIALIZER, _GRAPH_INPUT, _GRAPH_OUTPUT = 5, 11, 12
_TENSOR_NAME, _VALUE_NAME = 8, 1


def check_onnx(path: str) -> None:
    """Raises LoadRefused for a file that is no ONNX model or refers to external data."""
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        view = memoryview(data)
        try:
            top = [number for number, _, _ in _fields(view, 0, len(view))]
            if _GRAPH not in top:
                raise LoadRefused("file has no ONNX graph; check the member's model.format")
            _scan(view, 0, len(view), "model", 0)
        except (IndexError, ValueError) as error:
            raise LoadRefused(
                f"file is no ONNX model or is cut off ({error}); check model.format or fetch it again"
            ) from error
        finally:
            view.release()


@dataclass(frozen=True, slots=True)
class TensorNames:
    """Of a graph, in its order."""

    inputs: tuple[str, ...]
    """Without those that the file gives values, which are weights."""
    outputs: tuple[str, ...]


def tensor_names(path: str) -> TensorNames:
    """What the graph of a checked file calls its inputs and outputs: libraries may know them by other names."""
    inputs: list[str] = []
    outputs: list[str] = []
    given: set[str] = set()
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        view = memoryview(data)
        try:
            for number, _, bounds in list(_fields(view, 0, len(view))):
                if number != _GRAPH:
                    continue
                for field, _, (at, stop) in _fields(view, *bounds):
                    if field == _INITIALIZER:
                        given.add(_text(view, at, stop, _TENSOR_NAME))
                    elif field in (_GRAPH_INPUT, _GRAPH_OUTPUT):
                        names = inputs if field == _GRAPH_INPUT else outputs
                        names.append(_text(view, at, stop, _VALUE_NAME))
        finally:
            view.release()
    return TensorNames(tuple(name for name in inputs if name not in given), tuple(outputs))


def _text(view: Any, start: int, end: int, wanted: int) -> str:
    """The last field ``wanted`` of a message, as protobuf reads it; empty where there is none."""
    found = ""
    for number, wire, (at, stop) in _fields(view, start, end):
        if number == wanted and wire == _BYTES:
            found = bytes(view[at:stop]).decode()
    return found


def _scan(view: Any, start: int, end: int, kind: str, depth: int) -> None:
    if depth > MAX_DEPTH:
        raise LoadRefused(f"ONNX graphs are nested deeper than {MAX_DEPTH} messages")
    children = _CHILDREN[kind]
    for number, wire, (at, stop) in _fields(view, start, end):
        if kind == "tensor" and (
            (number == _TENSOR_EXTERNAL_DATA)
            or (number == _TENSOR_DATA_LOCATION and wire == _VARINT and view[at] != 0)
        ):
            raise LoadRefused(
                "ONNX model keeps weights in external files, which are not served; save it as one file "
                "(onnx.save_model(..., save_as_external_data=False)); the limit of that is 2 GB"
            )
        if wire == _BYTES and number in children:
            _scan(view, at, stop, children[number], depth + 1)


def _fields(view: Any, at: int, end: int) -> Iterator[tuple[int, int, tuple[int, int]]]:
    """Number, wire type and the bounds of the value of each field in ``view[at:end]``."""
    while at < end:
        tag, at = _varint(view, at, end)
        number, wire = tag >> 3, tag & 7
        start = at
        if wire == _VARINT:
            _, at = _varint(view, at, end)
        elif wire == _BYTES:
            length, start = _varint(view, at, end)
            at = start + length
        elif wire in (_FIXED64, _FIXED32):
            at += 8 if wire == _FIXED64 else 4
        else:
            raise ValueError(f"wire type {wire} at byte {at}")
        if number == 0 or at > end:
            raise ValueError(f"field {number} runs past byte {end}")
        yield number, wire, (start, at)


def _varint(view: Any, at: int, end: int) -> tuple[int, int]:
    value = shift = 0
    while at < end and shift < 70:
        byte = view[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
    raise ValueError(f"bad number at byte {at}")
