"""The rate of every service in every slot: days, weekends, growth, bursts and noise.

A year of thousands of services does not fit into memory in one piece, so rates are made a stretch of slots at a time;
stretches are of one fixed length, each with a random stream of its own, so that any may be made without the others.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tessera_core.simulate.fleet.facts import DAY_S, Fleet
from tessera_core.simulate.fleet.services import Services

Grid = NDArray[np.float32]
Index = NDArray[np.int32]

STRETCH = 2016
"""Slots; a week of five-minute slots."""
NOISE = 0.05
"""Standard deviation of a slot's rate, as a share of it, beside everything else."""
_HOUR_S, _WEEK_S = 3600.0, 7 * DAY_S


@dataclass(frozen=True, slots=True, eq=False)
class Rates:
    """Requests per second by slot and service."""

    fleet: Fleet
    services: Services
    changes: tuple[Index, Index, Grid]
    """Where bursts begin and end: slot, service, what is added to the rate's factor; sorted by slot."""

    @classmethod
    def of(cls, fleet: Fleet, services: Services) -> Rates:
        return cls(fleet, services, _bursts(fleet, services))

    def stretches(self) -> Iterator[tuple[int, Grid]]:
        """First slot and rates, shape (slots, services), until the horizon."""
        for first in range(0, self.fleet.slots, STRETCH):
            yield first, self.stretch(first)

    def stretch(self, first: int) -> Grid:
        """Rates of the slots from ``first`` on, a multiple of ``STRETCH``; shape (slots, services)."""
        if first % STRETCH:
            raise ValueError(f"first: must be a multiple of {STRETCH}, found {first}")
        fleet, services = self.fleet, self.services
        count = min(STRETCH, fleet.slots - first)
        middle_s = (np.arange(first, first + count) + 0.5) * fleet.slot_s
        hours = (middle_s % DAY_S / _HOUR_S).astype(np.float32)[:, None]
        turn = (hours - services.peak_hour.astype(np.float32)) * np.float32(2 * np.pi / 24)
        rates: Grid = 1 + services.swing.astype(np.float32) * np.cos(turn)
        weekend = (middle_s % _WEEK_S >= 5 * DAY_S)[:, None]
        rates *= np.where(weekend, services.weekend, 1.0).astype(np.float32)
        grown = (middle_s / fleet.horizon_s)[:, None] * (services.growth - 1)
        rates *= (1 + grown).astype(np.float32)
        rates *= self._burst_factor(first, count)
        rng = np.random.default_rng([fleet.seed, 1, first])
        noise = rng.standard_normal(rates.shape, dtype=np.float32)
        rates *= np.maximum(1 + np.float32(NOISE) * noise, 0)
        rates *= services.rate_per_s.astype(np.float32)
        return rates

    def _burst_factor(self, first: int, count: int) -> Grid:
        slots, services, added = self.changes
        begun, ended = np.searchsorted(slots, (first, first + count))
        factor = np.zeros((count, len(self.services.names)), dtype=np.float32)
        before = np.zeros(factor.shape[1], dtype=np.float64)
        np.add.at(before, services[:begun], added[:begun])
        np.add.at(factor, (slots[begun:ended] - first, services[begun:ended]), added[begun:ended])
        factor[0] += before.astype(np.float32)
        # Sums of what was added and taken away again are 0 up to rounding.
        bursting: Grid = 1 + np.maximum(np.cumsum(factor, axis=0, dtype=np.float32), 0)
        return bursting


def _bursts(fleet: Fleet, services: Services) -> tuple[Index, Index, Grid]:
    """Of all services over the whole horizon."""
    rng = np.random.default_rng([fleet.seed, 2])
    weeks = fleet.horizon_s / _WEEK_S
    counts = rng.poisson([weeks * each.per_week for each in services.bursts])
    owner = np.repeat(np.arange(len(counts), dtype=np.int32), counts)
    shares = rng.random((3, len(owner)))
    spans = np.log(
        [
            (each.height.low, each.height.high, each.minutes.low, each.minutes.high)
            for each in services.bursts
        ]
    )[owner]
    height = np.exp(spans[:, 0] + shares[0] * (spans[:, 1] - spans[:, 0]))
    length_s = 60 * np.exp(spans[:, 2] + shares[1] * (spans[:, 3] - spans[:, 2]))
    begins = shares[2] * fleet.horizon_s
    first = (begins / fleet.slot_s).astype(np.int32)
    last = np.ceil((begins + length_s) / fleet.slot_s).astype(np.int32)
    slots = np.concatenate((first, last))
    added = np.concatenate((height - 1, 1 - height)).astype(np.float32)
    order = np.argsort(slots, kind="stable")
    return slots[order], np.concatenate((owner, owner))[order], added[order]
