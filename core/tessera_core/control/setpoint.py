"""What a policy sets, what it wants and what it sees. Policies are pure: time and measurements are given to them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, Protocol, TypeVar


@dataclass(frozen=True, slots=True)
class Setpoint:
    """What is set for one member on one kind of device. Raises ``ValueError`` naming the field below 1."""

    cap: int
    """Rows per batch, at most."""
    instances: int
    """That take batches."""

    def __post_init__(self) -> None:
        if self.cap < 1:
            raise ValueError(f"cap: must be >= 1, found {self.cap}")
        if self.instances < 1:
            raise ValueError(f"instances: must be >= 1, found {self.instances}")


@dataclass(frozen=True, slots=True)
class Goal:
    """What is wanted, and how far the setpoint may go. Raises ``ValueError`` naming the field."""

    slo_ms: float
    most: Setpoint
    """The largest batch that was measured, and the most instances that there is room for."""

    def __post_init__(self) -> None:
        if not self.slo_ms > 0:
            raise ValueError(f"slo_ms: must be positive, found {self.slo_ms}")


class Batch(NamedTuple):
    rows: int
    ms: float
    """Service time: what requests waited before is not in it."""


@dataclass(frozen=True, slots=True)
class Window:
    """What was seen since the last decision."""

    seconds: float
    arrivals: int
    """Rows that came, whatever became of them."""
    batches: tuple[tuple[Batch, ...], ...]
    """Of each instance, in order."""
    burstiness: float | None = None
    """Squared coefficient of variation of the gaps between arrivals, 1 for Poisson's; None where too few came to say."""
    rows_each: float = 1.0
    """Mean rows of a request: they come at once and are in one batch."""
    latencies: tuple[int, ...] = ()
    """Of the requests that were answered: how many, by ``perf.histogram.BOUNDS_S``. Empty where none was counted."""
    lost: int = 0
    """Requests that were refused, dropped or withdrawn: none of ``latencies``, where those were counted."""

    @property
    def batches_ms(self) -> tuple[float, ...]:
        """Of all instances."""
        return tuple(batch.ms for instance in self.batches for batch in instance)


class State(Protocol):
    """What a policy remembers between decisions."""

    @property
    def setpoint(self) -> Setpoint: ...

    @property
    def wait_s(self) -> float:
        """Until its next decision."""
        ...


StateT = TypeVar("StateT", bound=State)


class Policy(Protocol[StateT]):
    """A rule. ``start`` and ``step`` are functions of their arguments alone."""

    def start(self, goal: Goal) -> StateT:
        """Where to begin."""
        ...

    def step(self, state: StateT, window: Window, goal: Goal) -> StateT:
        """Decide, ``state.wait_s`` after the last decision; ``goal`` may have changed since."""
        ...
