"""From the layout that was found to the Plan that is told: exact slices, loads, latencies, reasons."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from tessera_core.api import ModelService
from tessera_core.plan.behaviour import MILLI, Behaviour, Running
from tessera_core.plan.decision import Assignment, DevicePlan, Plan, Refusal, ServicePlan
from tessera_core.plan.demand import end_to_end_ms
from tessera_core.plan.layout import Layout
from tessera_core.plan.matrix import Part, Row
from tessera_core.plan.place import Placer
from tessera_core.plan.problem import Problem
from tessera_core.plan.refuse import overloaded, short
from tessera_core.plan.settle import settle
from tessera_core.plan.state import ClusterState, DeviceState

_NAME_DIGITS = 16

Refused = dict[tuple[str, str], Refusal]
"""By (service, member)."""


@dataclass(frozen=True, slots=True)
class Flow:
    """What the cells of one member in equal parts of one board get and carry."""

    rate: float
    """Rows per second within the latency budget."""
    load: float
    latency_ms: float


@dataclass(frozen=True, slots=True)
class _ToldDevice:
    """One device plan and what it was told from."""

    content: tuple[tuple[int, int, int, tuple[str, str]], ...]
    """(class, cap, instances, member) by cell: members have other numbers in another problem."""
    flows: tuple[Flow, ...]
    plan: DevicePlan


Flows = dict[tuple[int, int, Part], Flow]
"""By (member, board, part)."""


@dataclass(slots=True)
class Told:
    """Device plans of the last report, to be told again where nothing changed."""

    of: tuple[DeviceState, ...] = ()
    devices: list[_ToldDevice | None] = field(default_factory=list)
    """By board of ``of``."""
    flows: dict[tuple[object, ...], tuple[Flow, ...]] = field(default_factory=dict)


def tell(
    state: ClusterState,
    placer: Placer,
    refused: Refused,
    idle: tuple[str, ...],
    bound: int,
    truncated: bool,
    told: Told,
) -> Plan:
    """The plan of a finished layout, without its name (see ``named``)."""
    layout = placer.layout
    problem = layout.problem
    flows, slowest = _flows(layout, told)
    if told.of is not problem.devices:
        told.of, told.devices = problem.devices, [None] * len(problem.devices)
    for index, row in enumerate(layout.rows):
        before = told.devices[index]
        if row or before is None or before.content:
            told.devices[index] = _device(problem, index, row, flows, before)
    services = {service.served_name: service for service in state.services}
    return Plan(
        name="",
        devices=tuple(each.plan for each in told.devices if each is not None),
        services=tuple(
            _service(state, services[problem.demands[members[0]].service], placer, members, slowest)
            for members in problem.services
            if any(layout.hosts[member] for member in members)
        ),
        refused=tuple((*key, reason) for key, reason in sorted(refused.items())),
        idle=idle,
        cost=layout.score.cost / 1e6,
        lower_bound=bound / 1e6,
        truncated=truncated,
    )


def _flows(layout: Layout, told: Told) -> tuple[Flows, dict[int, float]]:
    """What every cell gets, and the latency of every member that runs, ms.

    The load goes to nodes, and on a node to parts, in proportion to what they carry, never beyond it.
    """
    problem = layout.problem
    slowest: dict[int, float] = {}
    found: Flows = {}
    kept: dict[tuple[object, ...], tuple[Flow, ...]] = {}
    for member, demand in enumerate(problem.demands):
        if not layout.hosts[member]:
            continue
        behaviour = problem.predictor.behaviours[member]
        capacity = layout.capacity(member)
        for hosts in _queues(layout, member):
            key = (behaviour, demand.load, capacity, *(setting for *_, setting in hosts))
            here = told.flows.get(key)
            if here is None:
                settings = [setting for *_, setting in hosts]
                here = _shares(behaviour, settings, demand.load / max(capacity, 1))
            kept[key] = here
            for (index, part, _), flow in zip(hosts, here, strict=True):
                found[member, index, part] = flow
            slowest[member] = max(slowest.get(member, 0.0), here[0].latency_ms)
    told.flows = kept
    return found, slowest


def _queues(layout: Layout, member: int) -> Iterable[list[tuple[int, Part, Running]]]:
    """(board, part, setting) of the servers of each of the member's queues: one per node."""
    predictor, boards = layout.problem.predictor, layout.problem.boards
    by_node: dict[int, list[tuple[int, Part, Running]]] = {}
    for index in sorted(layout.hosts[member]):
        here = by_node.setdefault(boards[index].node, [])
        for part in layout.rows[index]:
            for cell in part.cells:
                if cell[0] == member:
                    here.append((index, part, predictor.running(part, cell)))
    return by_node.values()


