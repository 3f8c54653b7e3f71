"""Cuts as plans tell of them: where they lead, which have begun, and which failed and are left alone. Pure.

One that has begun is a promise: until it is done, plans take the geometry that it leads to for given, and after one that
failed, the geometry that the GPU had before.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from tessera_core.api import RuntimeNode
from tessera_core.api.placementplan import Action, PlacementPlan, Recut, Step
from tessera_core.api.runtimenode import CutProblem, DeviceStatus, MigMode
from tessera_core.gpu.geometry import Geometry, canonical
from tessera_operator.instants import to_text, to_time
from tessera_operator.orders import geometry_of

FIRST_PAUSE_S, MOST_PAUSE_S = 600.0, 86_400.0
"""For which a GPU whose cut failed is left alone; twice as long each time within these bounds."""

Key = tuple[str, str]
"""(node, device)."""


@dataclass(frozen=True, slots=True)
class Pin:
    """What plans take for given of a GPU."""

    geometry: Geometry | None
    """That it is to have; None: what it has."""
    before: Geometry
    """What it had before anything was cut."""
    started_at: str | None = None
    """When the cut that leads there began; None: it has yet to begin, or there is none."""


def cuts_of(steps: Iterable[Step]) -> dict[Key, Geometry]:
    """By GPU, what it is cut into in the end."""
    return {
        (step.target.node or "", step.target.device or ""): canonical(step.target.geometry)
        for step in steps
        if step.action is Action.PARTITION
    }


def for_nobody(steps: Iterable[Step]) -> frozenset[Key]:
    """GPUs that are cut although nothing leaves them or comes there, for measuring say: these cuts disturb nobody."""
    steps = tuple(steps)
    used = {
        (step.target.node or "", step.target.device or "")
        for step in steps
        if step.action in (Action.LAUNCH, Action.UNLOAD)
    }
    return frozenset(cuts_of(steps).keys() - used)


def pins_of(
    plans: Iterable[PlacementPlan], nodes: Iterable[RuntimeNode], now: datetime
) -> dict[Key, Pin]:
    """What plans must take for given: cuts that have begun, and GPUs whose cut failed a short while ago."""
    plans, devices = tuple(plans), devices_of(nodes)
    found: dict[Key, Pin] = {}
    for plan in plans:
        for key, cut in unfinished(plan, devices).items():
            known = found.get(key)
            if known is None or (known.started_at or "") <= cut.started_at:
                goal, before = cuts_of(plan.spec.steps)[key], _before(plan.spec.steps)[key]
                found[key] = Pin(goal, before, cut.started_at)
    for key, plan, cut in left_alone(plans, now):
        if key in devices:
            was = _before(plan.spec.steps).get(key, ())
            back = _back(devices[key], cuts_of(plan.spec.steps).get(key), was)
            if cut.problem.startswith(CutProblem.CHANGED_BY_HAND):
                back = None
            found[key] = Pin(back, was, found[key].started_at if key in found else None)
    return found


def devices_of(nodes: Iterable[RuntimeNode]) -> dict[Key, DeviceStatus]:
    """What ``nodes`` report."""
    return {
        (node.metadata.name, device.uuid): device
        for node in nodes
        for device in node.status.devices
    }


def unfinished(plan: PlacementPlan, devices: Mapping[Key, DeviceStatus]) -> dict[Key, Recut]:
    """Cuts of ``plan`` that have begun and not led to its geometry yet."""
    begun = {(cut.node, cut.device): cut for cut in plan.status.cuts if cut.ended_at is None}
    if not begun:
        return {}  # nearly always, and plans may have many steps
    goals = cuts_of(plan.spec.steps)
    return {
        key: cut
        for key, cut in begun.items()
        if key in goals and key in devices and geometry_of(devices[key]) != goals[key]
    }


def _before(steps: Iterable[Step]) -> dict[Key, Geometry]:
    return {
        (step.target.node or "", step.target.device or ""): canonical(step.target.before)
        for step in steps
        if step.action is Action.PARTITION
    }


def _back(device: DeviceStatus, goal: Geometry | None, before: Geometry) -> Geometry | None:
    """What a GPU gets after a failure; None: it stays as it is, since there is no way back, or that failed too."""
    switched_on = not before and device.mig_mode is MigMode.ENABLED
    return None if goal == before or switched_on else before


def left_alone(
    plans: Iterable[PlacementPlan], now: datetime
) -> Iterable[tuple[Key, PlacementPlan, Recut]]:
    """GPUs that are left alone after a failure, the latest one last, with its plan and cut."""
    found = [
        (cut.started_at, (cut.node, cut.device), plan, cut)
        for plan in plans
        for cut in plan.status.cuts
        if cut.retry_at is not None and to_time(cut.retry_at) > now
    ]
    return [each[1:] for each in sorted(found, key=lambda each: each[:2])]


def failures_of(plans: Iterable[PlacementPlan]) -> dict[Key, int]:
    """As ``plans`` say; those that say nothing of late are deleted."""
    found: dict[Key, int] = {}
    for plan in plans:
        for cut in plan.status.cuts:
            if cut.problem or cut.ended_at is None:
                key = cut.node, cut.device
                found[key] = max(found.get(key, 0), cut.failures)
    return found


def failed(cut: Recut, problem: str, now: datetime) -> Recut:
    """``cut`` given up, and left alone for the longer, the more often it failed lately."""
    failures = min(cut.failures + 1, 1000)
    pause_s = min(MOST_PAUSE_S, FIRST_PAUSE_S * 2.0 ** min(failures - 1, 30))
    return replace(
        cut,
        ended_at=to_text(now),
        problem=problem[:1024],
        failures=failures,
        retry_at=to_text(now + timedelta(seconds=pause_s)),
    )
