"""Measured latency of one model on one device class."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class Neighbours(str, Enum):
    """What ran beside the measured instances: MIG isolates memory and SMs, not the power budget."""

    IDLE = "Idle"
    BUSY = "Busy"


@dataclass(frozen=True, slots=True, order=True)
class ProfileRow:
    """One measured cell of the (batch, instances) grid."""

    batch: int
    """Rows per batch."""
    instances: int
    """Instances of the model that ran at once on the one device."""
    p50_ms: float
    """Median service time of one batch, milliseconds, gather and transfer included, queueing excluded."""
    p99_ms: float
    throughput: float
    """Rows per second over all ``instances``."""
    memory_mib: float
    """Device memory of all ``instances`` together, MiB."""
    neighbours: Neighbours = Neighbours.IDLE
