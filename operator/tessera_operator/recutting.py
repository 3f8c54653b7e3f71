"""Which GPUs may be cut anew, and when. Pure.

A cut disturbs, so it has rules: who may do it (a partitioner that has reported the GPU), who has to agree, in which
windows, how many nodes at once, how often, and for what saving.

All of it follows from the objects: PlacementPlans say which cuts have begun or failed and when the next may be tried,
RuntimeNodes when they were cut last. So an operator that was restarted goes on where the one before ended.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from functools import cached_property

from tessera_core.api import Condition, Device, RuntimeNode, RuntimePool
from tessera_core.api.meta import ConditionStatus
from tessera_core.api.placementplan import PlacementPlan, Recut, Step
from tessera_core.api.runtimepool import Approval, MaintenanceWindow, Partition, PartitionBackend
from tessera_core.gpu.geometry import Geometry
from tessera_core.plan.state_in import POOL_LABEL
from tessera_operator.cuts import Key, Pin, cuts_of, failures_of, left_alone, pins_of
from tessera_operator.instants import to_text, to_time
from tessera_operator.orders import geometry_of
from tessera_operator.plans import is_open
from tessera_operator.schedules import ScheduleError, schedule

RECUT_AT = "tessera.dev/recut-at"
"""Annotation of a RuntimeNode: when it was last told to cut a GPU that somebody uses before or afterwards. It comes with the
order and goes with the node.
"""
CUTTING = (PartitionBackend.NVML, PartitionBackend.MIG_MANAGER)
"""Backends with somebody who cuts."""


class Waits(StrEnum):
    """What a cut waits for; also the reason of the condition."""

    APPROVAL = "Approval"
    WINDOW = "Window"
    INTERVAL = "Interval"
    BUDGET = "Budget"
    """Others are cut first."""
    PARTITIONER = "Partitioner"
    """Nobody may cut it any more."""


@dataclass(frozen=True, slots=True)
class Waiting:
    """Why a cut is not begun."""

    why: Waits
    node: str
    until: datetime | None = None
    """None: somebody has to do something first."""
    detail: str = ""

    def __str__(self) -> str:
        until = f" until {to_text(self.until)}" if self.until is not None else ""
        return f"{self.node}: {self.detail}{until}"


@dataclass(frozen=True)
class Rules:
    """What holds for cuts at one moment."""

    now: datetime
    partitions: Mapping[str, Partition] = field(default_factory=dict)
    """By node."""
    pools: Mapping[str, str] = field(default_factory=dict)
    """By node."""
    recut_at: Mapping[str, datetime] = field(default_factory=dict)
    """By node that was ever cut."""
    cuttable: frozenset[Key] = frozenset()
    """GPUs that plans may cut anew."""
    alone: frozenset[Key] = frozenset()
    """GPUs whose cut failed a short while ago."""
    pins: Mapping[Key, Pin] = field(default_factory=dict)
    approved: Collection[tuple[Key, Geometry]] = ()
    """What a person has agreed to."""
    failures: Mapping[Key, int] = field(default_factory=dict)
    """By GPU: how often cuts of it failed lately."""
    steps: tuple[Step, ...] = ()
    """Of the transaction under way: a plan of which a cut has begun. It goes on to its end, whoever leads."""
    cuts: tuple[Recut, ...] = ()
    """That it has begun. One re-cut of a node may take several GPUs."""

    @property
    def of_begun(self) -> Rules:
        """The same where nothing is promised but cuts that have begun."""
        return replace(self, steps=())

    @cached_property
    def promised(self) -> Mapping[Key, Geometry | None]:
        """What plans take for given: GPUs whose cut has begun, or that are left alone, and those that come next."""
        goals = cuts_of(self.steps)
        coming = {key: goal for key, goal in goals.items() if self.waiting(key, goal) is None}
        return {**coming, **{key: pin.geometry for key, pin in self.pins.items()}}

    def needs_nobody(self, node: str) -> bool:
        """Whether cuts of ``node`` need no person's consent."""
        partition = self.partitions.get(node)
        return partition is not None and partition.approval is Approval.AUTO

    def needs_approval(self, key: Key, geometry: Geometry) -> bool:
        """Whether a person has yet to agree."""
        agreed = key in self.pins or (key, geometry) in self.approved
        return not agreed and not self.needs_nobody(key[0])

    def waiting(self, key: Key, geometry: Geometry) -> Waiting | None:
        """What a cut waits for, other cuts apart; None: it may begin. What has begun, and what is undone, waits for nothing."""
        node = key[0]
        if key in self.pins:
            return None
        if key not in self.cuttable:
            return Waiting(Waits.PARTITIONER, node, None, f"nobody may cut {key[1]}")
        if self.needs_approval(key, geometry):
            return Waiting(Waits.APPROVAL, node, None, "nobody has approved the cut")
        partition = self.partitions.get(node, Partition())
        if (closed := _closed(node, partition, self.now)) is not None:
            return closed
        last = self.recut_at.get(node)
        if last is None or node in {each.node for each in self.cuts}:
            return None
        then = last + timedelta(seconds=partition.disruption.min_interval_s)
        if then <= self.now:
            return None
        return Waiting(Waits.INTERVAL, node, then, "it was cut not long ago")


NO_CUTS = Rules(datetime.max.replace(tzinfo=UTC))
"""Where nobody may cut."""


