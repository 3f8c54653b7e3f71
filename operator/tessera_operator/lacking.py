"""Which models were not measured on slices that no GPU of a pool has, and on which of these that may help. Pure.

Plans cut GPUs into slices on which models were measured. What cannot help is not measured: a slice with less memory than
the model takes, one that is no wider than another on which a single row takes longer than the SLO allows or on which
measuring failed again and again, and any slice for a service that wants a GPU to itself.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import inf

from tessera_core.api import Isolation, ModelProfile, RuntimeNode, RuntimePool
from tessera_core.api.modelservice import Objective
from tessera_core.api.runtimepool import Measure, PartitionBackend
from tessera_core.gpu.devices import FULL
from tessera_core.gpu.mig import GpuModel, Profile, find_profile, label
from tessera_core.gpu.tables import model_of
from tessera_core.perf import ProfileRow
from tessera_core.plan.state_in import POOL_LABEL
from tessera_operator.profiling import Place, Trust, Wanted, may_use, missing, spots
from tessera_operator.recutting import Rules
from tessera_operator.versions import Version

Kind = tuple[str, str]
"""(pool, product)."""


@dataclass(frozen=True, slots=True, order=True)
class Lack:
    """A model that was not measured on kinds of slices which no GPU of a pool has."""

    kind: Kind
    service: str
    member: str
    profiles: tuple[str, ...]
    """In the order of the board's table."""

    def __str__(self) -> str:
        return f"{self.member} is not measured on {', '.join(self.profiles)} of {self.kind[1]}"


@dataclass(frozen=True, slots=True)
class Unseen:
    """What calls for cuts, and where they would be too early."""

    lacks: tuple[Lack, ...] = ()
    """Sorted."""
    early: frozenset[Kind] = frozenset()
    """Where something has yet to be measured on the slices that there are."""


def unseen(
    versions: Iterable[Version],
    profiles: Iterable[ModelProfile],
    nodes: Iterable[RuntimeNode],
    pools: Sequence[RuntimePool],
    trust: Trust,
    given_up: Collection[Wanted],
    rules: Rules,
) -> Unseen:
    """What models lack in pools whose GPUs may be cut for it. ``nodes``: those that are heard of. ``given_up``: what failed
    too often.
    """
    scouted = {pool.metadata.name: pool for pool in pools if _is_scouted(pool)}
    there = [node for node in nodes if dict(node.metadata.labels).get(POOL_LABEL) in scouted]
    offered: dict[Kind, set[str]] = {
        (dict(node.metadata.labels)[POOL_LABEL], label(device.product)): set()
        for node in there
        for device in node.status.devices
        if (node.metadata.name, device.uuid) in rules.cuttable
    }
    if not offered:
        return Unseen()
    for node in there:
        pool = dict(node.metadata.labels)[POOL_LABEL]
        for spot in spots(node, ()):
            product, name = spot.place
            if (pool, product) in offered:
                offered[pool, product].add(name)
    versions, profiles = tuple(versions), tuple(profiles)
    left = [key for key in missing(versions, profiles, there, pools, ()) if key not in given_up]
    return Unseen(
        tuple(sorted(_lacks(versions, _rows(profiles), offered, scouted, trust, given_up))),
        frozenset(kind for kind in offered if _is_early(kind, left, there, trust)),
    )


def _is_scouted(pool: RuntimePool) -> bool:
    partition = pool.spec.partition
    return (
        partition is not None
        and partition.measure is Measure.AUTO
        and partition.backend is PartitionBackend.NVML
    )


def _rows(
    profiles: Iterable[ModelProfile],
) -> dict[tuple[str, str], dict[str, tuple[ProfileRow, ...]]]:
    """By digest and product, what was measured on each kind of slice."""
    found: dict[tuple[str, str], dict[str, tuple[ProfileRow, ...]]] = {}
    for each in profiles:
        if each.status.rows:
            place = each.spec.device_class
            slices = found.setdefault((each.spec.model_digest, label(place.product)), {})
            slices[place.slice] = each.status.rows
    return found


