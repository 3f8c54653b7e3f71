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

    The cell's parts are spread over as few nodes as hold them, one queue each; one node is simulated, with its part of the
    rate. Requests still come long enough to be some, however few come in a slot.
    """
    nodes = max(1, ceil(cell.gpus / GPUS_TOGETHER))
    stations = [
        Station(
            ServiceModel(part.alpha_ms, part.tau0_ms, part.cap).batch_times_ms(),
            max(1, round(part.processes / nodes)),
        )
        for part in cell.parts
    ]
    there = sum(
        each.instances * part.cap / (part.alpha_ms * part.cap + part.tau0_ms)
        for each, part in zip(stations, cell.parts, strict=True)
    )
    whole = sum(
        part.processes * part.cap / (part.alpha_ms * part.cap + part.tau0_ms) for part in cell.parts
    )
    rate = max(cell.rate_per_s, 1e-6) * there / whole
    seconds = max(requests, _LEAST_REQUESTS) / rate
    arrivals = gamma(rate, cell.burstiness, seconds, rng)
    served = simulate(stations, arrivals, cell.target_ms - OVERHEAD_MS, admission=True)
    return served.within(cell.target_ms - OVERHEAD_MS)


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
