"""What a placement does at another rate: the planner's own model, asked again without placing anything."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from math import isfinite, sqrt
from typing import NamedTuple

from tessera_core.perf import ServiceModel
from tessera_core.perf.service import MS_PER_S
from tessera_core.plan.behaviour import Behaviour, Running
from tessera_core.plan.build import demands_in, problem_of
from tessera_core.plan.decision import Assignment, Plan
from tessera_core.plan.demand import Demand, end_to_end_ms
from tessera_core.plan.matrix import Cell, Part
from tessera_core.plan.state import ClusterState, Slice

_MOST_ROUNDS = 64
_SETTLED = 0.01
"""Requests by which a batch may still grow."""


@dataclass(frozen=True, slots=True)
class Pool:
    """The instances of one member on one node, which share a queue."""

    demand: Demand
    node: str
    behaviour: Behaviour
    servers: tuple[Running, ...]
    """One per part, in the order of ``assignments``."""
    assignments: tuple[Assignment, ...]

    @property
    def rate(self) -> float:
        """Rows per second within the latency budget."""
        return sum(each.rate for each in self.assignments)

    @property
    def models(self) -> tuple[ServiceModel, ...]:
        """By part: its instances as whole requests see them, the turns of other members included."""
        return tuple(
            replace(self.behaviour.queue(each), instances=each.instances) for each in self.servers
        )

    def latency_ms(self, rows_per_s: float) -> float:
        """Latency at the member's percentile, without the overhead; ``inf`` if the queue is unstable."""
        return self.behaviour.latency_ms(tuple(sorted(self.servers)), rows_per_s)


class _Tenant(NamedTuple):
    """A member in a part that it may share."""

    key: tuple[str, str]
    model: ServiceModel
    """One instance by itself, as requests see it."""
    requests_per_s: float


Where = tuple[str, str, Slice]
"""A part: node, device, slice."""


def _where(each: Assignment) -> Where:
    return each.node, each.device, each.slice


def pools_of(plan: Plan, state: ClusterState) -> Iterator[Pool]:
    """The queues of ``plan``, which was made from ``state``, by service, member and node."""
    problem = problem_of(state, demands_in(state))
    members = {demand.key: index for index, demand in enumerate(problem.demands)}
    places = {str(place): index for index, place in enumerate(problem.places)}
    parts: dict[Where, list[Assignment]] = defaultdict(list)
    pools: dict[tuple[int, str], list[tuple[Running, Assignment]]] = defaultdict(list)
    for each in plan.assignments:
        parts[_where(each)].append(each)
    for beside in parts.values():
        cells = [
            Cell(members[each.service, each.member], each.batch, each.instances) for each in beside
        ]
        part = Part(places[beside[0].device_class], tuple(sorted(cells)))
        for cell, each in zip(cells, beside, strict=True):
            setting = problem.predictor.running(part, cell)
            pools[cell.member, each.node].append((setting, each))
    for (member, node), found in sorted(pools.items()):
        yield Pool(
            problem.demands[member],
            node,
            problem.predictor.behaviours[member],
            tuple(setting for setting, _ in found),
            tuple(each for _, each in found),
        )


def shares_of(pools: Sequence[Pool]) -> tuple[float, ...]:
    """How the load of one member is divided over its ``pools``: in proportion to what they carry."""
    carried = sum(pool.rate for pool in pools)
    return tuple(pool.rate / carried if carried else 1 / len(pools) for pool in pools)


def member_latency_ms(pools: Sequence[Pool], requests_per_second: float) -> float:
    """Latency of one member in ms at its percentile, without the overhead; ``inf`` without a steady state."""
    return max(
        pool.latency_ms(requests_per_second * pool.demand.rows_per_request * share)
        for pool, share in zip(pools, shares_of(pools), strict=True)
    )


