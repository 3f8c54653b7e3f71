"""What the partitioner does next, and what it says: pure.

    RuntimeNode ──order──▶ Order ┐
    NVML ─────────look──▶ Seen   ├──due──▶ one cut at a time ──▶ Tried
    cuts before ────────▶ Tried  ┘──told──▶ status.cuts

A cut that failed stands as ordered until the order is taken back, so it is tried again, after pauses that grow; at once
where the order was written anew, since whoever wrote it may know why it failed.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from tessera_core.api import RuntimeNode
from tessera_core.api.runtimenode import CutProblem, CutStatus, SliceStatus
from tessera_core.gpu.geometry import Geometry, GeometryError, canonical
from tessera_runtime.partitioner.errors import (
    DriverLost,
    InUse,
    NoRoom,
    NotPartitionable,
    NotPermitted,
    OutOfTime,
    ResetRequired,
)
from tessera_runtime.partitioner.gpu import Slice

FIRST_PAUSE_S = 5.0
MOST_PAUSE_S = 120.0
"""Between two tries of a cut that fails, by its failures in a row: twice as long each time within these bounds."""

MOST_MESSAGE = 1024

_PROBLEMS: dict[type[Exception], CutProblem] = {
    GeometryError: CutProblem.NOT_PARTITIONABLE,
    NotPartitionable: CutProblem.NOT_PARTITIONABLE,
    ResetRequired: CutProblem.RESET_REQUIRED,
    InUse: CutProblem.IN_USE,
    NoRoom: CutProblem.NO_ROOM,
    NotPermitted: CutProblem.NOT_PERMITTED,
    DriverLost: CutProblem.DRIVER_LOST,
    OutOfTime: CutProblem.OUT_OF_TIME,
}

Seen = Mapping[str, tuple[Slice, ...]]
"""By UUID of a GPU that knows MIG: what it is cut into. One that cannot be looked at is not in it."""


@dataclass(frozen=True, slots=True)
class Order:
    """What the operator wants cut on this node."""

    generation: int = 0
    """Of the RuntimeNode that says so."""
    epoch: int = 0
    goals: Mapping[str, Geometry] = field(default_factory=dict)
    """By UUID, in the order of the spec. Only devices that are to be cut; all others are nobody's business here."""


@dataclass(frozen=True, slots=True)
class Tried:
    """How the last try of a device's cut ended."""

    generation: int
    problem: CutProblem | None = None
    """None: it is as wanted."""
    message: str = ""
    failures: int = 0
    """In a row."""
    again_s: float = 0.0
    """When it is tried again, on the clock of the caller."""


def order(document: Mapping[str, Any]) -> Order:
    """What ``document`` orders. Raises SpecInvalid.

    Nothing but devices is read: versions of services that this program does not know yet are no reason not to cut.
    """
    spec = document.get("spec") or {}
    cuts = [
        {name: each[name] for name in ("uuid", "geometry", "cut") if name in each}
        for each in spec.get("devices") or ()
        if each.get("cut") is True
    ]
    read = RuntimeNode.from_dict(
        {**document, "spec": {"epoch": spec.get("epoch"), "devices": cuts}, "status": {}},
        strict=False,
    )
    goals = {each.uuid: canonical(each.geometry) for each in read.spec.devices}
    return Order(read.metadata.generation or 0, read.spec.epoch, goals)


def said_before(document: Mapping[str, Any]) -> tuple[CutStatus, ...]:
    """``status.cuts`` of ``document``. Raises SpecInvalid."""
    cuts = (document.get("status") or {}).get("cuts") or []
    whole = {**document, "spec": {"epoch": 0}, "status": {"cuts": cuts}}
    return RuntimeNode.from_dict(whole, strict=False).status.cuts


def tried_before(cuts: Iterable[CutStatus]) -> dict[str, Tried]:
    """What a partitioner that is gone has told of its tries: still true, until the cut is tried again."""
    return {
        each.uuid: Tried(each.generation, each.problem, each.message)
        for each in cuts
        if each.generation
    }


def is_as_wanted(slices: Iterable[Slice], goal: Geometry) -> bool:
    """Whether a GPU has exactly these instances, all of them whole."""
    present = tuple(slices)
    whole = all(each.uuid is not None for each in present)
    return whole and canonical(each.placement for each in present) == goal


def settled(wanted: Order, seen: Seen, tried: Mapping[str, Tried]) -> dict[str, Tried]:
    """``tried`` without what is ordered no more, with what is as ordered already, and without what is so no longer."""
    found = {uuid: each for uuid, each in tried.items() if uuid in wanted.goals}
    for uuid, goal in wanted.goals.items():
        if uuid in seen and is_as_wanted(seen[uuid], goal):
            found[uuid] = Tried(wanted.generation)
        elif uuid in found and found[uuid].problem is None:
            del found[uuid]
    return found


def due(wanted: Order, tried: Mapping[str, Tried], now_s: float) -> str | None:
    """The device whose cut comes next, of ``tried`` as ``settled`` returns it; None: none yet."""

    def failures(uuid: str) -> int:
        return tried[uuid].failures if uuid in tried else 0

    times = {uuid: _due_s(wanted, tried.get(uuid)) for uuid in wanted.goals}
    ready = {uuid: at_s for uuid, at_s in times.items() if at_s is not None and at_s <= now_s}
    # One that fails again and again holds up no other, however often orders are written anew.
    return min(ready, key=lambda uuid: (failures(uuid), ready[uuid]), default=None)


def next_due_s(wanted: Order, tried: Mapping[str, Tried]) -> float | None:
    """When a cut is due next; None: all is as wanted."""
    times = [_due_s(wanted, tried.get(uuid)) for uuid in wanted.goals]
    return min((at_s for at_s in times if at_s is not None), default=None)


def _due_s(wanted: Order, last: Tried | None) -> float | None:
    if last is None or last.generation != wanted.generation:
        return 0.0
    return None if last.problem is None else last.again_s


def failed(generation: int, last: Tried | None, error: Exception, now_s: float) -> Tried:
    """What is remembered of a try that ended with ``error``."""
    failures = last.failures + 1 if last is not None else 1
    pause_s = min(MOST_PAUSE_S, FIRST_PAUSE_S * 2.0 ** min(failures - 1, 30))
    problem = _PROBLEMS.get(type(error), CutProblem.FAILED)
    return Tried(generation, problem, str(error)[:MOST_MESSAGE], failures, now_s + pause_s)


def told(seen: Seen, tried: Mapping[str, Tried]) -> tuple[CutStatus, ...]:
    """What the status is to say: of each GPU that was seen, and of those that were to be cut and are not there."""
    return tuple(
        _told(uuid, seen.get(uuid, ()), tried.get(uuid) or Tried(0))
        for uuid in sorted({*seen, *tried})
    )


def _told(uuid: str, slices: Iterable[Slice], last: Tried) -> CutStatus:
    usable = tuple(
        SliceStatus(each.uuid, each.placement.profile, each.placement.start)
        for each in slices
        if each.uuid is not None  # what has none runs nothing yet
    )
    return CutStatus(uuid, usable, last.generation, last.problem, last.message)
