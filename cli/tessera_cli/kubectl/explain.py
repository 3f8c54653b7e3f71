"""``kubectl tessera explain``: why a service is placed as it is, or refused; and whether the cluster is so.

The operator's decision is made here, from what the cluster states now; nothing is written.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from dataclasses import replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from rich.text import Text

from tessera_cli.kubectl.facts import Facts, read
from tessera_cli.kubectl.objects import Failed, service_named, split_name
from tessera_cli.kubectl.service_page import Place, places_of
from tessera_cli.output import add_output_argument, emit, stderr
from tessera_cli.plan_tables import Part, difference, explanation_parts, page
from tessera_core.api import SpecInvalid
from tessera_core.plan import Diff, Explanation, Located, Plan, diff, explain

if TYPE_CHECKING:
    from tessera_cli.kubectl.cluster import Cluster


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = (
        "Exit code: 0 when the service would be placed with all it asked for, 1 when it or one of its "
        "members would be refused or short."
    )
    parser.add_argument("name", help="a ModelService; or namespace.name")
    add_output_argument(parser)


def run(arguments: argparse.Namespace, cluster: Cluster) -> int:
    with stderr.status("planning"):
        facts = read(cluster, datetime.now(UTC))
    service = _planned(arguments.name, cluster.namespace, facts)
    (reasons,) = (each for each in explain(facts.plan, facts.state) if each.service == service)
    changes = concerning(service, diff(facts.plan, facts.state))
    answering = answers(places_of(service, facts.nodes))
    data: dict[str, Any] = {
        "service": service,
        "lines": list(reasons.lines),
        "differs": [] if changes.empty else difference(changes).plain.splitlines(),
        "answering": answering,
    }
    emit(arguments.output, data, lambda: page(answer_parts(reasons, changes, answering)))
    return 1 if lacks(facts.plan, service) else 0


def _planned(text: str, namespace: str, facts: Facts) -> str:
    """The served name of a service that is planned. Raises Failed."""
    service = ".".join(split_name(text, namespace))
    if service in facts.errors and all(
        each.served_name != service for each in facts.state.services
    ):
        raise Failed(f"{service} is not planned: {SpecInvalid(facts.errors[service])}")
    return service_named(text, namespace, facts.state.services).served_name


def lacks(found: Plan, service: str) -> bool:
    """Whether ``service``, or a member of it, is refused or short."""
    return any(name == service for name, _, _ in found.refused) or any(
        each.service == service and each.short for each in found.services
    )


def concerning(service: str, changes: Diff) -> Diff:
    """What of ``changes`` is about ``service``, with the cuts of the devices that it is about to use."""

    def mine(located: Located) -> bool:
        return located.running.service == service

    added = tuple(filter(mine, changes.added))
    devices = {(each.node, each.device) for each in added}
    return replace(
        changes,
        added=added,
        removed=tuple(filter(mine, changes.removed)),
        changed=tuple((old, new) for old, new in changes.changed if mine(new)),
        recut=tuple(each for each in changes.recut if each in devices),
    )


def answers(places: Iterable[Place]) -> str:
    """How many of the wanted instances answer, in words."""
    wanted = [each for each in places if each.wanted]
    ready = sum(min(each.ready, each.wanted) for each in wanted)
    return f"{ready} of {sum(each.wanted for each in wanted)} instances answer"


def answer_parts(reasons: Explanation, changes: Diff, answering: str) -> list[Part]:
    """Why, and what would have to change in what nodes are told."""
    parts = explanation_parts((reasons,))
    if changes.empty:
        return [*parts, Text(f"nodes are told to run exactly this; {answering}", "green")]
    return [
        *parts,
        Text(f"nodes are told to run something else; {answering}; to come:", "yellow"),
        difference(changes),
    ]
