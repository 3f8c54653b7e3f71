"""From what the operator wants of a node to what the server is told: pure.

A service is told in a new version only when every model that it needs here has been fetched; until then it
stays as it was told before, so that a slow or failing store never takes away what runs. One service that
cannot be told does not hold up the others.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

import msgspec

from tessera_core.api import RuntimeNode
from tessera_core.api.members import Member
from tessera_core.api.runtimenode import Instance, InstanceState, ServedMember, ServedService
from tessera_core.api.tensors import InputTensor, Tensor
from tessera_core.gpu.devices import FULL
from tessera_core.gpu.mig import label
from tessera_core.gpu.mps import clients_of
from tessera_core.plan.state import CPU
from tessera_runtime.agent.keys import SecretSource
from tessera_runtime.devices.inventory import Gpu, Inventory
from tessera_runtime.target import (
    DeviceTarget,
    InstanceTarget,
    MemberTarget,
    PeerTarget,
    ServerTarget,
    ServiceTarget,
    ServiceTime,
    TensorTarget,
)

ModelKey = tuple[str, str]
"""(served name, member)."""

ON_CORES = "none: GPUs emulated on cores"
"""In the place of a driver's version, in what is measured so."""


@dataclass(frozen=True, slots=True)
class LocalModel:
    """A member's model on this node."""

    path: str
    digest: str


@dataclass(frozen=True, slots=True)
class ModelSource:
    """A model file, and the namespace whose right to read it counts."""

    namespace: str
    uri: str
    secret: str | None
    """Name of the Secret with the credentials, in ``namespace``."""
    digest: str | None
    """Absent: whatever is there."""


@dataclass(frozen=True, slots=True)
class Site:
    """What this node gives to instances."""

    seen: Inventory
    """Its cores by the processor's own numbers, which plans number from 0; its GPUs as they are cut now."""
    allow_code: bool
    gpus_on_cores: bool = False
    """Whether what is placed on GPUs runs on all cores instead, for trials where there are none."""
    mps: int = 0
    """Processes of a namespace that may share a whole GPU through MPS; 0: none."""

    @property
    def driver(self) -> str:
        """What GPUs are driven by; empty without any."""
        return ON_CORES if self.gpus_on_cores and self.seen.gpus else self.seen.driver


@dataclass(frozen=True, slots=True)
class Translated:
    """What to tell the server, and what could not be told."""

    target: ServerTarget
    problems: Mapping[str, str]
    """By served name: why it is not as wanted."""


class TranslationError(Exception):
    """The spec asks for something that this node does not have."""


class _NotFetched(Exception):
    """A model that the service needs here has not been fetched yet."""


def model_sources(node: RuntimeNode) -> dict[ModelKey, ModelSource]:
    """The models that ``node`` serves: of members with instances here."""
    needed = {
        (instance.service, instance.member)
        for device in node.spec.devices
        for instance in device.instances
    }
    return _sources(node.spec.services, needed)


def candidate_sources(node: RuntimeNode) -> dict[ModelKey, ModelSource]:
    """The models that ``node`` measures or tunes, of versions that need not be those it serves."""
    needed = {(task.service, task.member) for task in node.spec.profiling}
    needed |= {(task.service, task.member) for task in node.spec.tuning}
    return _sources(node.spec.candidates, needed)


def key_sources(node: RuntimeNode) -> dict[str, SecretSource]:
    """By served name, where the keys are of those services that ask for one."""
    return {
        service.name: SecretSource(
            service.name.partition(".")[0], service.spec.access.keys_secret_ref.name
        )
        for service in node.spec.services
        if service.spec.access is not None
    }


def _sources(
    services: Iterable[ServedService], needed: Collection[ModelKey]
) -> dict[ModelKey, ModelSource]:
    return {
        (service.name, member.name): _source(service, member)
        for service in services
        for member in service.spec.placed
        if (service.name, member.name) in needed
    }


def _source(service: ServedService, member: Member) -> ModelSource:
    model = member.model
    return ModelSource(
        namespace=service.name.partition(".")[0],
        uri=model.uri,
        secret=model.secret_ref.name if model.secret_ref is not None else None,
        digest=model.digest or _served(service, member.name).digest,
    )


