"""A policy's year: capacity decided slot by slot, requests served as the tables say.

Within a slot that brings more capacity, the old one serves until the new one is there: counted, planned, cut where it has
to be, loaded. What goes stays until its replacement serves, and is paid until then. A failed GPU takes what runs on it
along until that runs elsewhere, and is away until it is repaired. Where a pool has fewer GPUs than a policy wants, all of
its services get the same share of what they were to have.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from math import ceil

import numpy as np
from numpy.typing import NDArray

from tessera_core.simulate.fleet.attained import Short, Slots, attained, sampled
from tessera_core.simulate.fleet.cutting import Ledger
from tessera_core.simulate.fleet.facts import Fleet
from tessera_core.simulate.fleet.failures import Failure, available, draw_failures
from tessera_core.simulate.fleet.packing import packing_of
from tessera_core.simulate.fleet.policies import POLICIES, Policy, PolicyKind, State, policies
from tessera_core.simulate.fleet.rates import Grid, Rates
from tessera_core.simulate.fleet.sample import Cell
from tessera_core.simulate.fleet.services import Services, Vector, draw_services

Says = Callable[[str], None]
HOUR_S = 3600.0
LONGEST_WAIT = 288
"""Slots for which a service waits for cuts at most: then it has what it asked for, or the books would never close."""


@dataclass(frozen=True, slots=True, eq=False)
class Year:
    """What one policy came to. Requests are expected numbers, so no integers."""

    policy: str
    kind: PolicyKind
    gpu_hours: Vector
    """By pool: of GPUs that held something, an hour each."""
    cost: float
    requests: Vector
    """By service."""
    in_time: Vector
    lost: Vector
    """Requests that found no instance."""
    percent: Vector
    """That the SLO of each service asks for."""
    launches: float
    """Instances that were started: for more rate, elsewhere, or after a failure."""
    recuts: float
    """GPUs that were cut anew."""
    failed: int
    """Instances that a failure ended."""
    most_gpus: Vector
    """That were wanted in any slot, by pool."""
    short_slots: int
    """In which a pool had fewer GPUs than were wanted."""
    gpus: Vector
    """In use in the mean of each hour, shape (hours,)."""
    shares: Vector
    """Of each hour's requests that were in time; 1 without any."""
    cells: tuple[Cell, ...]
    """The sample."""

    @property
    def late(self) -> Vector:
        """By service: answered too late, or refused because they would have been."""
        late: Vector = self.requests - self.in_time - self.lost
        return late

    @property
    def attainment(self) -> float:
        """Share of all requests that were in time; 1 without any."""
        total = float(self.requests.sum())
        return float(self.in_time.sum()) / total if total else 1.0

    @property
    def services_below(self) -> int:
        """Services whose SLO did not hold over the year."""
        kept = self.in_time >= self.percent / 100 * self.requests * (1 - 1e-9)
        return int(np.count_nonzero(~kept))


def simulate_years(
    fleet: Fleet,
    kinds: Sequence[PolicyKind] = POLICIES,
    cells: int = 0,
    says: Says = lambda _: None,
) -> list[Year]:
    """One year for each policy, on the same rates and failures. ``cells``: slots of a service to be kept as a sample.

    Raises ValueError naming a service that no part of its pool can serve.
    """
    rates = Rates.of(fleet, draw_services(fleet))
    says("tables")
    runs = [
        _Run.of(fleet, rates.services, each, cells) for each in policies(fleet, rates, tuple(kinds))
    ]
    for first, stretch in rates.stretches():
        days = first * fleet.slot_s / 86_400
        says(f"day {days:.0f} of {fleet.horizon_s / 86_400:.0f}")
        for run in runs:
            run.pass_through(first, stretch)
    return [run.year() for run in runs]


