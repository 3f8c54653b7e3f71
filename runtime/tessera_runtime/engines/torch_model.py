"""What a PyTorch engine needs to know of a model, whichever format it came in."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from tessera_runtime.engines.base import LoadRefused, Signature

TORCH_DTYPES: Mapping[str, Any] = {
    "BOOL": torch.bool,
    "UINT8": torch.uint8,
    "UINT16": torch.uint16,
    "UINT32": torch.uint32,
    "UINT64": torch.uint64,
    "INT8": torch.int8,
    "INT16": torch.int16,
    "INT32": torch.int32,
    "INT64": torch.int64,
    "FP16": torch.float16,
    "FP32": torch.float32,
    "FP64": torch.float64,
}

_DATATYPES = {dtype: name for name, dtype in TORCH_DTYPES.items()} | {torch.bfloat16: "FP32"}


def datatype_of_torch(dtype: Any, where: str) -> str:
    """The datatype a torch dtype travels as; bfloat16 as FP32. Raises LoadRefused."""
    name = _DATATYPES.get(dtype)
    if name is None:
        raise LoadRefused(f"{where}: {dtype} cannot be served; allowed: {', '.join(TORCH_DTYPES)}")
    return name


@dataclass(frozen=True, slots=True)
class TorchModel:
    """A callable over flat lists of tensors.

    A batch of n rows is run as ``max(n, min_rows)`` rows, or as ``signature.max_rows`` of them when the
    batch dimension is ``static``.
    """

    call: Callable[[Sequence[Any]], Sequence[Any]]
    """Input tensors in the signature's order to output tensors in its order."""
    signature: Signature
    input_dtypes: tuple[Any, ...]
    """What ``call`` takes; bfloat16 where the signature says FP32."""
    weight_bytes: int
    min_rows: int = 1
    static: bool = False

    @property
    def converts(self) -> bool:
        """Whether ``call`` takes other dtypes than arrive."""
        return torch.bfloat16 in self.input_dtypes

    def padded(self, rows: int) -> int:
        """Rows that the model has to run for a batch of ``rows``."""
        if self.static:
            assert self.signature.max_rows is not None
            return self.signature.max_rows
        return max(rows, self.min_rows)


def tensor_bytes(tensors: Sequence[Any]) -> int:
    """Bytes of distinct storages, so that tied weights count once."""
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}
    return sum(storages.values())
