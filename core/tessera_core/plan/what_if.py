"""What if: an edited copy of the facts, and what its plan changes.

Problem: before a node goes, a rate rises or a service comes, somebody wants to know what would happen. Approach:
an edit is a value, ``edited(state, edits)`` applies edits one after the other to a copy of the state, and the
planner runs on the copy as on any state. What runs now stays in it, so the answer is the plan that would be
made from here, with all of its reluctance to move things. ``compare`` sets two plans side by side.

    EditRefused(ValueError)    an edit that does not apply to the state; names the edit and what is allowed
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from itertools import count
from math import isfinite

from tessera_core.api import ModelProfile, ModelService, SpecInvalid
from tessera_core.api.scalars import suggestion
from tessera_core.plan.decision import Plan, Refusal
from tessera_core.plan.state import ClusterState, Measured, NodeState, Slice
from tessera_core.plan.state_in import state_from_dict

MOST_COPIES = 10_000
"""Nodes that one edit may add."""
MOST_REQUESTS_PER_SECOND = 1e7
"""What ``spec.traffic.requestsPerSecond`` may say."""
_NAMES_SHOWN = 8


@dataclass(frozen=True, slots=True)
class NodeLost:
    """A node is gone with all that runs on it."""

    name: str

    def __str__(self) -> str:
        return f"node-lost={self.name}"


@dataclass(frozen=True, slots=True)
class NodesAdded:
    """More nodes like one that is there: cut in the same way, healthy, running nothing."""

    like: str
    count: int = 1

    def __str__(self) -> str:
        return f"node-added={self.like}*{self.count}"


@dataclass(frozen=True, slots=True)
class RateTimes:
    """The expected rate of a service changes by a factor."""

    factor: float
    service: str | None = None
    """Served name, ``<namespace>.<name>``; None: every service."""

    def __str__(self) -> str:
        return f"rate={self.service or ''}*{self.factor:g}"


@dataclass(frozen=True, slots=True)
class ServiceAdded:
    """One more service, and measurements of models that the state knows nothing about."""

    service: ModelService
    profiles: tuple[ModelProfile, ...] = ()

    def __str__(self) -> str:
        return f"add={self.service.served_name}"


Edit = NodeLost | NodesAdded | RateTimes | ServiceAdded


class EditRefused(ValueError):
    """An edit that does not apply: what it found, and what is allowed."""

    def __init__(self, edit: Edit, found: str, allowed: str) -> None:
        super().__init__(f"{edit}: found {found}, allowed: {allowed}")
        self.edit = edit


def edited(state: ClusterState, edits: Iterable[Edit]) -> ClusterState:
    """``state`` after ``edits``, applied in their order. Raises EditRefused."""
    for edit in edits:
        match edit:
            case NodeLost():
                state = _without_node(state, edit)
            case NodesAdded():
                state = _with_nodes(state, edit)
            case RateTimes():
                state = _with_rates(state, edit)
            case ServiceAdded():
                state = _with_service(state, edit)
    return state


def _without_node(state: ClusterState, edit: NodeLost) -> ClusterState:
    lost = _node(state, edit, edit.name)
    return replace(state, nodes=tuple(node for node in state.nodes if node is not lost))


def _with_nodes(state: ClusterState, edit: NodesAdded) -> ClusterState:
    if not 1 <= edit.count <= MOST_COPIES:
        raise EditRefused(edit, str(edit.count), f"1 to {MOST_COPIES} copies")
    like = _node(state, edit, edit.like)
    taken = {node.name for node in state.nodes}
    free = (number for number in count(1) if f"{like.name}-copy-{number}" not in taken)
    copies = (_copy(like, next(free)) for _ in range(edit.count))
    return replace(state, nodes=(*state.nodes, *copies))


def _copy(node: NodeState, number: int) -> NodeState:
    devices = tuple(
        replace(
            device,
            # A processor's id is the same on every node; a GPU's is its own.
            uuid=device.uuid if device.is_cpu else f"{device.uuid}-copy-{number}",
            running=(),
            healthy=True,
        )
        for device in node.devices
    )
    return replace(node, name=f"{node.name}-copy-{number}", devices=devices)


def _node(state: ClusterState, edit: Edit, name: str) -> NodeState:
    found = {node.name: node for node in state.nodes}
    if name not in found:
        raise EditRefused(edit, f"no node {name!r}", _one_of(name, found))
    return found[name]


def _with_rates(state: ClusterState, edit: RateTimes) -> ClusterState:
    if not (isfinite(edit.factor) and edit.factor >= 0):
        raise EditRefused(edit, f"the factor {edit.factor:g}", "a finite factor of at least 0")
    names = [each.served_name for each in state.services]
    if edit.service is not None and edit.service not in names:
        raise EditRefused(edit, f"no service {edit.service!r}", _one_of(edit.service, names))
    services = tuple(
        _with_rate(each, edit) if edit.service in (None, name) else each
        for each, name in zip(state.services, names, strict=True)
    )
    return replace(state, services=services)


def _with_rate(service: ModelService, edit: RateTimes) -> ModelService:
    spec = service.spec
    rate = spec.traffic.requests_per_second
    if rate == 0 and edit.service is not None:
        found = "no expected rate, of which every multiple is 0"
        raise EditRefused(edit, found, "a service whose spec.traffic.requestsPerSecond is above 0")
    if rate * edit.factor > MOST_REQUESTS_PER_SECOND:
        found = f"{rate * edit.factor:g} requests/s for {service.served_name}"
        raise EditRefused(edit, found, f"a product of at most {MOST_REQUESTS_PER_SECOND:g}")
    traffic = replace(spec.traffic, requests_per_second=rate * edit.factor)
    return replace(service, spec=replace(spec, traffic=traffic))


def _with_service(state: ClusterState, edit: ServiceAdded) -> ClusterState:
    service = edit.service
    if any(each.served_name == service.served_name for each in state.services):
        found = f"a second service {service.served_name}"
        raise EditRefused(edit, found, "a metadata.name that the namespace does not have yet")
    digests = tuple(_digests(state, edit))
    measured = {each.key: each for each in state.measured}
    for each in _measured(edit):
        if measured.setdefault(each.key, each) != each:
            found = f"another measurement of {' '.join(each.key)} than the state has"
            raise EditRefused(edit, found, "profiles of what the state has not measured")
    return replace(
        state,
        services=(*state.services, service),
        measured=tuple(measured.values()),
        digests=(*state.digests, *digests),
    )


def _measured(edit: ServiceAdded) -> tuple[Measured, ...]:
    try:
        return state_from_dict({"profiles": [each.to_dict() for each in edit.profiles]}).measured
    except SpecInvalid as error:
        first = error.errors[0]
        raise EditRefused(edit, f"{first.path} {first.found}", first.allowed) from error


def _digests(state: ClusterState, edit: ServiceAdded) -> Iterator[tuple[str, str, str]]:
    """What is known of the content of each model: stated, fetched, or that of the profile it refers to."""
    service = edit.service
    fetched = {each.name: each.digest for each in service.status.members}
    profiles = _profiles(state)
    for each in edit.profiles:
        profiles[each.metadata.namespace, each.metadata.name] = each.spec.model_digest
    for index, member in enumerate(service.spec.placed):
        digest = member.model.digest or fetched.get(member.name)
        reference = member.profile_ref
        if digest is None and reference is not None:
            digest = profiles.get((service.metadata.namespace, reference.name))
            if digest is None:
                path = f"spec.members[{index}]"
                allowed = (
                    "a profile that comes with the service or that a service of the namespace "
                    f"refers to; or the digest itself in {path}.model.digest"
                )
                raise EditRefused(edit, f"{path}.profileRef.name {reference.name!r}", allowed)
        if digest is not None:
            yield service.served_name, member.name, digest


def _profiles(state: ClusterState) -> dict[tuple[str, str], str]:
    """Digests by (namespace, profile): a state keeps measurements without names, but services refer to them."""
    known = {(service, member): digest for service, member, digest in state.digests}
    return {
        (service.metadata.namespace, member.profile_ref.name): digest
        for service in state.services
        for member in service.spec.placed
        if member.profile_ref is not None and member.model.digest is None
        for digest in [known.get((service.served_name, member.name))]
        if digest is not None
    }


def _one_of(found: str, known: Iterable[str]) -> str:
    names = sorted(known)
    if not names:
        return "none, as the state has none"
    shown = ", ".join(names[:_NAMES_SHOWN])
    rest = f" and {len(names) - _NAMES_SHOWN} more" if len(names) > _NAMES_SHOWN else ""
    return shown + rest + suggestion(found, names)


class Standing(StrEnum):
    """How a service fares in a plan."""

    PLACED = "Placed"
    SHORT = "Short"
    """With less than it asked for, or without an optional member."""
    REFUSED = "Refused"
    IDLE = "Idle"
    """Scaled to zero."""
    ABSENT = "Absent"
    """Not among the services."""


@dataclass(frozen=True, slots=True)
class Figures:
    """A plan in numbers. Instances are counted against what runs now: one that goes here and comes there moves."""

    cost: float
    """Per hour."""
    lower_bound: float
    devices: int
    """Devices with instances."""
    instances: int
    moved: int
    started: int
    """Without the moved ones."""
    stopped: int
    """Without the moved ones."""
    placed: int
    """Services with all they asked for."""
    short: int
    refused: int


@dataclass(frozen=True, slots=True)
class ServiceChange:
    """A service that fares otherwise, or is placed otherwise, in the second plan."""

    service: str
    before: Standing
    after: Standing
    instances: tuple[int, int]
    """In the first plan, in the second."""
    reasons: tuple[tuple[str, Refusal], ...] = ()
    """Why it is short or refused in the second plan, by member; ``""``: for the service's worst member."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two plans side by side."""

    base: Figures
    what_if: Figures
    services: tuple[ServiceChange, ...]
    """Sorted by name."""


