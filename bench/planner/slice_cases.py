"""ParvaGPU's scenarios S1..S4: three capacity rules, each by this planner, beside how others cut and fill.

All sides have the same measurements, loads and board; no two services share a slice. Whatever a rule
promises, every service is then simulated at its planned Poisson rate (``validate``): how many miss their p99,
and the worst p99 as a multiple of the SLO. Medians over seeds.

Also S4's services fifty times in one cluster, against the configuration linear program.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import median
from time import perf_counter

from bench.harness import Figures, Variant, alternate
from bench.lines import Line, Reach, Says
from bench.planner.covers import choices
from bench.planner.lines import line
from bench.planner.parvagpu import ParvaData, cluster, copies_of
from bench.planner.rules import by, filled, twice
from bench.planner.slice_baselines import best_batch_only, first_fit, model_per_gpu, parvagpu
from bench.planner.tables import (
    PROFILE_NAMES,
    Deployment,
    Load,
    Point,
    Profiles,
    Segment,
    servers_of,
)
from bench.planner.validate import Server, simulate_pool

from tessera_core.plan.build import CurvesFactory
from tessera_core.plan.curves import Curves
from tessera_core.plan.decision import Plan
from tessera_core.plan.planner import Planner
from tessera_core.plan.state import Budget, ClusterState

GPCS = {name: gpcs for gpcs, name in PROFILE_NAMES.items()}
EXACT = Budget(max_nodes=20_000)
COPIES = 50
COPIED_NODES = 45
_MOST_SECONDS, _MOST_SECONDS_COPIED = 1.0, 5.0
_LP_PERCENT = 2.0

BASELINES: dict[str, Callable[[Profiles, Sequence[Load]], Deployment]] = {
    "one model per GPU": model_per_gpu,
    "best batch only": best_batch_only,
    "first fit": first_fit,
    "ParvaGPU": parvagpu,
}


@dataclass(frozen=True, slots=True)
class Rule:
    """A capacity model, and what is to be reached with it: GPUs and GPCs at most, by scenario."""

    name: str
    curves: CurvesFactory
    gpus: dict[str, int]
    gpcs: dict[str, int]
    safe: bool = False
    """Whether it promises the p99 under Poisson arrivals."""


RULES = (
    Rule(
        "time < 0.45 SLO",
        by(twice),
        {"S1": 2, "S2": 3, "S3": 5, "S4": 7},
        {"S1": 10, "S2": 20, "S3": 30, "S4": 44},
    ),
    Rule(
        "time + b/rate ≤ 0.9 SLO",
        by(filled),
        {"S1": 2, "S2": 3, "S3": 5, "S4": 6},
        {"S1": 10, "S2": 19, "S3": 29, "S4": 41},
    ),
    Rule("p99-safe", Curves, {"S1": 2, "S2": 3, "S3": 5, "S4": 7}, {"S4": 42}, safe=True),
)


@dataclass(frozen=True, slots=True)
class Effort:
    """How much is measured."""

    scenarios: tuple[str, ...] = ("S1", "S2", "S3", "S4")
    rounds: int = 3
    seeds: tuple[int, ...] = (1, 2, 3, 4, 5)
    rows: int = 200_000
    copies: int = COPIES
    nodes: int = COPIED_NODES


QUICK = Effort(("S1",), rounds=1, seeds=(1,), rows=10_000, copies=2, nodes=2)


class Tails:
    """Simulated p99s, each queue once."""

    def __init__(self, profiles: Profiles, effort: Effort) -> None:
        self._profiles = profiles
        self._effort = effort
        self._known: dict[tuple[tuple[Server, ...], float, float], float] = {}

    def of(self, deployment: Deployment, loads: Sequence[Load]) -> dict[str, float]:
        """p99 / SLO by service, median over the seeds."""
        return {
            load.name: self._ratio(
                tuple(sorted(servers_of(deployment, self._profiles, load.name))),
                load.rate_per_s,
                load.slo_ms,
            )
            for load in loads
        }

    def _ratio(self, servers: tuple[Server, ...], rate_per_s: float, slo_ms: float) -> float:
        key = servers, rate_per_s, slo_ms
        if key not in self._known:
            self._known[key] = median(
                simulate_pool(servers, rate_per_s, slo_ms, seed, self._effort.rows).p99_ms / slo_ms
                for seed in self._effort.seeds
            )
        return self._known[key]


def deployment_of(plan: Plan, loads: Sequence[Load]) -> Deployment:
    """A plan of ``parvagpu.cluster`` in the baselines' words; a point's rate is what the plan credits."""
    models = {f"bench.{load.name}": load for load in loads}
    boards = []
    for device in plan.devices:
        if device.assignments:
            boards.append(
                tuple(
                    Segment(
                        models[each.service].name,
                        models[each.service].model,
                        Point(
                            GPCS[each.slice.name],
                            each.batch,
                            each.instances,
                            each.rate,
                            each.latency_ms,
                        ),
                    )
                    for each in device.assignments
                )
            )
    return Deployment(tuple(boards))


def scenario_lines(data: ParvaData, effort: Effort, says: Says) -> Iterator[Line]:
    """Every scenario by everybody."""
    tails = Tails(data.profiles, effort)
    for name in effort.scenarios:
        yield from _scenario(name, data, tails, effort, says)


def _scenario(
    name: str, data: ParvaData, tails: Tails, effort: Effort, says: Says
) -> Iterator[Line]:
    loads = data.scenarios[name]
    state = cluster(data.profiles, loads, nodes=1)
    case = f"ParvaGPU {name}"
    late: dict[str, dict[str, float]] = {}

    def checked(who: str, deployment: Deployment) -> Figures:
        ratios = late[who] = tails.of(deployment, loads)
        return {
            "gpus": float(deployment.gpus),
            "gpcs": float(deployment.gpcs),
            "misses": float(sum(ratio > 1 for ratio in ratios.values())),
            "worst": max(ratios.values()),
        }

    def baseline(who: str) -> Figures:
        started = perf_counter()
        deployment = BASELINES[who](data.profiles, loads)
        seconds = perf_counter() - started
        return {"seconds": seconds, **checked(who, deployment)}

    def tessera(who: str, rule: Rule, budget: Budget) -> Figures:
        plan, seconds = _timed(state, rule, budget)
        found = checked(who, deployment_of(plan, loads))
        return {**found, **_told(plan), "seconds": seconds}

    variants: list[Variant] = []
    reach: dict[str, tuple[Reach, ...]] = {}
    for who in BASELINES:
        variants.append(Variant({"case": case, "who": who}, partial(baseline, who)))
    for rule in RULES:
        for by_whom, budget in (("", Budget()), (", exact", EXACT)):
            who = f"Tessera, {rule.name}{by_whom}"
            variants.append(
                Variant({"case": case, "who": who}, partial(tessera, who, rule, budget))
            )
            reach[who] = _reach(rule, name)
    for row in alternate(variants, effort.rounds, says):
        who = row.labels["who"]
        over = {each: round(ratio, 3) for each, ratio in late[who].items() if ratio > 1}
        yield line(case, who, row.repeats, *reach.get(who, ()), p99_over_slo=over)
    for rule in RULES:
        optimum = choices(state, rule.curves, GPCS).optimum(EXACT.max_nodes)
        if optimum is not None and optimum.proven:
            figures = {"gpus": optimum.cost, "gpcs": float(optimum.width), "bound": optimum.bound}
            yield line(case, f"proven optimum, {rule.name}", figures)


def _reach(rule: Rule, scenario: str) -> tuple[Reach, ...]:
    found = [Reach("gpus", at_most=rule.gpus[scenario]), Reach("seconds", at_most=_MOST_SECONDS)]
    if scenario in rule.gpcs:
        found.append(Reach("gpcs", at_most=rule.gpcs[scenario]))
    if rule.safe:
        found.append(Reach("misses", at_most=0))
    return (*found, Reach("short", at_most=0), Reach("refused", at_most=0))


def copies_lines(data: ParvaData, effort: Effort, says: Says) -> Iterator[Line]:
    """S4's services many times over; the deterministic rule and the planner's own model."""
    loads = copies_of(data.scenarios["S4"], effort.copies)
    state = cluster(data.profiles, loads, nodes=effort.nodes)
    case = f"S4 x {effort.copies}"
    repeats: dict[str, list[Figures]] = {}
    rules = [rule for rule in RULES if rule.name != "time + b/rate ≤ 0.9 SLO"]
    bounds = {}
    for rule in rules:
        says(f"{case}: the linear program, {rule.name}")
        bounds[rule.name] = choices(state, rule.curves, GPCS).lp_bound()
    for turn in range(effort.rounds):
        for rule in rules:
            says(f"{case}: round {turn + 1}/{effort.rounds}, {rule.name}")
            plan, seconds = _timed(state, rule, Budget())
            used = deployment_of(plan, loads)
            bound = bounds[rule.name]
            repeats.setdefault(rule.name, []).append(
                {
                    **_told(plan),
                    "gpus": float(used.gpus),
                    "gpcs": float(used.gpcs),
                    "seconds": seconds,
                    "lp_bound": bound,
                    "lp_gap_percent": 100 * (used.gpus / bound - 1),
                }
            )
    for name, found in repeats.items():
        yield line(
            case,
            f"Tessera, {name}",
            found,
            Reach("lp_gap_percent", at_most=_LP_PERCENT),
            Reach("seconds", at_most=_MOST_SECONDS_COPIED),
            Reach("short", at_most=0),
            Reach("refused", at_most=0),
        )
    for who, place in BASELINES.items():
        started = perf_counter()
        deployment = place(data.profiles, loads)
        seconds = perf_counter() - started
        figures = {
            "gpus": float(deployment.gpus),
            "gpcs": float(deployment.gpcs),
            "seconds": seconds,
            "lp_bound": bounds[RULES[0].name],
            "lp_gap_percent": 100 * (deployment.gpus / bounds[RULES[0].name] - 1),
        }
        yield line(case, who, figures)


def _timed(state: ClusterState, rule: Rule, budget: Budget) -> tuple[Plan, float]:
    """A plan from nothing by a planner that knows nothing."""
    started = perf_counter()
    plan = Planner(rule.curves).plan(state, budget)
    return plan, perf_counter() - started


def _told(plan: Plan) -> Figures:
    return {
        "bound": plan.lower_bound,
        "gap_percent": plan.gap_percent,
        "refused": float(len(plan.refused)),
        "short": float(sum(service.short is not None for service in plan.services)),
    }