@dataclass(slots=True, eq=False)
class _Run:
    """One policy on its way through the year."""

    fleet: Fleet
    services: Services
    policy: Policy
    ledgers: list[Ledger]
    members: list[NDArray[np.int64]]
    """Services of each pool."""
    failures: dict[int, list[Failure]]
    """By slot."""
    available: NDArray[np.int64]
    wanted_cells: NDArray[np.int64]
    """Slot and service of the sample, shape (cells, 2), by slot."""
    rng: np.random.Generator
    now: State | None = None
    wanted: Vector = field(default_factory=lambda: np.zeros(0))
    """GPUs by slot and pool, those among them that wait to be left."""
    sums: Vector = field(default_factory=lambda: np.zeros(0))
    """Requests, in time, lost; by service."""
    hourly: Vector = field(default_factory=lambda: np.zeros(0))
    """Requests and those in time, by slot."""
    short: list[Short] = field(default_factory=list)
    """Who has less than its state, in the slots that have not been counted."""
    launches: float = 0.0
    failed: int = 0
    short_slots: int = 0
    cells: list[Cell] = field(default_factory=list)

    @classmethod
    def of(cls, fleet: Fleet, services: Services, policy: Policy, cells: int) -> _Run:
        failures = draw_failures(fleet)
        by_slot: dict[int, list[Failure]] = defaultdict(list)
        for each in failures:
            by_slot[each.slot].append(each)
        kinds = policy.tables.price.shape[1]
        ledgers = [
            Ledger(
                packing_of(pool.model),
                pool.recut_at_once,
                fleet.control.recut_s,
                fleet.slot_s,
                np.zeros(kinds),
                np.zeros(kinds),
                policy.kind in (PolicyKind.WHOLE, PolicyKind.HPA),
            )
            for pool in fleet.pools
        ]
        count = len(services.names)
        picked = np.random.default_rng([fleet.seed, 4])
        wanted = np.stack(
            (picked.integers(0, fleet.slots, cells), picked.integers(0, count, cells)), axis=1
        )
        return cls(
            fleet,
            services,
            policy,
            ledgers,
            [np.flatnonzero(services.pool == place) for place in range(len(fleet.pools))],
            by_slot,
            available(fleet, failures),
            wanted[np.lexsort((wanted[:, 1], wanted[:, 0]))],
            np.random.default_rng([fleet.seed, 5]),
            wanted=np.zeros((fleet.slots, len(fleet.pools))),
            sums=np.zeros((3, count)),
            hourly=np.zeros((2, fleet.slots)),
        )

    def pass_through(self, first: int, rates: Grid) -> None:
        """A stretch of slots from ``first`` on; ``rates`` of shape (slots, services)."""
        decider = self.policy.decider
        decider.begin(rates)
        if self.now is None:
            self.now = decider.first()
            self._count(self.now)
        states = np.empty(rates.shape, dtype=np.int32)
        for row in range(len(rates)):
            slot = first + row
            after = decider.step(row, self.now)
            paid = self._change(slot, self.now, after)
            self.now = after
            states[row] = after
            self.wanted[slot] = [ledger.gpus(ledger.used) for ledger in self.ledgers] + paid
            for failure in self.failures.get(slot, ()):
                self._fail(failure, slot)
        end = first + len(rates)
        some = slice(first, end)
        share = np.minimum(1.0, self.available[some] / np.maximum(self.wanted[some], 1e-9))
        self.short_slots += int(np.count_nonzero((share < 1).any(axis=1)))
        short = tuple(each for each in self.short if each.slot < end)
        self.short = [each for each in self.short if each.slot >= end]
        slots = Slots(first, rates, states, share[:, self.services.pool], short)
        served = attained(self.policy, slots, self.fleet.slot_s)
        self.sums += served.by_service
        self.hourly[:, some] = served.by_slot
        rows = slice(*np.searchsorted(self.wanted_cells[:, 0], (first, end)))
        self.cells += sampled(self.policy, slots, self.wanted_cells[rows], self.services)

    def _count(self, state: State) -> None:
        """What there is in the beginning has been there before."""
        counts = self.policy.catalogue.counts(np.arange(len(state)), state)
        for ledger, mine in zip(self.ledgers, self.members, strict=True):
            ledger.used = counts[mine].sum(axis=0).astype(np.float64)
            ledger.cut = ledger.used.copy()

    def _change(self, slot: int, before: State, after: State) -> Vector:
        """Do it; notes who has less until it is done. GPUs, by pool, of what is left only then, in the slot's mean."""
        changed = np.flatnonzero(before != after)
        paid = np.zeros(len(self.ledgers))
        catalogue, pool = self.policy.catalogue, self.services.pool[changed]
        old = catalogue.counts(changed, before[changed])
        new = catalogue.counts(changed, after[changed])
        added, removed = np.maximum(new - old, 0), np.maximum(old - new, 0)
        self.launches += float(added.sum())
        held = catalogue.capacity(changed, before[changed])
        grown = catalogue.capacity(changed, after[changed]) > held
        for place, ledger in enumerate(self.ledgers):
            mine = pool == place
            if not mine.any() and not ledger.waiting:
                continue
            leaving = removed[mine].sum(axis=0).astype(np.float64)
            wait_s = ledger.change(added[mine].sum(axis=0).astype(np.float64), leaving)
            waits = (self.policy.reaction_s + wait_s) / self.fleet.slot_s
            paid[place] = min(1.0, waits) * ledger.gpus(leaving)
            for service in changed[mine & grown]:
                self._wait(slot, int(service), waits, int(before[service]))
        return paid

    def _wait(self, slot: int, service: int, slots: float, state: int) -> None:
        """A service has ``state`` for so many slots from ``slot`` on, the last one in part."""
        for later in range(min(ceil(slots), LONGEST_WAIT)):
            self.short.append(Short(slot + later, service, min(1.0, slots - later), state, 0.0))

    def _fail(self, failure: Failure, slot: int) -> None:
        """Instances on the GPUs that fail are away until they run elsewhere."""
        ledger, mine = self.ledgers[failure.pool], self.members[failure.pool]
        assert self.now is not None, "there is something before it fails"
        if not failure.hits(ledger.gpus(ledger.used)):
            return
        counts = self.policy.catalogue.counts(mine, self.now[mine]).astype(np.float64)
        prices = self.policy.tables.parts.price[failure.pool]
        lost: dict[int, float] = defaultdict(float)
        for _ in range(failure.hits(ledger.gpus(ledger.used))):
            room = 1.0
            while room > 1e-9:
                # As likely as it has room on all GPUs in use.
                weights = counts.sum(axis=0) * np.where(prices <= room + 1e-9, prices, 0.0)
                if not weights.any():
                    break
                kind = int(self.rng.choice(len(weights), p=weights / weights.sum()))
                chances = counts[:, kind] / counts[:, kind].sum()
                victim = int(self.rng.choice(len(mine), p=chances))
                counts[victim, kind] -= 1
                room -= float(prices[kind])
                lost[int(mine[victim])] += float(self.policy.tables.rate[mine[victim], kind])
                self.failed += 1
        self.launches += float(
            self.policy.catalogue.counts(mine, self.now[mine]).sum() - counts.sum()
        )
        away_s = self.fleet.failures.detect_s + self.fleet.control.load_s
        part = min(1.0, away_s / self.fleet.slot_s)
        for service, rate in lost.items():
            self.short.append(Short(slot, service, part, int(self.now[service]), rate))

    def year(self) -> Year:
        hours = self.fleet.slot_s / HOUR_S
        used = np.minimum(self.wanted, self.available)
        by_pool = used.sum(axis=0) * hours
        requests, in_time, lost = self.sums
        prices = np.array([pool.cost_per_gpu_hour for pool in self.fleet.pools])
        came, good = (_by_hour(each, hours) for each in self.hourly)
        per_hour = _by_hour(np.ones(self.fleet.slots), hours)
        return Year(
            policy=self.policy.name,
            kind=self.policy.kind,
            gpu_hours=by_pool,
            cost=float(by_pool @ prices),
            requests=requests,
            in_time=in_time,
            lost=lost,
            percent=self.services.percent,
            launches=self.launches,
            recuts=sum(ledger.recuts for ledger in self.ledgers),
            failed=self.failed,
            most_gpus=self.wanted.max(axis=0),
            short_slots=self.short_slots,
            gpus=_by_hour(used.sum(axis=1), hours) / per_hour,
            shares=np.divide(good, came, out=np.ones_like(came), where=came > 0),
            cells=tuple(self.cells),
        )


def _by_hour(values: Vector, hours: float) -> Vector:
    """Sums over the slots, ``hours`` long each, that begin in each hour."""
    hour = (np.arange(len(values)) * hours + 1e-9).astype(np.int64)
    sums: Vector = np.bincount(hour, weights=values).astype(np.float64)
    return sums
