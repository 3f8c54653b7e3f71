"""OpenVINO on processors, of ONNX files and exported programs.

Both are converted within the load: an ONNX file once it was checked as for ONNX Runtime, an exported program as the object
that our own loader built, so that no library opens an archive that came. Nothing is kept between loads.

The library sends usage data when it is imported, where its package for that is installed beside it. Workers make no sockets,
but that is not relied on: the package is kept from being imported, and the library then does without.

A network runs on the threads of the share and on one stream, so that one batch has all of them. With the option ``static``
there is a network for each power of two, in which the batch is no variable.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Mapping
from typing import Any

import numpy as np

from tessera_core.api.modelservice import Precision
from tessera_core.tuning.variants import Variant
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
from tessera_runtime.engines.onnx_file import check_onnx, tensor_names
from tessera_runtime.engines.staging import Staged, Staging, check_max_batch, merge_declared
from tessera_runtime.engines.version import library_version

sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]  # importing it now fails, as if it were not there
import openvino  # noqa: E402

_TYPES = {
    "boolean": "BOOL", "u8": "UINT8", "u16": "UINT16", "u32": "UINT32", "u64": "UINT64",
    "i8": "INT8", "i16": "INT16", "i32": "INT32", "i64": "INT64",
    "f16": "FP16", "f32": "FP32", "f64": "FP64",
}  # fmt: skip
"""Datatypes by the library's names. It has strings too, which are not worth tuning."""

_HINTS = {Precision.FP32: "f32", Precision.BF16: "bf16"}


def load_openvino(file: ModelFile, device: EngineDevice, variant: Variant) -> OpenVinoEngine:
    """Load an ONNX file or an exported program. Raises LoadRefused."""
    size = file_size(file.path)
    check_fits(size, device.memory_mib)
    core = openvino.Core()
    able = core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    if variant.precision is Precision.BF16 and "BF16" not in able:
        raise LoadRefused(f"variant {variant}: this processor has no arithmetic of bfloat16")
    try:
        model, signature = (
            _read_onnx(core, file) if file.format == "ONNX" else _read_export(file, variant)
        )
        return OpenVinoEngine(core, model, signature, device.threads, variant, size / 2**20)
    except RuntimeError as error:  # the library's own errors are of no other kind
        raise LoadRefused(f"OpenVINO cannot run the model: {str(error)[:500]}") from error


def _read_onnx(core: Any, file: ModelFile) -> tuple[Any, Signature]:
    check_onnx(file.path)
    names = tensor_names(file.path)
    model = core.read_model(file.path)
    inputs, sizes = _metas("input", names.inputs, model.inputs)
    outputs, _ = _metas("output", names.outputs, model.outputs)
    static = {size for size in sizes if size is not None}
    if len(static) > 1 or 0 in static:
        raise LoadRefused(f"inputs have batch dimensions {sizes}; they must share one")
    signature = Signature(
        inputs=merge_declared("inputs", inputs, file.inputs, named=True),
        outputs=merge_declared("outputs", outputs, file.outputs, named=True),
        max_rows=static.pop() if static else None,
    )
    return model, signature


def _metas(
    kind: str, names: tuple[str, ...], ports: list[Any]
) -> tuple[tuple[TensorMeta, ...], list[int | None]]:
    """As of ONNX Runtime: metadata, and the static batch size of each, None where it is dynamic."""
    if len(names) != len(ports):
        raise LoadRefused(f"OpenVINO has {len(ports)} {kind}s of the model's {len(names)}")
    metas, sizes = [], []
    for name, port in zip(names, ports, strict=True):
        datatype = _TYPES.get(port.get_element_type().get_type_name())
        if datatype is None:
            raise LoadRefused(
                f"{kind} {name!r}: {port.get_element_type()}; OpenVINO serves {', '.join(_TYPES)}"
            )
        shape = port.get_partial_shape()
        if shape.rank.is_dynamic or not len(shape):
            raise LoadRefused(f"{kind} {name!r} has no first dimension, which must be the batch")
        first, *row = (None if size.is_dynamic else size.get_length() for size in shape)
        metas.append(TensorMeta(name, datatype, tuple(-1 if n is None else n for n in row)))
        sizes.append(first)
    return tuple(metas), sizes


