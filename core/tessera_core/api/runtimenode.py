"""RuntimeNode: what one runtime pod shall run (spec, by the operator) and what it has and runs (status, by its agent;
``cuts`` by the node's partitioner).

Percentiles cannot be added up over nodes, so the status carries counters and histogram buckets, which can.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated, ClassVar

from tessera_core.api.errors import FieldError
from tessera_core.api.measurements import (
    MOST_TASKS,
    SERVED_NAME,
    ProfileResult,
    ProfilingTask,
    TuningResult,
    TuningTask,
)
from tessera_core.api.members import DIGEST
from tessera_core.api.meta import (
    CONDITIONS,
    GENERATION,
    LABEL,
    LABEL_KEY,
    SUBDOMAIN,
    ClusterMeta,
    Condition,
    NameRef,
    Resource,
)
from tessera_core.api.modelservice import MOST_COUNT, MOST_PLACED, ModelServiceSpec
from tessera_core.api.places import (
    DEVICE_ID,
    GEOMETRY,
    JPEG_ENGINES,
    MIG_PROFILE,
    PRODUCT,
    SLICE_KIND,
    SLICE_NAME,
    START,
)
from tessera_core.api.records import ListOf, Name, Rule, record
from tessera_core.api.runtimepool import TaintEffect
from tessera_core.api.scalars import decimal, integer, matching, text
from tessera_core.api.tuning import VARIANT, FallenBack
from tessera_core.gpu.geometry import Placement

MOST_DEVICES = 64
MOST_SERVICES = 512
"""Of one node."""
MOST_CANDIDATES = 64
MOST_ROUTES = 256
"""Other nodes that one member is reached at."""
MOST_INSTANCES = 512
"""Of one device."""
MOST_LINES = 64
"""Of one member: an instance count on a kind of device each."""
MOST_FALLBACKS = 64

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
    variant: Annotated[str, VARIANT] = ""
    """Of the model, to run; in a status: that runs. Empty: as it is loaded."""


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
    cut: bool = False
    """Whether the partitioner is to leave exactly this geometry; else it is what was found, and nobody touches it."""


@dataclass(frozen=True, slots=True)
class Route:
    """Another pod that runs a member, to which requests may be passed on."""

    node: Annotated[str, SUBDOMAIN]
    address: Annotated[
        str, matching(r"[0-9A-Za-z.:\[\]-]{1,128}:[0-9]{1,5}", 'a "host:port" of gRPC', 134)
    ]
    rows_per_second: Annotated[int, integer()] = 0
    """What its instances are planned to carry; 0: not known."""


@dataclass(frozen=True, slots=True)
class BatchTime:
    """How long a batch takes, on the slow side: ``tau0_ms + alpha_ms · rows``."""

    alpha_ms: Annotated[float, decimal()]
    tau0_ms: Annotated[float, decimal()]


@dataclass(frozen=True, slots=True)
class BatchLine:
    """How long a batch takes on one kind of device, as measured: ``tau0_ms + alpha_ms · rows`` in the middle."""

    product: Annotated[str, PRODUCT]
    slice: Annotated[str, SLICE_KIND]
    instances: Annotated[int, integer(1, 1024)]
    """That ran at once on the device."""
    batch: Annotated[int, integer(1, 65536)]
    """Largest batch that was measured, rows."""
    alpha_ms: Annotated[float, decimal()]
    tau0_ms: Annotated[float, decimal()]
    spread_ms: Annotated[float, decimal()] = 0.0
    """What the slowest of a hundred batches takes longer."""


@dataclass(frozen=True, slots=True)
class ServedMember:
    """What the node has to know of a member beyond the service's spec."""

    name: Annotated[str, LABEL]
    digest: Annotated[str | None, DIGEST] = None
    """Of the model file to run; absent until somebody has fetched it."""
    batch_time: BatchTime | None = None
    """Absent: not measured, so nothing is dropped before its deadline."""
    batch_lines: Annotated[tuple[BatchLine, ...], ListOf(record(BatchLine), most=MOST_LINES)] = ()
    """On the kinds of device where it is placed; empty: the node keeps to the batches and instances of the plan."""
    routes: Annotated[tuple[Route, ...], ListOf(record(Route), most=MOST_ROUTES, key="node")] = ()


