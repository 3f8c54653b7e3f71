"""One model of a lane: the way of a batch's bytes into its buffers, and of its answers out of them."""

from __future__ import annotations

import math
import mmap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import msgspec
import numpy as np

from tessera_runtime.datatypes import DATATYPES, decode_bytes, encode_bytes
from tessera_runtime.engines.base import EngineLane, Signature
from tessera_runtime.worker import messages as m

Packed = tuple[str, str, tuple[int, ...], memoryview | bytes]
"""Name, datatype, shape and bytes of one output."""


@dataclass(frozen=True, slots=True)
class PlannedPart:
    """Where a batch of one size is copied to and answered from."""

    shapes: Mapping[str, tuple[int, ...]]
    staged: Mapping[str, np.ndarray]
    """The engine's buffers for ``shapes``; others mean that the plan is of memory no longer used."""
    targets: tuple[memoryview, ...]
    """The bytes of the buffers, in the order of the batch's inputs."""
    outputs: tuple[tuple[str, np.ndarray], ...]
    """Places in the region."""

    def write(self, results: Mapping[str, np.ndarray]) -> bool:
        """Whether the answers are of the shapes that there are places for; then they are in them."""
        for name, place in self.outputs:
            array = results[name]
            if array.shape != place.shape:
                return False
            np.copyto(place, array, casting="no")
        return True


class Part:
    """A model as one lane runs it."""

    def __init__(
        self, arena: memoryview, signature: Signature, engine: EngineLane, names: Sequence[str] = ()
    ) -> None:
        """``names``: its inputs in the order in which batches give theirs; without, batches use its own names."""
        self.engine = engine
        self._arena = arena
        self._signature = signature
        self._names = tuple(names)
        self._datatypes = {t.name: t.datatype for t in signature.inputs}

    @property
    def plannable(self) -> bool:
        """Whether all batches of one size look alike."""
        inputs = self._signature.inputs
        return bool(inputs) and all(-1 not in t.row_shape for t in inputs)

    @property
    def answers(self) -> int:
        """Outputs."""
        return len(self._signature.outputs)

    def stage_zeros(self, rows: int, row_shapes: Mapping[str, tuple[int, ...]]) -> None:
        shapes = {
            t.name: (rows, *row_shapes.get(t.name, (1 if n == -1 else n for n in t.row_shape)))
            for t in self._signature.inputs
        }
        staged = self.engine.stage(shapes)
        for tensor in self._signature.inputs:
            staged[tensor.name].fill(tensor.example if tensor.datatype == "BYTES" else 0)

    def gather(self, run: m.Run, rows: int) -> None:
        """Copy every request's rows from the arena into the batch buffer: the second copy of two."""
        inputs = self._own(run)
        staged = self.engine.stage({i.name: (rows, *i.row_shape) for i in inputs})
        for given in inputs:
            buffer = staged[given.name]
            datatype = self._datatypes[given.name]
            if datatype == "BYTES":
                self._gather_bytes(given, run.rows, buffer)
                continue
            dtype = DATATYPES[datatype]
            if not given.row_shapes and buffer.flags.c_contiguous:
                self.copy_rows(given, _bytes_of(buffer))
                continue
            first = 0
            for i, (count, offset) in enumerate(zip(run.rows, given.offsets, strict=True)):
                row_shape = given.row_shapes[i] if given.row_shapes else given.row_shape
                size = count * math.prod(row_shape)
                values = np.frombuffer(self._arena, dtype, size, offset).reshape(count, *row_shape)
                target = buffer[first : first + count]
                if row_shape != given.row_shape:
                    target.fill(0)
                    target = target[(slice(None), *(slice(n) for n in row_shape))]
                target[...] = values
                first += count

    def copy_rows(self, given: m.Input, target: memoryview) -> None:
        """Rows that lie in the arena exactly as in the buffer: bytes follow each other, whatever they mean."""
        arena = self._arena
        first = 0
        for offset, nbytes in zip(given.offsets, given.nbytes, strict=True):
            last = first + nbytes
            target[first:last] = arena[offset : offset + nbytes]
            first = last
        if first != len(target):
            raise ValueError(f"input {given.name!r}: {first} bytes for a batch of {len(target)}")

    def pack(self, results: Mapping[str, np.ndarray]) -> list[Packed]:
        """The answers, which the engine has checked against the signature, as they are written."""
        packed: list[Packed] = []
        for expected in self._signature.outputs:
            array = results[expected.name]
            data = (
                encode_bytes(array)
                if expected.datatype == "BYTES"
                else _bytes_of(np.ascontiguousarray(array))
            )
            packed.append((expected.name, expected.datatype, array.shape, data))
        return packed

    def plan(
        self, run: m.Run, rows: int, outputs: Sequence[m.Output], region: mmap.mmap
    ) -> PlannedPart | None:
        """What the batch that just ran needed; None where the next of its size may need something else."""
        inputs = self._own(run)
        shapes = {i.name: (rows, *i.row_shape) for i in inputs}
        staged = self.engine.stage(shapes)
        if any(
            not b.flags.c_contiguous or b.dtype.kind == "O" or not b.size for b in staged.values()
        ):
            return None
        return PlannedPart(
            shapes,
            staged,
            tuple(_bytes_of(staged[i.name]) for i in inputs),
            tuple(
                (o.name, np.ndarray(o.shape, DATATYPES[o.datatype], region, o.offset))
                for o in outputs
            ),
        )

    def _own(self, run: m.Run) -> tuple[m.Input, ...]:
        """The batch's inputs by the model's own names."""
        if not self._names:
            return run.inputs
        return tuple(
            msgspec.structs.replace(given, name=name)
            for given, name in zip(run.inputs, self._names, strict=True)
        )

    def _gather_bytes(self, given: m.Input, rows: Sequence[int], buffer: np.ndarray) -> None:
        first = 0
        width = math.prod(given.row_shape)
        for count, offset, nbytes in zip(rows, given.offsets, given.nbytes, strict=True):
            elements = decode_bytes(self._arena[offset : offset + nbytes], count * width)
            buffer[first : first + count] = elements.reshape(count, *given.row_shape)
            first += count


def _bytes_of(array: np.ndarray) -> memoryview:
    return array.reshape(-1).view(np.uint8).data
