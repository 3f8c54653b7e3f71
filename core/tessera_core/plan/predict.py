"""What a placement does at another rate: the planner's own model, asked again without placing anything."""

from __future__ import annotations

from collections import defaultdict
from math import isfinite

from tessera_core.plan.build import demands_in, profiles_of
from tessera_core.plan.capacity import Predictor
from tessera_core.plan.decision import Assignment, Plan
from tessera_core.plan.matrix import Cell, Part
from tessera_core.plan.state import ClusterState, Slice


def latency_at(
    plan: Plan, state: ClusterState, service: str, requests_per_second: float
) -> float | None:
    """Latency of ``service`` in ms at its SLO's percentile, overhead included, if it got this rate.

    ``state`` is the one that ``plan`` was made from. Each member's load is divided over its slices in
    proportion to what they carry. None where a member runs nowhere or the rate has no steady state.
    """
    demands = demands_in(state)
    predictor = Predictor(demands, profiles_of(state), state.policy.neighbour_derate)
    index = {(demand.service, demand.member): i for i, demand in enumerate(demands)}
    places = {str(each.place): each.place for each in state.measured}
    slices: dict[tuple[str, str, Slice], list[Assignment]] = defaultdict(list)
    for each in plan.assignments:
        slices[each.node, each.device, each.slice].append(each)
    members = [demand for demand in demands if demand.service == service]
    worst = 0.0
    for demand in members:
        assigned = [
            (each, beside)
            for beside in slices.values()
            for each in beside
            if (each.service, each.member) == (service, demand.member)
        ]
        carried = sum(each.rate for each, _ in assigned)
        if carried <= 0:
            return None
        rows = requests_per_second * demand.rows_per_request
        for each, beside in assigned:
            cells = [Cell(index[x.service, x.member], x.batch, x.instances) for x in beside]
            part = Part(places[each.device_class], tuple(sorted(cells)))
            own = next(c for c in cells if c.member == index[each.service, each.member])
            latency = predictor.latency_ms(own, part, rows * each.rate / carried)
            worst = max(worst, latency)
    if not members or not isfinite(worst):
        return None
    return worst + state.policy.overhead_ms
