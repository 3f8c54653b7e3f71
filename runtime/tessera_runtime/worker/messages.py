"""What dispatcher, zygote and workers say to each other.

Each conversation is a SOCK_SEQPACKET Unix socket: one packet is one message, delivered whole or not at
all, and the end of either process is an end of file on the other side. Messages are MessagePack arrays
decoded into these types, never pickles. File descriptors travel beside the message that names them.

::

    dispatcher ── Fork (+ control, input arena) ──▶ zygote      ── Forked (+ pidfd) | NotForked | Exited ──▶
    dispatcher ── Load (+ file, artefact) | Build | Unload | OpenLane (+ lane) ──▶ worker ── Loaded | Built (+ artefact) | LoadFailed | Unloaded | LaneOpen (+ outputs) ──▶
    dispatcher ── Run ──▶ lane                                   ── Ran | Failed | Region (+ outputs) ──▶
"""

from __future__ import annotations

import array
import mmap
import os
import socket

import msgspec

MAX_PACKET = 1 << 18
"""Bytes of one message: a batch of 2,048 requests with four inputs fits."""


class Message(msgspec.Struct, array_like=True, frozen=True, tag=True): ...


# dispatcher and zygote


class Fork(Message, frozen=True):
    """Fork a worker. Comes with its control socket and the input arena, in this order."""

    incarnation: int
    """Number of this worker process; never used twice."""
    arena_size: int
    kind: str
    """``cpu`` or ``cuda``."""
    cores: tuple[int, ...]
    """Processor cores the worker may run on; empty means all."""
    threads: int
    memory_mib: int
    environment: dict[str, str]
    """Variables set before any engine initialises, e.g. ``CUDA_VISIBLE_DEVICES``."""


class Forked(Message, frozen=True):
    """Comes with a pidfd of the new process."""

    incarnation: int
    pid: int


class NotForked(Message, frozen=True):
    """The system has no process or memory for a worker now."""

    incarnation: int
    reason: str


class Exited(Message, frozen=True):
    incarnation: int
    status: int
    """As ``os.waitstatus_to_exitcode`` gives it: negative is the signal."""


# dispatcher and worker, control socket


class Tensor(msgspec.Struct, array_like=True, frozen=True):
    """Metadata of one input or output; ``row_shape`` leaves out the batch dimension."""

    name: str
    datatype: str
    row_shape: tuple[int, ...]


class Load(Message, frozen=True):
    """Load a model file. Comes with its descriptor, where it can be opened. Answered by Loaded or LoadFailed."""

    model: str
    """Key of the model within the worker: its digest and options."""
    path: str
    format: str
    allow_code: bool
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    beside: tuple[str, ...] = ()
    """Files of models that come into the process too: the first load settles what it may read."""
    variant: str = ""
    """How it is run; empty: untuned."""
    built: bool = False
    """Whether the last descriptor is of what was built for the variant."""


class Build(Message, frozen=True):
    """Compile what the variant of ``load`` needs, in a worker that does nothing else. Answered by Built or LoadFailed."""

    load: Load


class Built(Message, frozen=True):
    """Comes with the artefact's descriptor."""

    model: str
    engine: str
    """Library and version."""


class Loaded(Message, frozen=True):
    model: str
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    max_rows: int
    """Rows of the largest batch the file itself allows; 0 is unlimited."""
    engine: str
    """Library and version."""
    memory_mib: float


class LoadFailed(Message, frozen=True):
    model: str
    reason: str


class OpenLane(Message, frozen=True):
    """Open an instance of loaded models and warm it. Comes with the lane's socket. Answered by LaneOpen."""

    lane: int
    models: tuple[str, ...]
    """One; or several that run every batch one after the other."""
    names: tuple[tuple[str, ...], ...]
    """Of several: the inputs of each, in the order in which batches give theirs."""
    largest: int
    """Rows of the largest batch the lane will get."""
    batches: tuple[int, ...]
    """Batch sizes to warm."""
    row_shapes: dict[str, tuple[int, ...]]
    """For inputs of variable shape, the row shape to warm with."""


class LaneOpen(Message, frozen=True):
    """The instance is warm. Comes with its output region."""

    lane: int
    region_size: int
    warm_ms: tuple[float, ...]
    """Fastest run of each warmed batch, milliseconds."""


class LaneFailed(Message, frozen=True):
    lane: int
    reason: str


