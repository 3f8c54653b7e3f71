"""Host memory of a lane and the checks on both sides of a model, the same for every engine.

A lane gets the shapes of the next batch, hands out arrays for the worker to fill and runs them. The arrays
are views of memory that is allocated once, for the largest batch: nothing is allocated per batch as long
as row shapes are fixed, and memory grows to the largest batch seen where they vary. What follows from the
shapes alone (that they fit, the views, what the answer has to look like) is found out once for each and kept.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from tessera_runtime.datatypes import DATATYPES, datatype_of
from tessera_runtime.engines.base import LoadRefused, RunFailed, Signature, TensorMeta

Allocate = Callable[[int, np.dtype], np.ndarray]
"""A writable flat array of that many elements."""


def zeros(count: int, dtype: np.dtype) -> np.ndarray:
    """Pageable host memory; zeroed, so that padding rows hold no surprises such as NaN."""
    return np.full(count, b"", dtype) if dtype.kind == "O" else np.zeros(count, dtype)


MOST_STAGED = 256
"""Shapes that are remembered; with fixed rows there is one for each size of batch."""


class HostBuffer:
    """Grow-only memory of one tensor."""

    def __init__(self, meta: TensorMeta, rows: int, allocate: Allocate = zeros) -> None:
        self._dtype = DATATYPES[meta.datatype]
        self._allocate = allocate
        fixed = -1 not in meta.row_shape
        self._flat = allocate(rows * math.prod(meta.row_shape) if fixed else 0, self._dtype)

    def too_small(self, shape: tuple[int, ...]) -> bool:
        return math.prod(shape) > self._flat.size

    def view(self, shape: tuple[int, ...]) -> np.ndarray:
        """The memory as an array of ``shape``, with whatever it held before."""
        count = math.prod(shape)
        if count > self._flat.size:
            self._flat = self._allocate(count, self._dtype)
        return self._flat[:count].reshape(shape)


def matches(row_shape: Sequence[int], shape: Sequence[int]) -> bool:
    """Whether the dimensions of a row are as ``row_shape`` says; -1 matches any."""
    return len(row_shape) == len(shape) and all(
        want in (-1, found) for want, found in zip(row_shape, shape, strict=True)
    )


def check_staged(
    signature: Signature, shapes: Mapping[str, tuple[int, ...]], max_batch: int
) -> int:
    """Rows of the batch. Raises ValueError where ``shapes`` do not fit the signature."""
    if shapes.keys() != {meta.name for meta in signature.inputs}:
        wanted = [meta.name for meta in signature.inputs]
        raise ValueError(f"inputs {sorted(shapes)}; the model takes {wanted}")
    rows = {shape[:1] for shape in shapes.values()}
    if len(rows) != 1 or not rows <= {(n,) for n in range(1, max_batch + 1)}:
        raise ValueError(f"shapes {dict(shapes)}: one batch size of 1 to {max_batch} is allowed")
    for meta in signature.inputs:
        if not matches(meta.row_shape, shapes[meta.name][1:]):
            raise ValueError(
                f"input {meta.name!r}: rows of shape {shapes[meta.name][1:]}; "
                f"allowed {meta.row_shape} (-1 is any)"
            )
    return rows.pop()[0]


@dataclass(frozen=True, slots=True)
class Staged:
    """What follows from the shapes of a batch."""

    signature: Signature
    rows: int
    full: Mapping[str, np.ndarray]
    """Of the rows that the model runs, padding included, in the signature's order."""
    given: Mapping[str, np.ndarray]
    """The rows of the batch: what is filled."""
    prepared: Any
    """``full`` as the engine takes it."""
    expected: tuple[tuple[str, tuple[int, ...], np.dtype], ...]
    """Name, shape and dtype of each output; empty where a shape is not known before."""

    def checked(self, outputs: Mapping[str, np.ndarray]) -> Mapping[str, np.ndarray]:
        """``outputs`` when they are what the signature promises, else RunFailed."""
        if not self.expected:
            return check_answer(self.signature, outputs, self.rows)
        for name, shape, dtype in self.expected:
            array = outputs.get(name)
            if type(array) is not np.ndarray or array.shape != shape or array.dtype != dtype:
                return check_answer(self.signature, outputs, self.rows)
        return outputs


class Staging:
    """The host memory of one lane."""

    def __init__(
        self,
        signature: Signature,
        max_batch: int,
        padded: Callable[[int], int] = lambda rows: rows,
        prepare: Callable[[Mapping[str, np.ndarray]], Any] = lambda full: full,
        allocate: Allocate = zeros,
    ) -> None:
        self._signature = signature
        self._max_batch = max_batch
        self._padded = padded
        self._prepare = prepare
        rows = padded(max_batch)
        self._buffers = {meta.name: HostBuffer(meta, rows, allocate) for meta in signature.inputs}
        self._known: dict[tuple[tuple[str, tuple[int, ...]], ...], Staged] = {}

    def stage(self, shapes: Mapping[str, tuple[int, ...]]) -> Staged:
        """The same object for the same shapes, until memory grows. Raises ValueError as check_staged."""
        key = tuple(shapes.items())
        staged = self._known.get(key)
        if staged is None:
            staged = self._new(shapes)
            self._known[key] = staged
        return staged

    def _new(self, shapes: Mapping[str, tuple[int, ...]]) -> Staged:
        rows = check_staged(self._signature, shapes, self._max_batch)
        padded = self._padded(rows)
        wanted = {meta.name: (padded, *shapes[meta.name][1:]) for meta in self._signature.inputs}
        grows = any(self._buffers[name].too_small(shape) for name, shape in wanted.items())
        if grows or len(self._known) >= MOST_STAGED:
            self._known.clear()  # views would keep the memory that is replaced
        full = {name: self._buffers[name].view(shape) for name, shape in wanted.items()}
        outputs = self._signature.outputs
        fixed = all(-1 not in meta.row_shape for meta in outputs)
        return Staged(
            self._signature,
            rows,
            full,
            full if padded == rows else {name: array[:rows] for name, array in full.items()},
            self._prepare(full),
            tuple((t.name, (rows, *t.row_shape), DATATYPES[t.datatype]) for t in outputs)
            if fixed
            else (),
        )

    def close(self) -> None:
        self._known.clear()
        self._buffers.clear()