def _shares(
    behaviour: Behaviour, settings: Sequence[Running], load_of_rate: float
) -> tuple[Flow, ...]:
    """What the servers of one queue get; ``load_of_rate``: rows/s per rate × ``MILLI`` that is carried."""
    together = tuple(sorted(settings))
    carried = behaviour.rate(together)
    load = min(load_of_rate * carried, carried / MILLI)
    latency = behaviour.latency_ms(together, load)
    weights = [behaviour.finished(setting) for setting in settings]
    total = sum(weights)
    return tuple(
        Flow(carried * weight / total / MILLI, load * weight / total, latency) for weight in weights
    )


def _device(
    problem: Problem, index: int, row: Row, flows: Flows, before: _ToldDevice | None
) -> _ToldDevice:
    cells = [(part, cell) for part in row for cell in part.cells]
    content = tuple(
        (part.place, cell.cap, cell.instances, problem.demands[cell.member].key)
        for part, cell in cells
    )
    mine = tuple(flows[cell.member, index, part] for part, cell in cells)
    if before is not None and (before.content, before.flows) == (content, mine):
        return before
    return _ToldDevice(content, mine, _fresh_device(problem, index, row, flows))


def _fresh_device(problem: Problem, index: int, row: Row, flows: Flows) -> DevicePlan:
    board = problem.boards[index]
    settled = settle(problem, index, row)
    return DevicePlan(
        node=problem.nodes[board.node],
        uuid=board.uuid,
        product=board.kind.product,
        geometry=settled.geometry,
        recut=settled.recut,
        assignments=tuple(
            Assignment(
                service=problem.demands[cell.member].service,
                member=problem.demands[cell.member].member,
                node=problem.nodes[board.node],
                device=board.uuid,
                slice=piece,
                device_class=str(problem.places[part.place]),
                batch=cell.cap,
                instances=cell.instances,
                rate=flow.rate,
                load=flow.load,
                latency_ms=flow.latency_ms,
                shares_with=tuple(
                    "/".join(problem.demands[other.member].key)
                    for other in part.cells
                    if other != cell
                ),
            )
            for piece, part in settled.parts
            for cell in part.cells
            for flow in [flows[cell.member, index, part]]
        ),
    )


def _service(
    state: ClusterState,
    service: ModelService,
    placer: Placer,
    members: tuple[int, ...],
    slowest: Mapping[int, float],
) -> ServicePlan:
    problem, layout = placer.problem, placer.layout
    objective = service.spec.slo.objectives[0]
    required = problem.needed(problem.home[members[0]])
    lacking = [m for m in members if _lacks(placer, m)]
    worst = min(lacking, key=lambda m: (m not in required, _share(placer, m), m), default=None)
    latency = end_to_end_ms((problem.demands[m], slowest[m]) for m in members if m in slowest)
    rows = problem.demands[members[0]].rows_per_request
    return ServicePlan(
        service=service.served_name,
        requests_per_second=service.spec.traffic.requests_per_second,
        max_requests_per_second=min(layout.capacity(m) for m in required) / MILLI / rows,
        latency_ms=latency + state.policy.overhead_ms,
        target_ms=objective.target_s * 1e3,
        percentile=objective.percent,
        short=None if worst is None else short(placer, worst),
    )


def _lacks(placer: Placer, member: int) -> bool:
    return not placer.served(member) or overloaded(placer, member)


def _share(placer: Placer, member: int) -> float:
    need = placer.needs[member]
    return min(1.0, placer.layout.capacity(member) / need) if need else 1.0


def named(content: Plan) -> Plan:
    """The plan with its name: a hash of what is to be done; predictions do not count."""
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
    digest = hashlib.sha256(text.encode()).hexdigest()
    return replace(content, name=f"plan-{digest[:_NAME_DIGITS]}")


def _place(each: Assignment) -> tuple[str, str, str, int]:
    return each.service, each.member, each.slice.name, each.slice.start
