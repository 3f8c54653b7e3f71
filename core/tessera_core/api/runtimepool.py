"""RuntimePool: which nodes serve, how many, what they cost, and how they may be cut. Written by the platform team."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated, ClassVar

from tessera_core.api.errors import FieldError
from tessera_core.api.meta import (
    CONDITIONS,
    LABEL_KEY,
    LABELS,
    SUBDOMAIN,
    ClusterMeta,
    Condition,
    Pairs,
    Resource,
)
from tessera_core.api.places import MIG_PROFILE
from tessera_core.api.quantities import Quantity
from tessera_core.api.records import ListOf, MapOf, Name, Rule, record
from tessera_core.api.scalars import decimal, duration, integer, matching, quantity, text

GPU_RESOURCE = "nvidia.com/gpu"
"""Extended resource of the NVIDIA device plugin; a pool without it is a CPU pool."""
CAPABILITIES_RESOURCE = "tessera.dev/mig-capabilities"
"""Extended resource of the partitioner: the device nodes of all MIG instances that a node's GPUs can ever have."""
MOST_GPUS = 64
"""Of one node."""

# Five fields; what they mean is for whoever evaluates them against a clock.
CRON = matching(
    r"[0-9A-Za-z*/,-]{1,40}(?: [0-9A-Za-z*/,-]{1,40}){4}",
    'a cron schedule of five fields such as "0 2 * * 6"',
    204,
)


class TolerationOperator(StrEnum):
    """How a toleration compares the taint's value."""

    EQUAL = "Equal"
    EXISTS = "Exists"


class TaintEffect(StrEnum):
    """What a taint does to pods that do not tolerate it."""

    NO_SCHEDULE = "NoSchedule"
    PREFER_NO_SCHEDULE = "PreferNoSchedule"
    NO_EXECUTE = "NoExecute"


class PartitionBackend(StrEnum):
    """Who cuts the GPUs: the own partitioner, NVIDIA's MIG manager, or nobody."""

    NVML = "NVML"
    MIG_MANAGER = "MigManager"
    STATIC = "Static"


class Sharing(StrEnum):
    """How the instances of a namespace share a GPU or slice: in one process, or each in its own through NVIDIA's
    Multi-Process Service.
    """

    STREAMS = "Streams"
    MPS = "MPS"


class Approval(StrEnum):
    """Whether a plan that re-cuts waits for a person."""

    AUTO = "Auto"
    MANUAL = "Manual"


class Measure(StrEnum):
    """Whether GPUs that nothing runs on are cut to measure models on slices that are not there yet."""

    AUTO = "Auto"
    NEVER = "Never"


def _no_key_means_every_key(toleration: Toleration) -> Iterator[FieldError]:
    if not toleration.key and toleration.operator is not TolerationOperator.EXISTS:
        allowed = '"Exists" where key is absent, which means every taint'
        yield FieldError("operator", f"'{toleration.operator.value}'", allowed)


def _exists_compares_no_value(toleration: Toleration) -> Iterator[FieldError]:
    if toleration.value and toleration.operator is TolerationOperator.EXISTS:
        allowed = 'no value where operator is "Exists", which means every value'
        yield FieldError("value", repr(toleration.value), allowed)


def _only_eviction_waits(toleration: Toleration) -> Iterator[FieldError]:
    evicts = toleration.effect is TaintEffect.NO_EXECUTE
    if toleration.toleration_seconds is not None and not evicts:
        found = str(toleration.toleration_seconds)
        yield FieldError("tolerationSeconds", found, 'nothing unless effect is "NoExecute"')


@dataclass(frozen=True, slots=True)
class Toleration:
    """A Kubernetes toleration, with the rules by which the API server takes it into a pod."""

    RULES: ClassVar[tuple[Rule, ...]] = (
        _no_key_means_every_key,
        _exists_compares_no_value,
        _only_eviction_waits,
    )

    key: Annotated[str | None, LABEL_KEY] = None
    """Absent, with Exists: every taint."""
    operator: TolerationOperator = TolerationOperator.EQUAL
    value: Annotated[str | None, text(63)] = None
    effect: TaintEffect | None = None
    """Absent: every effect."""
    toleration_seconds: Annotated[int | None, integer()] = None


def _whole_gpus(node: NodeShape) -> Iterator[FieldError]:
    gpus = dict(node.resources).get(GPU_RESOURCE)
    if gpus is not None and (gpus.value % 1 or gpus.value > MOST_GPUS):
        allowed = f"a whole number of GPUs, {MOST_GPUS} at most"
        yield FieldError(f"resources[{GPU_RESOURCE}]", gpus.text, allowed)


def _shared_memory_is_memory(node: NodeShape) -> Iterator[FieldError]:
    memory = dict(node.resources).get("memory")
    if memory and node.shared_memory and node.shared_memory.value > memory.value:
        allowed = f"at most resources.memory, which is {memory.text}: it is counted as memory"
        yield FieldError("sharedMemory", node.shared_memory.text, allowed)


@dataclass(frozen=True, slots=True)
class NodeShape:
    """One node of the pool: where its pod runs and what it asks for."""

    RULES: ClassVar[tuple[Rule, ...]] = (_whole_gpus, _shared_memory_is_memory)

    resources: Annotated[
        tuple[tuple[str, Quantity], ...], MapOf(LABEL_KEY, quantity(), least=1, most=32)
    ]
    """All GPUs of the node, so that nothing else is given one; no GPU makes a CPU pool."""
    selector: Annotated[Pairs, LABELS] = ()
    tolerations: Annotated[tuple[Toleration, ...], ListOf(record(Toleration), most=32)] = ()
    runtime_class_name: Annotated[str | None, SUBDOMAIN] = None
    shared_memory: Annotated[Quantity | None, quantity()] = None
    """Size of the memory-backed volume for tensors."""


