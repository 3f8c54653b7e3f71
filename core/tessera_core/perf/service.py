"""How long a batch takes: the affine law that the queue model and the simulator share.

Notation (Inoue, "Queueing Analysis of GPU-Based Inference Servers with Dynamic Batching", Performance
Evaluation 147, 2021): a batch of b rows takes tau(b) = alpha*b + tau0. Times are milliseconds everywhere
in this package. Rates are rows per SECOND in the public functions and rows per millisecond inside.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import isfinite

MS_PER_S = 1000.0


@dataclass(frozen=True, slots=True)
class ServiceModel:
    """One member on one device: batch time, batch cap and the number of instances behind one queue.

    With several instances on ONE device the coefficients are those measured with all of them busy:
    the slowdown they cause each other is already inside, and ``instances`` servers share one queue.

    Raises ``ValueError`` naming the field that is out of range.
    """

    alpha_ms: float
    """Milliseconds that each row adds to a batch, > 0."""
    tau0_ms: float
    """Milliseconds that every batch costs whatever its size, >= 0."""
    cap: int | None = None
    """Most rows in one batch; None: all that wait."""
    instances: int = 1
    """Servers on the one queue."""
    spread_ms: float = 0.0
    """Tail of the batch time itself: p99 - p50 of the largest batch. It is added to predicted percentiles."""

    def __post_init__(self) -> None:
        if not (isfinite(self.alpha_ms) and self.alpha_ms > 0):
            raise ValueError(f"alpha_ms: must be a positive number of ms, found {self.alpha_ms}")
        if not (isfinite(self.tau0_ms) and self.tau0_ms >= 0):
            raise ValueError(f"tau0_ms: must be a number of ms >= 0, found {self.tau0_ms}")
        if self.cap is not None and self.cap < 1:
            raise ValueError(f"cap: must be >= 1 or None, found {self.cap}")
        if self.instances < 1:
            raise ValueError(f"instances: must be >= 1, found {self.instances}")
        if not (isfinite(self.spread_ms) and self.spread_ms >= 0):
            raise ValueError(f"spread_ms: must be a number of ms >= 0, found {self.spread_ms}")

    def batch_ms(self, rows: float) -> float:
        """Service time of one batch of ``rows`` rows, ms."""
        return self.alpha_ms * rows + self.tau0_ms

    def batch_times_ms(self, largest: int | None = None) -> tuple[float, ...]:
        """Times of batches of 1, 2, ... rows up to the cap, ms: what the simulator runs on.

        ``largest`` ends the list of a service without a cap. Raises ``ValueError`` when both are missing.
        """
        end = self.cap if self.cap is not None else largest
        if end is None:
            raise ValueError("largest: a service without a cap needs a largest batch, found None")
        return tuple(self.batch_ms(rows) for rows in range(1, end + 1))

    @property
    def capacity_per_s(self) -> float:
        """Rows per second that all instances finish when every batch is as large as allowed.

        The queue is stable below it. It says nothing about latency.
        """
        per_ms = 1 / self.alpha_ms if self.cap is None else self.cap / self.batch_ms(self.cap)
        return self.instances * per_ms * MS_PER_S

    def scaled(self, factor: float) -> ServiceModel:
        """The same service with every time multiplied by ``factor`` > 0 (measured / predicted)."""
        return replace(
            self,
            alpha_ms=self.alpha_ms * factor,
            tau0_ms=self.tau0_ms * factor,
            spread_ms=self.spread_ms * factor,
        )

    def then(self, other: ServiceModel) -> ServiceModel:
        """The service of this member and ``other`` run back to back on one server: coefficients add.

        Raises ``ValueError`` when the two do not have the same number of instances.
        """
        if self.instances != other.instances:
            raise ValueError(
                f"instances: members that run back to back share their servers, "
                f"found {self.instances} and {other.instances}"
            )
        caps = [cap for cap in (self.cap, other.cap) if cap is not None]
        return ServiceModel(
            alpha_ms=self.alpha_ms + other.alpha_ms,
            tau0_ms=self.tau0_ms + other.tau0_ms,
            cap=min(caps, default=None),
            instances=self.instances,
            spread_ms=self.spread_ms + other.spread_ms,
        )