@dataclass(frozen=True, slots=True)
class ServedService:
    """The version of a ModelService that the node shall run: pinned, so that a change of the ModelService
    arrives when it is measured and planned, and everywhere by the operator's decision.
    """

    name: Annotated[str, SERVED_NAME]
    generation: Annotated[int, GENERATION]
    """``metadata.generation`` of the ModelService whose spec this is."""
    spec: ModelServiceSpec
    members: Annotated[
        tuple[ServedMember, ...], ListOf(record(ServedMember), most=MOST_PLACED, key="name")
    ] = ()
    hold: Annotated[int, integer(0, 100_000)] = 0
    """Requests that may wait here while no instance runs anywhere."""


@dataclass(frozen=True, slots=True)
class RuntimeNodeSpec:
    """What the pod shall run."""

    epoch: Annotated[int, EPOCH]
    plan_ref: NameRef | None = None
    devices: Annotated[
        tuple[Device, ...], ListOf(record(Device), most=MOST_DEVICES, key="uuid")
    ] = ()
    services: Annotated[
        tuple[ServedService, ...], ListOf(record(ServedService), most=MOST_SERVICES, key="name")
    ] = ()
    """Every service that has an instance here, or whose requests may come here."""
    candidates: Annotated[
        tuple[ServedService, ...], ListOf(record(ServedService), most=MOST_CANDIDATES, key="name")
    ] = ()
    """Versions that are measured here: what ``profiling`` and ``tuning`` are about."""
    profiling: Annotated[tuple[ProfilingTask, ...], ListOf(record(ProfilingTask))] = ()
    tuning: Annotated[tuple[TuningTask, ...], ListOf(record(TuningTask), most=MOST_TASKS)] = ()
    """Each on a slice of its own; one that is no longer here is ended at once."""


@dataclass(frozen=True, slots=True)
class SliceStatus:
    """A MIG instance that exists."""

    uuid: Annotated[str, DEVICE_ID]
    profile: Annotated[str, MIG_PROFILE]
    start: Annotated[int, START]
    jpeg_engines: Annotated[int | None, JPEG_ENGINES] = None


@dataclass(frozen=True, slots=True)
class InstanceStatus(Instance):
    """Copies of one member that exist."""

    ready: Annotated[int, integer(0, 1024)] = 0
    """How many of ``count`` answer."""
    memory_mib: Annotated[int, integer(), Name("memoryMiB")] = 0
    """Of all of them together."""


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
    problem: Annotated[str, text(256)] = ""
    """Why it is not healthy, or why something that it is cut into is not offered, in words."""
    index: Annotated[int | None, integer(0, 255)] = None
    """Of a GPU: NVML's on this node, by which NVIDIA's MIG manager is told of it."""
    jpeg_engines: Annotated[int | None, JPEG_ENGINES] = None
    """Of a whole GPU."""


class CutProblem(StrEnum):
    """Why a device is not cut as wanted."""

    NOT_PARTITIONABLE = "NotPartitionable"
    """The device or its driver cannot be cut so."""
    RESET_REQUIRED = "ResetRequired"
    """MIG is off, and only a reset of the GPU switches it on."""
    IN_USE = "InUse"
    """Processes hold what has to go."""
    NO_ROOM = "NoRoom"
    """The driver has no place: somebody else cuts too."""
    NOT_PERMITTED = "NotPermitted"
    DRIVER_LOST = "DriverLost"
    OUT_OF_TIME = "OutOfTime"
    MANAGER_FAILED = "ManagerFailed"
    """NVIDIA's MIG manager says so, and does not try again by itself."""
    CHANGED_BY_HAND = "ChangedByHand"
    """Somebody else asked NVIDIA's MIG manager for another geometry meanwhile: that one stays."""
    FAILED = "Failed"
    """The driver says something else."""


