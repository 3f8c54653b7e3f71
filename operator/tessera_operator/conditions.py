"""What a ModelService's status says: one condition per question that a user asks, each with a reason. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from tessera_core.api import Condition, FieldError, ModelService, ModelServiceStatus
from tessera_core.api.meta import ConditionStatus, NameRef
from tessera_core.api.modelservice import MemberStatus, Shortfall, SloStatus
from tessera_core.plan.decision import Assignment, Refusal, ServicePlan, Why
from tessera_operator.traffic import SCALED_TO_ZERO, Window

ACCEPTED, PROFILED, PLANNED, PLACED = "Accepted", "Profiled", "Planned", "Placed"
READY, SLO_MET, SHORTFALL, PROGRESSING = "Ready", "SLOMet", "CapacityShortfall", "Progressing"
_TRUE, _FALSE, _UNKNOWN = ConditionStatus.TRUE, ConditionStatus.FALSE, ConditionStatus.UNKNOWN
_MOST_MESSAGE = 1024


@dataclass(frozen=True, slots=True)
class Seen:
    """What is known of one service at one moment."""

    service: ModelService
    """As the object is now."""
    errors: Sequence[FieldError]
    """Why it cannot be planned as it is."""
    runs: int
    """Generation that is planned; smaller than the object's while its models are fetched and measured."""
    measuring: str
    """What is being measured and where, in words; empty: everything is known."""
    measured: bool
    lacking: str
    """On which slices that could be cut it is not measured and why, in words; empty: on none that may help."""
    problem: str
    """Of fetching, measuring or loading, in words."""
    planned: ServicePlan | None
    refused: Sequence[tuple[str, Refusal]]
    """By member."""
    assigned: Sequence[Assignment]
    ready: Mapping[str, int]
    """Instances that answer, by member."""
    digests: Mapping[str, str]
    addresses: int
    """Pods that clients are sent to."""
    idle: bool
    """Whether it sleeps: nothing is to run."""
    window: Window
    plan: str | None
    """Name of the PlacementPlan that it is part of."""
    under_way: bool
    """Whether steps of that plan are not done yet."""
    url: str


def status_of(seen: Seen, now: str) -> ModelServiceStatus:
    """The status to write. ``now``: RFC 3339, for conditions that change."""
    service = seen.service
    refusal = _worst(seen)
    conditions = tuple(
        dated(condition, service.status.conditions, service.metadata.generation, now)
        for condition in (
            _accepted(seen),
            _profiled(seen),
            _planned(seen, refusal),
            _placed(seen),
            _ready(seen),
            _slo_met(seen, refusal),
            _shortfall(refusal),
            _progressing(seen),
        )
    )
    window = seen.window
    short = refusal.shortfall if refusal is not None else None
    return replace(
        service.status,
        observed_generation=service.metadata.generation,
        url=seen.url,
        replicas=_replicas(seen),
        instances=sum(seen.ready.values()),
        selector=_selector(service),
        plan_ref=NameRef(seen.plan) if seen.plan else None,
        conditions=conditions,
        members=_members(seen),
        slo=SloStatus(
            good=window.good,
            total=window.total,
            attainment=round(window.good / window.total, 5) if window.total else None,
            p50_s=_rounded(window.p50_s),
            p99_s=_rounded(window.p99_s),
            requests_per_second=round(window.requests_per_second, 2),
            window_s=service.spec.slo.objectives[0].window_s,
        ),
        shortfall=None
        if short is None
        else Shortfall(
            round(short.requests_per_second, 1),
            short.devices,
            f"{short.devices} x {short.device}" if short.devices else short.device,
        ),
    )


def _selector(service: ModelService) -> str:
    """What an autoscaler asks for: unique and not empty, though no pod is of one service. A served name may be longer than
    the value of a label.
    """
    metadata = service.metadata
    return f"tessera.dev/namespace={metadata.namespace},tessera.dev/service={metadata.name}"


def changes(old: Iterable[Condition], new: Iterable[Condition]) -> tuple[Condition, ...]:
    """Conditions of ``new`` that say something else than before: what Events are about.

    That nothing is wrong with a new service, and that nothing is known of it yet, is no news.
    """
    before = {each.type: (each.status, each.reason) for each in old}
    return tuple(
        each
        for each in new
        if before.get(each.type) != (each.status, each.reason)
        and (before or (each.status is _FALSE and each.type in (ACCEPTED, PLANNED)))
    )


def _accepted(seen: Seen) -> Condition:
    if seen.errors:
        return _condition(ACCEPTED, _FALSE, "InvalidSpec", "; ".join(map(str, seen.errors)))
    return _condition(ACCEPTED, _TRUE, "Valid")


def _profiled(seen: Seen) -> Condition:
    if seen.measured and seen.lacking:
        return _condition(PROFILED, _TRUE, "PartlyMeasured", seen.lacking)
    if seen.measured:
        return _condition(PROFILED, _TRUE, "Measured")
    if seen.problem:
        return _condition(PROFILED, _FALSE, "MeasuringFailed", seen.problem)
    if seen.measuring:
        return _condition(PROFILED, _FALSE, "Measuring", seen.measuring)
    return _condition(
        PROFILED, _FALSE, "NoPlace", "no node that it may run on is there to measure its models"
    )


def _planned(seen: Seen, refusal: Refusal | None) -> Condition:
    if seen.idle:
        return _condition(PLANNED, _TRUE, SCALED_TO_ZERO)
    if refusal is not None and (seen.planned is None or seen.refused):
        return _condition(PLANNED, _FALSE, refusal.why.value, _words(seen))
    if seen.planned is None:
        return _condition(PLANNED, _UNKNOWN, "Waiting")
    planned = seen.planned
    message = (
        f"{planned.requests_per_second:.4g} requests/s expected, {planned.max_requests_per_second:.4g} "
        f"at most; p{planned.percentile:g} {planned.latency_ms:.4g} ms of {planned.target_ms:.4g} ms"
    )
    return _condition(PLANNED, _TRUE, "Planned", message)


