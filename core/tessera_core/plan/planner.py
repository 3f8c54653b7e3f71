"""The planner: facts in, decision out.

    facts → demands → refuse what no arrangement can serve → worst-fit → greedy → exact positions → Plan

A service is placed whole or not at all: when a member that it cannot answer without finds no room, the
service is refused and its room goes to the others, which are placed again. A service may be placed with less
than it asked for; its plan then says what would close the gap.

The result depends on the facts and the budget only. Nothing that runs now reaches the search, so planning an
applied plan gives the same plan; what runs decides only which of several equal devices is meant.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace

from tessera_core.plan.bound import lower_bound
from tessera_core.plan.build import demands_in, problem_of
from tessera_core.plan.capacity import MILLI
from tessera_core.plan.decision import (
    Alternative,
    Assignment,
    DevicePlan,
    Plan,
    Refusal,
    ServicePlan,
    Why,
)
from tessera_core.plan.demand import Demand
from tessera_core.plan.greedy import Searched, improve
from tessera_core.plan.matrix import Cell, Part
from tessera_core.plan.problem import Problem
from tessera_core.plan.refuse import before_search, overloaded, short, without_room
from tessera_core.plan.score import FULL, Scorer, Standing
from tessera_core.plan.settle import Settled, settle
from tessera_core.plan.state import Budget, ClusterState
from tessera_core.plan.worst_fit import worst_fit

_NAME_DIGITS = 16

Refused = dict[tuple[str, str], Refusal]
"""By (service, member)."""


def plan(state: ClusterState, budget: Budget | None = None) -> Plan:
    """The placement of every demand of ``state``, or a typed reason against it.

    ``budget``: bounds the search in units of work; the state's own when absent.
    """
    everything = demands_in(state)
    idle = _idle(everything)
    wanted = tuple(demand for demand in everything if demand.service not in idle)
    demands, refused = _servable(state, wanted)
    problem, scorer, start, found = _first_fit(state, demands)
    refused |= found
    searched = improve(problem, scorer, start, budget or state.budget)
    return _plan(state, _Found(problem, scorer, searched), refused, tuple(sorted(idle)))


@dataclass(frozen=True, slots=True)
class _Found:
    problem: Problem
    scorer: Scorer
    searched: Searched

    @property
    def standing(self) -> Standing:
        return self.searched.standing


def _idle(demands: tuple[Demand, ...]) -> set[str]:
    """Services of which nothing has to run."""
    return {demand.service for demand in demands if demand.min_parts == 0}


def _servable(
    state: ClusterState, demands: tuple[Demand, ...]
) -> tuple[tuple[Demand, ...], Refused]:
    """The demands that some arrangement may serve, and why the others are refused."""
    problem = problem_of(state, demands)
    refused: Refused = {}
    for member, demand in enumerate(demands):
        reason = before_search(state, problem, member, state.policy.overhead_ms)
        if reason is not None:
            refused[demand.key] = reason
    return _without(state, demands, refused)


def _without(
    state: ClusterState, demands: tuple[Demand, ...], refused: Refused
) -> tuple[tuple[Demand, ...], Refused]:
    """The demands less the refused ones and less every service that cannot answer without them."""
    refused = dict(refused)
    fewest = {each.served_name: each.spec.ensemble.min_members for each in state.services}
    services: dict[str, list[Demand]] = {}
    for demand in demands:
        services.setdefault(demand.service, []).append(demand)
    for service, members in services.items():
        out = [demand for demand in members if demand.key in refused]
        enough = len(members) - len(out) >= fewest[service]
        if not out or (enough and not any(demand.required for demand in out)):
            continue
        names = ", ".join(demand.member for demand in out)
        for demand in members:
            reason = Refusal(Why.MEMBER_REFUSED, f"the service cannot answer without {names}")
            refused.setdefault(demand.key, reason)
    return tuple(demand for demand in demands if demand.key not in refused), refused


def _first_fit(
    state: ClusterState, demands: tuple[Demand, ...]
) -> tuple[Problem, Scorer, Standing, Refused]:
    """The first placement of as many services as find room.

    One service is refused at a time, the one with the most members left out, because its room may be what
    the others lacked. Ends: every round refuses at least one demand.
    """
    refused: Refused = {}
    while True:
        problem = problem_of(state, demands)
        scorer = Scorer(problem)
        standing = worst_fit(problem, scorer)
        out = [member for member, parts in enumerate(standing.parts) if parts == 0]
        if not out:
            return problem, scorer, standing, refused
        by_service: dict[str, list[int]] = {}
        for member in out:
            by_service.setdefault(demands[member].service, []).append(member)
        _, members = min(by_service.items(), key=lambda item: (-len(item[1]), item[0]))
        for member in members:
            refused[demands[member].key] = without_room(problem, scorer, standing, member)
        demands, refused = _without(state, demands, refused)


def _plan(state: ClusterState, found: _Found, refused: Refused, idle: tuple[str, ...]) -> Plan:
    problem, standing = found.problem, found.standing
    settled = settle(state, problem, standing.matrix)
    devices = tuple(_device(found, each) for each in settled)
    services = tuple(_service(state, found, members, devices) for members in problem.services)
    served = frozenset(each.service for each in services if each.short is None)
    content = Plan(
        name="",
        devices=devices,
        services=services,
        refused=tuple((*key, reason) for key, reason in sorted(refused.items())),
        idle=idle,
        cost=standing.cost / 1e6,
        lower_bound=lower_bound(problem, found.scorer, served) / 1e6,
        truncated=found.searched.truncated,
    )
    return replace(content, name=_name(content))


def _device(found: _Found, settled: Settled) -> DevicePlan:
    problem = found.problem
    board = problem.boards[settled.board]
    return DevicePlan(
        node=board.node,
        uuid=board.uuid,
        product=board.kind.product,
        geometry=settled.geometry,
        recut=settled.recut,
        assignments=tuple(
            Assignment(
                service=problem.demands[cell.member].service,
                member=problem.demands[cell.member].member,
                node=board.node,
                device=board.uuid,
                slice=piece,
                device_class=str(part.place),
                batch=cell.cap,
                instances=cell.instances,
                rate=rate / MILLI,
                load=load,
                latency_ms=problem.predictor.latency_ms(cell, part, load),
                shares_with=tuple(
                    "/".join(problem.demands[other.member].key)
                    for other in part.cells
                    if other != cell
                ),
            )
            for piece, part in settled.parts
            for cell, rate in zip(part.cells, problem.predictor.rates(part), strict=True)
            for load in [_load(found, cell, rate)]
        ),
    )


def _load(found: _Found, cell: Cell, rate: int) -> float:
    """Rows/s that ``cell`` gets of its member's load: by capacity, and never more than it carries."""
    demand = found.problem.demands[cell.member]
    capacity = found.standing.capacity[cell.member]
    return min(rate / MILLI, demand.load * rate / capacity)


