"""From a board and a slice to its device class, and from a class's text back.

A shared GPU has no class here: it is a class whose profile has rows with ``instances`` > 1.
"""

from __future__ import annotations

import re

from tessera_core.gpu.devices import FULL, DeviceClass, cpu_class
from tessera_core.gpu.mig import GpuModel, Profile, find_profile, label
from tessera_core.gpu.tables import model_of

_CPU = re.compile(r"cpu-([1-9]\d{0,4})")


def full_class(model: GpuModel, product: str | None = None) -> DeviceClass:
    """The class of a whole ``model`` GPU.

    ``product``: the NVML name of the very board, because clocks and power differ between the products of
    one table (SXM4 and PCIe); the table's first product when absent.
    """
    return DeviceClass(
        product=label(product) if product is not None else model.products[0],
        slice=FULL,
        sm_count=model.sm_count,
        memory_mib=model.memory_mib,
    )


def slice_class(model: GpuModel, profile: Profile, product: str | None = None) -> DeviceClass:
    """The class of a ``profile`` instance of a ``model`` GPU; ``product`` as in :func:`full_class`."""
    return DeviceClass(
        product=label(product) if product is not None else model.products[0],
        slice=profile.name,
        sm_count=profile.sm_count or 0,
        memory_mib=profile.memory_mib,
    )


def parse_class(text: str, *, cpu_memory_mib: int) -> DeviceClass:
    """The class that prints as ``text``: ``<product>/<slice>`` of a tabled board, or ``cpu-N``.

    ``cpu_memory_mib``: memory budget of a CPU class, MiB, which its text does not carry. A driver's alias of
    a slice gives the table's name. Raises ValueError with what was found and what is allowed.
    """
    if cores := _CPU.fullmatch(text):
        return cpu_class(int(cores.group(1)), cpu_memory_mib)
    product, separator, name = text.partition("/")
    if not separator:
        raise ValueError(f"device class {text!r}: expected 'cpu-N' or '<product>/<slice>'")
    model = model_of(product)
    if model is None:
        raise ValueError(f"device class {text!r}: there is no table for product {product!r}")
    if name == FULL:
        return full_class(model, product)
    profile = find_profile(model, name)
    if profile is None:
        allowed = ", ".join((FULL, *(each.name for each in model.profiles)))
        raise ValueError(
            f"device class {text!r}: {model.name} has no slice {name!r}, has {allowed}"
        )
    return slice_class(model, profile, product)
