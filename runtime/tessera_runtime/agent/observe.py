"""Facts of one machine for the planner: its devices, the services, what was measured."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from tessera_core.api import ModelProfile, ModelService
from tessera_core.api.preprocess import Decoder
from tessera_core.gpu.classes import full_class
from tessera_core.gpu.devices import FULL, DeviceClass, cpu_class
from tessera_core.gpu.geometry import canonical
from tessera_core.gpu.mig import label
from tessera_core.gpu.tables import model_of
from tessera_core.perf import LatencyProfile
from tessera_core.plan.decoding import may_decode
from tessera_core.plan.state import (
    CPU,
    ClusterState,
    DeviceState,
    Measured,
    NodeState,
    Policy,
    PoolRules,
)
from tessera_runtime.agent.translate import TranslationError, cpu_piece, device_piece
from tessera_runtime.devices.inventory import Gpu, Inventory

LOCAL = "local"
"""Name of the only node and the only pool outside a cluster."""


def cluster_state(
    seen: Inventory,
    services: Sequence[ModelService],
    profiles: Sequence[ModelProfile],
    digests: Mapping[tuple[str, str], str],
    policy: Policy,
    *,
    allow_code: bool,
) -> ClusterState:
    """The machine as a cluster of one node. ``digests``: by (served name, member)."""
    devices = [*(_gpu_state(gpu) for gpu in seen.gpus), _cpu_state(seen)]
    return ClusterState(
        nodes=(NodeState(name=LOCAL, pool=LOCAL, devices=tuple(devices)),),
        services=tuple(services),
        measured=tuple(
            Measured(
                digest=profile.spec.model_digest,
                place=profile.spec.device_class,
                profile=LatencyProfile(profile.status.rows),
                engine=profile.spec.engine,
            )
            for profile in profiles
        ),
        # One user owns the machine: whatever runs here runs for them.
        pools=(PoolRules(name=LOCAL, shared_between_namespaces=True, allow_code=allow_code),),
        policy=policy,
        digests=tuple(
            sorted((service, member, digest) for (service, member), digest in digests.items())
        ),
    )


@dataclass(frozen=True, slots=True)
class Spot:
    """Where something can be measured."""

    place: DeviceClass
    device: str
    slice: str


def spots(seen: Inventory, cpu_cores: Sequence[int]) -> tuple[Spot, ...]:
    """The kinds of place on this machine that are worth measuring, each once: GPUs whole and their slices, or sets of
    cores where there is no GPU.
    """
    return _on_gpus(seen) or _on_cores(seen, cpu_cores)


def stage_spots(seen: Inventory, cpu_cores: Sequence[int], decoder: Decoder) -> tuple[Spot, ...]:
    """The same for preprocessing: sets of cores also beside GPUs, and of GPUs those parts that ``may_decode`` names."""
    engines = {
        (gpu.uuid, piece): count for gpu in seen.gpus for piece, count in _jpeg_engines(gpu).items()
    }
    return tuple(
        spot
        for spot in (*_on_gpus(seen), *_on_cores(seen, cpu_cores))
        if may_decode(decoder, spot.place.product, engines.get((spot.device, spot.slice)))
    )


def _jpeg_engines(gpu: Gpu) -> dict[str, int]:
    """By name of the part."""
    if gpu.mig_enabled:
        return {each.name: each.jpeg_engines for each in gpu.slices}
    return {FULL: gpu.jpeg_engines}


def _on_gpus(seen: Inventory) -> tuple[Spot, ...]:
    found: dict[tuple[str, str], Spot] = {}
    for gpu in seen.gpus:
        for piece in _jpeg_engines(gpu):
            place = device_class(seen, gpu.uuid, piece)
            found.setdefault((place.product, place.slice), Spot(place, gpu.uuid, piece))
    return tuple(found[kind] for kind in sorted(found))


def _on_cores(seen: Inventory, cpu_cores: Sequence[int]) -> tuple[Spot, ...]:
    return tuple(
        # At the end of the cores, away from those kept for the dispatcher: where it will run.
        Spot(cpu_class(cores, seen.memory_mib), CPU, f"cpu-{cores}@{len(seen.cores) - cores}")
        for cores in cpu_cores
        if cores <= len(seen.cores)
    )


def device_class(seen: Inventory, uuid: str, piece: str) -> DeviceClass:
    """The class of a slice of a device; of a MIG slice with the SMs and the memory that the driver tells.

    Raises TranslationError for what is not there.
    """
    if uuid == CPU:
        return cpu_class(cpu_piece(piece)[0], seen.memory_mib)
    for gpu in seen.gpus:
        if gpu.uuid == uuid and piece == FULL:
            return _gpu_class(gpu)
        for each in gpu.slices:
            if gpu.uuid == uuid and each.name == piece:
                profile = each.placement.profile
                return DeviceClass(label(gpu.product), profile, each.sm_count, each.memory_mib)
    raise TranslationError(f"{piece} of {uuid}: this node has no such device")


def kind_of(seen: Inventory) -> Callable[[str], tuple[str, str]]:
    """What gives (product, kind of slice) of a device by the id that targets have; the product is empty of one that is
    not here, as a target of before a restart may name.
    """
    products = {gpu.uuid: label(gpu.product) for gpu in seen.gpus} | {CPU: CPU}

    def kind(device_id: str) -> tuple[str, str]:
        uuid, piece = device_piece(device_id)
        return products.get(uuid, ""), piece.partition("@")[0]

    return kind


def _gpu_class(gpu: Gpu) -> DeviceClass:
    model = model_of(gpu.product)
    if model is not None:
        return full_class(model, gpu.product)
    return DeviceClass(label(gpu.product), "full", gpu.sm_count, gpu.memory_mib)


def _gpu_state(gpu: Gpu) -> DeviceState:
    return DeviceState(
        uuid=gpu.uuid,
        product=label(gpu.product),
        memory_mib=gpu.memory_mib,
        model=model_of(gpu.product),
        geometry=canonical(each.placement for each in gpu.slices) if gpu.mig_enabled else None,
        jpeg_engines=tuple(
            sorted({name.partition("@")[0]: n for name, n in _jpeg_engines(gpu).items()}.items())
        ),
    )


def _cpu_state(seen: Inventory) -> DeviceState:
    return DeviceState(uuid=CPU, product=CPU, memory_mib=seen.memory_mib, cores=len(seen.cores))
