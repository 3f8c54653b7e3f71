"""Other people's capacity models in the planner's place of its own, so that only the search is compared.

All are additive: what a part carries does not depend on the parts beside it, and members never share a part.

    twice           a batch waits for the one before it: 2 × its time            (ParvaGPU: "half of the SLO")
    filled          a batch waits until it is full: its time + rows / rate       (one deterministic queue)
    alone           the planner's own law of a part that has its queue to itself (what brute force can add up)

For the first two a measured point is allowed where that latency is at most ``MARGIN`` of the target, and it
carries its measured throughput to the last row: arrivals are taken to be even, which they are not.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from math import inf

from tessera_core.gpu.devices import DeviceClass
from tessera_core.perf import ProfileRow
from tessera_core.plan.behaviour import MILLI, Behaviour, Option, Regime, Running
from tessera_core.plan.build import CurvesFactory
from tessera_core.plan.curves import Curves, Profiles
from tessera_core.plan.demand import Demand

MARGIN = 0.9
_ANY_NUMBER = 10_000

Rule = Callable[[ProfileRow, Demand], float]
"""Latency that a measured point is taken to give a member, ms."""


def twice(row: ProfileRow, demand: Demand) -> float:
    """ParvaGPU's: with ``MARGIN`` the same as time < 0.45 × SLO."""
    return 2 * row.p50_ms


def filled(row: ProfileRow, demand: Demand) -> float:
    """All parts of the member take from one queue, to which its whole rate comes."""
    return row.p50_ms + 1e3 * row.batch / demand.rate if demand.rate else inf


def by(rule: Rule) -> CurvesFactory:
    """The capacity model of ``rule``, for ``Planner(curves=...)``."""
    return partial(_RuleCurves, rule=rule)


class Additive(Behaviour):
    """A behaviour whose parts add up, each at the point that is its best."""

    def rate(self, together: tuple[Running, ...]) -> int:
        """The sum of what the parts carry; nothing for a part that is shared."""
        return sum(0 if each.blocking_ms else self.carried(each) for each in together)

    def carried(self, running: Running) -> int:
        """Rows/s × ``MILLI`` of one part."""
        return super().rate((running,))

    def regimes(self, rate: int, places: tuple[int, ...]) -> tuple[Regime, ...]:
        """One way only: enough parts."""
        options = tuple(best for place in places if (best := self.best(place)) is not None)
        return (Regime(rate, _ANY_NUMBER, options),) if options else ()

    def most_rate(self, place: int) -> float:
        """What the best point carries: there is no other way to work."""
        best = self.best(place)
        return 0.0 if best is None else float(best.rate)


class AloneCurves(Curves):
    """The planner's own curves, without queues that several parts share."""

    def __init__(
        self, places: Sequence[DeviceClass], profiles: Profiles, neighbour_derate: float
    ) -> None:
        super().__init__(places, profiles, neighbour_derate)
        self._made: dict[tuple[object, ...], Behaviour] = {}

    def behaviour(self, demand: Demand) -> Behaviour:
        """One per model, target and rate."""
        key = (
            demand.digest,
            demand.rows_per_request,
            demand.batch_max,
            demand.budget_ms,
            demand.percentile,
            demand.burstiness,
            demand.rate,
        )
        if key not in self._made:
            self._made[key] = self._make(demand)
        return self._made[key]

    def _make(self, demand: Demand) -> Behaviour:
        return Additive(self, demand)


class _RuleCurves(AloneCurves):
    def __init__(
        self,
        places: Sequence[DeviceClass],
        profiles: Profiles,
        neighbour_derate: float,
        rule: Rule,
    ) -> None:
        super().__init__(places, profiles, neighbour_derate)
        self._rule = rule

    def _make(self, demand: Demand) -> Behaviour:
        return _RuleBehaviour(self, demand, self._rule)


class _RuleBehaviour(Additive):
    def __init__(self, curves: Curves, demand: Demand, rule: Rule) -> None:
        super().__init__(curves, demand)
        self._latency: dict[tuple[int, int, int], float] = {}
        self._throughput: dict[tuple[int, int, int], int] = {}
        for place in range(len(curves.places)):
            profile = curves.profile(demand.digest, place)
            for row in profile.rows if profile else ():
                latency = rule(row, demand)
                if row.batch <= demand.batch_max and latency <= MARGIN * demand.budget_ms:
                    point = place, row.batch, row.instances
                    self._latency[point] = latency
                    self._throughput[point] = int(row.throughput * MILLI)

    def carried(self, running: Running) -> int:
        return self._throughput.get(running[:3], 0)

    def best(self, place: int) -> Option | None:
        """The point of the highest throughput; of equals the smallest."""
        rated = [(-rate, point) for point, rate in self._throughput.items() if point[0] == place]
        if not rated:
            return None
        rate, (_, cap, instances) = min(rated)
        return Option(place, cap, instances, -rate)

    def latency_ms(self, together: Sequence[Running], rows_per_s: float) -> float:
        """That of the slowest part, whatever the rate, as the rule has it."""
        return max(self._latency.get(each[:3], inf) for each in together)
