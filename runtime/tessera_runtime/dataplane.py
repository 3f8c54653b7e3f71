"""The seam between the front ends and the dispatcher.

A front end (HTTP, gRPC) parses bytes into an :class:`InferCall` whose tensors already lie in the input
arena, hands it over with a callback, and encodes the :class:`InferReply`. It never sees queues, workers
or engines; the dispatcher never sees a socket. A test double of :class:`DataPlane` is a function.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

import msgspec
import numpy as np

from tessera_runtime.errors import ServeError

Parameter = bool | int | float | str

Keys = tuple[str, ...]
"""Bearer keys as a request carries them: a client one or none, a peer some of those that it knows."""


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """Name, Open Inference Protocol datatype and full shape of one input or output; -1 is variable.

    The first dimension of a served model is always the batch (rows), written -1.
    """

    name: str
    datatype: str
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class ModelMetadata:
    name: str
    versions: tuple[str, ...]
    platform: str
    """``tessera_ensemble`` for a service of several members, else ``<engine>_<format>``, e.g. ``torch_export``."""
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    max_rows: int
    """Most rows one request may carry."""


class Slot(Protocol):
    """A block of the input arena. The holder must :meth:`release` it exactly once, or pass it on in a call."""

    @property
    def view(self) -> memoryview:
        """The block, writable, exactly the size that was asked for."""
        ...

    @property
    def offset(self) -> int:
        """Where the block starts in the arena, bytes."""
        ...

    def release(self) -> None: ...


class Passing(msgspec.Struct, frozen=True, gc=False):
    """Made anew for every request: several times as cheap to make as a frozen dataclass."""


class InputTensor(Passing, frozen=True):
    """One input of a request, lying in the arena at ``slot.offset + start``, C order, little endian.

    BYTES elements are each preceded by their length as a little-endian 32-bit integer, as on the wire.
    """

    name: str
    datatype: str
    shape: tuple[int, ...]
    slot: Slot
    start: int
    nbytes: int


@dataclass(frozen=True, slots=True)
class MemberCall:
    """What a peer says when it asks for one member of a service alone."""

    member: str
    digest: str = ""
    """Of the model file that has to answer; empty: the one that is served."""
    slo_s: float | None = None
    """What is left of the SLO's target where the client gave no limit: it orders the queue, and ends only
    what still waits by then."""
    losses: int = 0
    """Processes that ended while running this request."""


class Alike:
    """What calls share that differ in their data only: names, datatypes, shapes and sizes of the inputs, in order,
    and the wanted outputs. Compared by identity; such calls are validated once.
    """

    __slots__ = ()


class InferCall(Passing, frozen=True):
    """A parsed request. Ownership of ``slots`` passes to the data plane with :meth:`DataPlane.submit`,
    also when ``submit`` raises.
    """

    model: str
    version: str
    """Empty: the served version."""
    id: str
    inputs: tuple[InputTensor, ...]
    slots: tuple[Slot, ...]
    """Every distinct slot that ``inputs`` lie in."""
    outputs: tuple[str, ...] = ()
    """Names of the wanted outputs; empty means all."""
    timeout_s: float | None = None
    """The client's own limit (protocol parameter ``timeout`` in microseconds, or the gRPC deadline)."""
    traceparent: str = ""
    part: MemberCall | None = None
    """One member is asked for by a peer, not the service by a client."""
    alike: Alike | None = None
    """None where it is not known what other calls are like this one."""


class OutputTensor(Passing, frozen=True):
    name: str
    datatype: str
    array: np.ndarray
    """Values with their batch dimension. BYTES: an object array of ``bytes``. Owned by the reply."""


class InferReply(Passing, frozen=True):
    model: str
    version: str
    id: str
    outputs: tuple[OutputTensor, ...]
    parameters: Mapping[str, Parameter] = {}
    """For example ``members_answered`` of a partial ensemble answer."""


Done = Callable[[InferReply | ServeError], None]
"""Called exactly once, on the event loop, never from inside :meth:`DataPlane.submit`."""


class Ticket(Protocol):
    """A submitted request."""

    def cancel(self) -> None:
        """The client went away: queued work is dropped, ``done`` is not called any more. Idempotent."""
        ...


@dataclass(frozen=True, slots=True)
class DurationStat:
    """Count and total nanoseconds, as the protocol's statistics report them."""

    count: int = 0
    ns: int = 0


@dataclass(frozen=True, slots=True)
class BatchStat:
    batch_size: int
    compute_input: DurationStat
    compute_infer: DurationStat
    compute_output: DurationStat


@dataclass(frozen=True, slots=True)
class ModelStatistics:
    """What the statistics extension reports; counters only grow while a version is served."""

    name: str
    version: str
    last_inference_ms: int
    """Milliseconds since the epoch of the last inference; 0 before the first."""
    inference_count: int
    """Rows answered."""
    execution_count: int
    """Batches executed."""
    success: DurationStat
    fail: DurationStat
    queue: DurationStat
    compute_input: DurationStat
    compute_infer: DurationStat
    compute_output: DurationStat
    batches: tuple[BatchStat, ...] = ()


@dataclass(frozen=True, slots=True)
class RepositoryEntry:
    name: str
    version: str
    state: str
    """``READY``, ``LOADING``, ``UNLOADING`` or ``UNAVAILABLE``, as the repository extension defines them."""
    reason: str = ""


class DataPlane(Protocol):
    """What a front end may ask. All methods are called on the event loop and return at once,
    but for :meth:`load` and :meth:`unload`.
    """

    def allocate(self, nbytes: int) -> Slot:
        """A writable block of the input arena. Raises Overloaded when it is full, TooLarge over the limit."""
        ...

    def submit(self, call: InferCall, done: Done) -> Ticket:
        """Queue a request. Raises a ServeError at once when it is invalid or cannot be admitted."""
        ...

    def resolve(self, name: str, host: str, keys: Keys) -> str:
        """The served name ``<namespace>.<name>`` that ``name`` means for a client that spoke to ``host``.

        Nothing else lets a request name a model. Raises Unauthorized where the model asks for a key and ``keys``,
        what the request carries, has none of it.
        """
        ...

    def live(self) -> bool: ...

    def ready(self) -> bool:
        """Whether every wanted model is ready."""
        ...

    def model_ready(self, model: str, version: str) -> bool:
        """Raises NotFound for a model that is not known here."""
        ...

    def metadata(self, model: str, version: str) -> ModelMetadata: ...

    def member_metadata(self, model: str, part: MemberCall) -> ModelMetadata:
        """What one member takes and answers by itself. Raises Unavailable without an instance of it."""
        ...

    def queued_rows(self, model: str, part: MemberCall) -> int:
        """Rows that wait for one member; 0 for one that is not served."""
        ...

    def statistics(self, model: str, version: str, keys: Keys) -> tuple[ModelStatistics, ...]:
        """One model, or for an empty name all that ask for no key or for one of ``keys``."""
        ...

    def repository(self, keys: Keys) -> tuple[RepositoryEntry, ...]:
        """The models that ask for no key or for one of ``keys``."""
        ...

    async def load(self, model: str) -> None:
        """Load a model that the repository knows; returns when it is ready. Idempotent."""
        ...

    async def unload(self, model: str) -> None:
        """Drain and unload; the model stays in the repository index as UNAVAILABLE."""
        ...
