"""Where a member's part of a request runs: here or at a peer.

Shortest expected delay: a place's rows, the request's own among them, by the rows that it carries per second
(the rule that Linux IPVS calls ``sed``: (connections + 1) / weight). Staying costs no hop and lets requests
share a batch, so work leaves only for a gain that is worth it. A pure function: what is known of the places
is told.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

MARGIN = 1.25
"""A peer has to be expected this many times as fast: what is known of it is as old as its last answer."""


@dataclass(frozen=True, slots=True)
class Place:
    """What is known of one place that takes work."""

    rows: float
    """Waiting or running there."""
    rate: float
    """Rows per second; 0 when it is said to carry nothing, which makes it the last resort."""

    def wait_s(self, rows: int) -> float:
        """Seconds until ``rows`` more would be answered."""
        return (self.rows + rows) / self.rate if self.rate > 0.0 else math.inf


@dataclass(frozen=True, slots=True)
class Choice:
    peer: int | None
    """Position among the peers; None: here."""
    wait_s: float


def choose(
    rows: int, local: Place | None, peers: Sequence[Place], patience_s: float
) -> Choice | None:
    """Where ``rows`` rows are expected to be done first; None when there is no place at all.

    ``local``: None where nothing here takes work. A peer is taken instead only when waiting here exceeds
    :data:`MARGIN` times the wait there by more than ``patience_s``. Of equal peers the first is taken, so
    a caller who shares them with others gives them in an order of its own.
    """
    best, best_s = None, math.inf
    for index, peer in enumerate(peers):
        wait_s = peer.wait_s(rows)
        if best is None or wait_s < best_s:
            best, best_s = index, wait_s
    if local is None:
        return None if best is None else Choice(best, best_s)
    local_s = local.wait_s(rows)
    if best is not None and MARGIN * best_s + patience_s < local_s:
        return Choice(best, best_s)
    return Choice(None, local_s)