def server_target(
    node: RuntimeNode,
    models: Mapping[ModelKey, LocalModel],
    site: Site,
    before: ServerTarget,
    unread: Collection[str] = (),
    without_keys: Collection[str] = (),
) -> Translated:
    """``before`` is what the server was told last; a service whose models are missing stays as it is there, but for
    who may ask, and for slices that were cut anew under their names. So do those of ``unread``, which ``node`` lacks
    because they could not be read, and ``without_keys``, whose keys are being read for the first time: the next moment
    they are there, or known to be none.
    """
    placed: dict[ModelKey, list[tuple[str, Instance]]] = {}
    for device in node.spec.devices:
        for instance in device.instances:
            if instance.state is InstanceState.ACTIVE:
                key = (instance.service, instance.member)
                placed.setdefault(key, []).append((device.uuid, instance))
    told = {service.name: service for service in before.services}
    devices = {device.id: _as_now(device, site) for device in before.devices}
    services: list[ServiceTarget] = []
    problems: dict[str, str] = {}
    for service in node.spec.services:
        if not _served_here(service, placed):
            continue
        if service.name in without_keys:
            if service.name in told:
                services.append(told[service.name])
            continue
        try:
            found = _devices(service, placed, site)
            target = _service_target(service, placed, models, allow_code=site.allow_code)
        except (TranslationError, _NotFetched) as error:
            if isinstance(error, TranslationError):
                problems[service.name] = str(error)
            if service.name in told:
                needs_key = service.spec.access is not None
                services.append(msgspec.structs.replace(told[service.name], needs_key=needs_key))
        else:
            devices.update(found)
            services.append(target)
    services += [told[name] for name in sorted(unread) if name in told]
    known = {service.name for service in node.spec.services} | set(unread)
    for name in sorted({service for service, _ in placed} - known):
        problems[name] = "it has instances here, but no version of it is given in spec.services"
    used = {place.device for s in services for m in s.members for place in m.instances}
    return Translated(
        ServerTarget(
            devices=tuple(devices[key] for key in sorted(used)),
            services=tuple(services),
            epoch=node.spec.epoch,
        ),
        problems,
    )


def device_target(uuid: str, piece: str, site: Site) -> DeviceTarget:
    """``piece``: ``full``, ``<profile>@<start>`` or ``cpu-N@C``. Raises TranslationError.

    Under one id a slice that was cut anew is another device, by its environment.
    """
    seen = site.seen
    if uuid == CPU:
        count, first = cpu_piece(piece)
        if first + count > len(seen.cores):
            raise TranslationError(f"{piece}: this node has {len(seen.cores)} cores")
        mine = tuple(seen.cores[first : first + count])
        memory = seen.memory_mib
        return DeviceTarget(_device_id(uuid, piece), "cpu", mine, threads=count, memory_mib=memory)
    gpu, visible, share = _visible(uuid, piece, seen)
    environment = {"CUDA_VISIBLE_DEVICES": visible}
    clients = clients_of(site.mps, *share) if site.mps else 0
    if not site.gpus_on_cores:
        return DeviceTarget(
            _device_id(uuid, piece),
            "cuda",
            environment=environment,
            mps_clients=clients,
            product=label(gpu.product),
            slice=piece.partition("@")[0],
            sm_count=share[0] if piece != FULL else gpu.sm_count,
            driver=seen.driver,
        )
    return DeviceTarget(
        _device_id(uuid, piece),
        "cpu",
        seen.cores,
        memory_mib=seen.memory_mib,
        environment=environment,
        mps_clients=clients,
    )


def _visible(uuid: str, piece: str, seen: Inventory) -> tuple[Gpu, str, tuple[int, int]]:
    """The GPU, what CUDA calls it or its slice, and the SMs that it has, of how many. Raises TranslationError."""
    gpu = next((each for each in seen.gpus if each.uuid == uuid), None)
    if gpu is None:
        raise TranslationError(f"{uuid}: this node has no such device")
    slices = {each.name: each for each in gpu.slices}
    if piece in slices:
        return gpu, slices[piece].uuid, (slices[piece].sm_count, gpu.sm_count)
    if piece != FULL:
        there = f"has {', '.join(slices)}" if slices else "has no slices"
        raise TranslationError(f"{piece} of {uuid}: not cut yet; it {there}")
    if gpu.mig_enabled:
        raise TranslationError(f"{uuid}: in MIG mode it runs nothing as a whole, only its slices")
    return gpu, uuid, (1, 1)


def device_piece(device_id: str) -> tuple[str, str]:
    """(uuid, slice) of the ``id`` that :func:`device_target` gave."""
    uuid, _, piece = device_id.partition("/")
    return uuid, piece or FULL


