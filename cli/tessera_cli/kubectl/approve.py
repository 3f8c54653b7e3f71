"""``kubectl tessera approve``: shows what a PlacementPlan changes, asks, and lets it be carried out.

The approval holds for the plan as it was shown: where the object changed in between, for example because another
decision took its place, the API server refuses it.
"""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING

from tessera_cli.kubectl.objects import Failed, decoded, plan_named
from tessera_cli.kubectl.plans import recorded_parts
from tessera_cli.kubectl.progress import progress_of
from tessera_cli.output import emit
from tessera_cli.plan_tables import page
from tessera_core.api import PlacementPlan
from tessera_operator.plans import needs_approval

if TYPE_CHECKING:
    from tessera_cli.kubectl.cluster import Cluster


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", metavar="PLAN", help="name of a PlacementPlan, or its beginning")
    parser.add_argument("--yes", action="store_true", help="do not ask")


def run(arguments: argparse.Namespace, cluster: Cluster) -> int:
    plan = plan_named(arguments.name, decoded(cluster.objects("PlacementPlan"), PlacementPlan))
    name, version = plan.metadata.name, plan.metadata.resource_version
    if refusal := why_not(plan):
        raise Failed(refusal)
    if plan.spec.approved or not needs_approval(plan.spec.steps):
        why = (
            "is approved already" if plan.spec.approved else "cuts no GPU, so it needs no approval"
        )
        print(f"{name} {why}")
        return 0
    emit("table", None, lambda: page(recorded_parts(plan)))
    if not arguments.yes and not _asked(name):
        raise Failed(f"{name} was not approved")
    assert version is not None  # the API server sets it
    cluster.approve(name, version)
    print(f"{name} approved")
    return 0


def why_not(plan: PlacementPlan) -> str | None:
    """Why it makes no sense to approve ``plan``; None when it does."""
    at = progress_of(plan)
    if not at.stage.is_over:
        return None
    return (
        f"{plan.metadata.name} cannot be approved, it is over: {at}; kubectl tessera plan list shows "
        "what awaits approval"
    )


def _asked(name: str) -> bool:
    """What the user says. Raises Failed where there is nobody to ask."""
    if not sys.stdin.isatty():
        raise Failed("standard input is no terminal, so nobody can be asked: say --yes")
    print(f"Approve {name}? [y/N] ", end="", file=sys.stderr, flush=True)
    return sys.stdin.readline().strip().lower() in ("y", "yes")
