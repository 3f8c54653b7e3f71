"""What planning decides: placements, and typed refusals for what could not be placed."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from tessera_core.gpu.geometry import Geometry
from tessera_core.plan.state import Slice


class Why(StrEnum):
    """Why a member or service has less than it asked for; also the reason of the API condition."""

    NO_DEVICE = "NoDevice"
    """No healthy device matches the selectors."""
    FORMAT_NOT_ALLOWED = "FormatNotAllowed"
    """The model is code, and no matching pool allows that."""
    NO_PROFILE = "NoProfile"
    """Not measured on any matching kind of device."""
    INSUFFICIENT_MEMORY = "InsufficientMemory"
    INFEASIBLE = "Infeasible"
    """No device meets the latency target, however idle it is."""
    SPREAD_UNMET = "SpreadUnmet"
    """Too few nodes to spread over."""
    ISOLATION_UNMET = "IsolationUnmet"
    """There is room, but only beside tenants with which it may not be shared."""
    QUOTA_EXCEEDED = "QuotaExceeded"
    """The namespace has all the slices or shares that its quota allows."""
    INSUFFICIENT_CAPACITY = "InsufficientCapacity"
    MEMBER_REFUSED = "MemberRefused"
    """Another member without which the service cannot answer was refused."""


@dataclass(frozen=True, slots=True)
class Shortfall:
    """What would close the gap."""

    requests_per_second: float
    device: str
    """Device class that closes it at the least price."""
    devices: int
    """How many of it, each to itself."""
    alternatives: tuple[tuple[str, int], ...] = ()
    """Every device class that would close it, and how many of it: for who knows what is to be had."""


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why, in a type and in words."""

    why: Why
    detail: str
    shortfall: Shortfall | None = None
    best_ms: float | None = None
    """Infeasible: the best latency that any device reaches at the SLO's percentile, ms."""


@dataclass(frozen=True, slots=True)
class Assignment:
    """Instances of one member on one exact slice."""

    service: str
    member: str
    node: str
    device: str
    slice: Slice
    device_class: str
    batch: int
    """Batch cap, rows."""
    instances: int
    rate: float
    """Rows per second that they carry within the member's latency budget."""
    load: float
    """Rows per second that they are expected to get."""
    latency_ms: float
    """Predicted latency at ``load`` and the member's percentile, queue and inference, ms."""
    shares_with: tuple[str, ...] = ()
    """``service/member`` of the others on the same slice."""


@dataclass(frozen=True, slots=True)
class DevicePlan:
    """One device that the plan uses, or whose geometry it keeps."""

    node: str
    uuid: str
    product: str
    geometry: Geometry
    """Empty: not partitioned."""
    recut: bool
    """Whether the geometry differs from the present one."""
    assignments: tuple[Assignment, ...]


@dataclass(frozen=True, slots=True)
class ServicePlan:
    """One placed service."""

    service: str
    requests_per_second: float
    """Expected, without headroom."""
    max_requests_per_second: float
    """Predicted for the slowest member that every answer needs."""
    latency_ms: float
    """Predicted at the expected rate and the SLO's percentile, overhead included; at what is carried where
    that is less."""
    target_ms: float
    percentile: float
    short: Refusal | None = None
    """Set where the service is placed with less than it asked for: about its worst member, a required one
    before an optional one."""


@dataclass(frozen=True, slots=True)
class Plan:
    """A decision. Everything in it is sorted; ``name`` is a hash of what is to be done."""

    name: str
    devices: tuple[DevicePlan, ...]
    services: tuple[ServicePlan, ...]
    refused: tuple[tuple[str, str, Refusal], ...]
    """(service, member, refusal) of members that run nowhere although they should."""
    idle: tuple[str, ...]
    """Services scaled to zero."""
    cost: float
    """Price of the used devices per hour; where pools state none, one per GPU and 1/64 per core."""
    lower_bound: float
    """No plan that serves the fully served services costs less."""
    truncated: bool
    """Whether the budget ended the search."""

    @property
    def assignments(self) -> tuple[Assignment, ...]:
        """All of them, by device."""
        return tuple(each for device in self.devices for each in device.assignments)

    @property
    def gap_percent(self) -> float:
        """How far the cost is above the lower bound."""
        return 100 * (self.cost / self.lower_bound - 1) if self.lower_bound else 0.0