@dataclass(frozen=True, slots=True)
class Headroom:
    """Capacity kept free for growth."""

    percent: Annotated[float, decimal(least=0, most=100, example="10")] = 0.0
    """Further nodes with a runtime pod, as a share of those in use: they take work at once."""
    spare_nodes: Annotated[int, integer(0, 5000)] = 0
    """Nodes without a runtime pod that a cluster autoscaler is to have ready; other workloads may use them meanwhile."""


def _min_at_most_max(size: PoolSize) -> Iterator[FieldError]:
    if size.min > size.max:
        yield FieldError("min", str(size.min), f"at most max, which is {size.max}")


@dataclass(frozen=True, slots=True)
class PoolSize:
    """How many nodes."""

    RULES: ClassVar[tuple[Rule, ...]] = (_min_at_most_max,)

    max: Annotated[int, integer(0, 5000)]
    min: Annotated[int, integer(0, 5000)] = 0
    headroom: Headroom = Headroom()
    scale_down_delay_s: Annotated[float, duration(most=86_400), Name("scaleDownDelay")] = 300.0
    """How long nothing has to be on a node before it is given back."""


@dataclass(frozen=True, slots=True)
class PoolCost:
    """What a node costs: what plans are compared by."""

    per_node_hour: Annotated[float, decimal(least=0, example="24.5")] = 0.0
    """In the platform's currency."""
    idle_watts: Annotated[float, decimal(least=0, example="75")] = 0.0
    """Power of one idle GPU, W; 0: not known. Decides between plans of equal price."""


@dataclass(frozen=True, slots=True)
class Trust:
    """What tenants may do to each other here. Both are off unless the platform team says otherwise."""

    shared_between_namespaces: bool = False
    allow_code: bool = False
    """TorchScript and Python models, which run their author's code."""


@dataclass(frozen=True, slots=True)
class MaintenanceWindow:
    """A time in which disruption is allowed."""

    schedule: Annotated[str, CRON]
    """Start, UTC."""
    duration_s: Annotated[float, duration(above=0), Name("duration")]


@dataclass(frozen=True, slots=True)
class Disruption:
    """How much re-cutting may disturb."""

    max_nodes: Annotated[int, integer(1, 5000)] = 1
    """Nodes re-cut at once."""
    drain_timeout_s: Annotated[float, duration(above=0), Name("drainTimeout")] = 600.0
    min_interval_s: Annotated[float, duration(), Name("minInterval")] = 1800.0
    """Between two re-cuts of one node."""
    windows: Annotated[
        tuple[MaintenanceWindow, ...], ListOf(record(MaintenanceWindow), most=32)
    ] = ()
    """Empty: at any time."""
    min_gain_percent: Annotated[float, decimal(least=0, most=100, example="15")] = 15.0
    """Least saving in cost that is worth a re-cut."""


@dataclass(frozen=True, slots=True)
class Partition:
    """How MIG geometry may be changed."""

    backend: PartitionBackend = PartitionBackend.NVML
    allowed_profiles: Annotated[tuple[str, ...], ListOf(MIG_PROFILE, most=32)] = ()
    """Empty: every profile of the product."""
    approval: Approval = Approval.MANUAL
    measure: Measure = Measure.AUTO
    """Only where the backend is NVML."""
    disruption: Disruption = Disruption()


def _partition_needs_gpus(spec: RuntimePoolSpec) -> Iterator[FieldError]:
    gpus = dict(spec.node.resources).get(GPU_RESOURCE)
    if spec.partition is not None and (gpus is None or not gpus.value):
        allowed = f"no partition in a pool whose nodes have no {GPU_RESOURCE}"
        yield FieldError("partition", "a partition", allowed)


def _mps_needs_gpus(spec: RuntimePoolSpec) -> Iterator[FieldError]:
    gpus = dict(spec.node.resources).get(GPU_RESOURCE)
    if spec.sharing is Sharing.MPS and (gpus is None or not gpus.value):
        allowed = f'"Streams" in a pool whose nodes have no {GPU_RESOURCE}'
        yield FieldError("sharing", "'MPS'", allowed)


@dataclass(frozen=True, slots=True)
class RuntimePoolSpec:
    """The nodes and the rules for them."""

    RULES: ClassVar[tuple[Rule, ...]] = (_partition_needs_gpus, _mps_needs_gpus)

    node: NodeShape
    size: PoolSize
    cost: PoolCost = PoolCost()
    trust: Trust = Trust()
    partition: Partition | None = None
    """Absent: the geometry is never touched."""
    sharing: Sharing = Sharing.STREAMS
    """GPUs under MPS are another product: what was measured on the others does not count there."""


@dataclass(frozen=True, slots=True)
class RuntimePoolStatus:
    """What the pool has."""

    conditions: Annotated[tuple[Condition, ...], CONDITIONS] = ()
    nodes: Annotated[int, integer()] = 0
    gpus: Annotated[int, integer()] = 0
    free_capacity: Annotated[tuple[tuple[str, int], ...], MapOf(text(256), integer())] = ()
    """Free places by device class."""
    cost: Annotated[float | None, decimal(least=0)] = None
    """Per hour, of the nodes there are."""


@dataclass(frozen=True, slots=True)
class RuntimePool(Resource):
    """A shape of node to serve on."""

    KIND: ClassVar[str] = "RuntimePool"

    metadata: ClusterMeta
    spec: RuntimePoolSpec
    status: RuntimePoolStatus = RuntimePoolStatus()
