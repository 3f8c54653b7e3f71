"""NVIDIA's Multi-Process Service (MPS), as far as plans know it.

What a model does under MPS is not what it does in one process: kernels of several processes run at once, and each process
takes memory of its own. So a GPU under MPS is another product, and nothing that was measured on one is ever taken for the
other.
"""

from __future__ import annotations

from tessera_core.gpu.mig import label

MOST_CLIENTS = 48
"""Contexts that one MPS server takes on a whole GPU since Volta (NVIDIA, Multi-Process Service, "Client-Server Connections").
Newer drivers take more on newer GPUs; nothing here would use them."""

_SUFFIX = "-MPS"
"""As GPU feature discovery appends ``-SHARED`` to the product of GPUs that are shared."""


def under_mps(product: str) -> str:
    """What a GPU called ``product`` is called where its processes share it through MPS."""
    return hardware(product) + _SUFFIX


def hardware(product: str) -> str:
    """The GPU in label form, however it is shared."""
    return label(product).removesuffix(_SUFFIX)


def is_one_of(product: str, names: tuple[str, ...]) -> bool:
    """Whether ``names`` allow ``product``: they name GPUs however these are shared, or only those under MPS."""
    return not {label(product), hardware(product)}.isdisjoint(map(label, names))


def clients_of(most: int, sm_count: int, of_gpu: int) -> int:
    """Clients that a slice of ``sm_count`` SMs takes where its GPU of ``of_gpu`` SMs takes ``most``: fewer in proportion
    (NVIDIA, Multi-Instance GPU User Guide, "CUDA concurrency mechanisms"), and one at least.
    """
    return max(1, most * sm_count // of_gpu) if of_gpu else 1
