"""What one model does under one latency budget, on every class of part: the planner's view of a profile.

Content-addressed: members with the same model, batch bound, rows per request and SLO share one ``Behaviour``,
and it survives from one plan to the next. Queues are solved in requests (``per_request``), rates come out in
rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import ceil, inf
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from tessera_core.perf import ServiceModel
from tessera_core.perf.part_load import part_load_latency
from tessera_core.perf.quick import quick_latency, quick_max_rate, quick_max_rates
from tessera_core.perf.service import MS_PER_S
from tessera_core.perf.shared_queue import (
    FULLEST_LOAD,
    Server,
    equal_rate,
    finish_rate_needed,
    kappa,
    shared_latency,
    shared_rate,
)
from tessera_core.plan.demand import Demand
from tessera_core.plan.points import Column, Point

if TYPE_CHECKING:
    from tessera_core.plan.curves import Curves

MILLI = 1000
"""Rates inside the search are rows per second times this."""
_ALONE = (1.0, 0.75, 0.55, 0.4, 0.25)
"""Longest batch times tried for a server that has its queue to itself, as shares of the latency budget."""
_TOGETHER = (0.25, 0.4, 0.48, 0.54, 0.58, 0.62, 0.66, 0.7)
"""The same for servers on one queue."""
_ANY = tuple(dict.fromkeys((*_ALONE, *_TOGETHER)))
_AS_GOOD = 0.99
"""Rates this close to the best are ties: closer than the measurement is exact."""


class Running(NamedTuple):
    """A cell without its member: how a model runs in a part."""

    place: int
    cap: int
    """Rows."""
    instances: int
    blocking_ms: float = 0.0
    """What other tenants of the part may add to each batch."""


@dataclass(frozen=True, slots=True)
class Option:
    """What one more part of a class adds to a member."""

    place: int
    cap: int
    instances: int
    rate: int
    """Rows/s times ``MILLI``, towards ``Regime.need``."""


@dataclass(frozen=True, slots=True)
class Regime:
    """One way for a member's parts on one node to work together."""

    need: int
    """What the parts' rates have to add up to."""
    most: int
    """Parts at most."""
    options: tuple[Option, ...]
    """One per class at most."""


