"""One ModelService in full: its conditions, its members, where they run, what batches take there, its SLO, what it lacks
and its plan.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

from rich.table import Table
from rich.text import Text

from tessera_cli.kubectl.objects import milliseconds, shown
from tessera_cli.kubectl.progress import progress_of
from tessera_cli.plan_tables import Part
from tessera_cli.tables import table
from tessera_core.api import Instance, ModelProfile, ModelService, PlacementPlan, RuntimeNode
from tessera_core.api.quantities import format_duration
from tessera_core.api.records import record
from tessera_core.api.runtimenode import InstanceStatus
from tessera_core.api.tuning import TuningMode, TuningStatus

_DIGITS = 12
"""Of a digest, in tables: enough to tell models apart."""


@dataclass(frozen=True, slots=True)
class Place:
    """Instances of one member on one slice: those that are wanted there, and those that are."""

    node: str
    device: str
    slice: str
    member: str
    state: str
    batch: int
    """Batch cap, rows."""
    wanted: int
    present: int
    ready: int
    memory_mib: int
    problem: str = ""
    """What is wrong with the device, in words."""
    variant: str = ""
    """Of the model, that answers there; empty: as it is loaded."""
    wanted_variant: str = ""


@dataclass(frozen=True, slots=True)
class Drifted:
    """A kind of device on which batches of a member no longer take what was measured."""

    member: str
    device: str
    ratio: float
    """2: twice as long."""
    since: str | None
    """RFC 3339 time."""

    def __str__(self) -> str:
        since = f" since {self.since}" if self.since else ""
        return (
            f"{self.member} takes {self.ratio:g} times as long as measured on {self.device}{since}"
        )


@dataclass(frozen=True, slots=True)
class Tuned:
    """How far the tuning of a member is on one kind of device."""

    member: str
    device: str
    status: TuningStatus

    def __str__(self) -> str:
        found = self.status
        used = f", {found.promoted} is used" if found.promoted else ""
        held = "".join(f"; {each.variant} is not: {each.reason}" for each in found.quarantined)
        return (
            f"{self.member} on {self.device}: {found.phase.value}, {found.done} of {found.total} variants tried"
            f"{used}{held}"
        )


@dataclass(frozen=True, slots=True)
class ServicePage:
    """What is shown of one service."""

    service: ModelService
    places: tuple[Place, ...]
    plan: PlacementPlan | None
    """The one that its status names, if that can be seen."""
    drifts: tuple[Drifted, ...] = ()
    tunings: tuple[Tuned, ...] = ()


def places_of(service: str, nodes: Iterable[RuntimeNode]) -> tuple[Place, ...]:
    """Where instances of ``service`` (served name) are, or shall be."""
    found = []
    for node in nodes:
        wanted = {
            (device.uuid, *_key(each)): each
            for device in node.spec.devices
            for each in device.instances
            if each.service == service
        }
        present = {
            (device.uuid, *_key(each)): each
            for device in node.status.devices
            for each in device.instances
            if each.service == service
        }
        problems = {device.uuid: device.problem for device in node.status.devices}
        for key in sorted(wanted.keys() | present.keys()):
            place = _place(node.metadata.name, key, wanted.get(key), present.get(key))
            found.append(replace(place, problem=problems.get(key[0], "")))
    return tuple(found)


def _key(each: Instance) -> tuple[str, str, str]:
    return each.slice, each.member, each.state.value


def _place(
    node: str,
    key: tuple[str, str, str, str],
    wanted: Instance | None,
    present: InstanceStatus | None,
) -> Place:
    device, piece, member, state = key
    one = present or wanted
    assert one is not None  # the key is of one of the two
    return Place(
        node=node,
        device=device,
        slice=piece,
        member=member,
        state=state,
        batch=one.batch,
        wanted=wanted.count if wanted else 0,
        present=present.count if present else 0,
        ready=present.ready if present else 0,
        memory_mib=present.memory_mib if present else 0,
        variant=present.variant if present else "",
        wanted_variant=wanted.variant if wanted else "",
    )


def drifts_of(service: ModelService, profiles: Iterable[ModelProfile]) -> tuple[Drifted, ...]:
    """What is recorded in ``profiles`` of the models that ``service`` runs."""
    profiles = tuple(profiles)
    return tuple(
        Drifted(member.name, str(each.spec.device_class), drift.ratio, drift.since)
        for member in service.status.members
        for each in profiles
        if each.spec.model_digest == member.digest and (drift := each.status.drift) is not None
    )


def tunings_of(service: ModelService, profiles: Iterable[ModelProfile]) -> tuple[Tuned, ...]:
    """What ``profiles`` say of tuning the models that ``service`` runs, if it asks for that."""
    if service.spec.tuning.mode is TuningMode.OFF:
        return ()
    profiles = tuple(profiles)
    return tuple(
        Tuned(member.name, str(each.spec.device_class), status)
        for member in service.status.members
        for each in profiles
        if each.spec.model_digest == member.digest and (status := each.status.tuning) is not None
    )


def page_data(found: ServicePage) -> dict[str, Any]:
    """Everything as plain values; the status is that of the object."""
    service, plan = found.service, found.plan
    return {
        "namespace": service.metadata.namespace,
        "name": service.metadata.name,
        "generation": service.metadata.generation,
        "status": record(type(service.status)).encode(service.status),
        "slo": slo_words(service),
        "shortfall": shortfall_words(service),
        "places": [
            {
                "node": each.node,
                "device": each.device,
                "slice": each.slice,
                "member": each.member,
                "state": each.state,
                "batch": each.batch,
                "wanted": each.wanted,
                "present": each.present,
                "ready": each.ready,
                "memoryMiB": each.memory_mib,
                "problem": each.problem,
                "variant": each.variant,
                "wantedVariant": each.wanted_variant,
            }
            for each in found.places
        ],
        "tuning": [
            {
                "member": each.member,
                "device": each.device,
                **record(TuningStatus).encode(each.status),
            }
            for each in found.tunings
        ],
        "drifts": [
            {"member": each.member, "device": each.device, "ratio": each.ratio, "since": each.since}
            for each in found.drifts
        ],
        "plan": None
        if plan is None
        else {"name": plan.metadata.name, "at": str(progress_of(plan))},
    }


def page_parts(found: ServicePage) -> list[Part]:
    """Everything for people."""
    service = found.service
    parts: list[Part] = [_head(service)]
    if service.status.conditions:
        parts.append(_conditions(service))
    if service.status.members:
        parts.append(_members(service))
    if found.places:
        parts.append(_places(found.places))
    parts += (Text(str(each), "yellow") for each in found.drifts)
    parts += (Text(f"tuning {each}") for each in found.tunings)
    parts.append(Text(slo_words(service)))
    short = shortfall_words(service)
    if short is not None:
        parts.append(Text(short, "red"))
    reference = service.status.plan_ref
    if found.plan is not None:
        name = found.plan.metadata.name
        parts.append(Text.assemble("plan ", (name, "bold"), f": {progress_of(found.plan)}"))
    elif reference is not None:
        parts.append(Text.assemble("plan ", (reference.name, "bold")))
    return parts


def _head(service: ModelService) -> Text:
    seen, present = service.status.observed_generation, service.metadata.generation
    text = Text.assemble((service.served_name, "bold"))
    if service.status.url:
        text.append(f"  {service.status.url}")
    if seen is None:
        text.append("\nno operator has looked at it yet", "yellow")
    elif present is not None and seen < present:
        text.append(f"\nthe status is of generation {seen}, the spec is at {present}", "yellow")
    return text


def _conditions(service: ModelService) -> Table:
    rows = table("Conditions", ("condition", "status", "reason"), (), ("message", "since"))
    for each in service.status.conditions:
        rows.add_row(
            each.type,
            shown(each.status.value),
            each.reason,
            Text(each.message),
            each.last_transition_time or "-",
        )
    return rows


def _members(service: ModelService) -> Table:
    rows = table("Members", ("member", "device"), ("batch", "ready/placed"), ("digest",))
    for each in service.status.members:
        digest = each.digest or ""
        kind, colon, digits = digest.partition(":")
        rows.add_row(
            each.name,
            each.device or "-",
            "-" if each.batch is None else str(each.batch),
            f"{each.ready}/{each.instances}",
            f"{kind}{colon}{digits[:_DIGITS]}" if digest else "-",
        )
    return rows


def _places(places: Iterable[Place]) -> Table:
    rows = table("Where it runs", ("member", "place"), ("batch", "ready/wanted", "MiB"), ("",))
    for each in places:
        standby = "standby" if each.state == "Standby" else ""
        leaving = "leaves" if not each.wanted else ""
        swaps = each.wanted and each.variant != each.wanted_variant
        variant = f"to run {each.wanted_variant or 'untuned'}" if swaps else each.variant
        rows.add_row(
            each.member,
            f"{each.node}/{each.device} {each.slice}",
            str(each.batch),
            f"{each.ready}/{each.wanted}",
            str(each.memory_mib),
            ", ".join(filter(None, (standby, leaving, variant, each.problem))),
        )
    return rows


def slo_words(service: ModelService) -> str:
    """What was measured against what was promised."""
    objective, slo = service.spec.slo.objectives[0], service.status.slo
    target = f"{objective.percent:g} % within {format_duration(objective.target_s)}"
    window = slo.window_s if slo and slo.window_s else objective.window_s
    over = f"the last {format_duration(window)}"
    if slo is None or not slo.total:
        return f"SLO {target}: no request in {over}"
    share = slo.good / slo.total if slo.attainment is None else slo.attainment
    percentiles = "".join(
        f", {name} {milliseconds(1e3 * value)}"
        for name, value in (("p50", slo.p50_s), ("p99", slo.p99_s))
        if value is not None
    )
    return (
        f"SLO {target}: {100 * share:.4g} % of {slo.total} requests in {over}{percentiles}; "
        f"{slo.requests_per_second:.4g} requests/s"
    )


def shortfall_words(service: ModelService) -> str | None:
    """What is missing for the SLO to hold at the expected load; None when nothing is."""
    gap = service.status.shortfall
    if gap is None:
        return None
    more = f"; {gap.devices} more device{'' if gap.devices == 1 else 's'} would do"
    return f"short of {gap.requests_per_second:.4g} requests/s{more if gap.devices else ''}: {gap.reason}"
