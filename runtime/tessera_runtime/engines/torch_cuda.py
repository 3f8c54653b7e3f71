"""A lane on a GPU: one stream, pinned host memory, one CUDA graph per batch bucket.

Small networks are bound by the launch of their kernels, which a CUDA graph does once for all of them. A
graph has fixed addresses and sizes, so there is one per power of two up to the lane's largest batch, all on
the same static input buffers; a batch runs in the smallest bucket that holds it and its outputs are cut to
its rows. A model that cannot be captured (it synchronises, or its sizes vary) runs on the stream as it is.

Capture follows "CUDA Graphs" of the PyTorch notes on CUDA semantics: warm up on a side stream, then capture.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from tessera_runtime.engines.base import RunFailed, TensorMeta
from tessera_runtime.engines.staging import HostBuffer, Staged, Staging
from tessera_runtime.engines.torch_model import TORCH_DTYPES, TorchModel

WARM_RUNS = 3
"""Before capture: lets cuDNN and cuBLAS choose algorithms and allocate workspaces."""

_capturing = threading.Lock()
"""Other threads may launch work meanwhile, but captures of two lanes would share the allocator's state."""

_granted_mib = 0
_granting = threading.Lock()


def grant_memory(memory_mib: int) -> None:
    """Allow this process ``memory_mib`` more of the device, or less for a negative number.

    The cap of a process is the sum of what its models were granted; without grants there is none.
    """
    global _granted_mib
    with _granting:
        _granted_mib += memory_mib
        total = torch.cuda.get_device_properties(0).total_memory
        fraction = min(1.0, _granted_mib * 2**20 / total) if _granted_mib else 1.0
        torch.cuda.set_per_process_memory_fraction(fraction)


def reserved_mib() -> float:
    """MiB the process's caching allocator holds on the device."""
    return float(torch.cuda.memory_reserved()) / 2**20


def buckets(max_batch: int) -> list[int]:
    """Powers of two below ``max_batch``, and ``max_batch``."""
    return [1 << k for k in range((max_batch - 1).bit_length())] + [max_batch]


def pinned(count: int, dtype: np.dtype) -> np.ndarray:
    size = count * dtype.itemsize
    memory: np.ndarray = torch.zeros(size, dtype=torch.uint8, pin_memory=True).numpy()
    return memory.view(dtype)


def _tensors(full: Mapping[str, np.ndarray]) -> Sequence[Any]:
    return [torch.from_numpy(array) for array in full.values()]


class CudaLane:
    """One stream and its static buffers. Capture happens here, so building a lane is its warm-up."""

    def __init__(self, model: TorchModel, max_batch: int) -> None:
        self._model = model
        signature = model.signature
        rows = model.padded(max_batch)
        self._staging = Staging(signature, max_batch, prepare=_tensors, allocate=pinned)
        self._answers = {meta.name: HostBuffer(meta, rows, pinned) for meta in signature.outputs}
        self._stream = torch.cuda.Stream()
        self._done = torch.cuda.Event()
        self._staged: Staged | None = None
        self._static: list[Any] = []
        self._graphs: dict[int, tuple[Any, Sequence[Any]]] = {}
        if all(-1 not in meta.row_shape for meta in signature.inputs):
            self._capture(sorted({model.padded(size) for size in buckets(max_batch)}))

    def _capture(self, sizes: list[int]) -> None:
        inputs = self._model.signature.inputs
        dtypes = self._model.input_dtypes
        # One pool for all graphs: only one of them runs at a time, and its outputs are copied out at once.
        pool = torch.cuda.graph_pool_handle()
        with torch.inference_mode(), _capturing, torch.cuda.stream(self._stream):
            self._static = [
                torch.zeros((sizes[-1], *meta.row_shape), dtype=dtype, device="cuda")
                for meta, dtype in zip(inputs, dtypes, strict=True)
            ]
            for size in reversed(sizes):  # the largest first: smaller ones fit in its memory
                views = [tensor[:size] for tensor in self._static]
                try:
                    for _ in range(WARM_RUNS):
                        self._model.call(views)
                    self._stream.synchronize()
                    graph = torch.cuda.CUDAGraph()
                    with torch.cuda.graph(
                        graph, pool, self._stream, capture_error_mode="thread_local"
                    ):
                        outputs = self._model.call(views)
                except RuntimeError:
                    # The model synchronises or allocates in a way that a capture forbids: run it plainly.
                    # What a broken capture leaves in its stream is undefined, so take another.
                    self._graphs.clear()
                    self._stream = torch.cuda.Stream()
                    return
                self._graphs[size] = (graph, outputs)

    def stage(self, shapes: Mapping[str, tuple[int, ...]]) -> Mapping[str, np.ndarray]:
        self._staged = self._staging.stage(shapes)
        return self._staged.given

    def run(self) -> Mapping[str, np.ndarray]:
        staged = self._staged
        assert staged is not None, "staged before it is run"
        try:
            with torch.inference_mode(), torch.cuda.stream(self._stream):
                results = self._launch(staged)
                outputs = {
                    meta.name: self._fetch(meta, result[: staged.rows])
                    for meta, result in zip(self._model.signature.outputs, results, strict=True)
                }
                self._done.record(self._stream)
            self._done.synchronize()
        except (Exception, SystemExit) as error:
            raise RunFailed(f"the model failed: {error}") from error
        return staged.checked(outputs)

    def _launch(self, staged: Staged) -> Sequence[Any]:
        rows = staged.rows
        size = next((size for size in sorted(self._graphs) if size >= rows), None)
        if size is None:
            return self._model.call(self._padded_inputs(staged))
        for static, tensor in zip(self._static, staged.prepared, strict=True):
            static[:rows].copy_(tensor, non_blocking=True)
        graph, outputs = self._graphs[size]
        graph.replay()
        return outputs

    def _padded_inputs(self, staged: Staged) -> list[Any]:
        padded = self._model.padded(staged.rows)
        tensors = []
        for given, dtype in zip(staged.prepared, self._model.input_dtypes, strict=True):
            tensor = torch.zeros((padded, *given.shape[1:]), dtype=dtype, device="cuda")
            tensor[: staged.rows].copy_(given, non_blocking=True)
            tensors.append(tensor)
        return tensors

    def _fetch(self, meta: TensorMeta, rows: Any) -> np.ndarray:
        """Start the copy of ``rows`` into pinned memory, in the signature's datatype."""
        array = self._answers[meta.name].view(tuple(rows.shape))
        wanted = TORCH_DTYPES[meta.datatype]
        torch.from_numpy(array).copy_(rows.to(wanted), non_blocking=True)
        return array

    def close(self) -> None:
        self._stream.synchronize()
        self._graphs.clear()
        self._static.clear()
        self._staged = None
        self._staging.close()
