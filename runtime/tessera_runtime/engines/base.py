"""The seam between a worker and the library that runs the model.

A worker loads an engine once per model and opens a *lane* per instance: the lane owns the buffers (and,
on a GPU, the stream and the graphs) of one instance, the engine owns the weights that its lanes share.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np


class LoadRefused(Exception):
    """The model file will not be loaded: missing, corrupt, unsafe or of another format. Loading it again
    cannot help, so the worker reports it and stays up.
    """


class RunFailed(Exception):
    """The model raised or answered something malformed. The batch fails, the lane stays usable."""


class InputRefused(RunFailed):
    """What a client sent cannot be used, such as a corrupt image: the client is told so, and nothing is wrong here."""


@dataclass(frozen=True, slots=True)
class TensorMeta:
    """One input or output: ``datatype`` is the protocol's name, ``row_shape`` leaves out the batch
    dimension, -1 is variable.
    """

    name: str
    datatype: str
    row_shape: tuple[int, ...]
    example: bytes = b""
    """Of BYTES: an element to warm up with."""


@dataclass(frozen=True, slots=True)
class Signature:
    inputs: tuple[TensorMeta, ...]
    outputs: tuple[TensorMeta, ...]
    max_rows: int | None = None
    """Most rows the file itself can run at once (a static or bounded batch dimension); None: no limit."""


@dataclass(frozen=True, slots=True)
class ModelFile:
    """What to load."""

    path: str
    format: str
    """``TorchExport``, ``TorchScript``, ``ONNX``, ``Python`` or ``Preprocess``."""
    allow_code: bool
    """Whether formats that are programs (TorchScript, Python) may run here."""
    inputs: tuple[TensorMeta, ...] = ()
    """Declared metadata; needed where the file carries none, checked against it otherwise."""
    outputs: tuple[TensorMeta, ...] = ()
    options: Mapping[str, str] | None = None
    variant: str = ""
    """As :mod:`tessera_core.tuning.variants` writes it; empty: untuned."""
    artefact: str = ""
    """Of a variant that compiles: what was built for it, on this node."""


@dataclass(frozen=True, slots=True)
class EngineDevice:
    """Where to load."""

    kind: str
    """``cpu`` or ``cuda``."""
    threads: int = 1
    """Cores of a CPU device: the intra-operator threads of one instance."""
    memory_mib: int = 0
    """Device memory the model may use; 0 is unlimited."""


class EngineLane(Protocol):
    """One instance. Used by one thread at a time."""

    def stage(self, shapes: Mapping[str, tuple[int, ...]]) -> Mapping[str, np.ndarray]:
        """Writable host arrays, one per input, of exactly ``shapes`` (batch dimension included), to be
        filled before :meth:`run`. BYTES inputs are object arrays of ``bytes``. Pinned on a GPU. The same
        memory is handed out again by the next call. Raises ValueError for shapes that do not fit the
        signature or the lane.
        """
        ...

    def run(self) -> Mapping[str, np.ndarray]:
        """Run the staged batch; host arrays by output name, in the signature's datatypes, valid until the next
        :meth:`stage`. Raises RunFailed.
        """
        ...

    def close(self) -> None: ...


class Engine(Protocol):
    """A model loaded on one device."""

    @property
    def signature(self) -> Signature: ...

    @property
    def version(self) -> str:
        """Library and version, e.g. ``torch-2.8.0``: part of the key under which profiles are cached."""
        ...

    def lane(self, max_batch: int) -> EngineLane:
        """A new instance for batches of at most ``max_batch`` rows. Raises ValueError over ``max_rows``."""
        ...

    def memory_mib(self) -> float:
        """Device memory the weights hold."""
        ...

    def close(self) -> None: ...