@dataclass(frozen=True, slots=True)
class CutStatus:
    """What the partitioner of the node says of one device."""

    uuid: Annotated[str, DEVICE_ID]
    slices: Annotated[
        tuple[SliceStatus, ...], ListOf(record(SliceStatus), most=16, key="uuid")
    ] = ()
    """As they are, at their real places."""
    generation: Annotated[int, GENERATION] = 0
    """Of the RuntimeNode whose ``cut`` was tried last; 0: none was."""
    problem: CutProblem | None = None
    """Absent: what that generation wants is done."""
    message: Annotated[str, text(1024)] = ""
    """What it tried and what helps; empty where there is no problem."""


@dataclass(frozen=True, slots=True)
class Correction:
    """What batches of one member take here on one kind of device, over what was measured."""

    member: Annotated[str, LABEL]
    product: Annotated[str, PRODUCT]
    slice: Annotated[str, SLICE_KIND]
    ratio: Annotated[float, decimal()]
    """1: as measured; 2: twice as long."""
    latency_ratio: Annotated[float | None, decimal()] = None
    """Mean latency over what the lines say for the arrivals that came; absent where the exact mean says nothing: several
    instances, arrivals unlike Poisson, refusals, a cap that is reached.
    """


@dataclass(frozen=True, slots=True)
class ServedStatus:
    """What the server of this node does for one service, counted since the server started."""

    name: Annotated[str, SERVED_NAME]
    generation: Annotated[int, GENERATION] = 0
    """Of the version that answers."""
    ready: bool = False
    """Whether a request that comes here is answered, by this node and those that it passes work on to."""
    held: Annotated[int, integer()] = 0
    """Requests that wait for a first instance."""
    good: Annotated[int, integer(0, MOST_COUNT)] = 0
    """Requests within the SLO's target, of ``total``."""
    total: Annotated[int, integer(0, MOST_COUNT)] = 0
    latency_buckets: Annotated[tuple[int, ...], ListOf(integer(0, MOST_COUNT))] = ()
    """Requests by latency, per bucket and not cumulative, in the runtime's fixed bucket bounds."""
    problem: Annotated[str, text(1024)] = ""
    """Why it is not ready, in words."""
    corrections: Annotated[tuple[Correction, ...], ListOf(record(Correction), most=MOST_LINES)] = ()
    """Of what ran enough batches to say."""


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
    observed_generation: Annotated[int | None, GENERATION] = None
    """Of the spec that the server was told last."""
    pod: Annotated[str | None, SUBDOMAIN] = None
    address: Annotated[str | None, text(64)] = None
    """Of the pod, where it can be reached from other pods."""
    devices: Annotated[
        tuple[DeviceStatus, ...], ListOf(record(DeviceStatus), most=MOST_DEVICES, key="uuid")
    ] = ()
    cuts: Annotated[
        tuple[CutStatus, ...], ListOf(record(CutStatus), most=MOST_DEVICES, key="uuid")
    ] = ()
    """Written by the partitioner; none where nobody may cut."""
    cpu: CpuStatus | None = None
    services: Annotated[
        tuple[ServedStatus, ...], ListOf(record(ServedStatus), most=MOST_SERVICES, key="name")
    ] = ()
    profiles: Annotated[tuple[ProfileResult, ...], ListOf(record(ProfileResult), most=64)] = ()
    tuning: Annotated[tuple[TuningResult, ...], ListOf(record(TuningResult), most=MOST_TASKS)] = ()
    fallbacks: Annotated[
        tuple[FallenBack, ...], ListOf(record(FallenBack), most=MOST_FALLBACKS)
    ] = ()
    """Variants of ``devices`` in the spec that run untuned here, and why."""
    taints: Annotated[tuple[TaintStatus, ...], ListOf(record(TaintStatus), most=64)] = ()


@dataclass(frozen=True, slots=True)
class RuntimeNode(Resource):
    """One runtime pod."""

    KIND: ClassVar[str] = "RuntimeNode"

    metadata: ClusterMeta
    spec: RuntimeNodeSpec
    status: RuntimeNodeStatus = RuntimeNodeStatus()
