"""Why a plan is as it is: lines per service, as data, for people and for tests."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from tessera_core.plan.behaviour import MILLI
from tessera_core.plan.build import demands_in, problem_of
from tessera_core.plan.decision import Assignment, Plan, Refusal, ServicePlan
from tessera_core.plan.decoding import left_out
from tessera_core.plan.nodes import slice_name
from tessera_core.plan.state import ClusterState


@dataclass(frozen=True, slots=True)
class Explanation:
    """What there is to say about one service."""

    service: str
    lines: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Alternative:
    """What one member would carry with a part of a device to itself: why it was put where it is."""

    member: str
    device_class: str
    rate: float
    """Rows per second within the member's latency budget."""
    price: float
    """The part's share of the cost of its device, per hour."""


def explain(plan: Plan, state: ClusterState) -> tuple[Explanation, ...]:
    """Per service: where and why, with which batches and why, what limits it. Sorted by service.

    ``state`` is the one that ``plan`` was made from.
    """
    choices = _alternatives(state)
    mine: dict[str, list[Assignment]] = {}
    for each in plan.assignments:
        mine.setdefault(each.service, []).append(each)
    found = [
        Explanation(
            each.service,
            tuple(_placed(plan, each, mine[each.service], choices.get(each.service, []))),
        )
        for each in plan.services
    ]
    untried = {each.served_name: tuple(left_out(each, state)) for each in state.services}
    placed = {each.service for each in plan.services}
    for service in sorted({service for service, _, _ in plan.refused} - placed):
        found.append(Explanation(service, ("not placed", *_refusals(plan, service))))
    found += (Explanation(name, ("scaled to zero: no traffic is expected",)) for name in plan.idle)
    said = (replace(each, lines=each.lines + untried.get(each.service, ())) for each in found)
    return tuple(sorted(said, key=lambda each: each.service))


def _placed(
    plan: Plan, service: ServicePlan, mine: list[Assignment], choices: list[_Alternative]
) -> Iterator[str]:
    yield (
        f"carries {service.max_requests_per_second:.6g} requests/s, "
        f"{service.requests_per_second:.6g} expected; predicted "
        f"p{service.percentile:g} {service.latency_ms:.3g} ms of {service.target_ms:g} ms"
    )
    for each in mine:
        yield _assignment(each)
    for member in dict.fromkeys(each.member for each in choices):
        yield f"{member} with a part to itself: " + ", ".join(
            f"{each.rate:.6g} rows/s on {each.device_class} at {each.price:.3g} per hour"
            for each in choices
            if each.member == member
        )
    members = sorted({each.member for each in mine})
    rates = {member: sum(each.rate for each in mine if each.member == member) for member in members}
    slowest = min(members, key=lambda member: (rates[member], member))
    if len(members) > 1:
        yield f"limited by {slowest}: every answer waits for it"
    if service.short is not None:
        yield f"short: {_reason(service.short)}"
    yield from _refusals(plan, service.service)


def _assignment(each: Assignment) -> str:
    copies = f"{each.instances} instances" if each.instances > 1 else "1 instance"
    why = (
        f"takes turns with {', '.join(each.shares_with)}, caps fitted to one round of all"
        if each.shares_with
        else "the cap that carries most within the latency budget; of equal ones the smallest"
    )
    return (
        f"{each.member}: {each.node}/{each.device} {slice_name(each.slice)}, {copies}, "
        f"batches up to {each.batch} ({why}); {each.load:.6g} of {each.rate:.6g} rows/s, "
        f"predicted {each.latency_ms:.3g} ms"
    )


def _refusals(plan: Plan, service: str) -> Iterator[str]:
    for name, member, refusal in plan.refused:
        if name == service:
            yield f"{member} not placed: {_reason(refusal)}"


def _reason(refusal: Refusal) -> str:
    text = f"{refusal.why.value}: {refusal.detail}"
    gap = refusal.shortfall
    if gap is None:
        return text
    rate = f"{gap.requests_per_second:.6g} requests/s missing; " if gap.requests_per_second else ""
    return f"{text} ({rate}{gap.devices} of {gap.device} would do)"


def _alternatives(state: ClusterState) -> dict[str, list[_Alternative]]:
    """By service: members in order, the best rate per price first."""
    problem = problem_of(state, demands_in(state))
    found: dict[str, list[_Alternative]] = {}
    for member, demand in enumerate(problem.demands):
        behaviour = problem.predictor.behaviours[member]
        cheapest: dict[str, _Alternative] = {}
        for index in problem.eligible[member]:
            kind = problem.kinds[index]
            for place in kind.classes:
                best = behaviour.best(place)
                if best is not None:
                    name = str(problem.places[place])
                    price = kind.cost / 1e6 * problem.share_of(kind, place)
                    one = _Alternative(demand.member, name, best.rate / MILLI, price)
                    cheapest[name] = min(cheapest.get(name, one), one, key=lambda e: e.price)
        ranked = sorted(
            cheapest.values(), key=lambda e: (-e.rate / max(e.price, 1e-6), e.device_class)
        )
        found.setdefault(demand.service, []).extend(ranked)
    return found
