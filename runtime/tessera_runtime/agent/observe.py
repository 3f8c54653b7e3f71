"""Facts of one machine for the planner: its devices, the services, what was measured."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from tessera_core.api import ModelProfile, ModelService
from tessera_core.gpu.classes import full_class
from tessera_core.gpu.devices import DeviceClass, cpu_class
from tessera_core.gpu.mig import label
from tessera_core.gpu.tables import model_of
from tessera_core.perf import LatencyProfile
from tessera_core.plan.state import (
    CPU,
    ClusterState,
    DeviceState,
    Measured,
    NodeState,
    Policy,
    PoolRules,
)
from tessera_runtime.agent.translate import device_piece
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


def places(seen: Inventory, cpu_cores: Sequence[int]) -> tuple[DeviceClass, ...]:
    """The kinds of place on this machine that are worth measuring: each GPU whole, or sets of cores."""
    found = {gpu_class(gpu) for gpu in seen.gpus if not gpu.mig_enabled}
    if found:
        return tuple(sorted(found))
    return tuple(
        cpu_class(cores, seen.memory_mib) for cores in cpu_cores if cores <= len(seen.cores)
    )


def kind_of(seen: Inventory) -> Callable[[str], tuple[str, str]]:
    """What gives (product, kind of slice) of a device by the id that targets have."""
    products = {gpu.uuid: label(gpu.product) for gpu in seen.gpus} | {CPU: CPU}

    def kind(device_id: str) -> tuple[str, str]:
        uuid, piece = device_piece(device_id)
        return products[uuid], piece.partition("@")[0]

    return kind


def gpu_class(gpu: Gpu) -> DeviceClass:
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
    )


def _cpu_state(seen: Inventory) -> DeviceState:
    return DeviceState(uuid=CPU, product=CPU, memory_mib=seen.memory_mib, cores=len(seen.cores))