def _read_export(file: ModelFile, variant: Variant) -> tuple[Any, Signature]:
    import torch

    from tessera_runtime.engines.torch_flat import flattened
    from tessera_runtime.engines.torch_variants import read_fixed

    exported = read_fixed(file, variant)
    if torch.bfloat16 in exported.input_dtypes:
        raise LoadRefused(f"variant {variant}: inputs of bfloat16 are not converted")
    try:
        model = openvino.convert_model(
            exported.program if exported.plain else flattened(exported, "cpu")
        )
    except Exception as error:  # of its frontend, and of torch beneath it
        raise LoadRefused(f"OpenVINO cannot convert the program: {str(error)[:500]}") from error
    signature = exported.signature
    found = len(model.inputs), len(model.outputs)
    if found != (len(signature.inputs), len(signature.outputs)):
        raise LoadRefused(f"OpenVINO has {found[0]} inputs and {found[1]} outputs of the model's")
    first = exported.batch.most if exported.batch.symbol is None else -1
    model.reshape(
        {
            port: openvino.PartialShape([first, *meta.row_shape])
            for port, meta in zip(model.inputs, signature.inputs, strict=True)
        }
    )
    for port, meta in zip(model.outputs, signature.outputs, strict=True):
        if _TYPES.get(port.get_element_type().get_type_name()) != meta.datatype:
            raise LoadRefused(f"OpenVINO answers {port.get_element_type()} for {meta.name!r}")
    return model, signature


class OpenVinoEngine:
    """A network, compiled for one share; its lanes share weights and threads."""

    def __init__(
        self,
        core: Any,
        model: Any,
        signature: Signature,
        threads: int,
        variant: Variant,
        memory_mib: float,
    ) -> None:
        self._core = core
        self._model = model
        self._signature = signature
        self._settings = {
            "INFERENCE_NUM_THREADS": threads,
            "NUM_STREAMS": 1,
            "ENABLE_CPU_PINNING": False,  # the process is on its cores already
            "INFERENCE_PRECISION_HINT": _HINTS[variant.precision],
        }
        first = model.inputs[0].get_partial_shape()[0]
        self._only_rows = 0 if first.is_dynamic else first.get_length()
        """Of a network in which the batch is no variable."""
        self._static = variant.option("static") is not None and not self._only_rows
        self._compiling = threading.Lock()
        self._compiled: dict[int, Any] = {}
        """By rows; 0 is a batch of any size."""
        self._memory_mib = memory_mib
        if not self._static:
            self.compiled(0)

    @property
    def signature(self) -> Signature:
        return self._signature

    @property
    def version(self) -> str:
        return library_version("openvino")

    def lane(self, max_batch: int) -> EngineLane:
        check_max_batch(self._signature, max_batch)
        return OpenVinoLane(self, max_batch)

    def network_rows(self, rows: int) -> int:
        """Rows of the network that runs a batch of ``rows``; 0: of any size."""
        if not self._static:
            return 0
        power: int = 1 << (rows - 1).bit_length()
        return min(power, self._signature.max_rows or power)

    def rows_run(self, rows: int) -> int:
        """Rows that are run for a batch of ``rows``, padding included."""
        return self._only_rows or self.network_rows(rows) or rows

    def compiled(self, rows: int) -> Any:
        """The network for batches of exactly ``rows``, 0: of any size. Lanes warm all that they will need."""
        with self._compiling:
            if rows not in self._compiled:
                model = self._model
                if rows:
                    model = model.clone()
                    model.reshape(
                        {
                            port: openvino.PartialShape([rows, *list(port.get_partial_shape())[1:]])
                            for port in model.inputs
                        }
                    )
                self._compiled[rows] = self._core.compile_model(model, "CPU", self._settings)
            return self._compiled[rows]

    def memory_mib(self) -> float:
        return self._memory_mib * max(1, len(self._compiled))

    def close(self) -> None:
        self._compiled.clear()
        self._model = None


class OpenVinoLane:
    """Buffers and requests of one instance."""

    def __init__(self, engine: OpenVinoEngine, max_batch: int) -> None:
        self._engine = engine
        signature = engine.signature
        self._requests: dict[int, Any] = {}
        self._names = [meta.name for meta in signature.outputs]
        self._staging = Staging(
            signature,
            max_batch,
            engine.rows_run,
            lambda full: [openvino.Tensor(each, shared_memory=True) for each in full.values()],
        )
        self._staged: Staged | None = None

    def stage(self, shapes: Mapping[str, tuple[int, ...]]) -> Mapping[str, np.ndarray]:
        self._staged = self._staging.stage(shapes)
        return self._staged.given

    def run(self) -> Mapping[str, np.ndarray]:
        staged = self._staged
        assert staged is not None, "staged before it is run"
        rows = staged.rows
        try:
            request = self._request(self._engine.network_rows(rows))
            for index, tensor in enumerate(staged.prepared):
                request.set_input_tensor(index, tensor)
            request.infer()
            outputs = {
                name: request.get_output_tensor(index).data[:rows]
                for index, name in enumerate(self._names)
            }
        except RuntimeError as error:
            raise RunFailed(f"OpenVINO: {str(error)[:500]}") from error
        return staged.checked(outputs)

    def _request(self, rows: int) -> Any:
        if rows not in self._requests:
            self._requests[rows] = self._engine.compiled(rows).create_infer_request()
        return self._requests[rows]

    def close(self) -> None:
        self._staged = None
        self._requests.clear()
        self._staging.close()