def _service(
    state: ClusterState,
    found: _Found,
    members: tuple[int, ...],
    devices: tuple[DevicePlan, ...],
) -> ServicePlan:
    problem, scorer, standing = found.problem, found.scorer, found.standing
    demands = [problem.demands[member] for member in members]
    first = demands[0]
    spec = next(each.spec for each in state.services if each.served_name == first.service)
    objective = spec.slo.objectives[0]
    required = [m for m in members if problem.demands[m].required] or list(members)
    worst = min(
        (
            m
            for m in members
            if scorer.share(standing, m) < FULL or overloaded(problem, standing, m)
        ),
        key=lambda m: (m not in required, scorer.share(standing, m), m),
        default=None,
    )
    latency = max(
        each.latency_ms
        for device in devices
        for each in device.assignments
        if each.service == first.service
    )
    return ServicePlan(
        service=first.service,
        requests_per_second=spec.traffic.requests_per_second,
        max_requests_per_second=min(standing.capacity[m] for m in required)
        / MILLI
        / first.rows_per_request,
        latency_ms=latency + state.policy.overhead_ms,
        target_ms=objective.target_s * 1e3,
        percentile=objective.percent,
        short=None if worst is None else short(problem, scorer, standing, worst),
        alternatives=tuple(each for m in members for each in _alternatives(problem, m)),
    )


def _alternatives(problem: Problem, member: int) -> list[Alternative]:
    found: dict[str, Alternative] = {}
    for kind in dict.fromkeys(board.kind for board in problem.boards):
        for place in problem.options(member, kind):
            cell = problem.predictor.best(member, place)
            assert cell is not None, "options() gives places with a best cell only"
            (rate,) = problem.predictor.rates(Part(place, (cell,)))
            price = kind.cost / 1e6 / kind.most(place)
            name = problem.demands[member].member
            each = Alternative(name, str(place), rate / MILLI, price)
            cheapest = min(found.get(str(place), each), each, key=lambda one: one.price)
            found[str(place)] = cheapest
    return sorted(found.values(), key=lambda e: (-e.rate / max(e.price, 1e-6), e.device_class))


def _name(content: Plan) -> str:
    """A hash of what is to be done: devices, geometries, instances; predictions do not count."""
    action: list[Mapping[str, object]] = [
        {
            "node": device.node,
            "device": device.uuid,
            "geometry": [str(placement) for placement in device.geometry],
            "instances": [
                [*_place(each), each.batch, each.instances] for each in device.assignments
            ],
        }
        for device in content.devices
    ]
    text = json.dumps(action, sort_keys=True, separators=(",", ":"))
    return f"plan-{hashlib.sha256(text.encode()).hexdigest()[:_NAME_DIGITS]}"


def _place(each: Assignment) -> tuple[str, str, str, int]:
    return each.service, each.member, each.slice.name, each.slice.start
