"""Exported programs run by torch with other options: arithmetic of half the width, images in channels-last order.

Low precision is autocast's choice of operators: products and convolutions, whose sums the processor or GPU keeps in FP32, and
nothing else. What comes in and goes out keeps its datatype. Weights that only such operators read are converted once, at load;
autocast would convert them anew with every batch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from tessera_core.api.modelservice import Precision
from tessera_core.tuning.variants import Variant
from tessera_runtime.engines.base import LoadRefused, ModelFile
from tessera_runtime.engines.torch_export import Exported, lifted, read_export
from tessera_runtime.engines.torch_model import TORCH_DTYPES, TorchModel
from tessera_runtime.engines.torch_program import compiled, convolved

LOW: Mapping[Precision, Any] = {Precision.BF16: torch.bfloat16, Precision.FP16: torch.float16}

_PRODUCTS = frozenset(
    {
        "aten::linear", "aten::conv1d", "aten::conv2d", "aten::conv3d", "aten::matmul", "aten::mm", "aten::bmm",
        "aten::addmm", "aten::baddbmm",
    }
)  # fmt: skip
"""Operators that autocast runs in low precision on processors and GPUs, of those that have weights."""


def load_torch_variant(file: ModelFile, device: str, variant: Variant) -> TorchModel:
    """Load ``file`` on the torch device ``device``. Raises LoadRefused."""
    exported = read_fixed(file, variant)
    program = exported.program
    if device != "cpu":
        program = torch.export.passes.move_to_device_pass(program, device)
    weights = lifted(program)
    turns = variant.option("channels-last") is not None
    if turns:
        for name in convolved(program.graph):
            weights[name] = weights[name].contiguous(memory_format=torch.channels_last)
    low = LOW.get(variant.precision)
    if low is not None:
        for name in _products_only(program.graph):
            if name in weights and weights[name].dtype is torch.float32:
                weights[name] = weights[name].to(low)
    call = exported.flat(compiled(program, weights))
    if turns:
        call = _turned(call)
    if low is not None:
        call = _autocast(call, exported, torch.device(device).type, low)
    return exported.model(call)


def read_fixed(file: ModelFile, variant: Variant) -> Exported:
    """As :func:`read_export`, of a program in which only the batch may vary. Raises LoadRefused."""
    exported = read_export(file)
    if exported.variable:
        raise LoadRefused(f"variant {variant} needs inputs whose rows have one fixed shape")
    return exported


def _turned(
    call: Callable[[Sequence[Any]], Sequence[Any]],
) -> Callable[[Sequence[Any]], Sequence[Any]]:
    def turned(tensors: Sequence[Any]) -> Sequence[Any]:
        return call(
            [
                each.contiguous(memory_format=torch.channels_last) if each.ndim == 4 else each
                for each in tensors
            ]
        )

    return turned


def _autocast(
    call: Callable[[Sequence[Any]], Sequence[Any]], exported: Exported, kind: str, low: Any
) -> Callable[[Sequence[Any]], Sequence[Any]]:
    wanted = [TORCH_DTYPES[meta.datatype] for meta in exported.signature.outputs]

    def lower(tensors: Sequence[Any]) -> Sequence[Any]:
        # Without its cache, which keeps weights by identity: ours are converted already.
        with torch.autocast(kind, low, cache_enabled=False):
            results = call(tensors)
        return [result.to(dtype) for result, dtype in zip(results, wanted, strict=True)]

    return lower


def _products_only(graph: Any) -> set[str]:
    """Placeholders that only products read."""
    return {
        node.name
        for node in graph.nodes
        if node.op == "placeholder"
        and node.users
        and all(
            getattr(getattr(user.target, "_schema", None), "name", "") in _PRODUCTS
            for user in node.users
        )
    }
