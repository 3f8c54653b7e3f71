"""What ``tessera plan`` shows to people: the tables of a plan, its reasons, its changes and its steps."""

from __future__ import annotations

from rich.table import Table
from rich.text import Text

from tessera_cli.tables import table
from tessera_core.api.placementplan import Action, Step
from tessera_core.plan import Diff, Explanation, Located, Plan, Refusal, slice_name
from tessera_core.plan.steps import Steps

Part = Table | Text


def page(parts: list[Part]) -> Table:
    """Everything, one below the other with a line between."""
    grid = Table.grid()
    for index, part in enumerate(parts):
        if index:
            grid.add_row("")
        grid.add_row(part)
    return grid


def plan_parts(found: Plan) -> list[Part]:
    """A plan: cost, instances, services, refusals."""
    parts: list[Part] = [summary(found)]
    if found.assignments:
        parts.append(_devices(found))
    if found.services:
        parts.append(_services(found))
    if found.refused:
        parts.append(_refused(found))
    if found.idle:
        parts.append(Text(f"scaled to zero: {', '.join(found.idle)}"))
    return parts


def explanation_parts(reasons: tuple[Explanation, ...]) -> list[Part]:
    """The reasons of each service."""
    return [
        Text.assemble((each.service, "bold"), "\n", "\n".join(f"  {line}" for line in each.lines))
        for each in reasons
    ]


def summary(found: Plan) -> Text:
    """The plan in one line."""
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
            reason(each.short) if each.short else Text("fully", "green"),
        )
    return shown


def _refused(found: Plan) -> Table:
    shown = table("Refused", ("member",), (), ("reason",))
    for service, member, refusal in found.refused:
        shown.add_row(f"{service}/{member}", reason(refusal))
    return shown


def reason(refusal: Refusal) -> Text:
    """Why, and what would do."""
    gap = refusal.shortfall
    cure = f"; {gap.devices} of {gap.device} would do" if gap else ""
    return Text.assemble((refusal.why.value, "red"), f": {refusal.detail}{cure}")


def difference(changes: Diff) -> Text:
    """What has to be done, a line each."""
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


def steps_parts(found: Steps) -> list[Part]:
    """The steps in order, and what cannot be had without an interruption."""
    if not found.steps:
        return [Text("no step is needed")]
    shown = table("Steps", ("step", "what"), (), ("after",))
    for each in found.steps:
        shown.add_row(each.id, _doing(each), ", ".join(each.requires))
    return [shown, *(Text(f"{each.step}: {each}", "red") for each in found.interruptions)]


def _doing(step: Step) -> str:
    target = step.target
    copy = f"{target.service}/{target.member}: {target.node}/{target.device} {target.slice}"
    match step.action:
        case Action.PARTITION:
            pieces = ", ".join(map(str, target.geometry)) or "one piece"
            return f"{target.node}/{target.device}: {pieces}"
        case Action.LAUNCH:
            return f"{copy}, {target.count} of batch {target.batch}"
        case Action.UNLOAD:
            return copy
        case Action.ROUTE:
            return str(target.service)
        case Action.DRAIN:
            return str(target.node)
