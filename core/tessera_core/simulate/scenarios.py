"""The queues of a plan: what runs where, under which load, and what the planner predicts for it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import isfinite
from typing import NamedTuple

from tessera_core.api import ModelService, OnTimeout
from tessera_core.perf import ServiceModel
from tessera_core.plan.decision import Plan
from tessera_core.plan.demand import Demand
from tessera_core.plan.nodes import slice_name
from tessera_core.plan.predict import Pool, pools_of, service_latency_ms, shares_of
from tessera_core.plan.state import ClusterState, Slice


class Part(NamedTuple):
    """Where instances run."""

    node: str
    device: str
    slice: Slice


@dataclass(frozen=True, slots=True)
class Servers:
    """Equal instances."""

    model: ServiceModel
    """Batch times as whole requests see them; rates are requests per second."""
    cap: int
    """Rows of the largest batch."""
    blocking_ms: float = 0.0
    """Part of every batch time in which others have their turn."""
    parts: tuple[Part, ...] = ()
    """By instance."""


@dataclass(frozen=True, slots=True)
class Queue:
    """The instances of one member that take from one queue."""

    member: str
    where: tuple[str, ...]
    """The parts of devices that they run in."""
    servers: tuple[Servers, ...]
    share: float = 1.0
    """Of the member's requests."""


@dataclass(frozen=True, slots=True)
class Quorum:
    """Who may be missing from an answer at the deadline."""

    fewest: int
    required: tuple[int, ...]
    """Positions of members that no answer lacks."""


@dataclass(frozen=True, slots=True)
class Scenario:
    """One service under load."""

    service: str
    rate_per_s: float
    """Requests per second, above 0."""
    target_ms: float
    percentile: float
    members: tuple[tuple[Queue, ...], ...]
    """Queues of every member."""
    stage: tuple[Queue, ...] = ()
    """Queues of preprocessing, where every request goes before it goes to the members; empty: there is none."""
    predicted_ms: float | None = None
    """The planner's latency at ``percentile``; None where a queue has no steady state."""
    burstiness: float = 1.0
    overhead_ms: float = 0.0
    """Part of every latency that is spent outside the queues."""
    rows_per_request: int = 1
    quorum: Quorum | None = None
    """None: every answer has all members."""


def scenarios(
    plan: Plan, state: ClusterState, rate_factor: float = 1.0, burstiness: float | None = None
) -> tuple[Scenario, ...]:
    """The placed services that expect traffic, at ``rate_factor`` times their expected rates.

    ``state`` is the one that ``plan`` was made from. ``burstiness`` None takes each service's own.
    """
    if burstiness is not None:
        state = replace(
            state, services=tuple(_with_burstiness(each, burstiness) for each in state.services)
        )
    placed: dict[str, dict[str, list[Pool]]] = defaultdict(lambda: defaultdict(list))
    for pool in pools_of(plan, state):
        placed[pool.demand.service][pool.demand.member].append(pool)
    services = {each.served_name: each for each in state.services}
    found = []
    for each in plan.services:
        if each.requests_per_second == 0:
            continue
        spec = services[each.service].spec
        rate = each.requests_per_second * rate_factor
        # In the order of the service: of two members with equal queues the first is named.
        mine = [placed[each.service][m.name] for m in spec.placed if m.name in placed[each.service]]
        members = [pools for pools in mine if not pools[0].demand.stage]
        latency = service_latency_ms(mine, rate)
        found.append(
            Scenario(
                service=each.service,
                rate_per_s=rate,
                target_ms=each.target_ms,
                percentile=each.percentile,
                members=tuple(_queues(pools) for pools in members),
                stage=_queues([pool for pools in mine for pool in pools if pool.demand.stage]),
                predicted_ms=latency + state.policy.overhead_ms if isfinite(latency) else None,
                burstiness=spec.traffic.burstiness,
                overhead_ms=state.policy.overhead_ms,
                rows_per_request=spec.traffic.items_per_request,
                quorum=_quorum(services[each.service], [pools[0].demand for pools in members]),
            )
        )
    return tuple(found)


def _with_burstiness(service: ModelService, burstiness: float) -> ModelService:
    traffic = replace(service.spec.traffic, burstiness=burstiness)
    return replace(service, spec=replace(service.spec, traffic=traffic))


def _queues(pools: Sequence[Pool]) -> tuple[Queue, ...]:
    """The queues of one member, as the planner models them."""
    return tuple(
        Queue(
            member=pool.demand.member,
            where=tuple(
                f"{each.node}/{each.device} {slice_name(each.slice)}" for each in pool.assignments
            ),
            servers=_servers(pool),
            share=share,
        )
        for pool, share in zip(pools, shares_of(pools), strict=True)
    )


def _servers(pool: Pool) -> tuple[Servers, ...]:
    """Those that are equal put together."""
    found: dict[Servers, list[Part]] = defaultdict(list)
    for model, setting, each in zip(pool.models, pool.servers, pool.assignments, strict=True):
        one = Servers(replace(model, instances=1), each.batch, setting.blocking_ms)
        found[one] += [Part(each.node, each.device, each.slice)] * model.instances
    return tuple(
        replace(one, model=replace(one.model, instances=len(parts)), parts=tuple(parts))
        for one, parts in found.items()
    )


def _quorum(service: ModelService, placed: list[Demand]) -> Quorum | None:
    ensemble = service.spec.ensemble
    if ensemble.on_timeout is not OnTimeout.PARTIAL:
        return None
    required = tuple(index for index, demand in enumerate(placed) if demand.required)
    return Quorum(ensemble.min_members, required)
