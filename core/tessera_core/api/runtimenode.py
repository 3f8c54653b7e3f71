"""RuntimeNode: what one runtime pod shall run (spec, by the operator) and what it has and runs (status, by its agent).

Percentiles cannot be added up over nodes, so the status carries counters and histogram buckets, which can.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated, ClassVar

from tessera_core.api.errors import FieldError
from tessera_core.api.meta import (
    CONDITIONS,
    LABEL,
    LABEL_KEY,
    ClusterMeta,
    Condition,
    NameRef,
    Resource,
)
from tessera_core.api.modelservice import MOST_COUNT
from tessera_core.api.places import DEVICE_ID, GEOMETRY, MIG_PROFILE, PRODUCT, SLICE_NAME, START
from tessera_core.api.records import ListOf, Name, Rule, record
from tessera_core.api.runtimepool import TaintEffect
from tessera_core.api.scalars import integer, matching, text
from tessera_core.gpu.geometry import Placement

MOST_DEVICES = 64
MOST_INSTANCES = 512
"""Of one device."""

SERVED_NAME = matching(
    r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?\.[a-z](?:[a-z0-9-]{0,61}[a-z0-9])?",
    'a served name "<namespace>.<name>"',
    127,
)
EPOCH = integer(0, 2**63 - 1)
"""The leader's ``leaseTransitions``: a smaller one is from a leader that was deposed."""


class InstanceState(StrEnum):
    """Active instances take work; standby ones are loaded and warm, and take none."""

    ACTIVE = "Active"
    STANDBY = "Standby"


class MigMode(StrEnum):
    """Whether the device is cut."""

    ENABLED = "Enabled"
    DISABLED = "Disabled"


class Health(StrEnum):
    """Whether the device can be used."""

    HEALTHY = "Healthy"
    UNHEALTHY = "Unhealthy"
    UNKNOWN = "Unknown"


@dataclass(frozen=True, slots=True)
class Instance:
    """Copies of one member on one slice of one device."""

    service: Annotated[str, SERVED_NAME]
    member: Annotated[str, LABEL]
    slice: Annotated[str, SLICE_NAME]
    """``full``, ``<profile>@<first memory slice>``, ``cpu-N`` or ``cpu-N@<first core>``."""
    batch: Annotated[int, integer(1, 65536)]
    """Batch cap, rows."""
    state: InstanceState = InstanceState.ACTIVE
    count: Annotated[int, integer(1, 1024)] = 1


def _each_member_once_per_slice(device: Device | DeviceStatus) -> Iterator[FieldError]:
    seen: dict[tuple[str, str, str, InstanceState], int] = {}
    for index, one in enumerate(device.instances):
        first = seen.setdefault((one.service, one.member, one.slice, one.state), index)
        if first != index:
            found = f"a second {one.state.value} {one.service}/{one.member} on {one.slice}"
            yield FieldError(
                f"instances[{index}]", found, f"one with a count; see instances[{first}]"
            )


@dataclass(frozen=True, slots=True)
class Device:
    """Wanted state of one device."""

    RULES: ClassVar[tuple[Rule, ...]] = (_each_member_once_per_slice,)

    uuid: Annotated[str, DEVICE_ID]
    geometry: Annotated[tuple[Placement, ...], GEOMETRY] = ()
    """Empty: not partitioned."""
    instances: Annotated[tuple[Instance, ...], ListOf(record(Instance), most=MOST_INSTANCES)] = ()


@dataclass(frozen=True, slots=True)
class ProfilingTask:
    """A member to measure on a slice of a device."""

    service: Annotated[str, SERVED_NAME]
    member: Annotated[str, LABEL]
    device: Annotated[str, DEVICE_ID]
    slice: Annotated[str, SLICE_NAME]


@dataclass(frozen=True, slots=True)
class RuntimeNodeSpec:
    """What the pod shall run."""

    epoch: Annotated[int, EPOCH]
    plan_ref: NameRef | None = None
    devices: Annotated[
        tuple[Device, ...], ListOf(record(Device), most=MOST_DEVICES, key="uuid")
    ] = ()
    profiling: Annotated[tuple[ProfilingTask, ...], ListOf(record(ProfilingTask))] = ()


@dataclass(frozen=True, slots=True)
class SliceStatus:
    """A MIG instance that exists."""

    uuid: Annotated[str, DEVICE_ID]
    profile: Annotated[str, MIG_PROFILE]
    start: Annotated[int, START]


@dataclass(frozen=True, slots=True)
class InstanceStatus(Instance):
    """Copies of one member that exist, and what they did since the agent started."""

    ready: Annotated[int, integer(0, 1024)] = 0
    """How many of ``count`` answer."""
    memory_mib: Annotated[int, integer(), Name("memoryMiB")] = 0
    """Of all of them together."""
    good: Annotated[int, integer(0, MOST_COUNT)] = 0
    """Requests within the SLO's target, of ``total``."""
    total: Annotated[int, integer(0, MOST_COUNT)] = 0
    latency_buckets: Annotated[tuple[int, ...], ListOf(integer(0, MOST_COUNT))] = ()
    """Requests by latency, per bucket and not cumulative, in the runtime's fixed bucket bounds."""


@dataclass(frozen=True, slots=True)
class DeviceStatus:
    """One device that exists."""

    RULES: ClassVar[tuple[Rule, ...]] = (_each_member_once_per_slice,)

    uuid: Annotated[str, DEVICE_ID]
    product: Annotated[str, PRODUCT]
    memory_mib: Annotated[int, integer(), Name("memoryMiB")]
    mig_capable: bool = False
    mig_mode: MigMode = MigMode.DISABLED
    slices: Annotated[
        tuple[SliceStatus, ...], ListOf(record(SliceStatus), most=16, key="uuid")
    ] = ()
    instances: Annotated[
        tuple[InstanceStatus, ...], ListOf(record(InstanceStatus), most=MOST_INSTANCES)
    ] = ()
    health: Health = Health.UNKNOWN


@dataclass(frozen=True, slots=True)
class CpuStatus:
    """The processor of the node, as far as the pod may use it."""

    cores: Annotated[int, integer(1, 65536)]


@dataclass(frozen=True, slots=True)
class TaintStatus:
    """A taint of the Kubernetes node, which the operator copies: the agent may not read nodes."""

    IGNORED: ClassVar[frozenset[str]] = frozenset({"timeAdded"})

    key: Annotated[str, LABEL_KEY]
    effect: TaintEffect
    value: Annotated[str, text(63)] = ""


@dataclass(frozen=True, slots=True)
class RuntimeNodeStatus:
    """Inventory, and what runs."""

    conditions: Annotated[tuple[Condition, ...], CONDITIONS] = ()
    agent_version: Annotated[str | None, text(64)] = None
    devices: Annotated[
        tuple[DeviceStatus, ...], ListOf(record(DeviceStatus), most=MOST_DEVICES, key="uuid")
    ] = ()
    cpu: CpuStatus | None = None
    taints: Annotated[tuple[TaintStatus, ...], ListOf(record(TaintStatus), most=64)] = ()


@dataclass(frozen=True, slots=True)
class RuntimeNode(Resource):
    """One runtime pod."""

    KIND: ClassVar[str] = "RuntimeNode"

    metadata: ClusterMeta
    spec: RuntimeNodeSpec
    status: RuntimeNodeStatus = RuntimeNodeStatus()
