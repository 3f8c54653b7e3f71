"""Tiny random clusters against brute force, both with the same additive rates and one member per part."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from statistics import fmean

from bench.harness import Figures
from bench.lines import Line, Reach, Says
from bench.planner.brute import TooLarge, least_cost
from bench.planner.lines import line
from bench.planner.rules import AloneCurves
from bench.planner.tiny import brute_case, tiny_case

from tessera_core.gpu.devices import DeviceClass
from tessera_core.plan.behaviour import MILLI
from tessera_core.plan.build import profiles_of
from tessera_core.plan.demand import Demand
from tessera_core.plan.planner import Planner
from tessera_core.plan.state import Budget, ClusterState

CASES = 2000
EXACT = Budget(max_nodes=2_000)
_EVERY = 200
_REACH = (
    Reach("missed_feasible", at_most=0),
    Reach("beats_brute", at_most=0),
    Reach("mean_ratio", at_most=1.03),
    Reach("worst_ratio", at_most=1.34),
)


@dataclass(frozen=True, slots=True)
class Compared:
    """One case by both."""

    seed: int
    least: float | None
    """By brute force; None: infeasible."""
    found: float | None
    """By the planner; None: somebody was refused or short."""


def oracle_lines(cases: int, says: Says) -> Iterator[Line]:
    """The heuristic alone, then with the exact refinement."""
    brute: dict[int, float | None] = {}
    for seed in range(cases):
        if seed % _EVERY == 0:
            says(f"tiny cases: brute force, {seed}/{cases}")
        try:
            brute[seed] = by_brute_force(tiny_case(seed))
        except TooLarge:
            continue
    for who, budget in (("Tessera", Budget()), ("Tessera, exact", EXACT)):
        says(f"tiny cases: {who}")
        compared = [
            Compared(seed, least, by_planner(tiny_case(seed), budget))
            for seed, least in brute.items()
        ]
        yield _line(who, compared, cases - len(brute))


def by_brute_force(state: ClusterState) -> float | None:
    """The least cost with what the planner's own law gives a part that works alone."""
    places = tuple(sorted({each.place for each in state.measured}))
    curves = AloneCurves(places, profiles_of(state), state.policy.neighbour_derate)

    def rate_of(demand: Demand, place: DeviceClass) -> float:
        best = curves.behaviour(demand).best(places.index(place))
        return best.rate / MILLI if best else 0.0

    return least_cost(*brute_case(state, rate_of))


def by_planner(state: ClusterState, budget: Budget) -> float | None:
    """The planner's cost; None unless all are served fully."""
    plan = Planner(AloneCurves).plan(state, budget)
    if plan.refused or any(service.short is not None for service in plan.services):
        return None
    return plan.cost


def _line(who: str, compared: list[Compared], too_large: int) -> Line:
    ratios = {
        each.seed: each.found / each.least
        for each in compared
        if each.least is not None and each.found is not None
    }
    missed = [each.seed for each in compared if each.least is not None and each.found is None]
    figures: Figures = {
        "cases": float(len(compared)),
        "too_large": float(too_large),
        "infeasible": float(sum(each.least is None and each.found is None for each in compared)),
        "missed_feasible": float(len(missed)),
        "beats_brute": float(
            sum(ratio < 1 - 1e-6 for ratio in ratios.values())
            + sum(each.least is None and each.found is not None for each in compared)
        ),
        "optimal": float(sum(ratio < 1 + 1e-6 for ratio in ratios.values())),
        "mean_ratio": fmean(ratios.values()),
        "worst_ratio": max(ratios.values()),
    }
    worst = sorted(ratios, key=lambda seed: (-ratios[seed], seed))[:5]
    return line(
        "tiny cases",
        who,
        figures,
        *_REACH,
        worst_seeds={seed: round(ratios[seed], 4) for seed in worst},
        missed_seeds=missed,
    )