def cpu_piece(piece: str) -> tuple[int, int]:
    """(cores, first core) of ``cpu-N`` or ``cpu-N@C``. Raises TranslationError."""
    name, _, start = piece.partition("@")
    kind, _, count = name.partition("-")
    if kind != CPU or not count.isdigit():
        raise TranslationError(f"{piece} of {CPU}: expected cpu-N or cpu-N@first")
    return int(count), int(start or 0)


def member_file(member: Member, model: LocalModel, *, allow_code: bool) -> MemberTarget:
    """``member`` as what something is found out about, without instances that serve."""
    return MemberTarget(
        name=member.name,
        path=model.path,
        format=member.model.format.value,
        digest=model.digest,
        max_batch=member.batch.max,
        cap=member.batch.max,
        instances=(),
        allow_code=allow_code,
    )


def tensors(declared: Sequence[Tensor]) -> tuple[TensorTarget, ...]:
    """Declared metadata in the server's words."""
    return tuple(
        TensorTarget(
            tensor.name,
            tensor.datatype.value,
            tensor.shape,
            padding.buckets if padding is not None else (),
            mixed=padding is None or padding.mixed,
        )
        for tensor in declared
        for padding in [tensor.padding if isinstance(tensor, InputTensor) else None]
    )


Placed = Mapping[ModelKey, Sequence[tuple[str, Instance]]]
"""Active instances and the devices that they are on."""


def _served_here(service: ServedService, placed: Placed) -> bool:
    """Whether a request for it can be answered, passed on or held here; what is only measured is not told."""
    return (
        service.hold > 0
        or any(member.routes for member in service.members)
        or any((service.name, member.name) in placed for member in service.spec.placed)
    )


def _devices(service: ServedService, placed: Placed, site: Site) -> dict[str, DeviceTarget]:
    found = [
        device_target(uuid, instance.slice, site)
        for member in service.spec.placed
        for uuid, instance in placed.get((service.name, member.name), ())
    ]
    return {device.id: device for device in found}


def _as_now(device: DeviceTarget, site: Site) -> DeviceTarget:
    """What has the id of a device that was told before; as it was told, where there is nothing."""
    try:
        return device_target(*device_piece(device.id), site)
    except TranslationError:
        return device


def _service_target(
    service: ServedService,
    placed: Placed,
    models: Mapping[ModelKey, LocalModel],
    *,
    allow_code: bool,
) -> ServiceTarget:
    spec = service.spec
    objective = spec.slo.objectives[0]
    return ServiceTarget(
        name=service.name,
        version=str(service.generation),
        members=tuple(
            _member_target(
                member,
                _served(service, member.name),
                models.get((service.name, member.name)),
                placed.get((service.name, member.name), ()),
                allow_code=allow_code,
            )
            for member in spec.placed
        ),
        combine=spec.ensemble.combine,
        min_members=spec.ensemble.min_members,
        on_timeout=spec.ensemble.on_timeout,
        slo_ms=1e3 * objective.target_s,
        percent=objective.percent,
        inputs=tensors(spec.inputs),
        outputs=tensors(spec.outputs),
        hold=service.hold,
        needs_key=spec.access is not None,
    )


def _served(service: ServedService, member: str) -> ServedMember:
    found = (each for each in service.members if each.name == member)
    return next(found, ServedMember(member))


def _member_target(
    member: Member,
    served: ServedMember,
    model: LocalModel | None,
    placed: Sequence[tuple[str, Instance]],
    *,
    allow_code: bool,
) -> MemberTarget:
    if placed and model is None:
        raise _NotFetched
    cap = max((instance.batch for _, instance in placed), default=member.batch.max)
    time = served.batch_time
    return MemberTarget(
        name=member.name,
        path=model.path if model is not None else "",
        format=member.model.format.value,
        digest=model.digest if model is not None else served.digest or member.model.digest or "",
        max_batch=member.batch.max,
        cap=min(cap, member.batch.max),
        instances=tuple(
            InstanceTarget(
                _device_id(uuid, instance.slice),
                instance.count,
                instance.batch,
                variant=instance.variant,
            )
            for uuid, instance in placed
        ),
        allow_code=allow_code,
        weight=member.weight if member.weight is not None else 1.0,
        required=member.required,
        service_time=None if time is None else ServiceTime(time.alpha_ms, time.tau0_ms),
        peers=tuple(
            PeerTarget(route.address, float(route.rows_per_second)) for route in served.routes
        ),
    )


def _device_id(uuid: str, piece: str) -> str:
    return uuid if piece == FULL else f"{uuid}/{piece}"
