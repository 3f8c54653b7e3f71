"""What a server counts of one member.

Counters only grow. So whoever reads them now and then takes differences, and misses nothing of what was between.
"""

from __future__ import annotations

from dataclasses import dataclass, fields


@dataclass(frozen=True, slots=True)
class Counters:
    """Of one member at one moment: all but the time only grow."""

    at_s: float
    """On a clock that does not jump."""
    arrived: int
    """Rows, whatever became of them."""
    batches: int
    batched: int
    """Rows in these batches."""
    answered: int
    latency_s: float
    """Over all that were answered, from arrival to answer."""
    lost: int
    """Refused, dropped, late or failed."""
    requests: int = 0
    """That came, whatever became of them."""
    groups: int = 0
    """Of gaps between arrivals of any number of rows: this and what follows as ``batching.arrivals`` counts them."""
    gaps: int = 0
    gaps_s: float = 0.0
    groups_s2: float = 0.0


def gone_back(one: Counters, two: Counters) -> str | None:
    """What is smaller in ``two``, which was counted later, than in ``one``: another server. None: nothing."""
    for field in fields(Counters):
        if getattr(two, field.name) < getattr(one, field.name):
            return field.name
    return None
