"""A ClusterState from the documents of the API kinds, and back.

    nodes:    [RuntimeNode, …]       inventory and what runs, from status; label ``tessera.dev/pool``
    pools:    [RuntimePool, …]       none: every node is of one pool that tenants share, uncut, without code
    services: [ModelService, …]
    profiles: [ModelProfile, …]
    priorityClasses, quotas:         see ``tenants_in.py``
    policy:   {objective, headroom, overhead, reservedCores, neighbourDerate, slack, minGainPercent, maxMoves}
    budget:   {maxIterations, maxNodes}

All errors of all documents are collected and raised as one SpecInvalid, with paths such as
``services[2].spec.slo``.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

from tessera_core.api import (
    FieldError,
    ModelProfile,
    ModelService,
    RuntimeNode,
    RuntimePool,
    SpecInvalid,
)
from tessera_core.api.errors import Report
from tessera_core.api.records import record
from tessera_core.api.runtimenode import DeviceStatus, Health, InstanceState, MigMode
from tessera_core.api.runtimepool import PartitionBackend
from tessera_core.api.scalars import suggestion
from tessera_core.gpu.devices import FULL
from tessera_core.gpu.geometry import Placement, canonical, violations
from tessera_core.gpu.mig import GpuModel, find_profile, label
from tessera_core.gpu.tables import model_of
from tessera_core.perf import LatencyProfile
from tessera_core.plan.demand import priority_values
from tessera_core.plan.state import (
    CPU,
    Budget,
    ClusterState,
    DeviceState,
    Measured,
    NodeState,
    Policy,
    PoolRules,
    Running,
    Slice,
    Taint,
)
from tessera_core.plan.tenants_in import (
    PriorityClass,
    StatedQuota,
    default_class,
    effective_quotas,
    read_priority_class,
    read_quota,
)

POOL_LABEL = "tessera.dev/pool"
"""Label of a RuntimeNode that names its RuntimePool."""
CPU_UUID = "cpu"
"""Device id of a node's processor where the agent reports it in ``status.cpu`` only."""
ONLY_POOL = PoolRules("default", shared_between_namespaces=True)
"""The rules where the state holds no pools: one owner, who trusts all tenants."""

_LISTS = ("nodes", "pools", "services", "profiles", "priorityClasses", "quotas")
_MOST_DOCUMENTS = 100_000
_MIB = 1024 * 1024
_SLICE = re.compile(r"(cpu-(\d{1,5})|[^@]+)(?:@(\d{1,5}))?")

T = TypeVar("T")


def state_from_dict(document: object, *, strict: bool = True) -> ClusterState:
    """Read a state; raises SpecInvalid with every error. ``strict`` as in ``Resource.from_dict``."""
    report = Report(strict)
    if not isinstance(document, Mapping):
        report.refuse("", document, f"a mapping with {', '.join(_LISTS)}, policy and budget")
        raise SpecInvalid(report.errors)
    known = (*_LISTS, "policy", "budget")
    for key in sorted(set(map(str, document)) - set(known)):
        report.errors.append(FieldError(key, "an unknown field", ", ".join(known)))
    objects = Objects(
        nodes=_documents(document, "nodes", RuntimeNode.from_dict, report),
        pools=_documents(document, "pools", RuntimePool.from_dict, report),
        services=_documents(document, "services", ModelService.from_dict, report),
        profiles=_documents(document, "profiles", ModelProfile.from_dict, report),
        classes=_documents(document, "priorityClasses", read_priority_class, report),
        quotas=_documents(document, "quotas", read_quota, report),
    )
    policy = _settings(document, "policy", Policy(), report)
    budget = _settings(document, "budget", Budget(), report)
    if report.errors:  # the rules below read what could be decoded
        raise SpecInvalid(report.errors)
    rules = () if objects.pools else (ONLY_POOL,)
    state = state_of(objects, rules, policy, budget, report)
    if report.errors:
        raise SpecInvalid(report.errors)
    return state


@dataclass(frozen=True, slots=True)
class Objects:
    """The decoded documents of one cluster; the fields are the lists of a state's document."""

    nodes: tuple[RuntimeNode, ...] = ()
    pools: tuple[RuntimePool, ...] = ()
    services: tuple[ModelService, ...] = ()
    profiles: tuple[ModelProfile, ...] = ()
    classes: tuple[PriorityClass, ...] = ()
    quotas: tuple[StatedQuota, ...] = ()


