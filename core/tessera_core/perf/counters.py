"""What a server counts of one member, and how bursty the gaps between arrivals are.

Counters only grow. So whoever reads them now and then takes differences, and misses nothing of what was between.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

FEWEST_GAPS = 30
"""From which their variation says something; fewer are taken for Poisson's."""


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
    gaps: int = 0
    """Between one arrival, of any number of rows, and the next; those that are too long to say anything left out."""
    gaps_s: float = 0.0
    """Their sum."""
    gaps_s2: float = 0.0
    """Sum of their squares."""


def gone_back(one: Counters, two: Counters) -> str | None:
    """What is smaller in ``two``, which was counted later, than in ``one``: another server. None: nothing."""
    for field in fields(Counters):
        if getattr(two, field.name) < getattr(one, field.name):
            return field.name
    return None


def gap_cv2(gaps: int, total: float, squares: float) -> float:
    """Squared coefficient of variation of so many gaps, from their sum and that of their squares, in any unit of time.

    1, as of Poisson arrivals, for fewer than ``FEWEST_GAPS`` and where all came at once.
    """
    if gaps < FEWEST_GAPS or total <= 0:
        return 1.0
    return max(0.0, gaps * squares / total**2 - 1.0)