def service_latency_ms(members: Iterable[Sequence[Pool]], requests_per_second: float) -> float:
    """Latency of a service in ms at its percentile, without the overhead; ``inf`` without a steady state.

    ``members``: the pools of each, preprocessing among them.
    """
    return end_to_end_ms(
        (pools[0].demand, member_latency_ms(pools, requests_per_second)) for pools in members
    )


def latency_at(
    plan: Plan, state: ClusterState, service: str, requests_per_second: float
) -> float | None:
    """Latency of ``service`` in ms at its SLO's percentile, overhead included, if it got this rate.

    ``state`` is the one that ``plan`` was made from. Members that take turns on one part wait for each other's
    batches; a plan allows for full ones, here they are as long as this rate makes them, and the expected
    rates of other services. None where a member runs nowhere or the rate has no steady state.
    """
    members: dict[str, list[Pool]] = {
        demand.member: [] for demand in demands_in(state) if demand.service == service
    }
    everyone: dict[tuple[str, str], list[Pool]] = defaultdict(list)
    for pool in pools_of(plan, state):
        everyone[pool.demand.key].append(pool)
    tenants: dict[Where, list[_Tenant]] = defaultdict(list)
    for (name, member), pools in everyone.items():
        rate = pools[0].demand.load / pools[0].demand.rows_per_request
        if name == service:
            members[member], rate = pools, requests_per_second
        for where, tenant in _tenants(pools, rate):
            tenants[where].append(tenant)
    if not members or not all(members.values()):
        return None
    turns = {where: _turns(beside) for where, beside in tenants.items() if len(beside) > 1}
    in_turns = [[_in_turns(pool, turns) for pool in pools] for pools in members.values()]
    latency = service_latency_ms(in_turns, requests_per_second)
    return latency + state.policy.overhead_ms if isfinite(latency) else None


def _tenants(pools: Sequence[Pool], requests_per_s: float) -> Iterator[tuple[Where, _Tenant]]:
    for pool, share in zip(pools, shares_of(pools), strict=True):
        weights = [pool.behaviour.finished(each) for each in pool.servers]
        for setting, each, weight in zip(pool.servers, pool.assignments, weights, strict=True):
            alone = pool.behaviour.queue(setting._replace(blocking_ms=0.0))
            rate = requests_per_s * share * weight / sum(weights)
            yield _where(each), _Tenant(pool.demand.key, alone, rate)


def _turns(beside: Sequence[_Tenant]) -> dict[tuple[str, str], float]:
    """By (service, member) of one part: what the others' batches add to each of its own, ms.

    A round runs one batch of everybody, and a batch holds what came in one round and a standard deviation
    more; both are found by raising them from single requests. Predictions with this are 1.3 to 2.7 times
    those of simulated round robins of two and three tenants at loads of 0.1 to 0.85.
    """
    sizes = [1.0] * len(beside)
    for _ in range(_MOST_ROUNDS):
        round_ms = sum(x.model.batch_ms(size) for x, size in zip(beside, sizes, strict=True))
        came = [each.requests_per_s / MS_PER_S * round_ms for each in beside]
        grown = [
            min(float(each.model.cap or 1), max(1.0, mean + sqrt(mean)))
            for each, mean in zip(beside, came, strict=True)
        ]
        if all(new - old < _SETTLED for new, old in zip(grown, sizes, strict=True)):
            break
        sizes = grown
    lengths = [x.model.batch_ms(size) for x, size in zip(beside, sizes, strict=True)]
    return {each.key: sum(lengths) - mine for each, mine in zip(beside, lengths, strict=True)}


def _in_turns(pool: Pool, turns: Mapping[Where, Mapping[tuple[str, str], float]]) -> Pool:
    """``pool`` with the turns of others no longer than they are."""
    servers = []
    for setting, each in zip(pool.servers, pool.assignments, strict=True):
        found = turns.get(_where(each), {}).get(pool.demand.key, setting.blocking_ms)
        servers.append(setting._replace(blocking_ms=min(setting.blocking_ms, found)))
    return replace(pool, servers=tuple(servers))
