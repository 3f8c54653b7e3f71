"""``tessera plan``: place the services of a saved state on its nodes, and show what was decided and why."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from typing import Any

from rich.table import Table

from tessera_cli.diagram_page import SUFFIXES, diagram_file, save
from tessera_cli.files import FileInvalid, add_state_argument, read_state
from tessera_cli.output import add_output_argument, emit, fail, stderr
from tessera_cli.plan_tables import (
    Part,
    difference,
    explanation_parts,
    page,
    plan_parts,
    steps_parts,
)
from tessera_cli.what_if import (
    SYNTAX,
    WhatIfInvalid,
    comparison_data,
    comparison_parts,
    read_edits,
)
from tessera_core.api.placementplan import Step
from tessera_core.api.records import record
from tessera_core.plan import (
    ClusterState,
    Diff,
    Located,
    Plan,
    diff,
    explain,
    plan,
    plan_to_dict,
    slice_name,
)
from tessera_core.plan.ordering import Interruption
from tessera_core.plan.steps import steps_to
from tessera_core.plan.what_if import EditRefused, compare, edited


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = (
        "Exit code: 0 when every service is placed with all it asked for, 1 when a service or one of its "
        "members is refused or short, or a file or an edit is not valid. With --what-if the edited state "
        "counts."
    )
    add_state_argument(parser, required=True)
    parser.add_argument("--explain", action="store_true", help="say why, for every service")
    parser.add_argument(
        "--diff", action="store_true", help="show what changes against what runs in the state"
    )
    parser.add_argument(
        "--steps",
        action="store_true",
        help="show the way from what runs in the state to the plan: ordered steps, each legal by itself",
    )
    parser.add_argument(
        "--diagram",
        type=diagram_file,
        metavar="FILE",
        help=f"draw nodes, devices, slices and tenants into a file ending in {' or '.join(SUFFIXES)}; "
        "with --what-if, as they would be",
    )
    parser.add_argument(
        "--what-if",
        action="append",
        default=[],
        metavar="EDIT",
        help="plan an edited copy of the state too and show what it changes; EDIT is one of "
        f"{', '.join(SYNTAX)} (quote the *); repeat for several, applied in their order. FILE holds "
        "ModelServices, and ModelProfiles of models that the state has not measured",
    )
    add_output_argument(parser)


def run(arguments: argparse.Namespace) -> int:
    try:
        edits = read_edits(arguments.what_if, arguments.file)
        state = read_state(arguments.file)
        changed = edited(state, edits)
    except (FileInvalid, WhatIfInvalid) as error:
        return fail("plan", str(error))
    except EditRefused as error:
        return fail("plan", f"--what-if {error}")
    with stderr.status("planning"):
        base = plan(state)
        found = plan(changed) if edits else base
    if arguments.diagram:
        try:
            save(arguments.diagram, found, changed)
        except OSError as error:
            return fail("plan", f"--diagram {arguments.diagram}: {error.strerror or error}")
    data = _data(found, changed, arguments)
    compared = compare(base, found, state) if edits else None
    if compared is not None:
        data = {
            "base": _data(base, state, arguments),
            "whatIf": data,
            "changes": comparison_data(edits, compared),
        }

    def shown() -> Table:
        parts = plan_parts(found) if compared is None else comparison_parts(edits, compared)
        return page([*parts, *_asked_for(found, changed, arguments)])

    emit(arguments.output, data, shown)
    return 1 if found.refused or any(each.short for each in found.services) else 0


def _asked_for(found: Plan, state: ClusterState, arguments: argparse.Namespace) -> Iterator[Part]:
    if arguments.explain:
        yield from explanation_parts(explain(found, state))
    if arguments.diff:
        yield difference(diff(found, state))
    if arguments.steps:
        yield from steps_parts(steps_to(found, state))


def _data(found: Plan, state: ClusterState, arguments: argparse.Namespace) -> dict[str, Any]:
    data = plan_to_dict(found)
    if arguments.explain:
        data["explanations"] = [
            {"service": each.service, "lines": list(each.lines)} for each in explain(found, state)
        ]
    if arguments.diff:
        data["diff"] = _changes(diff(found, state))
    if arguments.steps:
        steps = steps_to(found, state)
        data["steps"] = [record(Step).encode(each) for each in steps.steps]
        data["interruptions"] = [_interruption(each) for each in steps.interruptions]
    return data


def _changes(changes: Diff) -> dict[str, Any]:
    return {
        "added": [_located(each) for each in changes.added],
        "removed": [_located(each) for each in changes.removed],
        "changed": [{"from": _located(old), "to": _located(new)} for old, new in changes.changed],
        "recut": [{"node": node, "device": device} for node, device in changes.recut],
    }


def _located(each: Located) -> dict[str, Any]:
    running = each.running
    return {
        "node": each.node,
        "device": each.device,
        "slice": slice_name(running.slice),
        "service": running.service,
        "member": running.member,
        "batch": running.batch,
        "count": running.instances,
    }


def _interruption(each: Interruption) -> dict[str, Any]:
    return {
        "step": each.step,
        "loss": each.loss.value,
        "service": each.service,
        "member": each.member,
        "node": each.node,
        "device": each.device,
        "slice": slice_name(each.slice),
        "serving": each.serving,
        "expected": each.expected,
        "makesRoomFor": each.makes_room_for,
        "spare": each.spare,
    }
