"""An ensemble under load: every request goes to all member queues, and its latency is its slowest needed member's.

Members on separate servers see the same arrivals, so their queues are long together; the simulation has
that correlation, which the product bound of ``perf.ensemble`` leaves out on the safe side.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from tessera_core.simulate.station import Station, simulate

Vector = NDArray[np.float64]


def simulate_ensemble(
    stations: Sequence[Station],
    arrivals_ms: Vector,
    min_members: int | None = None,
    required: frozenset[int] = frozenset(),
) -> Vector:
    """Latency of each request, ms, shape (requests,): when ``min_members`` (None: all) have answered.

    ``required``: positions of members without which there is no answer; they count towards the minimum.

    Raises ``ValueError`` for no members, a quorum outside 1..members or an unknown required position.
    """
    members = len(stations)
    quorum = members if min_members is None else min_members
    if not 1 <= quorum <= members:
        raise ValueError(f"min_members: must be from 1 to {members} members, found {quorum}")
    if not required <= frozenset(range(members)):
        raise ValueError(f"required: positions must be below {members}, found {sorted(required)}")
    latencies = np.stack([simulate(station, arrivals_ms).latency_ms for station in stations])
    answered = np.partition(latencies, quorum - 1, axis=0)[quorum - 1]
    if required:
        answered = np.maximum(answered, latencies[sorted(required)].max(axis=0))
    return np.asarray(answered, dtype=np.float64)
