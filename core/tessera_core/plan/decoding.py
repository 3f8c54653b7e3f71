"""What preprocessing may run on, and which parts of GPUs it is not measured on and why.

A stage is planned wherever it was measured, like any other member. Of GPUs it is measured on those parts that have a JPEG
engine, unless its service asks for GPUs whatever they have: without an engine the processor does half of the work.
"""

from __future__ import annotations

from collections.abc import Iterator

from tessera_core.api import ModelService, ModelServiceSpec
from tessera_core.api.preprocess import Decoder
from tessera_core.api.stages import STAGE, stage_of
from tessera_core.gpu.mps import is_one_of
from tessera_core.plan.state import CPU, ClusterState


def may_decode(decoder: Decoder, product: str, jpeg_engines: int | None) -> bool:
    """Whether preprocessing is tried on parts of ``product`` with so many engines; None: nobody has counted them."""
    if product == CPU:
        return decoder is not Decoder.GPU
    return decoder is Decoder.GPU or (decoder is Decoder.AUTO and bool(jpeg_engines))


def stage_products(spec: ModelServiceSpec) -> tuple[str, ...]:
    """The products that the preprocessing of ``spec`` may be placed on; empty: any on which it was measured."""
    named = spec.placement.products
    match spec.preprocess.device if spec.preprocess is not None else Decoder.CPU:
        case Decoder.CPU:
            return (CPU,)
        case Decoder.AUTO:
            return (CPU, *named) if named else ()
        case Decoder.GPU:
            return named


def left_out(service: ModelService, state: ClusterState) -> Iterator[str]:
    """In words, where the preprocessing of ``service`` is not tried though the service may use it."""
    spec = service.spec
    if spec.preprocess is None or spec.preprocess.device is Decoder.CPU:
        return
    digest = stage_of(spec.preprocess).model.digest
    measured = {(m.place.product, m.place.slice) for m in state.measured if m.digest == digest}
    engines: dict[tuple[str, str], int | None] = {}
    for device in (device for node in state.nodes for device in node.devices):
        named = spec.placement.products
        if device.is_cpu or (named and not is_one_of(device.product, named)):
            continue
        for part in device.parts:
            # One node may tell what an older agent on another does not.
            count = dict(device.jpeg_engines).get(part, engines.get((device.product, part)))
            engines[device.product, part] = count
    if spec.preprocess.device is Decoder.GPU:
        if not engines:
            yield f"{STAGE}: image.device is GPU, and there is none that the service may use"
        return
    for (product, part), count in sorted(engines.items()):
        if (product, part) not in measured and not may_decode(Decoder.AUTO, product, count):
            why = "it has no JPEG engine" if count == 0 else "its JPEG engines were not counted"
            yield f"{STAGE} is not tried on {product}/{part}: {why}; image.device GPU would"
