"""PlacementPlans in tables and as data: what they cost, what they change, how far they are."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from rich.table import Table
from rich.text import Text

from tessera_cli.kubectl.progress import Stage, progress_of
from tessera_cli.plan_tables import Part, steps_parts
from tessera_cli.tables import table
from tessera_core.api import PlacementPlan
from tessera_core.plan.steps import Steps
from tessera_operator.plans import needs_approval

_COLOURS = {
    Stage.AWAITS_APPROVAL: "yellow",
    Stage.APPLYING: "cyan",
    Stage.APPLIED: "green",
    Stage.ROLLED_BACK: "red",
}


def plans_table(plans: Iterable[PlacementPlan]) -> Table:
    """One row per plan, the newest first."""
    rows = table(
        "", ("NAME",), ("COST/h", "GAP %", "CHANGES", "STEP"), ("APPROVED", "STAGE", "CREATED")
    )
    for each in sorted(plans, key=_created, reverse=True):
        at = progress_of(each)
        rows.add_row(
            each.metadata.name,
            f"{each.spec.cost:.4g}",
            f"{each.spec.gap_percent:.3g}",
            str(len(each.spec.diff)),
            f"{at.step}/{at.steps}",
            _approval(each),
            Text(at.stage.value, _COLOURS.get(at.stage, "")),
            _created(each) or "-",
        )
    return rows


def _approval(plan: PlacementPlan) -> str:
    if plan.spec.approved:
        return "yes"
    return "no" if needs_approval(plan.spec.steps) else "not needed"


def _created(plan: PlacementPlan) -> str:
    return plan.metadata.creation_timestamp or ""


def recorded_parts(plan: PlacementPlan) -> list[Part]:
    """One plan: its figures, where it stands, what it changes and by which steps."""
    spec = plan.spec
    figures = (
        f"cost {spec.cost:.4g} per hour, lower bound {spec.lower_bound:.4g}, gap "
        f"{spec.gap_percent:.3g} %{'; the budget ended the search' if spec.truncated else ''}"
    )
    head = Text.assemble((plan.metadata.name, "bold"), f": {figures}\n{progress_of(plan)}")
    changes = Text("\n".join(spec.diff) if spec.diff else "nothing changes")
    return [head, changes, *steps_parts(Steps(spec.steps))]


def plan_data(plan: PlacementPlan) -> dict[str, Any]:
    """The document, and where it stands."""
    at = progress_of(plan)
    return {
        **plan.to_dict(),
        "progress": {"stage": at.stage.value, "step": at.step, "steps": at.steps},
    }
