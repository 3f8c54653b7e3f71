"""PyTorch: exported programs (.pt2) and TorchScript, on CPU and CUDA.

Both formats become one :class:`TorchModel`. A program exported for exactly B rows is served at every size up
to B by padding: the staged arrays are the first rows of a buffer of B, and the outputs of the other rows are
cut off.
"""

from __future__ import annotations

import threading
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from tessera_core.tuning.variants import Backend, Variant
from tessera_runtime.engines.archive import check_fits, check_torchscript, file_size
from tessera_runtime.engines.base import (
    EngineDevice,
    EngineLane,
    LoadRefused,
    ModelFile,
    RunFailed,
    Signature,
)
from tessera_runtime.engines.staging import (
    Staged,
    Staging,
    check_max_batch,
    discover_outputs,
    example_rows,
    merge_declared,
)
from tessera_runtime.engines.torch_compiled import load_compiled
from tessera_runtime.engines.torch_cuda import CudaLane, grant_memory, reserved_mib
from tessera_runtime.engines.torch_export import load_export
from tessera_runtime.engines.torch_model import TORCH_DTYPES, TorchModel, tensor_bytes
from tessera_runtime.engines.torch_variants import load_torch_variant
from tessera_runtime.engines.version import library_version

CUDA = "cuda:0"
"""With its index, as tensors name theirs: programs assert where their tensors are. A worker sees one device."""

_threads_set = threading.Lock()


def load_torch(
    file: ModelFile, device: EngineDevice, variant: Variant | None = None
) -> TorchEngine:
    """Load a TorchExport or TorchScript file. Raises LoadRefused."""
    check_fits(file_size(file.path), device.memory_mib)
    if device.kind == "cuda":
        return _load_cuda(file, device, variant)
    set_threads(device.threads)
    model = _load_model(file, "cpu", variant)
    if device.memory_mib and model.weight_bytes > device.memory_mib * 2**20:
        raise LoadRefused(
            f"weights of {model.weight_bytes / 2**20:.0f} MiB exceed the {device.memory_mib} MiB allowed"
        )
    return TorchEngine(model, cuda=False, memory_mib=model.weight_bytes / 2**20)


def _load_cuda(file: ModelFile, device: EngineDevice, variant: Variant | None) -> TorchEngine:
    if not torch.cuda.is_available():
        raise LoadRefused("no CUDA device is visible to this worker")
    granted = device.memory_mib
    grant_memory(granted)
    before = reserved_mib()
    try:
        model = _load_model(file, CUDA, variant)
    except torch.cuda.OutOfMemoryError as error:
        grant_memory(-granted)
        raise LoadRefused(
            f"the model does not fit in the {granted or 'available'} MiB of the device"
        ) from error
    except LoadRefused:
        grant_memory(-granted)
        raise
    # Weights may have gone into blocks that the allocator had kept.
    held = max(reserved_mib() - before, model.weight_bytes / 2**20)
    return TorchEngine(model, cuda=True, memory_mib=held, granted_mib=granted)


def _load_model(file: ModelFile, device: str, variant: Variant | None) -> TorchModel:
    if variant is not None:
        if file.format != "TorchExport":
            raise LoadRefused(f"variant {variant} is of TorchExport; the model is {file.format}")
        if variant.backend is Backend.INDUCTOR:
            return load_compiled(file, device, variant)
        return load_torch_variant(file, device, variant)
    if file.format == "TorchExport":
        return load_export(file, device)
    return load_script(file, device)


def set_threads(threads: int) -> None:
    """Size torch's pools; they belong to the process, and the one between operators can be set only once."""
    with _threads_set:
        if torch.get_num_threads() != threads:
            torch.set_num_threads(threads)
        if torch.get_num_interop_threads() != 1:
            try:
                torch.set_num_interop_threads(1)
            except RuntimeError:
                pass  # parallel work has begun; the pool stays idle in graphs without fork


