"""A large mixed fleet: planned from nothing, then planned again after one service came or changed its rate.

Replanning starts from the plan carried out exactly, with the facts in memory. A board is touched when what it
is cut into or what runs on it differs. What a controller does around the decision is measured apart: reading
documents, naming the plan by its hash, writing the nodes' wanted states.
"""

from __future__ import annotations

import gc
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from statistics import median
from time import perf_counter

import numpy as np
from bench.harness import Figures
from bench.lines import Line, Reach, Says
from bench.planner.alone import planned_alone
from bench.planner.fleet import mixed_fleet, new_service
from bench.planner.lines import line

from tessera_core.api import ModelService
from tessera_core.plan.decision import DevicePlan, Plan
from tessera_core.plan.nodes import to_runtime_nodes
from tessera_core.plan.plan_out import plan_to_dict
from tessera_core.plan.planner import Planner
from tessera_core.plan.report import named
from tessera_core.plan.state import Budget, ClusterState, NodeState, Running
from tessera_core.plan.state_in import state_from_dict
from tessera_core.plan.state_out import state_to_dict

SEED = 0
QUIET = Budget(max_iterations=0)
"""One change serves and does not tidy up."""
_REACH = (
    Reach("seconds", at_most=30),
    Reach("peak_mib", at_most=1024),
    Reach("refused", at_most=0),
    Reach("short", at_most=0),
)


@dataclass(frozen=True, slots=True)
class Size:
    """How large and how often."""

    nodes: int = 1250
    services: int = 2000
    rounds: int = 3
    changes: int = 24


QUICK = Size(nodes=4, services=8, rounds=1, changes=3)


@dataclass(frozen=True, slots=True)
class Change:
    """One edit of the fleet's services."""

    name: str
    services: tuple[ModelService, ...]
    changed: ModelService


def fleet_lines(size: Size, says: Says) -> Iterator[Line]:
    """From nothing, in processes of their own."""
    case = f"{size.nodes:,} nodes of 8, {size.services:,} services"
    repeats = []
    for turn in range(size.rounds):
        says(f"{case}: from nothing, round {turn + 1}/{size.rounds}")
        repeats.append(planned_alone(size.nodes, size.services, SEED))
    yield line(case, "Tessera, from nothing", repeats, *_REACH)


def replan_lines(size: Size, says: Says) -> Iterator[Line]:
    """One service changes at a time, each change from the same running fleet."""
    case = f"one change, {size.nodes:,} nodes"
    says(f"{case}: the fleet to start from")
    empty = mixed_fleet(size.nodes, size.services, SEED)
    planner = Planner()
    state = applied(planner.plan(empty), empty)
    before = planner.decide(state, QUIET)
    changes = _changes(state, size.changes)
    # A controller takes what stays out of the garbage collector's sight, so this one does.
    gc.collect()
    gc.freeze()
    again = _Again(case, planner, state, before, changes, says)
    yield again.line(
        "Tessera, facts in memory", lambda: state.nodes, Reach("median_ms", at_most=200)
    )
    yield again.line(
        "Tessera, every node reported anew", lambda: tuple(replace(node) for node in state.nodes)
    )
    says(f"{case}: reading, hashing, writing")
    yield line(case, "outside the decision", _around(state, before, changes[0].changed, size))
    gc.unfreeze()


def applied(plan: Plan, state: ClusterState) -> ClusterState:
    """``state`` after ``plan`` has been carried out exactly."""
    wanted = {(device.node, device.uuid): device for device in plan.devices}

    def after(node: NodeState) -> NodeState:
        devices = []
        for device in node.devices:
            planned = wanted.get((node.name, device.uuid))
            if planned is not None:
                device = replace(
                    device,
                    running=tuple(
                        Running(each.service, each.member, each.slice, each.batch, each.instances)
                        for each in planned.assignments
                    ),
                    geometry=(planned.geometry or None) if planned.recut else device.geometry,
                )
            devices.append(device)
        return replace(node, devices=tuple(devices))

    return replace(state, nodes=tuple(after(node) for node in state.nodes))


