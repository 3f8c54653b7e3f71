"""Policies for capacity: what each service is to have in the next slot, from its rates so far.

- ``tessera``: parts for the largest rate of the last minutes and some headroom, cut as cheaply as they come; taken away
  when what is left has the slack for it. What the operator does (``traffic``, ``Policy.headroom``, ``Policy.slack``).
- ``one model per GPU``: the same, with whole GPUs only, each for one service.
- ``static peak``: parts for the rate that each service exceeds in one slot of a thousand, known beforehand, all year.
- ``HPA``: replicas of one GPU and one process each, so many that their GPUs are busy for a given share of the time, as
  a HorizontalPodAutoscaler on GPU utilisation does that KServe makes: ceil(replicas × share / target) beyond a tolerance
  of a tenth, and no fewer than it wanted in the last minutes. Its servers batch as well as the others do, which is more
  than KServe's batcher does: whatever waits, up to the cap that carries most within the SLO.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache
from math import ceil, log2
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from tessera_core.perf.batch_queue import BatchQueue
from tessera_core.perf.service import MS_PER_S, ServiceModel
from tessera_core.simulate.fleet.covers import STEP, Covers
from tessera_core.simulate.fleet.facts import Fleet
from tessera_core.simulate.fleet.rates import Rates
from tessera_core.simulate.fleet.services import Vector
from tessera_core.simulate.fleet.tables import Grid, Tables, tables_of

State = NDArray[np.int64]
"""By service: what it has, as its catalogue numbers it."""

STATIC_QUANTILE = 0.999
TOLERANCE = 0.1
"""Of an HPA: Kubernetes' default."""
_FULLEST = 0.97
_IDLEST = 0.01
_BUSY_POINTS = 20
_PER_OCTAVE = 8
_LEAST_OVERHEAD = 1 / 64
"""How finely the busy share is tabulated."""


class PolicyKind(StrEnum):
    TESSERA = "tessera"
    WHOLE = "model-per-gpu"
    STATIC = "static-peak"
    HPA = "hpa"


POLICIES = tuple(PolicyKind)


class Catalogue(Protocol):
    """What states mean; ``services`` selects, and broadcasts against ``state``."""

    def counts(self, services: NDArray[np.int64], state: State) -> NDArray[np.int64]:
        """Parts of each kind, shape (..., kinds)."""

    def capacity(self, services: NDArray[np.int64], state: State) -> Vector:
        """Requests per second at the SLO."""

    def bulk(self, services: NDArray[np.int64], state: State) -> NDArray[np.int64]:
        """The kind whose attainment stands for all."""


@dataclass(frozen=True, slots=True, eq=False)
class CoverCatalogue:
    """States are steps of the rate."""

    covers: Covers

    def counts(self, services: NDArray[np.int64], state: State) -> NDArray[np.int64]:
        return self.covers.counts[services, state].astype(np.int64)

    def capacity(self, services: NDArray[np.int64], state: State) -> Vector:
        return self.covers.capacity[services, state]

    def bulk(self, services: NDArray[np.int64], state: State) -> NDArray[np.int64]:
        return self.covers.bulk[services, state].astype(np.int64)


@dataclass(frozen=True, slots=True, eq=False)
class ReplicaCatalogue:
    """States are numbers of whole GPUs."""

    rate: Vector
    """Of one."""
    kinds: int

    def counts(self, services: NDArray[np.int64], state: State) -> NDArray[np.int64]:
        found = np.zeros((*state.shape, self.kinds), dtype=np.int64)
        found[..., 0] = state
        return found

    def capacity(self, services: NDArray[np.int64], state: State) -> Vector:
        capacity: Vector = state * self.rate[services]
        return capacity

    def bulk(self, services: NDArray[np.int64], state: State) -> NDArray[np.int64]:
        return np.zeros_like(state)


class Decider(Protocol):
    """Holds what a policy remembers. Slots come in order."""

    def begin(self, rates: Grid) -> None:
        """A stretch of slots follows, shape (slots, services)."""

    def first(self) -> State:
        """What there is before anything came."""

    def step(self, row: int, now: State) -> State:
        """What there is to be in slot ``row`` of the stretch where there was ``now``."""


class Following:
    """Covers of the largest rate of the last minutes."""

    def __init__(self, covers: Covers, slack: float, window: int) -> None:
        self._covers, self._slack, self._window = covers, slack, window
        count = len(covers.base)
        self._each = np.arange(count)
        self._before = np.zeros((window, count), dtype=np.int16)
        self._peaks = self._before
        self._needs = (
            covers.headroom * covers.base[:, None] * STEP ** np.arange(covers.capacity.shape[1])
        )

    def begin(self, rates: Grid) -> None:
        levels = np.concatenate((self._before, self._covers.levels(rates)))
        self._before = levels[-self._window :]
        views = np.lib.stride_tricks.sliding_window_view(levels, self._window + 1, axis=0)
        self._peaks = views.max(axis=-1)

    def first(self) -> State:
        first: State = self._peaks[0].astype(np.int64)
        return first

    def step(self, row: int, now: State) -> State:
        wanted = self._peaks[row]
        lower = np.flatnonzero(wanted < now)
        held = self._covers.capacity[lower, now[lower]] * (1 - self._slack)
        roomy = self._needs[lower, wanted[lower]] <= held
        after: State = np.maximum(now, wanted)
        after[lower[roomy]] = wanted[lower[roomy]]
        return after


class Fixed:
    """Always the same."""

    def __init__(self, state: State) -> None:
        self._state = state

    def begin(self, rates: Grid) -> None:
        pass

    def first(self) -> State:
        return self._state

    def step(self, row: int, now: State) -> State:
        return now


