"""Everything the planner knows, as one frozen value.

A plan is a pure function of this value and a budget, so that a saved state replays offline, a what-if is an
edited copy, and the same facts give the same plan. Documents are read into it by ``state_in.py``.

A node's processor cores are one more device: they are cut into sets of cores as a GPU is cut into slices.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated

from tessera_core.api import ModelService
from tessera_core.api.meta import LABEL
from tessera_core.api.records import Name
from tessera_core.api.runtimepool import TaintEffect, Toleration
from tessera_core.api.scalars import decimal, integer, milliseconds
from tessera_core.gpu.devices import FULL, DeviceClass
from tessera_core.gpu.geometry import Geometry
from tessera_core.gpu.mig import GpuModel
from tessera_core.perf import LatencyProfile

CPU = "cpu"
"""Product of processor cores, as in ``DeviceClass``."""


class Goal(StrEnum):
    """What counts once every service has what it asked for."""

    MINIMISE_COST = "MinimiseCost"
    MAXIMISE_RATE = "MaximiseRate"
    """Use all there is: the objective of a fixed cluster."""


@dataclass(frozen=True, slots=True)
class Policy:
    """What the platform team decides for all services."""

    objective: Goal = Goal.MINIMISE_COST
    headroom: Annotated[float, decimal(least=1, most=10, example="1.1")] = 1.0
    """Capacity that is planned, as a multiple of the expected rate."""
    overhead_ms: Annotated[float, milliseconds(), Name("overhead")] = 1.0
    """Part of every latency target kept for what happens outside the members' queues, ms."""
    reserved_cores: Annotated[int, integer(0, 1024)] = 0
    """Cores of every node that no instance gets: dispatcher, agent and preprocessing run there."""
    neighbour_derate: Annotated[float, decimal(least=1, most=3, example="1.08")] = 1.08
    """Factor on batch times of a slice that was measured with idle neighbours only. Slices share power: a
    busy board costs an A100 slice up to 8 %, an A30 slice up to 20 % (MLPerf inference v2.0 MIG logs)."""
    slack: Annotated[float, decimal(least=0, most=1, example="0.1")] = 0.1
    """Share of a running member's capacity that a lower rate must leave unused before any of it is taken
    away: a rate that wavers by less moves nothing."""
    min_gain_percent: Annotated[float, decimal(least=0, most=100, example="5")] = 2.0
    """Least saving, percent of the cost of the used devices, that is worth moving what runs."""
    max_moves: Annotated[int, integer(0, 100_000)] = 64
    """Running instances that one plan may move to save cost; what is needed to serve is not counted."""


@dataclass(frozen=True, slots=True)
class Budget:
    """Work that a plan may cost, in units that do not depend on the machine."""

    max_iterations: Annotated[int, integer(0, 1_000_000)] = 2_000
    """Rearrangements tried to save cost or to serve more."""
    max_nodes: Annotated[int, integer(0, 1_000_000)] = 0
    """Branch-and-bound nodes of the exact refinement; 0: it is left out."""


@dataclass(frozen=True, slots=True, order=True)
class Slice:
    """An exact part of one device."""

    name: str = FULL
    """``full``, a MIG profile, or ``cpu-N``."""
    start: int = 0
    """First memory slice of a MIG profile; first core of a CPU set."""
    cores: tuple[int, ...] = ()
    """The cores of a CPU set, ascending."""


@dataclass(frozen=True, slots=True, order=True)
class Running:
    """Instances of one member that a device has now."""

    service: str
    member: str
    slice: Slice
    batch: int
    instances: int


@dataclass(frozen=True, slots=True)
class DeviceState:
    """One GPU, or all processor cores of a node."""

    uuid: str
    product: str
    """NVML name in label form, or ``cpu``."""
    memory_mib: int
    model: GpuModel | None = None
    """The board's table; None: not a board that is known."""
    cuttable: bool = False
    """Whether the device supports MIG here; virtual machines may hide it."""
    cores: int = 0
    """Cores of a CPU device, numbered from 0 within what the runtime may use; 0 for a GPU."""
    geometry: Geometry | None = None
    """Present slices; None: MIG is off and the device is used whole."""
    running: tuple[Running, ...] = ()
    healthy: bool = True
    jpeg_engines: tuple[tuple[str, int], ...] = ()
    """By kind of present part (``full`` or a profile), of those whose engines NVML has counted; sorted."""

    @property
    def is_cpu(self) -> bool:
        return self.product == CPU

    @property
    def parts(self) -> tuple[str, ...]:
        """Kinds of parts of a GPU as it is cut now, sorted."""
        if self.geometry is None:
            return (FULL,)
        return tuple(sorted({each.profile for each in self.geometry}))


