"""How far a PlacementPlan is, from its conditions and the step that its status names."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from tessera_cli.kubectl.objects import condition, holds
from tessera_core.api import PlacementPlan
from tessera_operator.plans import (
    APPLIED,
    APPROVED,
    ROLLED_BACK,
    SUPERSEDED,
    WAITING,
    needs_approval,
)


class Stage(StrEnum):
    """What may still become of a plan."""

    AWAITS_APPROVAL = "AwaitsApproval"
    APPROVED = "Approved"
    """Nothing of it is under way yet; it may be one that needs no approval."""
    APPLYING = "Applying"
    APPLIED = "Applied"
    ROLLED_BACK = "RolledBack"
    SUPERSEDED = "Superseded"
    """Another decision took its place."""

    @property
    def is_over(self) -> bool:
        return self in (Stage.APPLIED, Stage.ROLLED_BACK, Stage.SUPERSEDED)


@dataclass(frozen=True, slots=True)
class Progress:
    """Where a plan stands."""

    stage: Stage
    steps: int
    step: int = 0
    """Of the step under way, or of the last one, counted from 1; 0: none yet."""
    step_id: str | None = None
    started_at: str | None = None
    result: str | None = None
    """None: the step is not finished."""
    message: str = ""
    """How much is done, or why it is over, where the operator said so."""

    def __str__(self) -> str:
        text = self.stage.value
        if self.step_id is not None:
            how = f": {self.result}" if self.result else f" under way since {self.started_at}"
            text += f", step {self.step} of {self.steps} ({self.step_id}){how}"
        elif self.steps and not self.stage.is_over:
            text += f", {self.steps} steps to do"
        return f"{text}; {self.message}" if self.message else text


def progress_of(plan: PlacementPlan) -> Progress:
    """Where ``plan`` stands. A part of a plan that awaits approval may be under way: only cuts wait."""
    conditions, at, steps = plan.status.conditions, plan.status.step, plan.spec.steps
    stage, telling = _stage(plan), None
    if stage.is_over:
        telling = condition(conditions, stage.value)
    elif holds(conditions, WAITING):
        telling = condition(conditions, WAITING)
    elif at is not None:
        telling = condition(conditions, APPLIED)
    message = telling.message if telling else ""
    if at is None:
        return Progress(stage, len(steps), message=message)
    ids = [each.id for each in steps]
    position = ids.index(at.id) + 1 if at.id in ids else 0
    return Progress(stage, len(ids), position, at.id, at.started_at, at.result, message)


def _stage(plan: PlacementPlan) -> Stage:
    conditions = plan.status.conditions
    for stage, name in (
        (Stage.ROLLED_BACK, ROLLED_BACK),
        (Stage.SUPERSEDED, SUPERSEDED),
        (Stage.APPLIED, APPLIED),
    ):
        if holds(conditions, name):
            return stage
    if (
        needs_approval(plan.spec.steps)
        and not plan.spec.approved
        and not holds(conditions, APPROVED)
    ):
        return Stage.AWAITS_APPROVAL
    return Stage.APPROVED if plan.status.step is None else Stage.APPLYING