def touched(before: Plan, after: Plan) -> int:
    """Boards that have to be cut anew or run something else."""
    old = {(device.node, device.uuid): _action(device) for device in before.devices}
    return sum(_action(device) != old.get((device.node, device.uuid)) for device in after.devices)


def _action(device: DevicePlan) -> tuple[object, ...]:
    runs = tuple(
        (each.slice, each.service, each.member, each.batch, each.instances)
        for each in device.assignments
    )
    return device.geometry, runs


@dataclass(frozen=True, slots=True)
class _Again:
    """Every change of ``changes`` made to ``state``, which runs the plan ``before``."""

    case: str
    planner: Planner
    state: ClusterState
    before: Plan
    changes: tuple[Change, ...]
    says: Says

    def line(self, who: str, nodes: Callable[[], tuple[NodeState, ...]], *reach: Reach) -> Line:
        times, boards, unserved = [], [], []
        gone = _unserved(self.before)
        by_name: dict[str, Figures] = {}
        for number, change in enumerate(self.changes, 1):
            self.says(f"{self.case}: {who}, change {number}/{len(self.changes)}")
            self.planner.decide(self.state, QUIET)
            edited = replace(self.state, nodes=nodes(), services=change.services)
            started = perf_counter()
            plan = self.planner.decide(edited, QUIET)
            times.append((perf_counter() - started) * 1e3)
            boards.append(touched(self.before, plan))
            unserved.append(_unserved(plan) - gone)
            by_name[change.name] = {"ms": times[-1], "touched": float(boards[-1])}
        figures: Figures = {
            "changes": float(len(times)),
            "median_ms": median(times),
            "p95_ms": float(np.percentile(times, 95)),
            "worst_ms": max(times),
            "median_touched": float(median(boards)),
            "most_touched": float(max(boards)),
            "most_unserved": float(max(unserved)),
        }
        always = Reach("most_touched", at_most=2), Reach("most_unserved", at_most=0)
        return line(self.case, who, figures, *reach, *always, changes=by_name)


def _unserved(plan: Plan) -> int:
    return len(plan.refused) + sum(service.short is not None for service in plan.services)


def _changes(state: ClusterState, count: int) -> tuple[Change, ...]:
    """In turn: a new service, a rate × 1.3, a rate × 0.7; the services by a seeded choice."""
    rng = np.random.default_rng(SEED)
    chosen = rng.choice(len(state.services), size=min(count, len(state.services)), replace=False)
    found = []
    for number, index in enumerate(chosen.tolist()):
        services = list(state.services)
        if number % 3 == 0:
            changed = new_service(f"new-{number:02d}", seed=1000 + number, fleet_seed=SEED)
            services.append(changed)
            name = f"{changed.served_name} added"
        else:
            factor = 1.3 if number % 3 == 1 else 0.7
            changed = services[index] = _faster(services[index], factor)
            name = f"{changed.served_name} x {factor}"
        found.append(Change(name, tuple(services), changed))
    return tuple(found)


def _faster(service: ModelService, factor: float) -> ModelService:
    traffic = service.spec.traffic
    rate = traffic.requests_per_second * factor
    traffic = replace(traffic, requests_per_second=rate)
    return replace(service, spec=replace(service.spec, traffic=traffic))


def _around(state: ClusterState, plan: Plan, changed: ModelService, size: Size) -> list[Figures]:
    one = json.dumps(changed.to_dict())
    everything = json.dumps(state_to_dict(state))

    def written() -> str:
        return json.dumps([node.to_dict() for node in to_runtime_nodes(named_plan, epoch=1)])

    named_plan = named(plan)
    return [
        {
            "read_one_ms": _ms(lambda: ModelService.from_dict(json.loads(one))),
            "read_all_ms": _ms(lambda: state_from_dict(json.loads(everything))),
            "hash_ms": _ms(lambda: named(plan)),
            "write_ms": _ms(written),
            "report_ms": _ms(lambda: json.dumps(plan_to_dict(named_plan))),
        }
        for _ in range(size.rounds)
    ]


def _ms(job: Callable[[], object]) -> float:
    started = perf_counter()
    job()
    return (perf_counter() - started) * 1e3
