"""A plan as an object: what changes, the steps, what it was made from, and how far it is. Pure."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timedelta

from tessera_core.api import Condition
from tessera_core.api.meta import ClusterMeta, ConditionStatus
from tessera_core.api.placementplan import (
    Action,
    PlacementPlan,
    PlacementPlanSpec,
    PlacementPlanStatus,
    Recut,
    Step,
    StepStatus,
)
from tessera_core.gpu.geometry import Geometry
from tessera_core.plan.decision import Plan
from tessera_core.plan.nodes import Located, diff, slice_name
from tessera_core.plan.state import ClusterState
from tessera_core.plan.state_out import state_to_dict
from tessera_core.plan.steps import Steps
from tessera_operator.instants import to_time
from tessera_operator.quarantine import leaving

MOST_STEPS = 2000
"""Of one object, which the API server stores up to 1.5 MB of; what is left is the next plan's."""
MOST_LINES = 2000
MOST_MESSAGE = 2048
KEPT = 10
"""Plans that are no longer under way and are kept to be looked at."""
LATELY = timedelta(days=1)
"""After the next try was due, for which a failure counts."""
MOST_KEPT = 50
"""Of those that say more: GPUs that are left alone for a while, cuts that are not ended."""
APPROVED, APPLIED, SUPERSEDED = "Approved", "Applied", "Superseded"
ROLLED_BACK, WAITING = "RolledBack", "Waiting"


def idle_facts(state: ClusterState) -> ClusterState:
    """``state`` without what a plan itself changes: two that are equal call for no other plan."""
    return replace(
        state,
        nodes=tuple(
            replace(
                node,
                devices=tuple(
                    replace(device, running=(), geometry=None, jpeg_engines=())
                    for device in node.devices
                ),
            )
            for node in state.nodes
        ),
    )


def to_spec(
    plan: Plan,
    steps: Steps,
    state: ClusterState,
    epoch: int,
    measured: Mapping[tuple[str, str], Sequence[str]] | None = None,
) -> PlacementPlanSpec:
    """What to write of a decision, not approved yet. ``measured``: by (node, device) that is cut for it, models that are to be
    measured there.
    """
    canonical = json.dumps(state_to_dict(idle_facts(state)), sort_keys=True)
    return PlacementPlanSpec(
        epoch=epoch,
        basis=f"sha256:{hashlib.sha256(canonical.encode()).hexdigest()}",
        cost=round(plan.cost, 4),
        lower_bound=round(plan.lower_bound, 4),
        gap_percent=round(max(0.0, plan.gap_percent), 1),
        truncated=plan.truncated,
        diff=tuple(_lines(plan, steps, state, measured or {}))[:MOST_LINES],
        # A prefix is closed: steps require earlier ones only.
        steps=steps.steps[:MOST_STEPS],
    )


def to_object(spec: PlacementPlanSpec) -> PlacementPlan:
    return PlacementPlan(metadata=ClusterMeta(name=spec.name), spec=spec)


def needs_approval(steps: Sequence[Step]) -> bool:
    """Whether it cuts GPUs: all else can be undone without a person."""
    return any(step.action is Action.PARTITION for step in steps)


def progress(
    before: PlacementPlanStatus,
    steps: Sequence[Step],
    done: frozenset[str],
    begun: Sequence[Step],
    *,
    approved: bool,
    now: str,
    cuts: tuple[Recut, ...] = (),
    waiting: tuple[str, str] | None = None,
) -> PlacementPlanStatus:
    """The status after ``done``; times of conditions that did not change stay. ``waiting``: reason and message."""
    applied = all(step.id in done for step in steps)
    under_way = next((step for step in begun if step.id not in done), None)
    if needs_approval(steps):
        approval = ("Approved" if approved else "Waiting"), approved
    else:
        approval = "NotNeeded", True
    reason = "Applied" if applied else "UnderWay" if begun or not waiting else "Waiting"
    wanted = [
        _condition(APPROVED, approval[1], approval[0]),
        _condition(APPLIED, applied, reason, f"{len(done)} of {len(steps)} steps done"),
        _condition(SUPERSEDED, False, "Current"),
    ]
    if waiting is not None:
        wanted.append(_condition(WAITING, True, *waiting))
    step = before.step
    if under_way is not None and (step is None or step.id != under_way.id or step.result):
        step = StepStatus(under_way.id, now)
    elif applied and steps and (step is None or (step.id, step.result) != (steps[-1].id, "Done")):
        step = StepStatus(steps[-1].id, now, "Done")
    elif under_way is None and not applied and step is not None and step.result is None:
        step = replace(step, result="Waiting")
    return PlacementPlanStatus(_dated(wanted, before.conditions, now), step, cuts)


