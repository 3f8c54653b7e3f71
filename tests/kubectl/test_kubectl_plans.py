"""PlacementPlans: where they stand, how they are found by name, which may be approved."""

from __future__ import annotations

from typing import Any

import pytest
from rich.console import Console

from tessera_cli.kubectl.approve import why_not
from tessera_cli.kubectl.objects import Failed, plan_named
from tessera_cli.kubectl.plans import plan_data, plans_table, recorded_parts
from tessera_cli.kubectl.progress import Stage, progress_of
from tessera_cli.plan_tables import Part, page
from tessera_core.api import PlacementPlan

CUT = {"id": "cut-1", "action": "Partition", "target": {"node": "n", "device": "GPU-0"}}
TARGET = {"node": "n", "device": "cpu", "slice": "cpu-1@0", "service": "a.b", "member": "m"}
STEPS = (
    {"id": "launch-1", "action": "Launch", "target": {**TARGET, "batch": 4, "count": 2}},
    {"id": "route-1", "action": "Route", "target": {"service": "a.b"}, "requires": ["launch-1"]},
)


def decision(
    name: str = "00ff" * 10,
    approved: bool = False,
    holds: tuple[str, ...] = (),
    step: dict[str, str] | None = None,
    created: str = "2026-01-31T12:00:00Z",
    message: str = "",
    steps: tuple[dict[str, Any], ...] = (CUT, *STEPS),
) -> PlacementPlan:
    status: dict[str, Any] = {
        "conditions": [
            {"type": each, "status": "True", "reason": each, "message": message} for each in holds
        ]
    }
    if step:
        status["step"] = step
    return PlacementPlan.from_dict(
        {
            "apiVersion": "tessera.dev/v1alpha1",
            "kind": "PlacementPlan",
            "metadata": {"name": name, "creationTimestamp": created},
            "spec": {
                "epoch": 1,
                "basis": "sha256:00",
                "cost": "2.5",
                "lowerBound": "2",
                "gapPercent": "25",
                "diff": ["+ a.b/m: n/cpu cpu-1@0"],
                "steps": list(steps),
                "approved": approved,
            },
            "status": status,
        }
    )


def text_of(*parts: Part) -> str:
    console = Console(width=250)
    with console.capture() as captured:
        console.print(page(list(parts)))
    return captured.get()


UNDER_WAY = {"id": "route-1", "startedAt": "2026-01-31T12:00:01Z"}


@pytest.mark.parametrize(
    ("plan", "stage", "words"),
    [
        (decision(), Stage.AWAITS_APPROVAL, "AwaitsApproval, 3 steps to do"),
        (decision(steps=STEPS), Stage.APPROVED, "Approved, 2 steps to do"),
        (decision(approved=True), Stage.APPROVED, "Approved, 3 steps to do"),
        (
            decision(approved=True, step=UNDER_WAY),
            Stage.APPLYING,
            "Applying, step 3 of 3 (route-1) under way since 2026-01-31T12:00:01Z",
        ),
        (
            decision(approved=True, step={**UNDER_WAY, "result": "Done"}, holds=("Applied",)),
            Stage.APPLIED,
            "Applied, step 3 of 3 (route-1): Done",
        ),
        (
            decision(holds=("Superseded",), message="by 1234"),
            Stage.SUPERSEDED,
            "Superseded; by 1234",
        ),
        (
            decision(approved=True, holds=("RolledBack", "Superseded")),
            Stage.ROLLED_BACK,
            "RolledBack",
        ),
    ],
    ids=lambda value: value.value if isinstance(value, Stage) else "",
)
def test_where_a_plan_stands(plan: PlacementPlan, stage: Stage, words: str) -> None:
    found = progress_of(plan)
    assert (found.stage, str(found)) == (stage, words)
    data = plan_data(plan)
    assert data["progress"]["stage"] == stage.value
    assert data["metadata"]["name"] == plan.metadata.name


@pytest.mark.parametrize("over", ["Applied", "Superseded", "RolledBack"])
def test_a_plan_that_is_over_is_not_approved(over: str) -> None:
    refusal = why_not(decision(holds=(over,)))
    assert refusal is not None
    assert over in refusal
    assert why_not(decision()) is None


def test_plans_are_listed_newest_first_with_cost_gap_and_progress() -> None:
    old = decision("aaaa" * 10, True, ("Applied",))
    new = decision("bbbb" * 10, created="2026-02-01T00:00:00Z")
    first, second = text_of(plans_table([old, new])).split("\n")[1:3]
    assert list(plans_table([decision(steps=STEPS)]).columns[5].cells) == ["not needed"]
    assert first.split() == [
        *("bbbb" * 10, "2.5", "25", "1", "0/3", "no", "AwaitsApproval", "2026-02-01T00:00:00Z")
    ]
    assert second.split()[:7] == ["aaaa" * 10, "2.5", "25", "1", "0/3", "yes", "Applied"]


def test_one_plan_shows_what_it_changes_and_by_which_steps() -> None:
    shown = text_of(*recorded_parts(decision()))
    assert "cost 2.5 per hour, lower bound 2, gap 25 %" in shown
    assert "+ a.b/m: n/cpu cpu-1@0" in shown
    assert "launch-1  a.b/m: n/cpu cpu-1@0, 2 of batch 4" in shown
    assert shown.index("launch-1 ") < shown.index("route-1 ")


def test_a_plan_is_found_by_the_beginning_of_its_name() -> None:
    plans = [decision(name) for name in ("abcd1", "abcd2", "ef012")]
    assert plan_named("abcd2", plans) is plans[1]
    assert plan_named("ef01", plans) is plans[2]
    with pytest.raises(Failed, match="2 PlacementPlans begin with abcd: abcd1, abcd2"):
        plan_named("abcd", plans)
    for unknown in ("ef", "abce9", "0000"):
        with pytest.raises(Failed, match=f"found no PlacementPlan {unknown}"):
            plan_named(unknown, plans)