@dataclass(frozen=True, slots=True, order=True)
class Taint:
    """A Kubernetes taint of a node."""

    key: str
    value: str
    effect: TaintEffect


@dataclass(frozen=True, slots=True)
class NodeState:
    """One node of a pool and its devices."""

    name: str
    pool: str
    devices: tuple[DeviceState, ...]
    labels: tuple[tuple[str, str], ...] = ()
    taints: tuple[Taint, ...] = ()
    """What they mean for the pool's instances: ``taints.admission_of``."""


@dataclass(frozen=True, slots=True)
class PoolRules:
    """What may be done with the nodes of one pool, and what they cost."""

    name: str
    labels: tuple[tuple[str, str], ...] = ()
    partition: bool = False
    """Whether GPUs may be cut anew; otherwise their geometry is never touched."""
    allowed_profiles: tuple[str, ...] | None = None
    """MIG profiles that a new geometry may have; None: all."""
    shared_between_namespaces: bool = False
    """Whether one node, hence one server process tree, may hold models of several namespaces."""
    allow_code: bool = False
    """Whether models that execute as code may run here."""
    cost_per_node_hour: float | None = None
    idle_watts: float = 0.0
    """Power of one idle GPU, W: of plans that cost the same, the one that keeps fewer watts on wins."""
    tolerations: tuple[Toleration, ...] = ()
    """In the order of the document: of several that match a taint, Kubernetes takes the first."""
    whole_nodes: bool = False
    """Whether nothing may run on a node while one of its GPUs is cut: NVIDIA's MIG manager stops all that uses GPUs."""


@dataclass(frozen=True, slots=True)
class Quota:
    """What one namespace may have of the shared devices; None: as much as it wants."""

    namespace: Annotated[str, LABEL]
    slices: Annotated[int | None, integer()] = None
    """Parts of devices."""
    shares: Annotated[float | None, decimal(least=0, example="2.5")] = None
    """Whole devices, a slice counting as its share of the device's SMs."""


@dataclass(frozen=True, slots=True)
class Measured:
    """The measurement of one model on one kind of place.

    Memory is not part of the key: drivers report it a little differently for equal slices.
    """

    digest: str
    place: DeviceClass
    profile: LatencyProfile
    """As measured."""
    engine: str = ""
    """Name and version of what ran it."""
    drift: float = 1.0
    """What batches take where they run, over ``profile``."""

    @property
    def key(self) -> tuple[str, str, str]:
        return self.digest, self.place.product, self.place.slice

    @property
    def expected(self) -> LatencyProfile:
        """What plans count with: batches that take longer than measured, where they do.

        Batches that take less are no reason to place less. Profiles are measured with all instances busy, and at part load
        they may be faster: fewer would be busier, take as long as measured again, and more be placed.
        """
        return self.profile.scaled(self.drift) if self.drift > 1 else self.profile


@dataclass(frozen=True, slots=True)
class ClusterState:
    """The facts of one planning round. The order of nodes, services and measurements does not matter."""

    nodes: tuple[NodeState, ...] = ()
    services: tuple[ModelService, ...] = ()
    measured: tuple[Measured, ...] = ()
    pools: tuple[PoolRules, ...] = ()
    policy: Policy = Policy()
    budget: Budget = Budget()
    digests: tuple[tuple[str, str, str], ...] = ()
    """(service, member, digest) of models whose content is known; not needed where the spec states it."""
    priorities: tuple[tuple[str, int], ...] = ()
    """Values of the PriorityClasses, by name; those that every cluster has need not be among them."""
    default_priority_class: str | None = None
    """One of ``priorities``, for services that name none; None: their priority is 0."""
    quotas: tuple[Quota, ...] = ()
    """At most one per namespace."""
