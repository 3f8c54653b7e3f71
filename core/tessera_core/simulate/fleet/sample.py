"""A slot of one service, request by request: what the tables say of it beside the discrete-event simulation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil

import numpy as np

from tessera_core.perf.service import ServiceModel
from tessera_core.simulate.arrivals import gamma
from tessera_core.simulate.fleet.tables import OVERHEAD_MS
from tessera_core.simulate.station import Station, simulate

GPUS_TOGETHER = 8
"""Whose parts take from one queue: those of a node."""
_LEAST_REQUESTS = 2_000


@dataclass(frozen=True, slots=True)
class Part:
    """Equal processes."""

    processes: int
    rate: float
    """Requests per second that all of them carry at the SLO."""
    alpha_ms: float
    tau0_ms: float
    cap: int


@dataclass(frozen=True, slots=True)
class Cell:
    """One service in one slot, in the steady state that the tables take it for."""

    slot: int
    service: str
    why: str
    """Why it was picked."""
    rate_per_s: float
    target_ms: float
    percent: float
    burstiness: float
    parts: tuple[Part, ...]
    gpus: float
    within: float
    """Share of the requests in time, as the tables say."""


def within_by_events(cell: Cell, requests: int, rng: np.random.Generator) -> float:
    """Share in time where each of about ``requests`` requests is simulated, late ones refused and dropped.

    The cell's parts are spread over as few nodes as hold them; one node is simulated, with its part of the rate. There
    parts of one kind take from one queue, and kinds get requests as they carry them. Requests still come long enough to be
    some, however few come in a slot.
    """
    nodes = max(1, ceil(cell.gpus / GPUS_TOGETHER))
    shares = [max(1, round(part.processes / nodes)) / part.processes for part in cell.parts]
    here = np.array([share * part.rate for share, part in zip(shares, cell.parts, strict=True)])
    rate = max(cell.rate_per_s, 1e-6) * here.sum() / sum(part.rate for part in cell.parts)
    seconds = max(requests, _LEAST_REQUESTS) / rate
    arrivals = gamma(rate, cell.burstiness, seconds, rng)
    kind = rng.choice(len(here), len(arrivals), p=here / here.sum())
    budget = cell.target_ms - OVERHEAD_MS
    in_time = 0.0
    for place, (part, share) in enumerate(zip(cell.parts, shares, strict=True)):
        model = ServiceModel(part.alpha_ms, part.tau0_ms, part.cap)
        station = Station(model.batch_times_ms(), round(share * part.processes))
        mine = arrivals[kind == place]
        in_time += simulate(station, mine, budget, admission=True).within(budget) * len(mine)
    return in_time / max(len(arrivals), 1)


@dataclass(frozen=True, slots=True)
class Agreement:
    """How the tables and the events agree over a sample."""

    cells: int
    by_tables: float
    """Mean share in time."""
    by_events: float
    typical: float
    """Median of the absolute differences."""
    most: float
    too_high: float
    """Share of the cells that the tables promise more than a hundredth too much."""


def agreement(cells: Sequence[Cell], by_events: Sequence[float]) -> Agreement:
    """Over one cell at least."""
    tables, events = np.array([each.within for each in cells]), np.array(by_events)
    off = tables - events
    return Agreement(
        len(cells),
        float(tables.mean()),
        float(events.mean()),
        float(np.median(np.abs(off))),
        float(np.abs(off).max()),
        float(np.mean(off > 0.01)),
    )
