"""A DataPlane that is a function: what the front ends are tested and fuzzed against.

Slots are plain bytearrays. Each must be released exactly once; :meth:`FunctionPlane.assert_clean` says so.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import numpy as np

from tessera_runtime.dataplane import (
    BatchStat,
    Done,
    DurationStat,
    InferCall,
    InferReply,
    InputTensor,
    Keys,
    MemberCall,
    ModelMetadata,
    ModelStatistics,
    OutputTensor,
    RepositoryEntry,
    TensorSpec,
)
from tessera_runtime.datatypes import BYTES, DATATYPES, decode_bytes
from tessera_runtime.errors import (
    InvalidRequest,
    ModelFailed,
    NotFound,
    Overloaded,
    ServeError,
    Unauthorized,
    Unavailable,
)

Function = Callable[[dict[str, np.ndarray]], dict[str, np.ndarray]]


class PlainSlot:
    __slots__ = ("_plane", "offset", "view")

    def __init__(self, plane: FunctionPlane, nbytes: int) -> None:
        self._plane = plane
        self.offset = 0
        self.view = memoryview(bytearray(nbytes))
        plane.live_slots.add(self)

    def release(self) -> None:
        assert self in self._plane.live_slots, "slot released twice"
        self._plane.live_slots.remove(self)


@dataclass(frozen=True)
class FunctionModel:
    metadata: ModelMetadata
    function: Function


def model(
    name: str,
    function: Function,
    inputs: Iterable[tuple[str, str, tuple[int, ...]]],
    outputs: Iterable[tuple[str, str, tuple[int, ...]]],
    max_rows: int = 64,
) -> FunctionModel:
    specs = [tuple(TensorSpec(*spec) for spec in side) for side in (inputs, outputs)]
    return FunctionModel(ModelMetadata(name, ("1",), "torch_export", *specs, max_rows), function)


@dataclass(eq=False)
class HeldTicket:
    plane: FunctionPlane
    call: InferCall
    done: Done
    cancelled: bool = False
    finished: bool = False

    def cancel(self) -> None:
        if self.cancelled or self.finished:
            return
        self.cancelled = True
        self.plane.cancelled.append(self.call)
        self.plane.cancellation.set()
        self._end()

    def run(self) -> None:
        if self.cancelled:
            return
        assert not self.finished
        try:
            result = self.plane.compute(self.call)
        except ServeError as error:
            result = error
        self._end()
        self.done(result)

    def _end(self) -> None:
        self.finished = True
        for slot in self.call.slots:
            slot.release()


@dataclass
class FunctionPlane:
    models: dict[str, FunctionModel]
    capacity: int = 256 * 1024 * 1024
    hold: bool = False
    """Keep submitted requests in ``held`` until the test runs them."""
    parameters: dict[str, bool | int | float | str] = field(default_factory=dict)
    """Of every answer."""
    held: list[HeldTicket] = field(default_factory=list)
    calls: list[InferCall] = field(default_factory=list)
    keep_calls: bool = True
    cancelled: list[InferCall] = field(default_factory=list)
    cancellation: asyncio.Event = field(default_factory=asyncio.Event)
    submitted: asyncio.Event = field(default_factory=asyncio.Event)
    live_slots: set[PlainSlot] = field(default_factory=set)
    unloaded: set[str] = field(default_factory=set)
    is_live: bool = True
    keys: dict[str, str] = field(default_factory=dict)
    """By model, of those that ask for one."""
    count: int = 0

    @classmethod
    def of(cls, *models: FunctionModel, **options: object) -> FunctionPlane:
        return cls({one.metadata.name: one for one in models}, **options)

    def assert_clean(self) -> None:
        assert not self.live_slots, f"{len(self.live_slots)} slots were never released"

    def allocate(self, nbytes: int) -> PlainSlot:
        assert nbytes > 0
        if nbytes > self.capacity - sum(len(slot.view) for slot in self.live_slots):
            raise Overloaded("the input arena is full; retry later")
        return PlainSlot(self, nbytes)

    def submit(self, call: InferCall, done: Done) -> HeldTicket:
        ticket = HeldTicket(self, call, done)
        try:
            self._check(call)
        except ServeError:
            ticket._end()
            raise
        self.count += 1
        if self.keep_calls:
            self.calls.append(call)
        self.submitted.set()
        if self.hold:
            self.held.append(ticket)
        else:
            asyncio.get_running_loop().call_soon(ticket.run)
        return ticket

    def _check(self, call: InferCall) -> None:
        meta = self.metadata(call.model, call.version)
        if call.model in self.unloaded:
            raise Unavailable(f"model {call.model!r} is not loaded")
        given = {tensor.name: tensor for tensor in call.inputs}
        known = {spec.name for spec in meta.inputs}
        if given.keys() != known:
            raise InvalidRequest(f"inputs: {sorted(given)}; the model takes {sorted(known)}")
        for spec in meta.inputs:
            tensor = given[spec.name]
            fits = len(tensor.shape) == len(spec.shape) and all(
                want in (-1, have) for want, have in zip(spec.shape, tensor.shape, strict=True)
            )
            if tensor.datatype != spec.datatype or not fits:
                raise InvalidRequest(
                    f"input {spec.name!r}: {tensor.datatype} {list(tensor.shape)}; "
                    f"allowed: {spec.datatype} {list(spec.shape)}"
                )
            if tensor.shape[0] > meta.max_rows:
                raise InvalidRequest(f"{tensor.shape[0]} rows; allowed: {meta.max_rows}")
        names = {spec.name for spec in meta.outputs}
        for name in call.outputs:
            if name not in names:
                raise NotFound(f"no output {name!r}; the model has {sorted(names)}")

    def compute(self, call: InferCall) -> InferReply:
        meta = self.models[call.model].metadata
        try:
            result = self.models[call.model].function(
                {tensor.name: array_of(tensor) for tensor in call.inputs}
            )
        except ServeError:
            raise
        except Exception as error:
            raise ModelFailed("the model raised") from error
        outputs = tuple(
            OutputTensor(spec.name, spec.datatype, result[spec.name])
            for spec in meta.outputs
            if not call.outputs or spec.name in call.outputs
        )
        return InferReply(call.model, "1", call.id, outputs, self.parameters)

    def resolve(self, name: str, host: str, keys: Keys) -> str:
        if name not in self.models:
            raise NotFound(f"no model {name[:64]!r}")
        if not self._is_open(name, keys):
            raise Unauthorized(f"model {name} needs a key")
        return name

    def _is_open(self, name: str, keys: Keys) -> bool:
        return name not in self.keys or self.keys[name] in keys

    def live(self) -> bool:
        return self.is_live

    def ready(self) -> bool:
        return not self.unloaded

    def model_ready(self, model: str, version: str) -> bool:
        return self.metadata(model, version).name not in self.unloaded

    def metadata(self, model: str, version: str) -> ModelMetadata:
        if model not in self.models:
            raise NotFound(f"no model {model[:64]!r}")
        meta = self.models[model].metadata
        if version not in ("", "1"):
            raise NotFound(f"model {model!r} has no version {version[:64]!r}; served: 1")
        return meta

    def member_metadata(self, model: str, part: MemberCall) -> ModelMetadata:
        return self.metadata(f"{model}/{part.member}", "")

    def queued_rows(self, model: str, part: MemberCall) -> int:
        return len(self.held)

    def statistics(self, model: str, version: str, keys: Keys) -> tuple[ModelStatistics, ...]:
        names = [self.metadata(model, version).name] if model else self._open_to(keys)
        spent, none = DurationStat(self.count, 1000 * self.count), DurationStat()
        batches = (BatchStat(1, none, spent, none),)
        return tuple(
            ModelStatistics(
                name, "1", 5, self.count, self.count, spent, none, none, none, spent, none, batches
            )
            for name in names
        )

    def _open_to(self, keys: Keys) -> list[str]:
        return [name for name in sorted(self.models) if self._is_open(name, keys)]

    def repository(self, keys: Keys) -> tuple[RepositoryEntry, ...]:
        return tuple(
            RepositoryEntry(name, "1", "UNAVAILABLE", "unloaded")
            if name in self.unloaded
            else RepositoryEntry(name, "1", "READY")
            for name in self._open_to(keys)
        )

    async def load(self, model: str) -> None:
        self.unloaded.discard(self.metadata(model, "").name)

    async def unload(self, model: str) -> None:
        self.unloaded.add(self.metadata(model, "").name)


def array_of(tensor: InputTensor) -> np.ndarray:
    """A copy of the tensor's values."""
    data = tensor.slot.view[tensor.start : tensor.start + tensor.nbytes]
    assert len(data) == tensor.nbytes
    if tensor.datatype == BYTES:
        return decode_bytes(data, int(np.prod(tensor.shape, dtype=np.int64))).reshape(tensor.shape)
    values = np.frombuffer(bytes(data), dtype=DATATYPES[tensor.datatype])
    return values.reshape(tensor.shape)
