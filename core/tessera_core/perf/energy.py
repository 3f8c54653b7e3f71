"""Energy per row from the same queue: why a fleet should run few devices near what the SLO allows.

A batch of b rows takes beta*b + c0 joules above the idle power, so a row costs beta + c0/E[B] + idle/rate.
E[B] grows with the rate (Inoue 2021), hence efficiency never falls with it.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import inf, isfinite

from tessera_core.perf.batch_queue import BatchQueue
from tessera_core.perf.service import MS_PER_S, ServiceModel


@dataclass(frozen=True, slots=True)
class EnergyModel:
    """Energy of one instance's device share. Raises ``ValueError`` naming a field that is negative."""

    row_joules: float
    """beta: joules that each row adds to a batch."""
    batch_joules: float
    """c0: joules of every batch whatever its size."""
    idle_watts: float = 0.0
    """Power drawn by one instance all the time, busy or not."""

    def __post_init__(self) -> None:
        fields = (
            ("row_joules", self.row_joules),
            ("batch_joules", self.batch_joules),
            ("idle_watts", self.idle_watts),
        )
        for name, value in fields:
            if not (isfinite(value) and value >= 0):
                raise ValueError(f"{name}: must be a number >= 0, found {value}")


def joules_per_row(energy: EnergyModel, service: ServiceModel, rate_per_s: float) -> float:
    """Joules per row at ``rate_per_s`` rows per second under Poisson arrivals; ``inf`` where unstable.

    Several instances are taken as separate queues with an equal share each.
    """
    if not (isfinite(rate_per_s) and rate_per_s > 0):
        raise ValueError(f"rate_per_s: must be a positive number, found {rate_per_s}")
    each = rate_per_s / service.instances
    queue = BatchQueue.solve(service, each / MS_PER_S)
    if queue is None:
        return inf
    return energy.row_joules + energy.batch_joules / queue.mean_batch + energy.idle_watts / each