def state_of(
    objects: Objects,
    more_rules: tuple[PoolRules, ...],
    policy: Policy,
    budget: Budget,
    report: Report,
) -> ClusterState:
    """The facts in ``objects``; what contradicts itself is in ``report``, with paths such as ``nodes[3].status``.

    ``more_rules`` are those of pools that have no document.
    """
    rules = (*map(_pool, objects.pools), *more_rules)
    state = ClusterState(
        nodes=tuple(
            _node(f"nodes[{index}]", node, rules, objects.pools, report)
            for index, node in enumerate(objects.nodes)
        ),
        services=objects.services,
        measured=_measured(objects.profiles, report),
        pools=rules,
        policy=policy,
        budget=budget,
        digests=_digests(objects.services, objects.profiles, report),
        priorities=tuple(sorted((each.name, each.value) for each in objects.classes)),
        default_priority_class=default_class(objects.classes),
        quotas=effective_quotas(objects.quotas),
    )
    _refuse_unknown_classes(state, report)
    _refuse_repeated("nodes", [node.name for node in state.nodes], report)
    _refuse_repeated("pools", [pool.name for pool in rules], report)
    _refuse_repeated("services", [each.served_name for each in objects.services], report)
    _refuse_repeated("profiles", [each.key for each in state.measured], report)
    _refuse_repeated("priorityClasses", [each.name for each in objects.classes], report)
    _refuse_repeated("quotas", [each.name for each in objects.quotas], report)
    return state


def _documents(
    document: Mapping[object, object],
    name: str,
    read: Callable[..., T],
    report: Report,
) -> tuple[T, ...]:
    found = document.get(name) or []
    if not isinstance(found, Sequence) or isinstance(found, str) or len(found) > _MOST_DOCUMENTS:
        report.refuse(name, found, f"a list of at most {_MOST_DOCUMENTS} documents")
        return ()
    read_ones: list[T] = []
    for index, each in enumerate(found):
        try:
            read_ones.append(read(each, strict=report.strict))
        except SpecInvalid as error:
            report.errors += (one.within(f"{name}[{index}]") for one in error.errors)
    return tuple(read_ones)


def _settings(document: Mapping[object, object], name: str, default: T, report: Report) -> T:
    found = document.get(name)
    if found is None:
        return default
    decoded = record(type(default)).decode(found, name, report)
    return decoded if isinstance(decoded, type(default)) else default


def _refuse_repeated(name: str, keys: Iterable[object], report: Report) -> None:
    first: dict[object, int] = {}
    for index, key in enumerate(keys):
        if first.setdefault(key, index) != index:
            found = " ".join(key) if isinstance(key, tuple) else str(key)
            allowed = f"each only once; {name}[{first[key]}] is the first"
            report.errors.append(FieldError(f"{name}[{index}]", f"a second {found}", allowed))


def _refuse_unknown_classes(state: ClusterState, report: Report) -> None:
    known = priority_values(state)
    for index, service in enumerate(state.services):
        name = service.spec.priority_class_name
        if name is not None and name not in known:
            hint = suggestion(name, sorted(known))
            allowed = f"the name of a class in priorityClasses{hint}; add its name and value there"
            report.refuse(f"services[{index}].spec.priorityClassName", name, allowed)


def _pool(pool: RuntimePool) -> PoolRules:
    spec = pool.spec
    partition = spec.partition
    return PoolRules(
        name=pool.metadata.name,
        labels=pool.metadata.labels,
        partition=partition is not None and partition.backend is not PartitionBackend.STATIC,
        whole_nodes=partition is not None and partition.backend is PartitionBackend.MIG_MANAGER,
        allowed_profiles=(partition.allowed_profiles or None) if partition else None,
        shared_between_namespaces=spec.trust.shared_between_namespaces,
        allow_code=spec.trust.allow_code,
        cost_per_node_hour=spec.cost.per_node_hour or None,
        idle_watts=spec.cost.idle_watts,
        tolerations=spec.node.tolerations,
    )


def _node(
    path: str,
    node: RuntimeNode,
    rules: tuple[PoolRules, ...],
    pools: Sequence[RuntimePool],
    report: Report,
) -> NodeState:
    labels = node.metadata.labels
    names = [pool.name for pool in rules]
    pool = dict(labels).get(POOL_LABEL, names[0] if len(names) == 1 else None)
    if pool not in names:
        where = f"{path}.metadata.labels[{POOL_LABEL}]"
        report.refuse(where, pool, f"one of the pools {', '.join(names) or '(there are none)'}")
        pool = ""
    devices = [
        _device(f"{path}.status.devices[{index}]", device, node, report)
        for index, device in enumerate(node.status.devices)
    ]
    if node.status.cpu and not any(device.is_cpu for device in devices):
        memory = next((_memory_mib(each) for each in pools if each.metadata.name == pool), None)
        if memory is None:
            report.refuse(
                f"{path}.status.cpu",
                "cores without memory",
                "a device of product cpu with memoryMiB, or a pool with resources.memory",
            )
        cores = node.status.cpu.cores
        devices.append(DeviceState(CPU_UUID, CPU, memory or 1, cores=cores))
    taints = sorted(Taint(each.key, each.value, each.effect) for each in node.status.taints)
    return NodeState(node.metadata.name, pool, tuple(devices), labels, tuple(taints))


