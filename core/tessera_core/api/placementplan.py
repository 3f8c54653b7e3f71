"""PlacementPlan: a decision with its reasons, the steps to carry it out, its approval and its progress.

Named by the hash of its content: deciding the same again gives the same object, and an approval can never be
carried over to another decision.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated, ClassVar

from tessera_core.api.errors import FieldError
from tessera_core.api.measurements import SERVED_NAME
from tessera_core.api.meta import (
    CONDITIONS,
    LABEL,
    SUBDOMAIN,
    TIMESTAMP,
    ClusterMeta,
    Condition,
    Resource,
)
from tessera_core.api.places import DEVICE_ID, GEOMETRY, SLICE_NAME
from tessera_core.api.records import ListOf, Rule, record
from tessera_core.api.runtimenode import EPOCH
from tessera_core.api.scalars import decimal, integer, matching, text
from tessera_core.gpu.geometry import Placement

MOST_STEPS = 4096
_NAME_DIGITS = 40
"""160 bits of the hash: no two plans meet, and the name fits a label value."""


class Action(StrEnum):
    """What a step does."""

    DRAIN = "Drain"
    PARTITION = "Partition"
    LAUNCH = "Launch"
    ROUTE = "Route"
    UNLOAD = "Unload"


@dataclass(frozen=True, slots=True)
class Target:
    """What a step acts on; which fields are needed depends on the action."""

    node: Annotated[str | None, SUBDOMAIN] = None
    """A RuntimeNode."""
    device: Annotated[str | None, DEVICE_ID] = None
    slice: Annotated[str | None, SLICE_NAME] = None
    service: Annotated[str | None, SERVED_NAME] = None
    member: Annotated[str | None, LABEL] = None
    batch: Annotated[int | None, integer(1, 65536)] = None
    """Launch: batch cap, rows."""
    count: Annotated[int | None, integer(1, 1024)] = None
    """Launch, Unload: instances."""
    geometry: Annotated[tuple[Placement, ...], GEOMETRY] = ()
    """Partition: the geometry to have afterwards; empty: not partitioned."""
    before: Annotated[tuple[Placement, ...], GEOMETRY] = ()
    """Partition: the geometry before anything was cut, which the device gets back when it cannot be cut."""


_NEEDED = {
    Action.DRAIN: ("node",),
    Action.PARTITION: ("node", "device"),
    Action.LAUNCH: ("node", "device", "slice", "service", "member", "batch", "count"),
    Action.ROUTE: ("service",),
    Action.UNLOAD: ("node", "device", "slice", "service", "member"),
}


def _target_is_enough(step: Step) -> Iterator[FieldError]:
    for name in _NEEDED[step.action]:
        if getattr(step.target, name) is None:
            yield FieldError(
                f"target.{name}", "nothing", f"a {name}, as action is {step.action.value}"
            )


@dataclass(frozen=True, slots=True)
class Step:
    """One action, done when its conditions hold in the cluster."""

    RULES: ClassVar[tuple[Rule, ...]] = (_target_is_enough,)

    id: Annotated[str, LABEL]
    action: Action
    target: Target
    requires: Annotated[tuple[str, ...], ListOf(LABEL)] = ()
    """Ids of earlier steps that must be done first."""


def _requires_only_earlier_steps(spec: PlacementPlanSpec) -> Iterator[FieldError]:
    """Which also makes a cycle impossible."""
    earlier: set[str] = set()
    for index, step in enumerate(spec.steps):
        for place, needed in enumerate(step.requires):
            if needed not in earlier:
                allowed = "the id of an earlier step"
                yield FieldError(f"steps[{index}].requires[{place}]", repr(needed), allowed)
        earlier.add(step.id)


@dataclass(frozen=True, slots=True)
class PlacementPlanSpec:
    """The decision; immutable but for the approval."""

    RULES: ClassVar[tuple[Rule, ...]] = (_requires_only_earlier_steps,)

    epoch: Annotated[int, EPOCH]
    basis: Annotated[str, matching(r"[0-9a-z:]{1,128}", "a hash of the facts", 128)]
    """Hash of the facts it was made from."""
    cost: Annotated[float, decimal(least=0)]
    """Per hour, of everything placed."""
    lower_bound: Annotated[float, decimal(least=0)]
    """No plan for these facts costs less."""
    gap_percent: Annotated[float, decimal(least=0)]
    """How far ``cost`` is above ``lower_bound``."""
    truncated: bool = False
    """The search ended at its safety net."""
    diff: Annotated[tuple[str, ...], ListOf(text(512), most=4096)] = ()
    """The change in lines for the person who approves it."""
    steps: Annotated[tuple[Step, ...], ListOf(record(Step), most=MOST_STEPS, key="id")] = ()
    approved: bool = False

    @property
    def name(self) -> str:
        """The plan's name: SHA-256 of the content in canonical JSON, without the approval and the epoch.

        A new leader that decides the same goes on with the same plan, and what was approved stays approved.
        """
        content = record(PlacementPlanSpec).encode(self)
        del content["approved"], content["epoch"]
        canonical = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
        return hashlib.sha256(canonical.encode()).hexdigest()[:_NAME_DIGITS]


@dataclass(frozen=True, slots=True)
class StepStatus:
    """The step under way, or the last one."""

    id: Annotated[str, LABEL]
    started_at: Annotated[str, TIMESTAMP]
    result: Annotated[str | None, text(1024)] = None
    """Absent: not finished."""


@dataclass(frozen=True, slots=True)
class Recut:
    """A device that is cut, from the moment on when what is in the way may go."""

    device: Annotated[str, DEVICE_ID]
    node: Annotated[str, SUBDOMAIN]
    started_at: Annotated[str, TIMESTAMP]
    ended_at: Annotated[str | None, TIMESTAMP] = None
    """Since when it is as wanted, given up, or carried on by another plan; absent: it is under way."""
    problem: Annotated[str, text(1024)] = ""
    """Why it was given up; empty: it was not."""
    failures: Annotated[int, integer(0, 1000)] = 0
    """Of this device lately; this one counts once it has failed."""
    retry_at: Annotated[str | None, TIMESTAMP] = None
    """Not cut otherwise before; only after a failure."""


@dataclass(frozen=True, slots=True)
class PlacementPlanStatus:
    """How far it is."""

    conditions: Annotated[tuple[Condition, ...], CONDITIONS] = ()
    step: StepStatus | None = None
    cuts: Annotated[tuple[Recut, ...], ListOf(record(Recut), most=MOST_STEPS, key="device")] = ()


@dataclass(frozen=True, slots=True)
class PlacementPlan(Resource):
    """One decision of the planner."""

    KIND: ClassVar[str] = "PlacementPlan"

    metadata: ClusterMeta
    spec: PlacementPlanSpec
    status: PlacementPlanStatus = PlacementPlanStatus()