def check_answer(
    signature: Signature, outputs: Mapping[str, np.ndarray], rows: int
) -> Mapping[str, np.ndarray]:
    """``outputs`` when they are what the signature promises for ``rows`` rows, else RunFailed."""
    for meta in signature.outputs:
        array = outputs.get(meta.name)
        if not isinstance(array, np.ndarray):
            raise RunFailed(f"output {meta.name!r} is missing from the model's answer")
        if array.shape[:1] != (rows,) or not matches(meta.row_shape, array.shape[1:]):
            raise RunFailed(
                f"output {meta.name!r}: the model answered shape {array.shape}; "
                f"expected {(rows, *meta.row_shape)} (-1 is any)"
            )
        if array.dtype != DATATYPES[meta.datatype]:
            raise RunFailed(
                f"output {meta.name!r}: the model answered {array.dtype}; expected {meta.datatype}"
            )
    return outputs


def check_max_batch(signature: Signature, max_batch: int) -> None:
    """Raises ValueError for a lane that the model cannot fill."""
    limit = signature.max_rows
    if max_batch < 1 or (limit is not None and max_batch > limit):
        allowed = "at least 1" if limit is None else f"1 to {limit}"
        raise ValueError(f"max_batch {max_batch}; the model allows {allowed}")


def merge_declared(
    kind: str, found: tuple[TensorMeta, ...], declared: tuple[TensorMeta, ...], *, named: bool
) -> tuple[TensorMeta, ...]:
    """What the file says, narrowed by what was declared.

    ``kind`` is ``inputs`` or ``outputs``. With ``named`` tensors are paired by name, else by position, and
    take the declared names. Raises LoadRefused where file and declaration contradict each other.
    """
    if not declared:
        return found
    if len(found) != len(declared):
        raise LoadRefused(f"{kind}: {len(declared)} declared, the model has {len(found)}")
    if named:
        by_name = {meta.name: meta for meta in declared}
        missing = [meta.name for meta in found if meta.name not in by_name]
        if missing:
            raise LoadRefused(f"{kind}: declared {sorted(by_name)}, the model has {missing} too")
        declared = tuple(by_name[meta.name] for meta in found)
    return tuple(
        _narrow(f"{kind}[{meta.name!r}]", file, meta)
        for file, meta in zip(found, declared, strict=True)
    )


def _narrow(where: str, file: TensorMeta, declared: TensorMeta) -> TensorMeta:
    if file.datatype != declared.datatype:
        raise LoadRefused(
            f"{where}.datatype: declared {declared.datatype}, the model has {file.datatype}"
        )
    pairs = tuple(zip(file.row_shape, declared.row_shape, strict=False))
    if len(file.row_shape) != len(declared.row_shape) or any(
        a != b and -1 not in (a, b) for a, b in pairs
    ):
        raise LoadRefused(
            f"{where}.shape: declared rows {declared.row_shape}, the model has {file.row_shape}"
        )
    return replace(declared, row_shape=tuple(max(a, b) for a, b in pairs))


def discover_outputs(
    call: Callable[[int], Mapping[str, np.ndarray]],
) -> tuple[tuple[TensorMeta, ...], int | None]:
    """Output metadata of a model that carries none, and the most rows it takes, from dry runs.

    ``call`` runs that many rows. A model that takes one row and not two has a static batch dimension of 1.
    Raises LoadRefused when the model cannot run one row, or its outputs have no batch dimension.
    """
    try:
        one = call(1)
    except Exception as error:
        raise LoadRefused(f"the model failed a dry run of one row: {error}") from error
    try:
        two: Mapping[str, np.ndarray] | None = call(2)
    except Exception:
        two = None
    metas = []
    for name, array in one.items():
        shapes = [(1, array.shape)] + ([] if two is None else [(2, two[name].shape)])
        for rows, shape in shapes:
            if shape != (rows, *array.shape[1:]):
                raise LoadRefused(
                    f"output {name!r} has shape {shape} for {rows} rows; its first dimension must be "
                    "the batch and the others must not depend on it"
                )
        metas.append(TensorMeta(name, datatype_of(array.dtype), array.shape[1:]))
    return tuple(metas), None if two is not None else 1


def example_rows(inputs: tuple[TensorMeta, ...], rows: int) -> dict[str, np.ndarray]:
    """Zeros for a dry run; variable dimensions are 1."""
    return {
        meta.name: zeros(
            math.prod(shape := (rows, *(max(n, 1) for n in meta.row_shape))),
            DATATYPES[meta.datatype],
        ).reshape(shape)
        for meta in inputs
    }