def _is_early(
    kind: Kind, left: Iterable[Wanted], nodes: Sequence[RuntimeNode], trust: Trust
) -> bool:
    """Whether something is being measured on GPUs of ``kind``, or is about to be."""
    pool, product = kind
    own = [node for node in nodes if dict(node.metadata.labels)[POOL_LABEL] == pool]
    gpus = {
        (node.metadata.name, device.uuid)
        for node in own
        for device in node.status.devices
        if label(device.product) == product
    }
    places: dict[str, set[Place]] = {
        node.metadata.name: {each.place for each in spots(node, ())} for node in own
    }
    return any(
        (node.metadata.name, task.device) in gpus for node in own for task in node.spec.profiling
    ) or any(
        place in places[node.metadata.name] and trust.allows(service, member, node)
        for service, member, place in left
        if place[0] == product
        for node in own
    )


def _lacks(
    versions: Iterable[Version],
    rows: Mapping[tuple[str, str], Mapping[str, tuple[ProfileRow, ...]]],
    offered: Mapping[Kind, Collection[str]],
    pools: Mapping[str, RuntimePool],
    trust: Trust,
    given_up: Collection[Wanted],
) -> Iterable[Lack]:
    failed: dict[tuple[str, str, str], set[str]] = {}
    for service, one, (product, name) in given_up:
        failed.setdefault((service, one, product), set()).add(name)
    for (pool, product), present in offered.items():
        model = model_of(product)
        if model is None:
            continue
        useful = [each for each in _useful(model, pools[pool]) if each.name not in present]
        for version in versions:
            spec = version.service.spec
            # A part of a GPU that it has to itself costs as much as all of it.
            alone = spec.placement.isolation is Isolation.EXCLUSIVE
            if alone or not may_use(spec.placement, product):
                continue
            most_ms = _most_ms(spec.slo.objectives[0])
            for member in spec.members:
                digest = version.digests.get(member.name, "")
                known = rows.get((digest, product), {})
                left = [each for each in useful if each.name not in known]
                if not (digest and left and trust.may_run(version.name, member.name, pools[pool])):
                    continue
                tried = failed.get((version.name, member.name, product), ())
                helpful = [each for each in left if _may_help(model, each, known, tried, most_ms)]
                if helpful:
                    names = tuple(each.name for each in helpful)
                    yield Lack((pool, product), version.name, member.name, names)


def _most_ms(objective: Objective) -> float:
    """What the median may be; of a percentile below it the median says nothing."""
    return 1e3 * objective.target_s if objective.percent >= 50 else inf


def _useful(model: GpuModel, pool: RuntimePool) -> tuple[Profile, ...]:
    """Those that ``pool`` allows; of those with media extensions, which compute no better, only the ones it names."""
    partition = pool.spec.partition
    named = partition.allowed_profiles if partition is not None else ()
    allowed = {find_profile(model, name) for name in named}
    return tuple(
        each for each in model.profiles if (each in allowed if named else not each.attributes)
    )


def _may_help(
    model: GpuModel,
    profile: Profile,
    known: Mapping[str, tuple[ProfileRow, ...]],
    failed: Collection[str],
    most_ms: float,
) -> bool:
    """Whether a model may fit ``profile`` and meet ``most_ms`` there, by what was measured: a slice is never faster than
    one with more compute and memory.
    """
    if any(_is_within(model, profile, name) for name in failed):
        return False
    for name, rows in known.items():
        if min(row.memory_mib for row in rows) > profile.memory_mib:
            return False
        single = [row.p50_ms for row in rows if row.batch == 1]
        if single and min(single) > most_ms and _is_within(model, profile, name):
            return False
    return True


def _is_within(model: GpuModel, profile: Profile, name: str) -> bool:
    """Whether ``profile`` has no more of anything than slice ``name``."""
    if name == FULL:
        return True
    other = find_profile(model, name)
    return (
        other is not None
        and profile.compute_slices <= other.compute_slices
        and profile.memory_slices <= other.memory_slices
    )
