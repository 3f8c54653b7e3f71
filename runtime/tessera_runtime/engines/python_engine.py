"""A model that is a Python file: the escape hatch for what no exporter covers, and the engine of tests.

The file is one module that defines ::

    def load(device: str, options: Mapping[str, str]) -> Model

``device`` is ``cpu`` or ``cuda``; ``options`` come from the member's specification. What ``load`` returns is
called once per batch and describes itself by attributes, so that the file needs nothing of Tessera::

    class Model:
        inputs = {"x": ("FP32", (4,))}     # name: (datatype, shape of one row; -1 is variable)
        outputs = {"y": ("FP32", (4,))}
        max_rows = 64                      # optional: most rows of one call; absent or None is no limit
        memory_mib = 12.0                  # optional: what the weights take; absent is 0

        def __call__(self, batch: dict[str, numpy.ndarray]) -> dict[str, numpy.ndarray]: ...

        def close(self) -> None: ...       # optional

Rules of a call: inputs have the batch as first dimension and are valid only until it returns an answer that
has been read (they are the lane's memory: do not keep them); outputs have the same number of rows and
exactly the stated datatypes; BYTES are object arrays of ``bytes``; an exception fails the batch and nothing
else. Calls of one model are serialised: Python code shares one interpreter lock, and few models are
written for several threads. ``load`` and the calls run on threads that are not the main one: no signal handlers.

The module runs as this process, which is confined where the kernel can: it writes into ``TMPDIR``, reads nothing of others
and makes no connections. It is loaded only where code is allowed; a hang or a crash is the dispatcher's to notice.
"""

from __future__ import annotations

import hashlib
import sys
import threading
import types
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from tessera_runtime.datatypes import DATATYPES
from tessera_runtime.engines.archive import check_fits, file_size
from tessera_runtime.engines.base import (
    EngineDevice,
    EngineLane,
    LoadRefused,
    ModelFile,
    RunFailed,
    Signature,
    TensorMeta,
)
from tessera_runtime.engines.staging import (
    Staged,
    Staging,
    check_max_batch,
    merge_declared,
)
from tessera_runtime.engines.version import library_version

MAX_SOURCE = 4 * 2**20
"""Bytes of the module; weights belong into files that it reads, and that the server lets it (``--readable``)."""


def load_python(file: ModelFile, device: EngineDevice) -> PythonEngine:
    """Execute the module and its ``load``. Raises LoadRefused."""
    size = file_size(file.path)
    if size > MAX_SOURCE:
        raise LoadRefused(f"Python module of {size} bytes; at most {MAX_SOURCE} are allowed")
    with open(file.path, "rb") as source:
        module = _execute(source.read())
    factory = getattr(module, "load", None)
    if not callable(factory):
        raise LoadRefused("Python module defines no function load(device, options)")
    try:
        model = factory(device.kind, dict(file.options or {}))
    except (Exception, SystemExit) as error:
        raise LoadRefused(f"load(device, options) failed: {error!r}") from error
    if not callable(model):
        raise LoadRefused(f"load(device, options) returned {type(model).__name__}, not callable")
    signature = Signature(
        merge_declared("inputs", _metas(model, "inputs"), file.inputs, named=True),
        merge_declared("outputs", _metas(model, "outputs"), file.outputs, named=True),
        _max_rows(model),
    )
    memory_mib = _memory_mib(model)
    check_fits(int(memory_mib * 2**20), device.memory_mib)
    return PythonEngine(model, signature, memory_mib)


def _execute(source: bytes) -> types.ModuleType:
    """Run the module without leaving byte code beside it. It is registered because dataclasses, among
    others, look their module up.
    """
    name = f"tessera_model_{hashlib.sha256(source).hexdigest()[:16]}"
    module = types.ModuleType(name)
    sys.modules[name] = module
    try:
        exec(compile(source, "<model>", "exec"), module.__dict__)
    except (Exception, SystemExit) as error:
        del sys.modules[name]
        raise LoadRefused(f"Python module failed: {error!r}") from error
    return module


def _metas(model: object, kind: str) -> tuple[TensorMeta, ...]:
    described = getattr(model, kind, None)
    if not isinstance(described, Mapping) or not described:
        raise LoadRefused(f"model.{kind} must map names to (datatype, row shape); see the manual")
    return tuple(_meta(f"model.{kind}", name, entry) for name, entry in described.items())


def _meta(where: str, name: Any, entry: Any) -> TensorMeta:
    try:
        datatype, row_shape = entry
        shape = tuple(int(size) for size in row_shape)
    except (TypeError, ValueError) as error:
        raise LoadRefused(f"{where}[{name!r}] is {entry!r}; expected (datatype, shape)") from error
    if not isinstance(name, str) or datatype not in DATATYPES or any(n < -1 for n in shape):
        raise LoadRefused(f"{where}[{name!r}] is {entry!r}; datatypes: {', '.join(DATATYPES)}")
    return TensorMeta(name, datatype, shape)


def _max_rows(model: object) -> int | None:
    limit = getattr(model, "max_rows", None)
    if limit is not None and (not isinstance(limit, int) or limit < 1):
        raise LoadRefused(f"model.max_rows is {limit!r}; allowed: None or at least 1")
    return limit


def _memory_mib(model: object) -> float:
    memory = getattr(model, "memory_mib", 0.0)
    if not isinstance(memory, int | float) or not 0 <= memory < float("inf"):
        raise LoadRefused(f"model.memory_mib is {memory!r}; expected a number of at least 0")
    return float(memory)


class PythonEngine:
    """One model object and the lock that serialises its calls."""

    def __init__(self, model: Callable[..., Any], signature: Signature, memory_mib: float) -> None:
        self._model = model
        self._signature = signature
        self._memory_mib = memory_mib
        self._one_at_a_time = threading.Lock()

    @property
    def signature(self) -> Signature:
        return self._signature

    @property
    def version(self) -> str:
        return library_version("python")

    def lane(self, max_batch: int) -> EngineLane:
        check_max_batch(self._signature, max_batch)
        return PythonLane(self._model, self._signature, self._one_at_a_time, max_batch)

    def memory_mib(self) -> float:
        return self._memory_mib

    def close(self) -> None:
        close = getattr(self._model, "close", None)
        if callable(close):
            close()


class PythonLane:
    def __init__(
        self,
        model: Callable[..., Any],
        signature: Signature,
        one_at_a_time: threading.Lock,
        max_batch: int,
    ) -> None:
        self._model = model
        self._one_at_a_time = one_at_a_time
        self._staging = Staging(signature, max_batch)
        self._staged: Staged | None = None

    def stage(self, shapes: Mapping[str, tuple[int, ...]]) -> Mapping[str, np.ndarray]:
        self._staged = self._staging.stage(shapes)
        return self._staged.given

    def run(self) -> Mapping[str, np.ndarray]:
        staged = self._staged
        assert staged is not None, "staged before it is run"
        try:
            with self._one_at_a_time:
                outputs = self._model(dict(staged.given))
        except (Exception, SystemExit) as error:
            raise RunFailed(f"the model failed: {error!r}"[:500]) from error
        if not isinstance(outputs, Mapping):
            raise RunFailed(f"the model answered {type(outputs).__name__}; expected a mapping")
        return staged.checked(outputs)

    def close(self) -> None:
        self._staged = None
        self._staging.close()