def _placed(seen: Seen) -> Condition:
    if seen.idle:
        return _condition(PLACED, _TRUE, SCALED_TO_ZERO)
    missing = [
        f"{name}: {seen.ready.get(name, 0)} of {count}"
        for name, count in sorted(_wanted(seen).items())
        if seen.ready.get(name, 0) < count
    ]
    if not seen.assigned:
        return _condition(PLACED, _FALSE, "NotPlanned")
    if missing:
        return _condition(PLACED, _FALSE, "Launching", "; ".join((*missing, seen.problem)))
    return _condition(PLACED, _TRUE, "Placed")


def _ready(seen: Seen) -> Condition:
    if seen.idle:
        message = "a request wakes it" if seen.addresses else "no activator holds requests for it"
        return _condition(READY, _TRUE if seen.addresses else _FALSE, SCALED_TO_ZERO, message)
    if seen.addresses:
        return _condition(READY, _TRUE, "Serving")
    return _condition(READY, _FALSE, "NoInstanceReady", seen.problem)


def _slo_met(seen: Seen, refusal: Refusal | None) -> Condition:
    if refusal is not None and refusal.why is Why.INFEASIBLE:
        return _condition(SLO_MET, _FALSE, "Infeasible", _words(seen))
    window, objective = seen.window, seen.service.spec.slo.objectives[0]
    if not window.total:
        return _condition(SLO_MET, _UNKNOWN, "NoTraffic")
    share = 100 * window.good / window.total
    message = (
        f"{share:.4g} % of {window.total} requests within {1e3 * objective.target_s:g} ms; "
        f"{objective.percent:g} % wanted"
    )
    if share >= objective.percent:
        return _condition(SLO_MET, _TRUE, "WithinObjective", message)
    return _condition(SLO_MET, _FALSE, "Missed", message)


def _shortfall(refusal: Refusal | None) -> Condition:
    if refusal is None:
        return _condition(SHORTFALL, _FALSE, "Enough")
    short = refusal.shortfall
    message = refusal.detail
    if short is not None and short.devices and refusal.why is not Why.QUOTA_EXCEEDED:
        message += f"; {short.devices} x {short.device} would close it"
    return _condition(SHORTFALL, _TRUE, refusal.why.value, message)


def _progressing(seen: Seen) -> Condition:
    if seen.runs and seen.runs != seen.service.metadata.generation and not seen.errors:
        message = f"generation {seen.runs} runs until this one can"
        return _condition(PROGRESSING, _TRUE, "NewVersion", message)
    if seen.under_way:
        return _condition(PROGRESSING, _TRUE, "CarryingOutPlan")
    return _condition(PROGRESSING, _FALSE, "Complete")


def _worst(seen: Seen) -> Refusal | None:
    """The refusal that says most: one that the others only follow from tells nothing."""
    refusals = [refusal for _, refusal in seen.refused]
    telling = [each for each in refusals if each.why is not Why.MEMBER_REFUSED]
    short = seen.planned.short if seen.planned is not None else None
    return next(iter(telling or refusals), short)


def _words(seen: Seen) -> str:
    return "; ".join(
        f"{member}: {refusal.detail}"
        + (f", {refusal.best_ms:.4g} ms at best" if refusal.best_ms is not None else "")
        for member, refusal in seen.refused
    )


def _wanted(seen: Seen) -> dict[str, int]:
    found: dict[str, int] = {}
    for each in seen.assigned:
        found[each.member] = found.get(each.member, 0) + each.instances
    return found


def _replicas(seen: Seen) -> int:
    """Capacity units: full sets of members, counted in parts of devices."""
    parts: dict[str, int] = {}
    for each in seen.assigned:
        parts[each.member] = parts.get(each.member, 0) + 1
    members = seen.service.spec.members
    return min((parts.get(member.name, 0) for member in members if member.required), default=0)


def _members(seen: Seen) -> tuple[MemberStatus, ...]:
    wanted = _wanted(seen)
    known = {each.name: each for each in seen.service.status.members}
    found = []
    for member in seen.service.spec.placed:
        places = [each for each in seen.assigned if each.member == member.name]
        digest = seen.digests.get(member.name)
        before = known.get(member.name)
        if digest is None and before is not None and before.uri == member.model.uri:
            digest = before.digest
        found.append(
            MemberStatus(
                member.name,
                digest,
                member.model.uri if digest is not None else None,
                seen.ready.get(member.name, 0),
                wanted.get(member.name, 0),
                places[0].device_class if places else None,
                max((each.batch for each in places), default=None),
            )
        )
    return tuple(found)


def _condition(kind: str, status: ConditionStatus, reason: str, message: str = "") -> Condition:
    return Condition(kind, status, reason, message.strip("; ")[:_MOST_MESSAGE])


def dated(
    condition: Condition, before: Iterable[Condition], generation: int | None, now: str
) -> Condition:
    """``condition`` with the time of the last change of its status, and the generation that it is about."""
    old = next((each for each in before if each.type == condition.type), None)
    changed = old is None or old.status is not condition.status
    then = now if changed or old is None else old.last_transition_time or now
    return replace(condition, observed_generation=generation, last_transition_time=then)


def _rounded(seconds: float | None) -> float | None:
    return None if seconds is None else float(f"{seconds:.3g}")