Place = tuple[str, str, Slice]
"""(node, device, slice)."""
_Placed = dict[tuple[str, str], Counter[Place]]
"""Instances by place, by (service, member)."""


def compare(base: Plan, what_if: Plan, state: ClusterState) -> Comparison:
    """Both plans against each other and against what runs in ``state``, the one before the edits."""
    running = _running(state)
    before, after = _standings(base), _standings(what_if)
    sites = _sites(base), _sites(what_if)
    changes = []
    for service in sorted(before.keys() | after.keys()):
        old, new = (each.get(service, Standing.ABSENT) for each in (before, after))
        was, becomes = (each.get(service, Counter()) for each in sites)
        if old != new or was != becomes:
            numbers = was.total(), becomes.total()
            changes.append(ServiceChange(service, old, new, numbers, _reasons(what_if, service)))
    return Comparison(_figures(base, running), _figures(what_if, running), tuple(changes))


def _figures(plan: Plan, running: _Placed) -> Figures:
    standings = Counter(_standings(plan).values())
    wanted: _Placed = {}
    for each in plan.assignments:
        places = wanted.setdefault((each.service, each.member), Counter())
        places[each.node, each.device, each.slice] += each.instances
    moved = started = stopped = 0
    for member in wanted.keys() | running.keys():
        to, now = wanted.get(member, Counter()), running.get(member, Counter())
        come, go = (to - now).total(), (now - to).total()
        moved += min(come, go)
        started += max(0, come - go)
        stopped += max(0, go - come)
    return Figures(
        cost=plan.cost,
        lower_bound=plan.lower_bound,
        devices=sum(bool(device.assignments) for device in plan.devices),
        instances=sum(places.total() for places in wanted.values()),
        moved=moved,
        started=started,
        stopped=stopped,
        placed=standings[Standing.PLACED],
        short=standings[Standing.SHORT],
        refused=standings[Standing.REFUSED],
    )


