"""From what the operator wants of a node to what the server is told: pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tessera_core.api import ModelService, RuntimeNode
from tessera_core.api.members import Member
from tessera_core.api.runtimenode import Instance, InstanceState
from tessera_core.api.tensors import InputTensor, Tensor
from tessera_core.gpu.devices import FULL
from tessera_core.plan.state import CPU
from tessera_runtime.target import (
    DeviceTarget,
    InstanceTarget,
    MemberTarget,
    ServerTarget,
    ServiceTarget,
    ServiceTime,
    TensorTarget,
)


@dataclass(frozen=True, slots=True)
class LocalModel:
    """A member's model on this node."""

    path: str
    digest: str
    service_time: ServiceTime | None


class TranslationError(Exception):
    """The spec asks for something that this node does not have."""


def server_target(
    node: RuntimeNode,
    services: Sequence[ModelService],
    models: Mapping[tuple[str, str], LocalModel],
    cores: Sequence[int],
    memory_mib: int,
    *,
    allow_code: bool,
) -> ServerTarget:
    """``cores``: the processor's own numbers of the cores that the plan numbers from 0. Raises
    TranslationError.
    """
    devices: dict[str, DeviceTarget] = {}
    wanted: dict[tuple[str, str], list[tuple[Instance, InstanceTarget]]] = {}
    for device in node.spec.devices:
        for instance in device.instances:
            if instance.state is InstanceState.STANDBY:
                continue
            target = device_target(device.uuid, instance.slice, cores, memory_mib)
            devices[target.id] = target
            where = InstanceTarget(target.id, instance.count, instance.batch)
            wanted.setdefault((instance.service, instance.member), []).append((instance, where))
    return ServerTarget(
        devices=tuple(devices[key] for key in sorted(devices)),
        services=tuple(
            _service_target(service, wanted, models, allow_code=allow_code) for service in services
        ),
        epoch=node.spec.epoch,
    )


def device_target(uuid: str, piece: str, cores: Sequence[int], memory_mib: int) -> DeviceTarget:
    """``piece``: ``full``, ``cpu-N@C``. Raises TranslationError."""
    if uuid == CPU:
        name, _, start = piece.partition("@")
        count, first = int(name.removeprefix("cpu-")), int(start or 0)
        if first + count > len(cores):
            raise TranslationError(f"{piece}: this node has {len(cores)} cores")
        mine = tuple(cores[first : first + count])
        return DeviceTarget(f"{uuid}/{piece}", "cpu", mine, threads=count, memory_mib=memory_mib)
    if piece != FULL:
        raise TranslationError(f"{piece} of {uuid}: MIG slices are not served yet")
    return DeviceTarget(uuid, "cuda", environment={"CUDA_VISIBLE_DEVICES": uuid})


def _service_target(
    service: ModelService,
    wanted: Mapping[tuple[str, str], Sequence[tuple[Instance, InstanceTarget]]],
    models: Mapping[tuple[str, str], LocalModel],
    *,
    allow_code: bool,
) -> ServiceTarget:
    spec = service.spec
    objective = spec.slo.objectives[0]
    return ServiceTarget(
        name=service.served_name,
        version=str(service.metadata.generation or 1),
        members=tuple(
            _member_target(
                member,
                models[service.served_name, member.name],
                wanted.get((service.served_name, member.name), ()),
                allow_code=allow_code,
            )
            for member in spec.members
        ),
        combine=spec.ensemble.combine,
        min_members=spec.ensemble.min_members,
        on_timeout=spec.ensemble.on_timeout,
        slo_ms=1e3 * objective.target_s,
        percent=objective.percent,
        inputs=tensors(spec.inputs),
        outputs=tensors(spec.outputs),
    )


def tensors(declared: Sequence[Tensor]) -> tuple[TensorTarget, ...]:
    """Declared metadata in the server's words."""
    return tuple(
        TensorTarget(
            tensor.name,
            tensor.datatype.value,
            tensor.shape,
            tensor.padding.buckets
            if isinstance(tensor, InputTensor) and tensor.padding is not None
            else (),
        )
        for tensor in declared
    )


def _member_target(
    member: Member,
    model: LocalModel,
    placed: Sequence[tuple[Instance, InstanceTarget]],
    *,
    allow_code: bool,
) -> MemberTarget:
    cap = max((instance.batch for instance, _ in placed), default=member.batch.max)
    return MemberTarget(
        name=member.name,
        path=model.path,
        format=member.model.format.value,
        digest=model.digest,
        max_batch=member.batch.max,
        cap=min(cap, member.batch.max),
        instances=tuple(where for _, where in placed),
        allow_code=allow_code,
        weight=member.weight if member.weight is not None else 1.0,
        required=member.required,
        service_time=model.service_time,
    )
