"""``kubectl tessera plan``: what would be decided now, without deciding it; and the plans that were decided.

The operator's decision is made here, from what the cluster states now. The file of ``--save`` holds what it was made
from, so that ``tessera plan -f`` decides the same, and more can be asked: what-if, diagrams, simulation.
"""

from __future__ import annotations

import argparse
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from tessera_cli.kubectl.facts import Facts, read
from tessera_cli.kubectl.objects import Failed, decoded, note, plan_named
from tessera_cli.kubectl.plans import plan_data, plans_table, recorded_parts
from tessera_cli.output import add_output_argument, emit, stderr
from tessera_cli.plan_tables import difference, page, plan_parts, steps_parts
from tessera_core.api import PlacementPlan, Step
from tessera_core.api.records import record
from tessera_core.plan import Diff, Plan, diff, plan_to_dict, state_to_dict
from tessera_core.plan.steps import Steps, steps_to

if TYPE_CHECKING:
    from tessera_cli.kubectl.cluster import Cluster


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.usage = "kubectl tessera plan [list | show NAME] [options]"
    parser.epilog = (
        "Exit code: 0 when every service would be placed with all it asked for, 1 when a service or one of "
        "its members would be refused or short. Rates are those that the ModelServices' statuses state: the "
        "operator also remembers the peak of the last ten minutes."
    )
    parser.add_argument(
        "what",
        nargs="?",
        choices=("list", "show"),
        metavar="list | show",
        help="the PlacementPlans of the cluster, or one of them; neither: what would be decided now",
    )
    parser.add_argument(
        "name", nargs="?", metavar="NAME", help="with show: of a PlacementPlan, or its beginning"
    )
    parser.add_argument(
        "--save", metavar="FILE", help="write the facts into a file that tessera plan -f reads"
    )
    add_output_argument(parser)


def run(arguments: argparse.Namespace, cluster: Cluster) -> int:
    if (arguments.what == "show") != (arguments.name is not None):
        raise Failed("show, and only show, takes the name of a PlacementPlan")
    if arguments.what is None:
        with stderr.status("planning"):
            facts = read(cluster, datetime.now(UTC))
        return _dry_run(arguments, facts)
    if arguments.save:
        raise Failed("--save: only without list and show")
    plans = decoded(cluster.objects("PlacementPlan"), PlacementPlan)
    if arguments.what == "show":
        one = plan_named(arguments.name, plans)
        emit(arguments.output, plan_data(one), lambda: page(recorded_parts(one)))
        return 0
    if not plans:
        note("no PlacementPlan")
    emit(arguments.output, [plan_data(each) for each in plans], lambda: plans_table(plans))
    return 0


def _dry_run(arguments: argparse.Namespace, facts: Facts) -> int:
    if arguments.save:
        save(facts, arguments.save)
    found = facts.plan
    changes, steps = diff(found, facts.state), steps_to(found, facts.state)
    emit(
        arguments.output,
        dry_run_data(found, changes, steps),
        lambda: page([*plan_parts(found), difference(changes), *steps_parts(steps)]),
    )
    return 1 if found.refused or any(each.short for each in found.services) else 0


def dry_run_data(found: Plan, changes: Diff, steps: Steps) -> dict[str, Any]:
    """The plan, the lines of its diff and its steps, as a PlacementPlan has them."""
    return {
        **plan_to_dict(found),
        "diff": [] if changes.empty else difference(changes).plain.splitlines(),
        "steps": [record(Step).encode(each) for each in steps.steps],
        "interruptions": [f"{each.step}: {each}" for each in steps.interruptions],
    }


def save(facts: Facts, file: str) -> None:
    """Write the state. Raises Failed."""
    try:
        Path(file).write_text(yaml.safe_dump(state_to_dict(facts.state), sort_keys=False))
    except OSError as error:
        raise Failed(f"--save {file}: {error.strerror or error}") from None