def _running(state: ClusterState) -> _Placed:
    found: _Placed = {}
    for node in state.nodes:
        for device in node.devices:
            for each in device.running:
                places = found.setdefault((each.service, each.member), Counter())
                places[node.name, device.uuid, each.slice] += each.instances
    return found


def _standings(plan: Plan) -> dict[str, Standing]:
    lacking = {service for service, _, _ in plan.refused}
    found = dict.fromkeys(plan.idle, Standing.IDLE) | dict.fromkeys(lacking, Standing.REFUSED)
    for each in plan.services:
        short = each.short is not None or each.service in lacking
        found[each.service] = Standing.SHORT if short else Standing.PLACED
    return found


def _sites(plan: Plan) -> dict[str, Counter[tuple[str, int, Place]]]:
    """What a service has where: instances by (member, batch cap, place)."""
    found: dict[str, Counter[tuple[str, int, Place]]] = {}
    for each in plan.assignments:
        place = each.node, each.device, each.slice
        found.setdefault(each.service, Counter())[each.member, each.batch, place] += each.instances
    return found


def _reasons(plan: Plan, service: str) -> tuple[tuple[str, Refusal], ...]:
    short: Sequence[tuple[str, Refusal]] = [
        ("", each.short)
        for each in plan.services
        if each.service == service and each.short is not None
    ]
    return (*short, *((member, why) for name, member, why in plan.refused if name == service))
