"""``kubectl tessera status``: ModelServices, whether they are ready and keep their SLO; and one of them in full."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rich.table import Table

from tessera_cli.kubectl.objects import (
    Forbidden,
    condition,
    decoded,
    holds,
    milliseconds,
    note,
    service_named,
    shown,
    split_name,
    verdict,
)
from tessera_cli.kubectl.service_page import (
    ServicePage,
    drifts_of,
    page_data,
    page_parts,
    places_of,
    tunings_of,
)
from tessera_cli.output import add_output_argument, emit
from tessera_cli.plan_tables import page
from tessera_cli.tables import table
from tessera_core.api import (
    Condition,
    ConditionStatus,
    ModelProfile,
    ModelService,
    PlacementPlan,
    RuntimeNode,
)
from tessera_operator.conditions import (
    ACCEPTED,
    PLACED,
    PLANNED,
    PROFILED,
    READY,
    SHORTFALL,
    SLO_MET,
)
from tessera_operator.kinds import Document

if TYPE_CHECKING:
    from tessera_cli.kubectl.cluster import Cluster

STAGES = (ACCEPTED, PROFILED, PLANNED, PLACED, READY, SLO_MET)
"""Conditions in the order in which a service comes to hold them: the first that does not is what to look at."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = "Exit code with a name: 0 when the service is ready, 1 when it is not."
    parser.add_argument("name", nargs="?", help="a ModelService; or namespace.name")
    parser.add_argument(
        "-A", "--all-namespaces", action="store_true", help="those of every namespace"
    )
    add_output_argument(parser)


def run(arguments: argparse.Namespace, cluster: Cluster) -> int:
    if arguments.name is not None:
        return _one(arguments, cluster)
    everywhere = arguments.all_namespaces
    documents = cluster.objects("ModelService", "" if everywhere else cluster.namespace)
    lines = [line_of(each) for each in decoded(documents, ModelService)]
    if not lines:
        note(
            "no ModelService"
            + ("" if everywhere else f" in namespace {cluster.namespace}; -A shows all")
        )
    emit(
        arguments.output,
        [line_data(each) for each in lines],
        lambda: lines_table(lines, everywhere),
    )
    return 0


def _one(arguments: argparse.Namespace, cluster: Cluster) -> int:
    namespace, name = split_name(arguments.name, cluster.namespace)
    services = decoded(cluster.objects("ModelService", namespace), ModelService)
    if not any(each.served_name == f"{namespace}.{name}" for each in services):
        services += decoded(_if_allowed(cluster, "ModelService", "what is near"), ModelService)
    service = service_named(arguments.name, namespace, services)
    nodes = decoded(_if_allowed(cluster, "RuntimeNode", "where it runs"), RuntimeNode)
    plans = decoded(_if_allowed(cluster, "PlacementPlan", "its plan"), PlacementPlan)
    measured = _if_allowed(cluster, "ModelProfile", "what has drifted, and tuning", namespace)
    reference = service.status.plan_ref
    plan = next(
        (each for each in plans if reference and each.metadata.name == reference.name), None
    )
    profiles = decoded(measured, ModelProfile)
    drifts, tunings = drifts_of(service, profiles), tunings_of(service, profiles)
    found = ServicePage(service, places_of(service.served_name, nodes), plan, drifts, tunings)
    emit(arguments.output, page_data(found), lambda: page(page_parts(found)))
    return 0 if holds(service.status.conditions, READY) else 1


def _if_allowed(cluster: Cluster, kind: str, what: str, namespace: str = "") -> Sequence[Document]:
    """Objects that a user may perhaps not see, as one of one namespace those of the cluster."""
    try:
        return cluster.objects(kind, namespace)
    except Forbidden as forbidden:
        note(f"{what} is not shown: {forbidden}")
        return ()


@dataclass(frozen=True, slots=True)
class Line:
    """One service in one line."""

    namespace: str
    name: str
    ready: str | None
    """``True``, ``False`` or ``Unknown``; None: no operator has looked at it."""
    slo_met: str | None
    p99_ms: float | None
    """Over the last window; None: no request."""
    target_ms: float
    percent: float
    requests_per_second: float
    ready_instances: int
    instances: int
    """Placed, of all members."""
    reason: str | None
    message: str


def line_of(service: ModelService) -> Line:
    """What there is to say about ``service`` in one line."""
    status, objective = service.status, service.spec.slo.objectives[0]
    slo, telling = status.slo, telling_condition(status.conditions)
    return Line(
        namespace=service.metadata.namespace,
        name=service.metadata.name,
        ready=verdict(status.conditions, READY),
        slo_met=verdict(status.conditions, SLO_MET),
        p99_ms=slo.p99_s * 1e3 if slo and slo.p99_s is not None else None,
        target_ms=objective.target_s * 1e3,
        percent=objective.percent,
        requests_per_second=slo.requests_per_second if slo else 0.0,
        ready_instances=sum(each.ready for each in status.members),
        instances=sum(each.instances for each in status.members),
        reason=telling.reason if telling else None,
        message=telling.message if telling else "",
    )


def telling_condition(conditions: Iterable[Condition]) -> Condition | None:
    """The condition that says what keeps a service from its SLO; that of being ready when nothing does."""
    present = tuple(conditions)
    stages = [found for name in STAGES if (found := condition(present, name))]
    if failing := [each for each in stages if each.status is ConditionStatus.FALSE]:
        return failing[0]
    if holds(present, SHORTFALL):
        return condition(present, SHORTFALL)
    # Without traffic nobody knows whether the SLO is kept, and that is nothing to look at.
    unknown = [each for each in stages if each.status is ConditionStatus.UNKNOWN]
    return next((each for each in unknown if each.type != SLO_MET), condition(present, READY))


def line_data(line: Line) -> dict[str, Any]:
    """The same as plain values."""
    return {
        "namespace": line.namespace,
        "name": line.name,
        "ready": line.ready,
        "sloMet": line.slo_met,
        "p99Ms": line.p99_ms,
        "targetMs": line.target_ms,
        "percent": line.percent,
        "requestsPerSecond": line.requests_per_second,
        "instances": {"ready": line.ready_instances, "placed": line.instances},
        "reason": line.reason,
        "message": line.message,
    }


def lines_table(lines: Iterable[Line], with_namespace: bool) -> Table:
    """One row per service."""
    names = ("NAMESPACE", "NAME") if with_namespace else ("NAME",)
    rows = table("", (*names, "READY", "SLO"), ("P99", "TARGET", "RPS", "INSTANCES"), ("REASON",))
    for each in lines:
        rows.add_row(
            *((each.namespace,) if with_namespace else ()),
            each.name,
            shown(each.ready),
            shown(each.slo_met),
            milliseconds(each.p99_ms),
            f"p{each.percent:g} {milliseconds(each.target_ms)}",
            f"{each.requests_per_second:.4g}",
            f"{each.ready_instances}/{each.instances}",
            each.reason or "-",
        )
    return rows