class Unload(Message, frozen=True):
    """Forget a model whose lanes are closed. A lane is closed by closing its socket. Answered by Unloaded."""

    model: str


class Unloaded(Message, frozen=True):
    """What the model had is given back."""

    model: str


# dispatcher and lane


class Input(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """Where one input of each request of a batch lies in the arena."""

    name: str
    row_shape: tuple[int, ...]
    """Row shape of the batch; requests with smaller rows are padded with zeros up to it."""
    offsets: tuple[int, ...]
    nbytes: tuple[int, ...]
    row_shapes: tuple[tuple[int, ...], ...] = ()
    """Row shape of each request, where any differs from the batch's."""


class Run(Message, frozen=True, gc=False):
    batch: int
    rows: tuple[int, ...]
    """Rows of each request."""
    inputs: tuple[Input, ...]


class Output(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """One output of a batch in the lane's region."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    offset: int
    nbytes: int


class Ran(Message, frozen=True, gc=False):
    incarnation: int
    batch: int
    outputs: tuple[Output, ...]
    """Of each model in turn."""
    gather_ns: int
    infer_ns: tuple[int, ...]
    """Of each model."""
    output_ns: int


class Failed(Message, frozen=True):
    """The batch failed, the lane did not."""

    incarnation: int
    batch: int
    reason: str
    model: int = 0
    """Position of the one that raised."""
    refused: bool = False
    """Whether what was given is to blame, and not the model."""


class Region(Message, frozen=True):
    """A larger output region replaces the lane's. Comes with it, before the Ran that needs it."""

    incarnation: int
    region_size: int


ToZygote = Fork
FromZygote = Forked | NotForked | Exited
ToWorker = Load | Unload | OpenLane | Build
FromWorker = Loaded | Built | LoadFailed | LaneOpen | LaneFailed | Unloaded
ToLane = Run
FromLane = Ran | Failed | Region

encode = msgspec.msgpack.Encoder().encode
decode_to_zygote = msgspec.msgpack.Decoder(ToZygote).decode
decode_from_zygote = msgspec.msgpack.Decoder(FromZygote).decode
decode_to_worker = msgspec.msgpack.Decoder(ToWorker).decode
decode_from_worker = msgspec.msgpack.Decoder(FromWorker).decode
decode_to_lane = msgspec.msgpack.Decoder(ToLane).decode
decode_from_lane = msgspec.msgpack.Decoder(FromLane).decode

_FD_SIZE = array.array("i").itemsize
_ANCILLARY = socket.CMSG_SPACE(4 * _FD_SIZE)

# Plain numbers: an operation of an enumeration's flags takes longer than the call that they are for.
_NOSIGNAL, _CLOEXEC, _TRUNC = map(
    int, (socket.MSG_NOSIGNAL, socket.MSG_CMSG_CLOEXEC, socket.MSG_TRUNC)
)


def pair() -> tuple[socket.socket, socket.socket]:
    """Both ends of a new conversation."""
    return socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC)


def send(sock: socket.socket, message: Message, fds: tuple[int, ...] = ()) -> None:
    """Send one message. Raises OSError when the other side is gone."""
    if fds:
        ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))]
        sock.sendmsg([encode(message)], ancillary, _NOSIGNAL)
    else:
        sock.send(encode(message), _NOSIGNAL)


class Inbox:
    """Where packets are received: one for each thread that receives.

    The buffer is kept, for a new one of this size costs a system call, page faults and another system call.
    """

    def __init__(self) -> None:
        # Private: whoever is forked must not write into it.
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
        self._buffer = memoryview(mmap.mmap(-1, MAX_PACKET, flags))
        self._buffers = [self._buffer]

    def receive(self, sock: socket.socket) -> tuple[memoryview, list[int]]:
        """One packet, valid until the next one, and the descriptors beside it; empty at the end of the
        conversation.
        """
        size, ancillary, flags, _ = sock.recvmsg_into(self._buffers, _ANCILLARY, _CLOEXEC)
        fds: list[int] = []
        for level, kind, payload in ancillary:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                fds.extend(array.array("i", payload[: len(payload) - len(payload) % _FD_SIZE]))
        if flags & _TRUNC:
            for fd in fds:
                os.close(fd)
            raise msgspec.ValidationError(f"message of over {MAX_PACKET} bytes")
        return self._buffer[:size], fds
