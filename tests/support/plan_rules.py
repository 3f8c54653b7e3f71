"""The rules that every plan keeps, checked from the facts and the plan alone: no code of the search."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator

from support.clusters import digest
from tessera_core.api import Isolation, ModelService, ScalingMode, TaintEffect
from tessera_core.gpu.geometry import violations
from tessera_core.plan import Assignment, ClusterState, DevicePlan, DeviceState, Plan, Slice


def broken_rules(plan: Plan, state: ClusterState) -> Iterator[str]:
    """Every rule of memory, positions, cores, tenancy, taints and quotas that ``plan`` breaks."""
    facts = {(n.name, d.uuid): d for n in state.nodes for d in n.devices}
    pools = {node.name: node.pool for node in state.nodes}
    rules = {pool.name: pool for pool in state.pools}
    for device in plan.devices:
        fact = facts[device.node, device.uuid]
        by_slice: dict[Slice, list[Assignment]] = defaultdict(list)
        for each in device.assignments:
            by_slice[each.slice].append(each)
        if fact.is_cpu:
            yield from _core_rules(state, device, fact, by_slice)
        else:
            yield from _gpu_rules(state, device, fact, by_slice)
            if device.recut and not rules[pools[device.node]].partition:
                yield f"{device.uuid}: cut in a pool that forbids it"
        yield from _isolation_rules(state, device, by_slice)
    for node in state.nodes:
        spaces = {_namespace(each) for each in plan.assignments if each.node == node.name}
        if len(spaces) > 1 and not rules[node.pool].shared_between_namespaces:
            yield f"{node.name} is shared by {spaces}"
    yield from _taint_rules(plan, state)
    yield from _quota_rules(plan, state)
    yield from _service_rules(plan, state)


def _namespace(each: Assignment) -> str:
    return each.service.split(".")[0]


def _memory(state: ClusterState, device: DevicePlan, inside: list[Assignment]) -> float:
    """Buffers of every batch size up to the cap exist, so a measured row counts from the one below on."""
    profiles = {m.key: m.profile for m in state.measured}
    total = 0.0
    for each in inside:
        profile = profiles[digest(each.member), device.product, each.slice.name]
        rows = [row for row in profile.rows if row.instances == each.instances]
        needed = [row for row in rows if row.batch <= each.batch] or rows[:1]
        total += max(row.memory_mib for row in needed)
    return total


def _core_rules(
    state: ClusterState,
    device: DevicePlan,
    fact: DeviceState,
    by_slice: dict[Slice, list[Assignment]],
) -> Iterator[str]:
    cores = Counter(core for piece in by_slice for core in piece.cores)
    if any(count > 1 for count in cores.values()):
        yield f"{device.node}: cores given twice"
    if any(not state.policy.reserved_cores <= core < fact.cores for core in cores):
        yield f"{device.node}: cores outside the usable ones"
    if any(piece.name != f"cpu-{len(piece.cores)}" for piece in by_slice):
        yield f"{device.node}: a set whose name is not its size"
    if _memory(state, device, list(device.assignments)) > fact.memory_mib:
        yield f"{device.node}: over memory"


def _gpu_rules(
    state: ClusterState,
    device: DevicePlan,
    fact: DeviceState,
    by_slice: dict[Slice, list[Assignment]],
) -> Iterator[str]:
    memory = {"full": fact.memory_mib}
    if fact.model is not None:
        yield from (v.detail for v in violations(fact.model, device.geometry))
        memory |= {profile.name: profile.memory_mib for profile in fact.model.profiles}
    present = {Slice(each.profile, each.start) for each in device.geometry} or {Slice()}
    for piece, inside in by_slice.items():
        if piece not in present:
            yield f"{device.uuid}: {piece} does not exist"
        elif _memory(state, device, inside) > memory[piece.name]:
            yield f"{device.uuid}: {piece} over memory"
    if any(count > 1 for count in Counter(_where(each) for each in device.assignments).values()):
        yield f"{device.uuid}: a member twice in one slice"


def _where(each: Assignment) -> tuple[Slice, str, str]:
    return each.slice, each.service, each.member


def _isolation_rules(
    state: ClusterState, device: DevicePlan, by_slice: dict[Slice, list[Assignment]]
) -> Iterator[str]:
    isolation = {s.served_name: s.spec.placement.isolation for s in state.services}
    on_device = {each.service for each in device.assignments}
    if len(on_device) > 1 and any(isolation[s] is Isolation.EXCLUSIVE for s in on_device):
        yield f"{device.uuid}: an exclusive service is not alone"
    for inside in by_slice.values():
        tenants = {each.service for each in inside}
        if len(tenants) > 1 and any(isolation[s] is Isolation.PARTITION for s in tenants):
            yield f"{device.uuid}: a partition is shared"


def _taint_rules(plan: Plan, state: ClusterState) -> Iterator[str]:
    for node in state.nodes:
        effects = {taint.effect for taint in node.taints}
        present = {
            (device.uuid, run.service, run.member)
            for device in node.devices
            for run in device.running
        }
        for each in plan.assignments:
            if each.node != node.name:
                continue
            new = (each.device, each.service, each.member) not in present
            if TaintEffect.NO_EXECUTE in effects or (TaintEffect.NO_SCHEDULE in effects and new):
                yield f"{each.service}/{each.member} comes to tainted node {node.name}"


def _quota_rules(plan: Plan, state: ClusterState) -> Iterator[str]:
    """What runs may stay when a quota shrinks, as in Kubernetes; nothing comes on top of it."""
    widths = _widths(state)
    for quota in state.quotas:
        wanted = {
            (each.node, each.device, each.slice)
            for each in plan.assignments
            if _namespace(each) == quota.namespace
        }
        present = {
            (node.name, device.uuid, run.slice)
            for node in state.nodes
            for device in node.devices
            for run in device.running
            if run.service.split(".")[0] == quota.namespace
        }
        shares, had = (
            sum(widths[node, device].get(piece.name, 0.0) for node, device, piece in parts)
            for parts in (wanted, present)
        )
        if quota.slices is not None and len(wanted) > max(quota.slices, len(present)):
            yield f"{quota.namespace} has {len(wanted)} slices of {quota.slices}"
        if quota.shares is not None and shares > max(quota.shares, had) + 1e-6:
            yield f"{quota.namespace} has {shares} devices of {quota.shares}"


def _widths(state: ClusterState) -> dict[tuple[str, str], dict[str, float]]:
    """Share of its device that a slice is: of the SMs, or of the cores that may be used."""
    found: dict[tuple[str, str], dict[str, float]] = {}
    sizes = sorted({m.place.sm_count for m in state.measured if m.place.is_cpu})
    for node in state.nodes:
        for device in node.devices:
            shares = {"full": 1.0}
            if device.is_cpu:
                usable = device.cores - state.policy.reserved_cores
                shares = {f"cpu-{n}": n / usable for n in sizes if n <= usable}
            elif device.model is not None:
                whole = device.model.sm_count
                shares |= {p.name: (p.sm_count or 0) / whole for p in device.model.profiles}
            found[node.name, device.uuid] = shares
    return found


def _service_rules(plan: Plan, state: ClusterState) -> Iterator[str]:
    placed = {each.service: each for each in plan.services}
    for service in state.services:
        mine = [each for each in plan.assignments if each.service == service.served_name]
        told = placed.get(service.served_name)
        if told is None and mine:
            yield f"{service.served_name} has instances and no prediction"
        for member in service.spec.members:
            parts = [each for each in mine if each.member == member.name]
            yield from _member_rules(service, member.name, parts, told is None or bool(told.short))
        missing = {member.name for member in service.spec.members} - {each.member for each in mine}
        needed = {member.name for member in service.spec.members if member.required}
        if mine and missing & needed:
            yield f"{service.served_name} is placed without {missing & needed}"
        if told is not None and told.short is None:
            if told.max_requests_per_second < told.requests_per_second:
                yield f"{service.served_name} carries less than is expected and does not say so"
            if told.latency_ms > told.target_ms * (1 + 1e-3):
                yield f"{service.served_name} is late and does not say so"


def _member_rules(
    service: ModelService, member: str, parts: list[Assignment], short: bool
) -> Iterator[str]:
    spec = service.spec
    nodes = len({each.node for each in parts})
    scaling = spec.scaling
    most = scaling.max_replicas if scaling.mode is ScalingMode.SLO else scaling.min_replicas
    if most and len(parts) > max(most, spec.placement.spread.min_nodes):
        yield f"{service.served_name}/{member} has {len(parts)} parts of {most}"
    if parts and not short and nodes < spec.placement.spread.min_nodes:
        yield f"{service.served_name}/{member} is on {nodes} nodes only and does not say so"


def unanswered(plan: Plan, state: ClusterState) -> set[tuple[str, str]]:
    """Demands that are neither placed, refused nor idle, or more than one of these."""
    placed = {(each.service, each.member) for each in plan.assignments}
    refused = Counter((name, member) for name, member, _ in plan.refused)
    return {
        key
        for service in state.services
        for member in service.spec.members
        for key in [(service.served_name, member.name)]
        if (key in placed) + refused[key] + (service.served_name in plan.idle) != 1
    }


def served(plan: Plan) -> dict[str, float]:
    """Requests per second that each placed service gets of what it asked for."""
    return {
        each.service: min(each.requests_per_second, each.max_requests_per_second)
        for each in plan.services
    }