def load_script(file: ModelFile, device: str) -> TorchModel:
    """Load TorchScript, which is code and carries no metadata: inputs are taken in declared order, outputs
    are found by running one and two rows of zeros. Raises LoadRefused.
    """
    if not file.inputs:
        raise LoadRefused("TorchScript carries no metadata; declare spec.inputs for the model")
    check_torchscript(file.path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecated since torch 2.9, still loadable
        try:
            module = torch.jit.load(file.path, map_location=device)
        except Exception as error:
            raise LoadRefused(f"torch cannot load the TorchScript file: {error}") from error
    module.eval()
    signature, dtypes = _script_signature(module, file, device)
    return TorchModel(
        call=lambda tensors: _flat_outputs(module(*tensors))[1],
        signature=signature,
        input_dtypes=dtypes,
        weight_bytes=tensor_bytes([*module.parameters(), *module.buffers()]),
        static=signature.max_rows is not None,
    )


def _script_signature(
    module: Any, file: ModelFile, device: str
) -> tuple[Signature, tuple[Any, ...]]:
    for meta in file.inputs:
        if meta.datatype not in TORCH_DTYPES:
            raise LoadRefused(f"inputs[{meta.name!r}].datatype: torch has no {meta.datatype}")
    dtypes = tuple(TORCH_DTYPES[meta.datatype] for meta in file.inputs)
    variable = any(-1 in meta.row_shape for meta in file.inputs)
    if variable and file.outputs:
        return Signature(file.inputs, file.outputs), dtypes  # no row is known to be a valid one
    if variable:
        raise LoadRefused("outputs: declare them; with variable inputs they cannot be found")
    named = True

    def dry_run(rows: int) -> Mapping[str, np.ndarray]:
        nonlocal named
        arrays = example_rows(file.inputs, rows)
        with torch.inference_mode():
            tensors = [torch.from_numpy(arrays[m.name]).to(device) for m in file.inputs]
            names, results = _flat_outputs(module(*tensors))
        named = names is not None
        names = names or [f"output_{index}" for index in range(len(results))]
        return {name: as_numpy(result.cpu()) for name, result in zip(names, results, strict=True)}

    found, max_rows = discover_outputs(dry_run)
    outputs = merge_declared("outputs", found, file.outputs, named=named)
    return Signature(file.inputs, outputs, max_rows), dtypes


def _flat_outputs(result: Any) -> tuple[list[str] | None, list[Any]]:
    """Names, where the model gives them, and tensors of what it returned. Raises TypeError."""
    names = list(result) if isinstance(result, dict) else None
    flat = (
        [result]
        if isinstance(result, torch.Tensor)
        else list(result.values() if isinstance(result, dict) else result)
    )
    if not all(isinstance(tensor, torch.Tensor) for tensor in flat):
        raise TypeError("the model must return tensors: one, a tuple, a list or a dict of them")
    return names, flat


def as_numpy(tensor: Any) -> np.ndarray:
    """A host tensor as an array that shares its memory; bfloat16 becomes float32."""
    if tensor.dtype is torch.bfloat16:
        tensor = tensor.float()
    array: np.ndarray = (tensor.detach() if tensor.requires_grad else tensor).numpy()
    return array


class TorchEngine:
    """A loaded model; its lanes share the weights."""

    def __init__(
        self, model: TorchModel, *, cuda: bool, memory_mib: float, granted_mib: int = 0
    ) -> None:
        self._model: TorchModel | None = model
        self._signature = model.signature
        self._cuda = cuda
        self._memory_mib = memory_mib
        self._granted_mib = granted_mib

    @property
    def signature(self) -> Signature:
        return self._signature

    @property
    def version(self) -> str:
        return library_version("torch")

    def lane(self, max_batch: int) -> EngineLane:
        if self._model is None:
            raise ValueError("the engine is closed")
        check_max_batch(self._signature, max_batch)
        if self._cuda:
            return CudaLane(self._model, max_batch)
        return CpuLane(self._model, max_batch)

    def memory_mib(self) -> float:
        return self._memory_mib

    def close(self) -> None:
        if self._model is None:
            return
        self._model = None
        if self._cuda:
            torch.cuda.empty_cache()
            grant_memory(-self._granted_mib)


class CpuLane:
    """Runs on the calling thread and torch's intra-operator pool."""

    def __init__(self, model: TorchModel, max_batch: int) -> None:
        self._model = model
        self._names = [meta.name for meta in model.signature.outputs]
        self._staging = Staging(model.signature, max_batch, model.padded, self._tensors)
        self._staged: Staged | None = None

    def _tensors(self, full: Mapping[str, np.ndarray]) -> Sequence[Any]:
        return [torch.from_numpy(array) for array in full.values()]

    def stage(self, shapes: Mapping[str, tuple[int, ...]]) -> Mapping[str, np.ndarray]:
        self._staged = self._staging.stage(shapes)
        return self._staged.given

    def run(self) -> Mapping[str, np.ndarray]:
        model, staged = self._model, self._staged
        assert staged is not None, "staged before it is run"
        rows = staged.rows
        try:
            with torch.inference_mode():
                tensors = staged.prepared
                if model.converts:
                    tensors = [
                        tensor.to(dtype)
                        for tensor, dtype in zip(tensors, model.input_dtypes, strict=True)
                    ]
                outputs = {
                    name: as_numpy(result if len(result) == rows else result[:rows])
                    for name, result in zip(self._names, model.call(tensors), strict=True)
                }
        except (Exception, SystemExit) as error:
            raise RunFailed(f"the model failed: {_summary(error)}") from error
        return staged.checked(outputs)

    def close(self) -> None:
        self._staged = None
        self._staging.close()


def _summary(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:300]
