"""From encoded media to the members' inputs: what a preprocessing stage answered, as tensors in the input arena.

The stage is the last member of its service and has queue, instances and peers like the others. It is asked first, once for
the whole ensemble, and early enough for the members, which then read what it made as if a client had sent it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from tessera_runtime.dataplane import InputTensor, Slot
from tessera_runtime.datatypes import DATATYPES
from tessera_runtime.dispatch.request import Outputs, Request, Work
from tessera_runtime.dispatch.validation import bucket_of, key_of
from tessera_runtime.errors import ServeError

if TYPE_CHECKING:
    from tessera_runtime.dispatch.member import Member

AHEAD = -2
"""Index of work that is done before that of the members."""

Allocate = Callable[[int], Slot]
"""A block of the input arena of so many bytes. Raises Overloaded, TooLarge."""

FRAMES = "frames"
"""Output of a stage that says how much of each row is meant; the rest is padding of its batch."""


class StagedInput(NamedTuple):
    """An input of the members that the stage makes."""

    name: str
    source: str
    """Output of the stage."""
    row_shape: tuple[int, ...]
    """As the members take it; -1 is variable."""
    buckets: Sequence[tuple[int, ...]]


class Staged(NamedTuple):
    """What a request goes on with."""

    inputs: tuple[InputTensor, ...]
    row_shapes: tuple[tuple[int, ...], ...]
    key: Hashable
    """As of :class:`~tessera_runtime.dispatch.request.Shape`."""
    slots: tuple[Slot, ...]


class Stage:
    """The preprocessing stage of a service, as its requests meet it."""

    def __init__(self, members: Sequence[Member], allocate: Allocate) -> None:
        """``members``: of the service, the stage last. ``allocate``: for what it makes."""
        self.inputs: tuple[StagedInput, ...] = ()
        """Known once every member has been loaded."""
        self._member = members[-1]
        self._waiting = tuple(members[:-1])
        self._allocate = allocate

    def work(self, request: Request) -> Work:
        """What it has to do for ``request``: in time for the slowest of the members that wait for it."""
        work = Work(request, self._member, AHEAD)
        work.ahead_s = max([member.likely_s(request.rows) for member in self._waiting])
        return work

    def hand_on(self, request: Request, outputs: Outputs) -> None:
        """Members read ``outputs`` in place of the client's inputs from now on. Raises what :func:`staged` does."""
        request.go_on_with(staged(outputs, self.inputs, self._allocate))


def staged(outputs: Outputs, inputs: Sequence[StagedInput], allocate: Allocate) -> Staged:
    """Raises InvalidRequest for a row over the largest bucket, Overloaded and TooLarge without room in the arena."""
    frames = outputs.get(FRAMES)
    arrays: list[np.ndarray] = []
    row_shapes: list[tuple[int, ...]] = []
    for wanted in inputs:
        array = outputs[wanted.source]
        if frames is not None and wanted.source != FRAMES:
            array = array[:, : int(frames.max())]
        array = array.reshape(len(array), *_fitted(array.shape[1:], wanted.row_shape))
        arrays.append(array)
        row_shapes.append(
            bucket_of(wanted.name, _NAMES[array.dtype], array.shape[1:], wanted.buckets)
        )
    tensors: list[InputTensor] = []
    slots: list[Slot] = []
    try:
        for wanted, array in zip(inputs, arrays, strict=True):
            slot = allocate(array.nbytes)
            slots.append(slot)
            datatype = _NAMES[array.dtype]
            np.frombuffer(slot.view, array.dtype).reshape(array.shape)[...] = array
            tensors.append(InputTensor(wanted.name, datatype, array.shape, slot, 0, array.nbytes))
    except ServeError:
        for slot in slots:
            slot.release()
        raise
    key = key_of(
        row_shapes, [wanted.row_shape for wanted in inputs], [wanted.buckets for wanted in inputs]
    )
    return Staged(tuple(tensors), tuple(row_shapes), key, tuple(slots))


_NAMES = {dtype: name for name, dtype in DATATYPES.items()}


def _fitted(found: tuple[int, ...], wanted: tuple[int, ...]) -> tuple[int, ...]:
    """A number for each row is taken where a model wants a vector of one."""
    return wanted if found == () and math.prod(wanted) == 1 else found
