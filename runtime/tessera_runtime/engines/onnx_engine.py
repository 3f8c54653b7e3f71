"""ONNX Runtime, on CPU and CUDA.

One session serves all lanes of a model: ``run`` is thread-safe, and a session owns weights, thread pool and
memory arena. The pool has the device's threads and does not spin while it waits: other tenants of the
machine need those cores more than this model needs the microseconds. Variants may have it otherwise.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnxruntime

from tessera_core.tuning.variants import Variant
from tessera_runtime.datatypes import BYTES
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
from tessera_runtime.engines.onnx_file import check_onnx
from tessera_runtime.engines.staging import (
    Staged,
    Staging,
    check_max_batch,
    merge_declared,
)
from tessera_runtime.engines.version import library_version

_TYPES = {
    "tensor(bool)": "BOOL",
    "tensor(uint8)": "UINT8",
    "tensor(uint16)": "UINT16",
    "tensor(uint32)": "UINT32",
    "tensor(uint64)": "UINT64",
    "tensor(int8)": "INT8",
    "tensor(int16)": "INT16",
    "tensor(int32)": "INT32",
    "tensor(int64)": "INT64",
    "tensor(float16)": "FP16",
    "tensor(float)": "FP32",
    "tensor(double)": "FP64",
    "tensor(string)": BYTES,
}

_LEVELS = {
    "basic": onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC,
    "extended": onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED,
    "all": onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL,
}


def load_onnx(file: ModelFile, device: EngineDevice, variant: Variant | None = None) -> OnnxEngine:
    """Load an ONNX file. Raises LoadRefused, also for external data and operators that are not built in."""
    size = file_size(file.path)
    check_fits(size, device.memory_mib)
    check_onnx(file.path)
    try:
        session = onnxruntime.InferenceSession(
            file.path, sess_options=_session_options(device, variant), providers=_providers(device)
        )
    except Exception as error:  # its exceptions have no common base
        raise LoadRefused(
            f"ONNX Runtime {onnxruntime.__version__} cannot load the model: {str(error)[:500]}; "
            "custom operators and newer opsets are not available"
        ) from error
    inputs, sizes = _metas("input", session.get_inputs())
    outputs, _ = _metas("output", session.get_outputs())
    static = {size for size in sizes if size is not None}
    if len(static) > 1 or 0 in static:
        raise LoadRefused(f"inputs have batch dimensions {sizes}; they must share one")
    signature = Signature(
        inputs=merge_declared("inputs", inputs, file.inputs, named=True),
        outputs=merge_declared("outputs", outputs, file.outputs, named=True),
        max_rows=static.pop() if static else None,
    )
    return OnnxEngine(session, signature, size / 2**20)


def _session_options(device: EngineDevice, variant: Variant | None) -> Any:
    said = dict(variant.options) if variant is not None else {}
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1 if said.get("threads") == "one" else device.threads
    if "graph" in said:
        options.graph_optimization_level = _LEVELS[said["graph"]]
    options.inter_op_num_threads = 1
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    options.log_severity_level = 3  # errors only; refusals are reported by exception
    spins = "1" if said.get("spin") == "on" else "0"
    options.add_session_config_entry("session.intra_op.allow_spinning", spins)
    return options


def _providers(device: EngineDevice) -> list[Any]:
    if device.kind == "cpu":
        return ["CPUExecutionProvider"]
    if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        raise LoadRefused("this ONNX Runtime has no CUDA; install onnxruntime-gpu")
    # Grow by what is asked for, not by doubling: the device is shared.
    cuda = {"arena_extend_strategy": "kSameAsRequested"}
    if device.memory_mib:
        cuda["gpu_mem_limit"] = str(device.memory_mib * 2**20)
    return [("CUDAExecutionProvider", cuda), "CPUExecutionProvider"]


def _metas(kind: str, nodes: Sequence[Any]) -> tuple[tuple[TensorMeta, ...], list[int | None]]:
    """Metadata and the static batch size of each tensor, None where it is dynamic."""
    metas, sizes = [], []
    for node in nodes:
        datatype = _TYPES.get(node.type)
        if datatype is None:
            raise LoadRefused(f"{kind} {node.name!r}: {node.type}; allowed: {', '.join(_TYPES)}")
        if not node.shape:
            raise LoadRefused(
                f"{kind} {node.name!r} is a scalar; its first dimension must be batch"
            )
        first, *row = (n if isinstance(n, int) and n >= 0 else None for n in node.shape)
        metas.append(TensorMeta(node.name, datatype, tuple(-1 if n is None else n for n in row)))
        sizes.append(first)
    return tuple(metas), sizes


class OnnxEngine:
    """A session; its lanes share weights, threads and arena."""

    def __init__(self, session: Any, signature: Signature, memory_mib: float) -> None:
        self._session = session
        self._signature = signature
        self._memory_mib = memory_mib

    @property
    def signature(self) -> Signature:
        return self._signature

    @property
    def version(self) -> str:
        return library_version("onnxruntime")

    def lane(self, max_batch: int) -> EngineLane:
        check_max_batch(self._signature, max_batch)
        return OnnxLane(self._session, self._signature, max_batch)

    def memory_mib(self) -> float:
        return self._memory_mib

    def close(self) -> None:
        self._session = None


class OnnxLane:
    """Buffers of one instance. A static batch dimension is filled up with padding rows."""

    def __init__(self, session: Any, signature: Signature, max_batch: int) -> None:
        self._session = session
        self._staging = Staging(signature, max_batch, lambda rows: signature.max_rows or rows)
        self._names = [meta.name for meta in signature.outputs]
        self._staged: Staged | None = None

    def stage(self, shapes: Mapping[str, tuple[int, ...]]) -> Mapping[str, np.ndarray]:
        self._staged = self._staging.stage(shapes)
        return self._staged.given

    def run(self) -> Mapping[str, np.ndarray]:
        staged = self._staged
        assert staged is not None, "staged before it is run"
        rows = staged.rows
        try:
            feeds = {
                name: _decoded(array) if array.dtype.kind == "O" else array
                for name, array in staged.full.items()
            }
            results = self._session.run(self._names, feeds)
            outputs = {
                name: _encoded(result[:rows]) if result.dtype.kind == "O" else result[:rows]
                for name, result in zip(self._names, results, strict=True)
            }
        except Exception as error:  # its exceptions have no common base
            raise RunFailed(f"ONNX Runtime: {str(error)[:500]}") from error
        return staged.checked(outputs)

    def close(self) -> None:
        self._staged = None
        self._staging.close()


def _decoded(array: np.ndarray) -> np.ndarray:
    """ONNX strings are UTF-8 text; the session takes them as ``str``. Raises UnicodeDecodeError."""
    return _mapped(array, lambda element: element.decode())


def _encoded(array: np.ndarray) -> np.ndarray:
    return _mapped(array, lambda element: element.encode())


def _mapped(array: np.ndarray, function: Any) -> np.ndarray:
    result = np.empty(array.size, dtype=np.object_)
    result[:] = [function(element) for element in array.ravel()]
    return result.reshape(array.shape)
