"""``tessera cost``: what the services of a saved state would cost as planned, or cost as they run, and what is idle."""

from __future__ import annotations

import argparse

from tessera_cli.cost_tables import add_what_argument, costs_of, show
from tessera_cli.files import FileInvalid, add_state_argument, read_state
from tessera_cli.output import add_output_argument, fail, stderr
from tessera_core.plan import plan
from tessera_core.plan.nodes import placed, running


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = (
        "A service pays for what is held for it, busy or not; IDLE is its part of what nobody holds in the same "
        "pool, LOADED is both. Exit code: 0, and 1 when the file is not valid."
    )
    add_what_argument(parser)
    add_state_argument(parser, required=True)
    parser.add_argument(
        "--running",
        action="store_true",
        help="of what runs in the state, instead of what is planned",
    )
    add_output_argument(parser)


def run(arguments: argparse.Namespace) -> int:
    try:
        state = read_state(arguments.file)
    except FileInvalid as error:
        return fail("cost", str(error))
    if arguments.running:
        held = running(state)
    else:
        with stderr.status("planning"):
            decided = plan(state)
        held = placed(decided)
        lacking = {name for name, _, _ in decided.refused}
        lacking |= {each.service for each in decided.services if each.short}
        if lacking:
            names = ", ".join(sorted(lacking))
            stderr.print(
                f"note: placed with less than they asked for, tessera plan says why: {names}"
            )
    show(arguments.what, costs_of(state, held), arguments.output)
    return 0
