"""``tessera plan``: place the services of a saved state on its nodes, and show what was decided and why."""

from __future__ import annotations

import argparse
from typing import Any

from rich.table import Table
from rich.text import Text

from tessera_cli.files import FileInvalid, add_state_argument, read_state
from tessera_cli.output import add_output_argument, emit, fail, stderr
from tessera_cli.tables import table
from tessera_core.plan import (
    Diff,
    Explanation,
    Located,
    Plan,
    Refusal,
    diff,
    explain,
    plan,
    plan_to_dict,
    slice_name,
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = (
        "Exit code: 0 when every service is placed with all it asked for, 1 when a service or one of its "
        "members is refused or short, or the file is not a state."
    )
    add_state_argument(parser, required=True)
    parser.add_argument("--explain", action="store_true", help="say why, for every service")
    parser.add_argument(
        "--diff", action="store_true", help="show what changes against what runs in the state"
    )
    add_output_argument(parser)


def run(arguments: argparse.Namespace) -> int:
    try:
        state = read_state(arguments.file)
    except FileInvalid as error:
        return fail("plan", str(error))
    with stderr.status("planning"):
        found = plan(state)
    reasons = explain(found) if arguments.explain else None
    changes = diff(found, state) if arguments.diff else None
    data = plan_to_dict(found)
    if reasons is not None:
        data["explanations"] = [
            {"service": each.service, "lines": list(each.lines)} for each in reasons
        ]
    if changes is not None:
        data["diff"] = _changes(changes)
    emit(arguments.output, data, lambda: _shown(found, reasons, changes))
    return 1 if found.refused or any(each.short for each in found.services) else 0


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


def _shown(found: Plan, reasons: tuple[Explanation, ...] | None, changes: Diff | None) -> Table:
    """Everything, one below the other with a line between."""
    parts: list[Table | Text] = [_summary(found)]
    if found.assignments:
        parts.append(_devices(found))
    if found.services:
        parts.append(_services(found))
    if found.refused:
        parts.append(_refused(found))
    if found.idle:
        parts.append(Text(f"scaled to zero: {', '.join(found.idle)}"))
    for each in reasons or ():
        lines = "\n".join(f"  {line}" for line in each.lines)
        parts.append(Text.assemble((each.service, "bold"), "\n", lines))
    if changes is not None:
        parts.append(_difference(changes))
    page = Table.grid()
    page.add_row(parts[0])
    for part in parts[1:]:
        page.add_row("")
        page.add_row(part)
    return page


def _summary(found: Plan) -> Text:
    text = (
        f"{found.name}: cost {found.cost:.4g} per hour, lower bound {found.lower_bound:.4g}, "
        f"gap {found.gap_percent:.3g} %"
    )
    return Text(text + ("; the budget ended the search" if found.truncated else ""))


def _devices(found: Plan) -> Table:
    shown = table(
        "Instances", ("member", "place"), ("batch", "count", "rows/s", "at most", "ms"), ("",)
    )
    for device in found.devices:
        for each in device.assignments:
            shown.add_row(
                f"{each.service}/{each.member}",
                f"{each.node}/{each.device} {slice_name(each.slice)}",
                str(each.batch),
                str(each.instances),
                f"{each.load:.4g}",
                f"{each.rate:.4g}",
                f"{each.latency_ms:.3g}",
                "re-cut" if device.recut else "",
            )
    return shown


def _services(found: Plan) -> Table:
    numbers = ("requests/s", "at most", "predicted ms", "target ms")
    shown = table("Services", ("service",), numbers, ("placed",))
    for each in found.services:
        shown.add_row(
            each.service,
            f"{each.requests_per_second:.4g}",
            f"{each.max_requests_per_second:.4g}",
            f"p{each.percentile:g} {each.latency_ms:.3g}",
            f"{each.target_ms:g}",
            _reason(each.short) if each.short else Text("fully", "green"),
        )
    return shown


def _refused(found: Plan) -> Table:
    shown = table("Refused", ("member",), (), ("reason",))
    for service, member, refusal in found.refused:
        shown.add_row(f"{service}/{member}", _reason(refusal))
    return shown


def _reason(refusal: Refusal) -> Text:
    gap = refusal.shortfall
    cure = f"; {gap.devices} of {gap.device} would do" if gap else ""
    return Text.assemble((refusal.why.value, "red"), f": {refusal.detail}{cure}")


def _difference(changes: Diff) -> Text:
    if changes.empty:
        return Text("nothing changes")
    lines = [f"cut {node}/{device} anew" for node, device in changes.recut]
    lines += [f"- {_line(each)}" for each in changes.removed]
    lines += [f"+ {_line(each)}" for each in changes.added]
    for old, new in changes.changed:
        was = old.running
        lines.append(f"~ {_line(new)}, was {was.instances} of batch {was.batch}")
    return Text("\n".join(lines))


def _line(each: Located) -> str:
    running = each.running
    return (
        f"{running.service}/{running.member}: {each.node}/{each.device} "
        f"{slice_name(running.slice)}, {running.instances} of batch {running.batch}"
    )
