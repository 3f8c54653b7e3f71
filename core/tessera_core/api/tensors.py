"""Tensor metadata: what a model's inputs and outputs look like, where the model file does not say it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated, ClassVar

from tessera_core.api.errors import FieldError, Report
from tessera_core.api.records import ListOf, Rule
from tessera_core.api.scalars import MOST_INTEGER, Leaf, matching

VARIABLE = -1
"""A dimension whose length differs between requests."""

MOST_DIMENSIONS = 8
MOST_BUCKETS = 64
Shape = tuple[int, ...]


class Datatype(StrEnum):
    """Tensor datatypes of the Open Inference Protocol v2.

    https://github.com/open-inference/open-inference-protocol/blob/main/specification/protocol/inference_rest.md
    """

    BOOL = "BOOL"
    UINT8 = "UINT8"
    UINT16 = "UINT16"
    UINT32 = "UINT32"
    UINT64 = "UINT64"
    INT8 = "INT8"
    INT16 = "INT16"
    INT32 = "INT32"
    INT64 = "INT64"
    FP16 = "FP16"
    FP32 = "FP32"
    FP64 = "FP64"
    BYTES = "BYTES"


TENSOR_NAME = matching(r"[^\s\x00-\x1f]{1,256}", "a tensor name: 1 to 256 characters, no spaces")


def _length(value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= MOST_INTEGER:
        raise ValueError("not a length")
    return value


def _length_or_variable(value: object) -> int:
    return VARIABLE if value == VARIABLE and isinstance(value, int) else _length(value)


class _BucketShape(ListOf):
    """A fixed shape; a bare length stands for a shape of one dimension."""

    __slots__ = ()

    def decode(self, value: object, path: str, report: Report) -> object:
        bare = isinstance(value, int) and not isinstance(value, bool)
        return super().decode([value] if bare else value, path, report)


SHAPE = ListOf(
    Leaf(f"an integer of at least 1, or {VARIABLE} where it varies", _length_or_variable),
    most=MOST_DIMENSIONS,
)
BUCKETS = ListOf(
    _BucketShape(Leaf("an integer of at least 1", _length), 1, MOST_DIMENSIONS), 1, MOST_BUCKETS
)


@dataclass(frozen=True, slots=True)
class Tensor:
    """One tensor that a model takes or gives, without the batch dimension."""

    name: Annotated[str, TENSOR_NAME]
    datatype: Datatype
    shape: Annotated[Shape, SHAPE]
    """Shape of one row: ``[1, 8, 8]`` for images that a client sends as ``[n, 1, 8, 8]``. Lengths that differ
    between requests are -1; ``[]`` is one scalar a row."""


@dataclass(frozen=True, slots=True)
class Padding:
    """Shapes that rows of variable shape are padded to with zeros, so that unequal rows share a batch.

    A row goes to the first bucket that holds it, in the order written, so smaller ones come first.
    """

    buckets: Annotated[tuple[Shape, ...], BUCKETS]
    """Whole row shapes, fixed dimensions included. In a document a bare ``128`` stands for ``[128]``."""
    mixed: bool = True
    """Whether a batch may hold rows of several buckets, padded to the largest of them, where that serves sooner. False where
    answers change with padding, so that they would depend on what came along; answers whose shape does are never mixed."""


def _buckets_fit_the_shape(tensor: InputTensor) -> Iterator[FieldError]:
    if tensor.padding is None:
        return
    if VARIABLE not in tensor.shape:
        yield FieldError("padding", "buckets", "no padding for a shape without a -1 dimension")
        return
    for index, bucket in enumerate(tensor.padding.buckets):
        if len(bucket) != len(tensor.shape) or any(
            length not in (VARIABLE, padded)
            for length, padded in zip(tensor.shape, bucket, strict=True)
        ):
            allowed = f"a row shape of the form {list(tensor.shape)}, each -1 replaced by a length"
            yield FieldError(f"padding.buckets[{index}]", str(list(bucket)), allowed)
        elif bucket in tensor.padding.buckets[:index]:
            yield FieldError(f"padding.buckets[{index}]", str(list(bucket)), "each bucket once")


def _bytes_are_not_padded(tensor: InputTensor) -> Iterator[FieldError]:
    if tensor.padding is not None and tensor.datatype is Datatype.BYTES:
        yield FieldError("padding", "buckets for BYTES", "padding of numeric datatypes only")


@dataclass(frozen=True, slots=True)
class InputTensor(Tensor):
    """A tensor that a model takes."""

    RULES: ClassVar[tuple[Rule, ...]] = (_buckets_fit_the_shape, _bytes_are_not_padded)

    padding: Padding | None = None
    """Absent: only rows of equal shape share a batch."""