def superseded(before: PlacementPlanStatus, now: str) -> PlacementPlanStatus:
    """The status of a plan that another one took over from."""
    return _with(before, _condition(SUPERSEDED, True, "NewerPlan"), now)


def rolled_back(
    before: PlacementPlanStatus, cuts: tuple[Recut, ...], reason: str, message: str, now: str
) -> PlacementPlanStatus:
    """The status of a plan that a cut failed of; ``cuts`` say which, and when it may be tried again."""
    condition = _condition(ROLLED_BACK, True, reason, message[:MOST_MESSAGE])
    return replace(_with(before, condition, now), cuts=cuts)


def carried_on(
    before: PlacementPlanStatus, unfinished: Collection[str], now: str
) -> PlacementPlanStatus:
    """The status of a plan that is over: of its cuts, those of the devices ``unfinished`` are still nobody else's."""
    return replace(
        before,
        cuts=tuple(
            replace(each, ended_at=now)
            if each.ended_at is None and each.device not in unfinished
            else each
            for each in before.cuts
        ),
    )


def _with(before: PlacementPlanStatus, last: Condition, now: str) -> PlacementPlanStatus:
    """``before`` with one more condition, which says that it waits for nothing any more."""
    others = [each for each in before.conditions if each.type not in (last.type, WAITING)]
    return replace(before, conditions=_dated((*others, last), before.conditions, now))


def obsolete(
    plans: Iterable[PlacementPlan], current: Collection[str], now: datetime | None = None
) -> tuple[str, ...]:
    """Names of those to delete: all but the newest that are no longer under way, and those whose cuts still count."""
    others = [each for each in plans if each.metadata.name not in current]
    others.sort(
        key=lambda each: (each.metadata.creation_timestamp or "", each.metadata.name), reverse=True
    )
    counting = [each for each in others if any(_counts(cut, now) for cut in each.status.cuts)]
    kept = {each.metadata.name for each in (*others[:KEPT], *counting[:MOST_KEPT])}
    return tuple(each.metadata.name for each in others if each.metadata.name not in kept)


def _counts(cut: Recut, now: datetime | None) -> bool:
    """Whether it is under way, or failed so lately that the next failure is one more."""
    if cut.ended_at is None or cut.retry_at is None or now is None:
        return cut.ended_at is None
    return now < to_time(cut.retry_at) + LATELY


def is_open(plan: PlacementPlan) -> bool:
    """Whether nobody has said yet that it is done or replaced."""
    states = {each.type: each.status is ConditionStatus.TRUE for each in plan.status.conditions}
    return not any(states.get(each) for each in (APPLIED, SUPERSEDED, ROLLED_BACK))


def _lines(
    plan: Plan,
    steps: Steps,
    state: ClusterState,
    measured: Mapping[tuple[str, str], Sequence[str]],
) -> Iterable[str]:
    changes = diff(plan, state)
    goals = {
        (step.target.node, step.target.device): step.target
        for step in steps.steps
        if step.action is Action.PARTITION
    }
    for node, device in changes.recut:
        goal = goals[node, device]
        models = ", ".join(measured.get((node, device), ()))
        why = f", to measure {models}" if models else ""
        yield f"cut {node}/{device}: {_cut(goal.before)} -> {_cut(goal.geometry)}{why}"[:512]
    for each in changes.removed:
        yield f"- {_place(each)}"
    yield from leaving(steps)
    for old, new in changes.changed:
        yield f"~ {_place(new)}, from {old.running.instances} x batch {old.running.batch}"
    for each in changes.added:
        yield f"+ {_place(each)}"
    for interruption in steps.interruptions:
        yield f"! {interruption}"[:512]


def _cut(geometry: Geometry) -> str:
    return " + ".join(map(str, geometry)) or "not cut"


def _place(located: Located) -> str:
    each = located.running
    return (
        f"{each.service}/{each.member} {each.instances} x batch {each.batch} "
        f"on {located.node}/{located.device} {slice_name(each.slice)}"
    )


def _condition(kind: str, holds: bool, reason: str, message: str = "") -> Condition:
    return Condition(
        kind, ConditionStatus.TRUE if holds else ConditionStatus.FALSE, reason, message
    )


def _dated(
    wanted: Iterable[Condition], before: Iterable[Condition], now: str
) -> tuple[Condition, ...]:
    known = {each.type: each for each in before}
    return tuple(
        replace(
            each,
            last_transition_time=now
            if (old := known.get(each.type)) is None or old.status is not each.status
            else old.last_transition_time,
        )
        for each in wanted
    )
