"""What is measured next, and what becomes of it. Pure.

A model is measured once per kind of place that it may run on. A node measures one thing at a time, on the kind of
place that it has; nodes that serve least are asked first, because measuring takes their processor's time. What may
not run beside the models of other namespaces is not measured beside them either.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

from tessera_core.api import Condition, ModelProfile, ModelServiceSpec, RuntimeNode, RuntimePool
from tessera_core.api.measurements import ProfileResult, ProfilingTask
from tessera_core.api.members import Member, ModelFormat
from tessera_core.api.meta import ConditionStatus, ObjectMeta
from tessera_core.api.modelprofile import ModelProfileSpec, ModelProfileStatus
from tessera_core.api.modelservice import Placement
from tessera_core.api.runtimenode import Health, MigMode
from tessera_core.api.stages import STAGE
from tessera_core.gpu.devices import FULL
from tessera_core.gpu.mig import label
from tessera_core.gpu.mps import is_one_of
from tessera_core.perf import LatencyProfile
from tessera_core.perf.profile import LinearFit
from tessera_core.plan.decision import Assignment
from tessera_core.plan.decoding import may_decode
from tessera_core.plan.state import CPU
from tessera_core.plan.state_in import POOL_LABEL
from tessera_operator.versions import Version

COMPLETE = "Complete"
"""Condition of a ModelProfile whose rows are all there."""
Place = tuple[str, str]
"""(product, slice kind)."""
Wanted = tuple[str, str, Place]
"""(service, member, place) that lacks a measurement."""


@dataclass(frozen=True, slots=True)
class Spot:
    """Where something can be measured on one node."""

    device: str
    slice: str
    place: Place
    jpeg_engines: int | None = None
    """Of a part of a GPU; None: not counted."""


@dataclass(frozen=True, slots=True)
class Trust:
    """Which node may be asked to measure which model."""

    versions: Mapping[str, Version]
    """By service, what is measured."""
    pools: Mapping[str, RuntimePool]
    tenants: Mapping[str, frozenset[str]]
    """By node, the namespaces of what runs there or is about to."""

    def allows(self, service: str, member: str, node: RuntimeNode) -> bool:
        pool = self.pools.get(dict(node.metadata.labels).get(POOL_LABEL, ""))
        if pool is None or not self.may_run(service, member, pool):
            return False
        own = frozenset((service.partition(".")[0],))
        others = self.tenants.get(node.metadata.name, own) - own
        return pool.spec.trust.shared_between_namespaces or not others

    def may_run(self, service: str, member: str, pool: RuntimePool) -> bool:
        version = self.versions[service]
        found = next(each for each in version.service.spec.placed if each.name == member)
        return _may_run(version, pool, found.model.format.is_code)


def tenants(
    nodes: Iterable[RuntimeNode], assignments: Iterable[Assignment]
) -> dict[str, frozenset[str]]:
    """By node, the namespaces of what it is told to run, still has, or is planned to run."""
    found: dict[str, set[str]] = {}
    for node in nodes:
        told = (each for device in node.spec.devices for each in device.instances)
        present = (each for device in node.status.devices for each in device.instances)
        found[node.metadata.name] = {each.service.partition(".")[0] for each in (*told, *present)}
    for planned in assignments:
        found.setdefault(planned.node, set()).add(planned.service.partition(".")[0])
    return {node: frozenset(spaces) for node, spaces in found.items()}


def cramped(wanted: Iterable[Wanted], nodes: Sequence[RuntimeNode], trust: Trust) -> frozenset[str]:
    """Pools that lack a node for something that could be measured there but for the models of others."""
    return frozenset(
        name
        for service, member, _ in wanted
        if not any(trust.allows(service, member, node) for node in nodes)
        for name, pool in trust.pools.items()
        if trust.may_run(service, member, pool)
    )


def spots(node: RuntimeNode, cpu_slices: Sequence[int]) -> tuple[Spot, ...]:
    """Every kind of place of ``node`` that may be used, each once. Processor cores only where there is no GPU."""
    gpus = any(label(each.product) != CPU for each in node.status.devices)
    return _gpus(node) if gpus else _cores(node, cpu_slices)


def spots_of(member: str, node: RuntimeNode, cpu_slices: Sequence[int]) -> tuple[Spot, ...]:
    """Where ``member`` may be measured on ``node``: preprocessing also on the cores beside GPUs."""
    return (*_gpus(node), *_cores(node, cpu_slices)) if member == STAGE else spots(node, cpu_slices)


def _gpus(node: RuntimeNode) -> tuple[Spot, ...]:
    found: dict[Place, Spot] = {}
    for device in node.status.devices:
        product = label(device.product)
        if product == CPU or device.health is Health.UNHEALTHY:
            continue
        if device.mig_mode is MigMode.DISABLED:
            place = product, FULL
            found.setdefault(place, Spot(device.uuid, FULL, place, device.jpeg_engines))
        for each in device.slices:
            place = product, each.profile
            name = f"{each.profile}@{each.start}"
            found.setdefault(place, Spot(device.uuid, name, place, each.jpeg_engines))
    return tuple(found[place] for place in sorted(found))


def _cores(node: RuntimeNode, cpu_slices: Sequence[int]) -> tuple[Spot, ...]:
    cpu = next((each for each in node.status.devices if label(each.product) == CPU), None)
    if cpu is None or node.status.cpu is None:
        return ()
    most = node.status.cpu.cores
    # At the end of the cores, away from where the dispatcher runs and instances are placed first.
    return tuple(
        Spot(cpu.uuid, f"cpu-{count}@{most - count}", (CPU, f"cpu-{count}"))
        for count in sorted(set(cpu_slices), key=str)
        if count <= most
    )


def missing(
    versions: Iterable[Version],
    profiles: Iterable[ModelProfile],
    nodes: Sequence[RuntimeNode],
    pools: Sequence[RuntimePool],
    cpu_slices: Sequence[int],
) -> tuple[Wanted, ...]:
    """What is to be measured: every member on every kind of place where its service may run, and preprocessing on
    those that ``may_decode`` names.
    """
    measured = {
        (
            each.spec.model_digest,
            label(each.spec.device_class.product),
            each.spec.device_class.slice,
        )
        for each in profiles
        if each.status.rows  # one whose rows could not be written says nothing yet
    }
    rules = {pool.metadata.name: pool for pool in pools}
    offered: dict[str, dict[str, dict[Place, int | None]]] = {"": {}, STAGE: {}}
    for node in nodes:
        pool = dict(node.metadata.labels).get(POOL_LABEL, "")
        for kind, by_pool in offered.items():
            engines = by_pool.setdefault(pool, {})
            for each in spots_of(kind, node, cpu_slices):
                # One agent may tell what an older one of an equal place does not.
                engines[each.place] = engines.get(each.place) or each.jpeg_engines
    found: dict[Wanted, None] = {}
    for version in versions:
        spec = version.service.spec
        for member in spec.placed:
            digest = version.digests.get(member.name)
            stage = STAGE if member.model.format is ModelFormat.PREPROCESS else ""
            for pool, places in sorted(offered[stage].items()):
                if pool not in rules or not _may_run(
                    version, rules[pool], member.model.format.is_code
                ):
                    continue
                for place, jpeg_engines in sorted(places.items()):
                    if not _is_tried(spec, member, place[0], jpeg_engines):
                        continue
                    if digest is None or (digest, *place) not in measured:
                        found[version.name, member.name, place] = None
    return tuple(found)


def assign(
    wanted: Sequence[Wanted],
    nodes: Sequence[RuntimeNode],
    usable: Collection[str],
    waiting: Mapping[Wanted, float],
    now_s: float,
    cpu_slices: Sequence[int],
    allows: Callable[[str, str, RuntimeNode], bool] = lambda service, member, node: True,
) -> dict[str, tuple[ProfilingTask, ...]]:
    """The tasks of each node, at most one each. What a node does already it goes on with.

    ``usable``: nodes whose agents answer. ``waiting``: until when a task that failed is not tried again. ``allows``:
    whether a (service, member) may be measured on a node.
    """
    tasks: dict[str, tuple[ProfilingTask, ...]] = {}
    taken: set[Wanted] = set()
    by_place: dict[tuple[str, bool], dict[Place, Spot]] = {
        (node.metadata.name, kind == STAGE): {
            each.place: each for each in spots_of(kind, node, cpu_slices)
        }
        for node in nodes
        if node.metadata.name in usable
        for kind in ("", STAGE)
    }
    for node in nodes:
        name = node.metadata.name
        for task in node.spec.profiling:
            if task.variant:
                continue
            places = [
                each.place
                for each in by_place.get((name, task.member == STAGE), {}).values()
                if (each.device, each.slice) == (task.device, task.slice)
            ]
            keys = [(task.service, task.member, place) for place in places]
            open_keys = [
                key
                for key in keys
                if key in wanted and key not in taken and allows(key[0], key[1], node)
            ]
            if open_keys and waiting.get(open_keys[0], 0.0) <= now_s:
                taken.add(open_keys[0])
                tasks[name] = (task,)
    # One place at a time: the first measurement of a model tells its digest, which may be known already.
    started = {key[:2] for key in taken}
    for key in wanted:
        service, member, place = key
        if key[:2] in started or waiting.get(key, 0.0) > now_s:
            continue
        free = [
            (sum(len(d.instances) for d in node.spec.devices), node.metadata.name)
            for node in nodes
            if node.metadata.name not in tasks
            and place in by_place.get((node.metadata.name, member == STAGE), {})
            and allows(service, member, node)
        ]
        if free:
            _, name = min(free)
            spot = by_place[name, member == STAGE][place]
            tasks[name] = (ProfilingTask(service, member, spot.device, spot.slice),)
            started.add(key[:2])
    return tasks


def to_profile(result: ProfileResult) -> ModelProfile | None:
    """The ModelProfile of a result, in the namespace of its service; None where nothing was measured."""
    digest, place = result.model_digest, result.device_class
    if digest is None or place is None or result.engine is None or not result.rows:
        return None
    try:
        profile = LatencyProfile(result.rows)
        line = profile.fit(1)
        fit = LinearFit(_rounded(line.alpha_ms), _rounded(line.tau0_ms), _rounded(line.r2))
        complete = Condition(COMPLETE, ConditionStatus.TRUE, "Measured")
        status = ModelProfileStatus((complete,), profile.rows, fit)
    except ValueError:
        return None
    slug = re.sub(r"[^a-z0-9]", "-", str(place).lower())
    name = f"{digest.removeprefix('sha256:')[:12]}-{slug}"[:63].strip("-")
    if result.variant:
        own = hashlib.sha256(result.variant.encode()).hexdigest()[:8]
        name = f"{name[:54].strip('-')}-{own}"
    namespace = result.service.partition(".")[0]
    return ModelProfile(
        metadata=ObjectMeta(name=name, namespace=namespace),
        spec=ModelProfileSpec(digest, place, result.engine, result.driver, result.variant),
        status=status,
    )


def _rounded(number: float) -> float:
    return float(f"{number:.4g}")


def _is_tried(
    spec: ModelServiceSpec, member: Member, product: str, jpeg_engines: int | None
) -> bool:
    if member.model.format is not ModelFormat.PREPROCESS or spec.preprocess is None:
        return may_use(spec.placement, product)
    allowed = product == CPU or may_use(spec.placement, product)
    return allowed and may_decode(spec.preprocess.device, product, jpeg_engines)


def may_use(placement: Placement, product: str) -> bool:
    """Whether a service may run on ``product`` devices."""
    return not placement.products or is_one_of(product, placement.products)


def _may_run(version: Version, pool: RuntimePool, code: bool) -> bool:
    selector = version.service.spec.placement.pool_selector
    labels = dict(pool.metadata.labels)
    if code and not pool.spec.trust.allow_code:
        return False
    return selector is None or all(
        labels.get(name) == value for name, value in selector.match_labels
    )
