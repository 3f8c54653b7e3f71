"""An exported program without what only Python has: constants among its arguments, nested results, answers of None.

Compilers and converters take tensors and answer tensors. What an author's program has beside them is bound by tracing it anew,
as the object that our own loader built.
"""

from __future__ import annotations

from typing import Any

import torch

from tessera_runtime.engines.torch_export import Exported, inputs_from
from tessera_runtime.engines.torch_model import TORCH_DTYPES

EXAMPLE_ROWS = 4
"""Of the batch that the graph is traced with, where it may be of any size."""


class _Flat(torch.nn.Module):  # type: ignore[misc]
    """A program over its tensor inputs alone, with the answers that are served in their datatypes."""

    def __init__(self, exported: Exported, program: Any, kind: str, low: Any) -> None:
        super().__init__()
        self.inner = program.module()
        self._exported = exported
        self._kind = kind
        self._low = low

    def forward(self, *tensors: Any) -> list[Any]:
        exported = self._exported
        args, kwargs = inputs_from(exported, self.inner, tensors)
        with torch.autocast(self._kind, self._low or torch.bfloat16, self._low is not None):
            results = torch.utils._pytree.tree_leaves(self.inner(*args, **kwargs))
        return [
            results[position].to(TORCH_DTYPES[meta.datatype])
            for position, meta in zip(exported.positions, exported.signature.outputs, strict=True)
        ]


def flattened(exported: Exported, device: str, low: Any = None) -> Any:
    """A program that takes the tensors of the signature and answers its outputs, in order and in their datatypes; its
    products in ``low``, where that is given. Of one in which only the batch varies. Raises what torch.export does.
    """
    program = exported.program
    if device != "cpu":
        program = torch.export.passes.move_to_device_pass(program, device)
    signature, batch = exported.signature, exported.batch
    rows = min(max(batch.least, EXAMPLE_ROWS), batch.most or EXAMPLE_ROWS)
    dynamic = None
    if batch.symbol is None:
        rows = batch.most or rows
    else:
        dim = torch.export.Dim("batch", min=batch.least, max=batch.most)
        dynamic = (tuple({0: dim} for _ in signature.inputs),)
    examples = tuple(
        torch.zeros((rows, *meta.row_shape), dtype=dtype, device=device)
        for meta, dtype in zip(signature.inputs, exported.input_dtypes, strict=True)
    )
    flat = _Flat(exported, program, torch.device(device).type, low)
    with torch.no_grad():
        return torch.export.export(flat, examples, dynamic_shapes=dynamic, strict=False)