class Autoscaler:
    """Replicas that are busy for the target's share of the time."""

    def __init__(self, at_busy: Vector, stabilisation: int) -> None:
        """``at_busy``: requests per second of one replica at (1 - TOLERANCE, 1, 1 + TOLERANCE) times the target.

        Shape (3, services). Falls back no further than it wanted in the last ``stabilisation`` slots.
        """
        self._low, self._at, self._high = at_busy
        self._wanted: deque[State] = deque(maxlen=max(1, stabilisation) + 1)
        self._rates: Grid = np.zeros((0, len(self._at)), dtype=np.float32)

    def begin(self, rates: Grid) -> None:
        self._rates = rates

    def first(self) -> State:
        return self._exactly(0)

    def _exactly(self, row: int) -> State:
        exactly: State = np.maximum(1, np.ceil(self._rates[row] / self._at)).astype(np.int64)
        return exactly

    def step(self, row: int, now: State) -> State:
        each = self._rates[row] / now
        outside = (each < self._low) | (each > self._high)
        wanted = np.where(outside, self._exactly(row), now)
        self._wanted.append(wanted)
        steady = np.maximum.reduce(list(self._wanted))
        return np.where(wanted >= now, wanted, np.minimum(now, steady))


@dataclass(frozen=True, slots=True, eq=False)
class Policy:
    """One to be simulated."""

    name: str
    kind: PolicyKind
    tables: Tables
    catalogue: Catalogue
    decider: Decider
    reaction_s: float
    """From a higher rate to the instances for it, where nothing is to be cut."""


def policies(fleet: Fleet, rates: Rates, kinds: tuple[PolicyKind, ...]) -> list[Policy]:
    """Those of ``kinds``; one HPA for each of its targets. Decisions are remembered, so each serves for one year."""
    services, control = rates.services, fleet.control
    window = ceil(control.peak_s / fleet.slot_s - 1e-9)
    follows = control.observe_s + control.load_s
    cut = tables_of(fleet, services)
    found = []
    for kind in kinds:
        if kind is PolicyKind.STATIC:
            covers = Covers.of(cut, services.rate_per_s, 1.0)
            fixed = Fixed(_quantile_levels(covers, rates))
            found.append(Policy("static peak", kind, cut, CoverCatalogue(covers), fixed, follows))
        elif kind is PolicyKind.HPA:
            one = tables_of(fleet, services, most_processes=1, whole=True)
            held = ReplicaCatalogue(one.rate[:, 0], one.rate.shape[1])
            calm = ceil(control.hpa_stabilisation_s / fleet.slot_s - 1e-9)
            reaction = control.hpa_observe_s + control.load_s
            for target in control.hpa_targets:
                scaler = Autoscaler(_busy_rates(one, target), calm)
                found.append(Policy(f"HPA at {target:.0%}", kind, one, held, scaler, reaction))
        else:
            own = kind is PolicyKind.TESSERA
            tables = cut if own else tables_of(fleet, services, whole=True)
            covers = Covers.of(tables, services.rate_per_s, control.headroom)
            name = "tessera" if own else "one model per GPU"
            following = Following(covers, control.slack, window)
            found.append(Policy(name, kind, tables, CoverCatalogue(covers), following, follows))
    return found


def _quantile_levels(covers: Covers, rates: Rates) -> State:
    """The step that each service exceeds in one slot of a thousand, from all rates of the year."""
    count, steps = covers.capacity.shape
    seen = np.zeros(count * steps, dtype=np.int64)
    each = np.arange(count) * steps
    for _, stretch in rates.stretches():
        seen += np.bincount((covers.levels(stretch) + each).ravel(), minlength=count * steps)
    below = np.cumsum(seen.reshape(count, steps), axis=1)
    enough: State = (below >= STATIC_QUANTILE * below[:, -1:]).argmax(axis=1)
    return enough


def _busy_rates(tables: Tables, target: float) -> Vector:
    """Requests per second of a replica whose GPU is busy for the target's share of the time, shape (3, services)."""
    wanted = np.minimum(target * np.array([1 - TOLERANCE, 1.0, 1 + TOLERANCE]), _FULLEST)
    found = np.empty((3, len(tables.rate)))
    for index in range(len(tables.rate)):
        alpha, tau0 = float(tables.alpha_ms[index, 0]), float(tables.tau0_ms[index, 0])
        shape = round(_PER_OCTAVE * log2(max(tau0 / alpha, _LEAST_OVERHEAD)))
        rates, busy = _busy_curve(int(tables.cap[index, 0]), shape)
        found[:, index] = np.exp(np.interp(wanted, busy, np.log(rates))) / (alpha + tau0) * MS_PER_S
    return found


@lru_cache(maxsize=4096)
def _busy_curve(cap: int, overhead: int) -> tuple[Vector, Vector]:
    """Rates times a lone row's time, and the shares of the time in which a server with tau0/alpha of so many parts of an
    octave is busy: it depends on nothing else.
    """
    ratio = 2 ** (overhead / _PER_OCTAVE)
    server = ServiceModel(1 / (1 + ratio), ratio / (1 + ratio), cap)  # a lone row takes 1 ms
    rates = np.geomspace(_IDLEST, _FULLEST * server.capacity_per_s / MS_PER_S, _BUSY_POINTS)
    queues = [BatchQueue.solve(server, float(rate)) for rate in rates]
    busy = np.array([1.0 if queue is None else queue.busy for queue in queues])
    return rates, np.maximum.accumulate(busy)