def _memory_mib(pool: RuntimePool) -> int | None:
    """Memory for models on one node; the shared memory of tensors is counted as memory."""
    shape = pool.spec.node
    memory = dict(shape.resources).get("memory")
    if memory is None:
        return None
    shared = shape.shared_memory.value if shape.shared_memory else 0
    return int((memory.value - shared) // _MIB)


def _device(path: str, device: DeviceStatus, node: RuntimeNode, report: Report) -> DeviceState:
    product = label(device.product)
    is_cpu = product == CPU
    if is_cpu and node.status.cpu is None:
        report.refuse(f"{path}.product", product, "a GPU's product where status.cpu is absent")
    model = None if is_cpu else model_of(product)
    geometry = None
    if device.mig_mode is MigMode.ENABLED:
        geometry = _geometry(path, device, model, report)
    return DeviceState(
        uuid=device.uuid,
        product=product,
        memory_mib=device.memory_mib,
        model=model,
        cuttable=device.mig_capable,
        cores=node.status.cpu.cores if is_cpu and node.status.cpu else 0,
        geometry=geometry,
        running=tuple(
            sorted(
                Running(each.service, each.member, parse_slice(each.slice), each.batch, each.count)
                for each in device.instances
                # Standby copies come and go with the active ones of their slice.
                if each.state is InstanceState.ACTIVE
            )
        ),
        healthy=device.health is not Health.UNHEALTHY,
        jpeg_engines=_jpeg_engines(device, model),
    )


def _jpeg_engines(device: DeviceStatus, model: GpuModel | None) -> tuple[tuple[str, int], ...]:
    if device.mig_mode is MigMode.DISABLED:
        return () if device.jpeg_engines is None else ((FULL, device.jpeg_engines),)
    named = {
        profile.name: piece.jpeg_engines
        for piece in device.slices
        if model is not None and piece.jpeg_engines is not None
        for profile in [find_profile(model, piece.profile)]
        if profile is not None
    }
    return tuple(sorted(named.items()))


def _geometry(
    path: str, device: DeviceStatus, model: GpuModel | None, report: Report
) -> tuple[Placement, ...]:
    if model is None:
        report.refuse(f"{path}.product", device.product, "a product whose MIG table is known")
        return ()
    placements = []
    for index, piece in enumerate(device.slices):
        profile = find_profile(model, piece.profile)
        if profile is None:
            names = ", ".join(each.name for each in model.profiles)
            report.refuse(f"{path}.slices[{index}].profile", piece.profile, names)
        else:
            placements.append(Placement(profile.name, piece.start))
    for broken in violations(model, placements):
        report.errors.append(FieldError(f"{path}.slices", broken.detail, "a legal geometry"))
    return canonical(placements)


def parse_slice(text: str) -> Slice:
    """The slice that an instance names: ``full``, ``<profile>@<start>``, ``cpu-N@<first>`` or ``cpu-N``."""
    found = _SLICE.fullmatch(text)
    if found is None:
        raise ValueError(f"slice {text!r}: expected full, <profile>@<start> or cpu-N@<first>")
    name, cores, start = found[1], found[2], int(found[3] or 0)
    if cores is None:
        return Slice(name, start)
    return Slice(name, start, tuple(range(start, start + int(cores))))


def _measured(profiles: Sequence[ModelProfile], report: Report) -> tuple[Measured, ...]:
    found = []
    for index, each in enumerate(profiles):
        if each.spec.variant:
            continue  # whoever says which services use it, shows it as what was measured of their models
        place = each.spec.device_class
        try:
            profile = LatencyProfile(each.status.rows)
        except ValueError as error:
            path = f"profiles[{index}].status"
            report.errors.append(FieldError(path, str(error), "measured rows of one cell each"))
            continue
        digest = each.spec.model_digest
        place = replace(place, product=label(place.product))
        drift = each.status.drift.ratio if each.status.drift is not None else 1.0
        found.append(Measured(digest, place, profile, each.spec.engine, drift))
    return tuple(found)


def _digests(
    services: Sequence[ModelService], profiles: Sequence[ModelProfile], report: Report
) -> tuple[tuple[str, str, str], ...]:
    """What is known of each model's content: stated, fetched, or that of the profile it refers to."""
    named = {
        (each.metadata.namespace, each.metadata.name): each.spec.model_digest for each in profiles
    }
    found = []
    for index, service in enumerate(services):
        fetched = {(each.name, each.uri): each.digest for each in service.status.members}
        for position, member in enumerate(service.spec.placed):
            uri = member.model.uri
            digest = member.model.digest or fetched.get((member.name, uri))
            reference = member.profile_ref
            if digest is None and reference is not None:
                digest = named.get((service.metadata.namespace, reference.name))
                if digest is None:
                    path = f"services[{index}].spec.members[{position}].profileRef.name"
                    report.refuse(path, reference.name, "the name of a profile of that namespace")
            if digest is not None:
                found.append((service.served_name, member.name, digest))
    return tuple(found)
