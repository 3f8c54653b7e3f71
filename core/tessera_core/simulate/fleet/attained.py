"""How many requests of a stretch of slots were in time: what was decided, looked up in the tables, for all services at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tessera_core.simulate.fleet.policies import Policy
from tessera_core.simulate.fleet.sample import Cell, Part
from tessera_core.simulate.fleet.services import Services, Vector
from tessera_core.simulate.fleet.tables import LOADS, Grid

_BLOCK = 128
"""Slots at a time: what a block needs stays in the cache."""
_PER_LOAD = 1 / (LOADS[1] - LOADS[0])


@dataclass(frozen=True, slots=True)
class Short:
    """A service that has less than its state for the first part of a slot."""

    slot: int
    service: int
    part: float
    """Of the slot."""
    state: int
    """What it has meanwhile."""
    lost_rate: float
    """Requests per second that failed instances carried of that."""


@dataclass(frozen=True, slots=True, eq=False)
class Slots:
    """What was decided for a stretch."""

    first: int
    rates: Grid
    """Requests per second, shape (slots, services)."""
    states: NDArray[np.int32]
    share: Vector
    """Of what a state has, that there is; 1 but where a pool is too small."""
    short: tuple[Short, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Served:
    """Requests."""

    by_service: Vector
    """All, in time, lost; shape (3, services)."""
    by_slot: Vector
    """All, in time; shape (2, slots)."""


def attained(policy: Policy, slots: Slots, slot_s: float) -> Served:
    """The requests of all slots and services."""
    count = slots.rates.shape[1]
    by_service, by_slot = np.zeros((3, count)), np.zeros((2, len(slots.rates)))
    every = np.arange(count)
    for first in range(0, len(slots.rates), _BLOCK):
        some = slice(first, first + _BLOCK)
        rates = slots.rates[some]
        share = _share(policy, every, slots.states[some], rates, slots.share[some], 0.0)
        good = rates * share
        by_service[0] += rates.sum(axis=0, dtype=np.float64)
        by_service[1] += good.sum(axis=0, dtype=np.float64)
        by_slot[0, some] = rates.sum(axis=1, dtype=np.float64)
        by_slot[1, some] = good.sum(axis=1, dtype=np.float64)
    if slots.short:
        _correct(policy, slots, by_service, by_slot)
    return Served(by_service * slot_s, by_slot * slot_s)


def _correct(policy: Policy, slots: Slots, by_service: Vector, by_slot: Vector) -> None:
    """Replace what was counted with the whole state by what there was meanwhile."""
    row = np.array([each.slot - slots.first for each in slots.short])
    service = np.array([each.service for each in slots.short])
    part = np.array([each.part for each in slots.short])
    state = np.array([each.state for each in slots.short])
    lost_rate = np.array([each.lost_rate for each in slots.short])
    rates, there = slots.rates[row, service], slots.share[row, service]
    meant = _share(policy, service, slots.states[row, service], rates, there, 0.0)
    had = _share(policy, service, state, rates, there, lost_rate)
    fewer = np.maximum(meant - had, 0) * part * rates
    # Of a service that grows and fails in the same slot both are taken off, and never more than there was.
    _, first, cell = np.unique(
        row * slots.rates.shape[1] + service, return_index=True, return_inverse=True
    )
    most = (meant * rates)[first] / np.maximum(np.bincount(cell, weights=fewer), 1e-300)
    fewer *= np.minimum(most, 1.0)[cell]
    gone = policy.catalogue.capacity(service, state.astype(np.int64)) <= lost_rate * (1 + 1e-9)
    np.subtract.at(by_service[1], service, fewer)
    np.subtract.at(by_slot[1], row, fewer)
    np.add.at(by_service[2], service, np.where(gone, fewer, 0.0))


def _share(
    policy: Policy,
    services: NDArray[np.int64],
    states: NDArray[np.int32] | NDArray[np.int64],
    rates: Grid,
    there: Vector,
    lost_rate: Vector | float,
) -> Grid:
    """Share of the requests in time; ``there`` and ``lost_rate``: what there is of a state's capacity."""
    tables, state = policy.tables, states.astype(np.int64)
    capacity = np.maximum(policy.catalogue.capacity(services, state) * there - lost_rate, 1e-9)
    load = (rates / capacity * _PER_LOAD).astype(np.float32)
    last = len(LOADS) - 1
    beyond = np.maximum(load / last, 1)  # servers finish as much, whatever comes more
    load = np.minimum(load, np.float32(last - 1e-3))
    lower = load.astype(np.int64)
    kinds = tables.within.shape[1]
    flat = tables.within.reshape(-1)
    at = (services * kinds + policy.catalogue.bulk(services, state)) * len(LOADS) + lower
    below = flat.take(at)
    share: Grid = (below + (load - lower) * (flat.take(at + 1) - below)) / beyond
    return share.astype(np.float32)


def sampled(
    policy: Policy, slots: Slots, wanted: NDArray[np.int64], services: Services
) -> Sequence[Cell]:
    """The cells ``wanted``, (slot, service) by row, and as many of those that have less than they were to have."""
    cells = [
        _cell(policy, slots, services, int(slot), int(service), None, "as planned")
        for slot, service in wanted
    ]
    growing = [each for each in slots.short if not each.lost_rate]
    step = max(1, len(growing) // max(1, len(wanted)))
    for each in growing[::step][: len(wanted)]:
        cells.append(
            _cell(policy, slots, services, each.slot, each.service, each.state, "not yet grown")
        )
    return cells


def _cell(
    policy: Policy,
    slots: Slots,
    services: Services,
    slot: int,
    service: int,
    state: int | None,
    why: str,
) -> Cell:
    row = slot - slots.first
    has = np.array([slots.states[row, service] if state is None else state], dtype=np.int64)
    rate = slots.rates[row, [service]]
    at = np.array([service])
    share = _share(policy, at, has, rate, slots.share[row, at], 0.0)
    counts = policy.catalogue.counts(at, has)[0]
    tables = policy.tables
    return Cell(
        slot=slot,
        service=services.names[service],
        why=why,
        rate_per_s=float(rate[0]),
        target_ms=float(services.target_ms[service]),
        percent=float(services.percent[service]),
        burstiness=float(services.burstiness[service]),
        parts=tuple(
            Part(
                int(tables.processes[service, kind]) * int(number),
                float(tables.rate[service, kind]) * int(number),
                float(tables.alpha_ms[service, kind]),
                float(tables.tau0_ms[service, kind]),
                int(tables.cap[service, kind]),
            )
            for kind, number in enumerate(counts)
            if number
        ),
        gpus=float(tables.price[service][counts > 0] @ counts[counts > 0]),
        within=float(share[0]),
    )