class Behaviour:
    """One model under one latency budget, percentile and burstiness."""

    def __init__(self, curves: Curves, demand: Demand) -> None:
        self._curves = curves
        self._digest = demand.digest
        self._rows = demand.rows_per_request
        self._most = demand.batch_max
        self.budget_ms = demand.budget_ms
        self._percentile = demand.percentile
        self._burstiness = demand.burstiness
        self._columns: dict[int, tuple[Column, ...]] = {}
        self._best: list[Option | None] | None = None
        self._named: dict[tuple[int, ...], Point] = {}
        self._together: list[tuple[float, dict[int, tuple[Point, float]]]] | None = None
        self._regimes: dict[tuple[int, tuple[int, ...]], tuple[Regime, ...]] = {}
        self._rates: dict[tuple[Running, ...], int] = {}
        self._kept: dict[Running, int | None] = {}
        self._most_rates: NDArray[np.float64] | None = None
        self._most_of: dict[int, float] = {}

    def columns(self, place: int) -> tuple[Column, ...]:
        """Points on ``place`` by instance count; empty without a profile or without memory."""
        found = self._columns.get(place)
        if found is None:
            found = self._curves.columns(self._digest, place, self._rows, self._most)
            self._columns[place] = found
        return found

    def least_memory(self, place: int) -> int | None:
        """MiB that the smallest measured cell needs on ``place``; None where nothing was measured."""
        profile = self._curves.profile(self._digest, place)
        return None if profile is None else ceil(min(row.memory_mib for row in profile.rows))

    def point(self, running: Running) -> Point:
        """The point that ``running`` names, or the next larger measured one with its cap."""
        key = running[:3]
        if key not in self._named:
            self._named[key] = self._find_point(running)
        return self._named[key]

    def _find_point(self, running: Running) -> Point:
        for column in self.columns(running.place):
            if column.instances == running.instances:
                for each in column.points:
                    if each.cap == running.cap:
                        return each
                    if each.cap > running.cap:
                        queue = replace(each.queue, cap=max(1, running.cap // self._rows))
                        full = queue.batch_ms(queue.cap or 1)
                        return replace(each, cap=running.cap, queue=queue, batch_ms=full)
                return column.points[-1]
        raise ValueError(f"{running} was not measured")

    def knows(self, running: Running) -> bool:
        """Whether ``running`` was measured and fits its part's memory."""
        for column in self.columns(running.place):
            if column.instances == running.instances:
                return running.cap <= column.points[-1].cap
        return False

    def cap_to_keep(self, running: Running) -> int | None:
        """The cap of ``running``, or a smaller one that answers an idle row within the budget; None without."""
        if running not in self._kept:
            self._kept[running] = self._find_cap_to_keep(running)
        return self._kept[running]

    def _find_cap_to_keep(self, running: Running) -> int | None:
        if not self.knows(running):
            return None
        if self.idle_latency_ms(running) <= self.budget_ms:
            return running.cap
        for caps in self.settings():
            cap = caps.get((running.place, running.instances), running.cap)
            if cap < running.cap:
                return cap  # a batch of that many is in time, so one row is
        return None

    def settings(self) -> list[dict[tuple[int, int], int]]:
        """Caps by (place, instances) that go together, one way per batch time tried."""
        found = []
        for share in _ANY:
            caps = {}
            for place in range(len(self._curves.places)):
                for column in self.columns(place):
                    point = column.longest(share * self.budget_ms)
                    if point is not None:
                        caps[place, point.instances] = point.cap
            found.append(caps)
        return found

    def best(self, place: int) -> Option | None:
        """The cell with the highest rate when the model has ``place`` to itself, on a queue of its own.

        None without a profile, or when no cell fits the memory and the latency budget.
        """
        if self._best is None:
            self._best = self._find_best()
        return self._best[place]

    def _find_best(self) -> list[Option | None]:
        """Of every place. All queues are looked up at once, which is what makes a large fleet feasible."""
        lone: list[tuple[int, Point]] = []
        several: list[tuple[int, Point]] = []
        for place in range(len(self._curves.places)):
            for column in self.columns(place):
                if column.instances == 1:
                    lone += ((place, point) for point in self._tried(column, _ANY))
                else:
                    several += ((place, point) for point in self._tried(column, _TOGETHER))
        found: dict[int, list[tuple[int, Point]]] = {}
        for (place, point), rate in zip(lone, self._lone_rates([p for _, p in lone]), strict=True):
            self._rates[(Running(place, point.cap, 1),)] = rate
            found.setdefault(place, []).append((rate, point))
        for place, point in several:
            rate = self._equal_rate(point)
            found.setdefault(place, []).append((rate, point))
        return [_most(place, found.get(place, ())) for place in range(len(self._curves.places))]

    def _tried(self, column: Column, shares: Sequence[float]) -> list[Point]:
        points = (column.longest(share * self.budget_ms) for share in shares)
        return list({id(point): point for point in points if point is not None}.values())

    def _equal_rate(self, point: Point) -> int:
        requests = equal_rate(point.server, self.budget_ms, self._percentile, self._burstiness)
        return int(requests * self._rows * MILLI)

    def _lone_rates(self, points: Sequence[Point]) -> list[int]:
        if not points or self.budget_ms <= 0:
            return [0] * len(points)
        queues = [point.queue for point in points]
        requests = quick_max_rates(
            [queue.alpha_ms for queue in queues],
            [queue.tau0_ms for queue in queues],
            [queue.cap or 1 for queue in queues],
            [queue.spread_ms for queue in queues],
            self.budget_ms,
            self._percentile,
            self._burstiness,
        )
        return [int(rate * self._rows * MILLI) for rate in requests.tolist()]

    def rate(self, together: tuple[Running, ...]) -> int:
        """Rows/s × ``MILLI`` that the servers of one queue carry within the budget; sorted input."""
        if together not in self._rates:
            self._rates[together] = self._rate(together)
        return self._rates[together]

    def _rate(self, together: tuple[Running, ...]) -> int:
        if self.budget_ms <= 0:
            return 0
        alone = max((self._alone(each) for each in together if each.instances == 1), default=0.0)
        requests = alone
        if len(together) > 1 or together[0].instances > 1:
            servers = [self._server(each) for each in together]
            shared = shared_rate(servers, self.budget_ms, self._percentile, self._burstiness)
            requests = max(alone, shared)
        return int(requests * self._rows * MILLI)

    def _alone(self, running: Running) -> float:
        queue = self.queue(running)
        return quick_max_rate(queue, self.budget_ms, self._percentile, self._burstiness)

    def queue(self, running: Running) -> ServiceModel:
        """One instance of ``running`` as requests see it, the turns of other tenants included."""
        queue = self.point(running).queue
        if running.blocking_ms:
            queue = replace(queue, tau0_ms=queue.tau0_ms + running.blocking_ms)
        return queue

    def _server(self, running: Running) -> Server:
        queue = self.queue(running)
        cap = queue.cap
        assert cap is not None
        return Server(cap, queue.batch_ms(cap), queue.tau0_ms, queue.spread_ms, running.instances)

    def finished(self, running: Running) -> float:
        """Requests per ms that ``running`` finishes when every batch is full."""
        return self._server(running).rows_per_ms

    def latency_ms(self, together: Sequence[Running], rows_per_s: float) -> float:
        """Latency at the percentile when the servers of one queue get ``rows_per_s``; ``inf`` if unstable."""
        rate = rows_per_s / self._rows
        if len(together) == 1 and together[0].instances == 1:
            queue = self.queue(together[0])
            return quick_latency(queue, rate, self._percentile, self._burstiness)
        servers = [self._server(each) for each in together]
        return min(
            shared_latency(servers, rate, self._percentile, self._burstiness),
            part_load_latency(servers, rate, self._percentile, self._burstiness),
        )

    def idle_latency_ms(self, running: Running) -> float:
        """The percentile of rows that never meet another, ms: no load makes it less."""
        queue = self.queue(running)
        return queue.batch_ms(1) + queue.spread_ms

    def least_latency_ms(self, place: int) -> float:
        """``idle_latency_ms`` of the best cell on ``place``; ``inf`` without a point."""
        return min(
            (
                self.idle_latency_ms(Running(place, point.cap, point.instances))
                for column in self.columns(place)
                for point in column.points
            ),
            default=inf,
        )

    def most_rate(self, place: int) -> float:
        """``most_rates`` of one place."""
        found = self._most_of.get(place)
        if found is None:
            found = self._most_of[place] = self._most_rate(place)
        return found

    def most_rates(self) -> NDArray[np.float64]:
        """By place: no part adds more than this, rows/s × ``MILLI``, whatever it works with; 0: cannot run.

        What it carries on a queue of its own, or finishes in full batches that leave time for the wait.
        """
        if self._most_rates is None:
            self._most_rates = np.array(
                [self.most_rate(place) for place in range(len(self._curves.places))]
            )
        return self._most_rates

    def _most_rate(self, place: int) -> float:
        best = self.best(place)
        alone = 0.0 if best is None else best.rate / _AS_GOOD
        columns = self.columns(place)
        finished = max((column.most_within(self.budget_ms) for column in columns), default=0.0)
        return max(alone, FULLEST_LOAD * finished * MS_PER_S * self._rows * MILLI)

    def regimes(self, rate: int, places: tuple[int, ...]) -> tuple[Regime, ...]:
        """The ways to carry ``rate`` (rows/s × ``MILLI``) on parts of one node, of classes ``places``."""
        key = rate, places
        if key not in self._regimes:
            if len(self._regimes) > 64:  # rates change for ever, behaviours live long
                self._regimes.clear()
            self._regimes[key] = tuple(self._ways(rate, places))
        return self._regimes[key]

    def _ways(self, rate: int, places: tuple[int, ...]) -> list[Regime]:
        alone = tuple(best for place in places if (best := self.best(place)) is not None)
        found = [Regime(rate, 1, alone)] if alone else []
        if self._together is None:
            self._together = self._tabulated()
        requests = rate / MILLI / self._rows
        for batch_ms, points in self._together:
            present = [points[place] for place in places if place in points]
            if not present:
                continue
            spread = max(point.queue.spread_ms for point, _ in present)
            share = max(point.server.constant_share for point, _ in present)
            for servers, most in ((2, 2), (3, 10_000)):
                slack = self.budget_ms - spread - (1 + kappa(share, servers)) * batch_ms
                if slack <= 0:
                    continue
                finish = finish_rate_needed(requests, slack, self._percentile, self._burstiness)
                need = ceil(finish * self._rows * MILLI) + len(places)
                # A part that is enough alone shares its queue with nobody: ``best`` tells what it carries.
                options = tuple(
                    Option(place, point.cap, point.instances, rate)
                    for place in places
                    if place in points
                    for point, rows_per_s in [points[place]]
                    for rate in [int(rows_per_s * MILLI)]
                    if (servers > 2 or point.instances == 1)
                    and (rate < need or point.instances >= servers)
                )
                if options:
                    found.append(Regime(need, most, options))
        return found

    def _tabulated(self) -> list[tuple[float, dict[int, tuple[Point, float]]]]:
        """By batch time: the fastest point of every place within it, and the rows/s that it finishes."""
        found = []
        for share in _TOGETHER:
            batch_ms = share * self.budget_ms
            points: dict[int, tuple[Point, float]] = {}
            for place in range(len(self._curves.places)):
                for column in self.columns(place):
                    point = column.longest(batch_ms)
                    if point is None:
                        continue
                    assert point.queue.cap is not None
                    rate = point.instances * point.queue.cap * self._rows / point.batch_ms * 1e3
                    if place not in points or rate > points[place][1]:
                        points[place] = (point, rate)
            if points:
                found.append((batch_ms, points))
        return found


def _most(place: int, rated: Sequence[tuple[int, Point]]) -> Option | None:
    """The point with the highest rate; of those within the measurement's error the smallest."""
    top = max((rate for rate, _ in rated), default=0)
    if top == 0:
        return None
    ties = [(p.memory_mib, p.cap, p.instances, rate) for rate, p in rated if rate >= _AS_GOOD * top]
    _, cap, instances, rate = min(ties)
    return Option(place, cap, instances, rate)