def _closed(node: str, partition: Partition, now: datetime) -> Waiting | None:
    """Why no window is open."""
    windows, opens = partition.disruption.windows, list[datetime]()
    for window in windows:
        try:
            found = schedule(window.schedule)
        except ScheduleError as error:
            return Waiting(Waits.WINDOW, node, None, f"spec.partition.disruption.windows: {error}")
        last = found.last(now)
        if last is not None and now < last + timedelta(seconds=window.duration_s):
            return None
        if (opening := found.next(now)) is not None:
            opens.append(opening)
    if not windows:
        return None
    return Waiting(Waits.WINDOW, node, min(opens, default=None), "no window is open")


def rules_of(
    pools: Iterable[RuntimePool],
    nodes: Iterable[RuntimeNode],
    plans: Sequence[PlacementPlan],
    cutters: Collection[Key],
    now: datetime,
) -> Rules:
    """``cutters``: GPUs that some partitioner has reported."""
    nodes = tuple(nodes)
    named = {pool.metadata.name: pool for pool in pools}
    pool_of = {
        node.metadata.name: pool
        for node in nodes
        if (pool := dict(node.metadata.labels).get(POOL_LABEL, "")) in named
    }
    partitions = {
        node: partition
        for node, pool in pool_of.items()
        if (partition := named[pool].spec.partition) is not None and partition.backend in CUTTING
    }
    begun = [
        (max(cut.started_at for cut in cuts), plan.metadata.creation_timestamp or "", plan, cuts)
        for plan in plans
        if is_open(plan) and (cuts := tuple(cut for cut in plan.status.cuts if not cut.problem))
    ]
    _, _, transaction, cuts = max(begun, key=lambda each: each[:2], default=("", "", None, ()))
    alone = frozenset(key for key, _, _ in left_alone(plans, now))
    return Rules(
        now=now,
        partitions=partitions,
        pools=pool_of,
        recut_at={node.metadata.name: at for node in nodes if (at := last_recut(node)) is not None},
        cuttable=frozenset(key for key in cutters if key[0] in partitions) - alone,
        alone=alone,
        pins=pins_of(plans, nodes, now),
        approved={
            cut
            for plan in plans
            if plan.spec.approved and is_open(plan)
            for cut in cuts_of(plan.spec.steps).items()
        },
        failures=failures_of(plans),
        steps=transaction.spec.steps if transaction is not None else (),
        cuts=cuts,
    )


def partitioning(partition: Partition, nodes: Iterable[RuntimeNode], rules: Rules) -> Condition:
    """Whether GPUs of a pool's ``nodes`` can be cut; where not, why they are used as they are."""
    known = {
        (node.metadata.name, device.uuid)
        for node in nodes
        for device in node.status.devices
        if device.mig_capable
    }
    able, alone = known & rules.cuttable, known & rules.alone
    problem = next(filter(None, (_unreadable(each) for each in partition.disruption.windows)), "")
    if problem:
        reason, message = "InvalidWindow", f"spec.partition.disruption.windows: {problem}"
    elif not known:
        reason, message = "NoDevice", "no GPU here says that it can be cut"
    elif able:
        reason, message = "Ready", f"{len(able)} of {len(known)} GPUs may be cut"
    elif alone:
        reason, message = "Failed", "cuts failed"
    else:
        reason, message = "NoPartitioner", _NOBODY[partition.backend]
    if alone:
        message += f"; left alone for a while: {', '.join(uuid for _, uuid in sorted(alone)[:10])}"
    if reason != "Ready":
        message += "; GPUs are used as they are"
    status = ConditionStatus.TRUE if reason == "Ready" else ConditionStatus.FALSE
    return Condition("Partitioning", status, reason, message)


_NOBODY = {
    PartitionBackend.NVML: "no partitioner has reported a GPU",
    PartitionBackend.MIG_MANAGER: "nobody may have NVIDIA's MIG manager cut here: that takes partition.migManager.enabled of "
    "the chart, and nodes labelled tessera.dev/repartition=true",
}


def _unreadable(window: MaintenanceWindow) -> str:
    """Why nobody can say when ``window`` is; empty: somebody can."""
    try:
        schedule(window.schedule)
    except ScheduleError as error:
        return str(error)
    return ""


def reported(nodes: Iterable[RuntimeNode]) -> frozenset[Key]:
    """GPUs that the partitioners of ``nodes`` say something of."""
    return frozenset((node.metadata.name, cut.uuid) for node in nodes for cut in node.status.cuts)


def last_recut(node: RuntimeNode) -> datetime | None:
    """When ``node`` was last told to cut; None: never, or nobody can read when."""
    text = dict(node.metadata.annotations).get(RECUT_AT)
    try:
        return None if text is None else to_time(text)
    except ValueError:
        return None


def notes_of(
    node: RuntimeNode, told: Iterable[Device], now: str, free: Collection[Key] = ()
) -> dict[str, str]:
    """What is noted of ``node`` when it is ``told`` what to have; of cuts of GPUs that are ``free`` nothing, since the
    interval is between two that disturb.
    """
    present = {device.uuid: geometry_of(device) for device in node.status.devices}
    before = {device.uuid: device for device in node.spec.devices}
    for device in told:
        known = before.get(device.uuid)
        is_old = known is not None and known.cut and known.geometry == device.geometry
        disturbs = (node.metadata.name, device.uuid) not in free
        if device.cut and not is_old and present.get(device.uuid) != device.geometry and disturbs:
            return {RECUT_AT: now}
    return {name: at for name, at in node.metadata.annotations if name == RECUT_AT}
