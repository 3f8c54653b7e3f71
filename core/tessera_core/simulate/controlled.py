"""A member under a policy: its queue, its instances, and a setpoint that follows what is seen.

As in :mod:`tessera_core.simulate.station` a batch forms the moment an instance is free and something waits, of at most
the cap, in the order of deadlines, and what could not finish in it is dropped. But the cap and the instances are what
the policy sets, decision by decision, and batches take as long as with so many instances beside each other.

Members of an ensemble get the same arrivals, and each a policy of its own that is given the member's part of the
percentile (``perf.ensemble``). What one of them drops keeps the others busy here, which errs on the safe side.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from heapq import heapify, heappop, heappush
from math import inf
from typing import Generic

import numpy as np
from numpy.typing import NDArray

from tessera_core.batching.arrivals import Arrivals, gap_cv2
from tessera_core.control.setpoint import Batch, Goal, Policy, Setpoint, StateT, Window
from tessera_core.perf.ensemble import member_percentile
from tessera_core.perf.histogram import Histogram

MS_PER_S = 1000.0

BatchTime = Callable[[int, int], float]
"""Milliseconds that a batch of so many rows takes while so many instances are active."""


@dataclass(frozen=True, slots=True)
class Decision:
    at_s: float
    setpoint: Setpoint


@dataclass(frozen=True, slots=True)
class Controlled:
    """What became of every request, in order of arrival, and what was set."""

    arrivals_ms: NDArray[np.float64]
    latency_ms: NDArray[np.float64]
    """``inf`` for a dropped one, and for one that had no answer when the run ended."""
    slo_ms: NDArray[np.float64]
    """Of each request, when it came."""
    decisions: tuple[Decision, ...]
    """The first is the start; then where something was changed."""

    @property
    def good(self) -> int:
        """Answered within the SLO."""
        return int(np.count_nonzero(self.latency_ms <= self.slo_ms))

    def goodput_per_s(self, from_s: float, to_s: float) -> float:
        """Of the requests that came in this time."""
        first, last = np.searchsorted(self.arrivals_ms, (from_s * MS_PER_S, to_s * MS_PER_S))
        good = self.latency_ms[first:last] <= self.slo_ms[first:last]
        return float(np.count_nonzero(good)) / (to_s - from_s)


def control(
    policy: Policy[StateT],
    goals: Sequence[tuple[float, Goal]],
    batch_ms: BatchTime,
    arrivals_ms: NDArray[np.float64],
    end_s: float,
    load_s: float = 0.0,
    busy_only: bool = False,
) -> Controlled:
    """Run ``policy`` on ascending ``arrivals_ms``, shape (requests,), each of one row.

    ``goals``: from which second on each holds, ascending, the first from 0. ``load_s``: until an instance more takes
    batches; 0 where it stands by. ``busy_only``: an instance that is idle costs the others nothing, so that a batch takes
    as long as beside those that are busy when it begins; else as beside all that are set, as profiles have it. Raises ValueError for goals that do not begin at 0.
    """
    if not goals or goals[0][0] != 0.0:
        raise ValueError("goals: the first must hold from second 0")
    return _Run(policy, goals, batch_ms, arrivals_ms, load_s, busy_only).to(end_s)


@dataclass(frozen=True, slots=True)
class ControlledEnsemble:
    """What became of every request: it is answered when all members have."""

    members: tuple[Controlled, ...]

    @property
    def latency_ms(self) -> NDArray[np.float64]:
        """Of each request, that of its slowest member; ``inf`` where one dropped it."""
        latencies = np.stack([each.latency_ms for each in self.members])
        slowest: NDArray[np.float64] = latencies.max(axis=0)
        return slowest

    def within(self, from_s: float, to_s: float) -> float:
        """Share of the requests that came in this time and were answered within the SLO; 1 when there were none."""
        one = self.members[0]
        first, last = np.searchsorted(one.arrivals_ms, (from_s * MS_PER_S, to_s * MS_PER_S))
        good = self.latency_ms[first:last] <= one.slo_ms[first:last]
        return float(good.mean()) if good.size else 1.0


def control_ensemble(
    policies: Sequence[Callable[[float], Policy[StateT]]],
    percent: float,
    goals: Sequence[Sequence[tuple[float, Goal]]],
    batch_ms: Sequence[BatchTime],
    arrivals_ms: NDArray[np.float64],
    end_s: float,
    load_s: float = 0.0,
) -> ControlledEnsemble:
    """:func:`control` of every member of an ensemble of which ``percent`` of the requests are to be within the SLO.

    By member: ``policies`` make one for the percentile that it is given, and ``goals`` differ at most in how far each
    may go. Raises ValueError for lists of different lengths, and as :func:`control` and ``member_percentile`` do.
    """
    share = member_percentile(percent, len(policies))
    return ControlledEnsemble(
        tuple(
            control(policy(share), goal, law, arrivals_ms, end_s, load_s)
            for policy, goal, law in zip(policies, goals, batch_ms, strict=True)
        )
    )


class _Run(Generic[StateT]):
    def __init__(
        self,
        policy: Policy[StateT],
        goals: Sequence[tuple[float, Goal]],
        batch_ms: BatchTime,
        arrivals_ms: NDArray[np.float64],
        load_s: float,
        busy_only: bool,
    ) -> None:
        self._policy = policy
        self._since_ms = [since * MS_PER_S for since, _ in goals]
        self._goals = [goal for _, goal in goals]
        self._batch_ms = batch_ms
        self._arrivals = arrivals_ms.tolist()
        self._load_ms = load_s * MS_PER_S
        self._busy_only = busy_only
        self._slo = [self._goal(at).slo_ms for at in self._arrivals]
        self._latency = [inf] * len(self._arrivals)
        # Deadlines are in the order of arrival but where an SLO has become tighter: then a heap sorts them.
        self._waiting: list[tuple[float, int]] = []
        self._next = 0
        self._clock = 0.0
        """No batch begins before it: what waits had come by then."""
        self._free: list[tuple[float, int]] = []
        """A heap: when each instance is free, and its number."""
        self._came = Arrivals()
        self._answered, self._lost = Histogram(), 0
        """Since the last decision."""
        self._seen: list[list[Batch]] = []
        self._seen_from = 0

    def to(self, end_s: float) -> Controlled:
        end_ms = end_s * MS_PER_S
        state = self._policy.start(self._goals[0])
        decisions = [Decision(0.0, state.setpoint)]
        self._set(state.setpoint, 0.0, 0.0)
        now = 0.0
        while now < end_ms:
            until = min(end_ms, now + max(state.wait_s, 1e-3) * MS_PER_S)
            self._serve(until, state.setpoint)
            window = self._window(now, until)
            now = until
            if now < end_ms:
                state = self._policy.step(state, window, self._goal(now))
                if state.setpoint != decisions[-1].setpoint:
                    decisions.append(Decision(now / MS_PER_S, state.setpoint))
                    self._set(state.setpoint, now, self._load_ms)
        return Controlled(
            np.array(self._arrivals),
            np.array(self._latency),
            np.array(self._slo),
            tuple(decisions),
        )

    def _goal(self, at_ms: float) -> Goal:
        return self._goals[bisect_right(self._since_ms, at_ms) - 1]

    def _set(self, setpoint: Setpoint, now: float, load_ms: float) -> None:
        have = {number for _, number in self._free}
        self._free = [each for each in self._free if each[1] < setpoint.instances]
        self._free += [(now + load_ms, n) for n in range(setpoint.instances) if n not in have]
        heapify(self._free)
        self._seen = [[] for _ in range(setpoint.instances)]

    def _serve(self, until: float, setpoint: Setpoint) -> None:
        """All batches that begin before ``until``."""
        arrivals, waiting, free = self._arrivals, self._waiting, self._free
        cap, instances = setpoint.cap, setpoint.instances
        while True:
            free_at, number = free[0]
            at = max(free_at, self._clock)
            if not waiting:
                if self._next == len(arrivals):
                    return
                at = max(at, arrivals[self._next])
            if at >= until:
                return
            self._clock = at
            while self._next < len(arrivals) and arrivals[self._next] <= at:
                heappush(waiting, (arrivals[self._next] + self._slo[self._next], self._next))
                self._next += 1
            if self._busy_only:
                instances = 1 + sum(until_ms > at for until_ms, _ in free)
            rows = 0
            while waiting:
                rows = min(cap, len(waiting))
                took = self._batch_ms(rows, instances)
                if waiting[0][0] >= at + took:
                    break
                heappop(waiting)
                self._lost += 1
                rows = 0
            if not rows:
                continue
            end = at + took
            for _ in range(rows):
                _, request = heappop(waiting)
                self._latency[request] = end - arrivals[request]
                self._answered.observe((end - arrivals[request]) / MS_PER_S)
            heappop(free)
            heappush(free, (end, number))
            self._seen[number].append(Batch(rows, took))

    def _window(self, now: float, until: float) -> Window:
        first = bisect_left(self._arrivals, now)
        last = bisect_left(self._arrivals, until)
        came = self._came
        before = came.groups, came.gaps, came.gaps_s, came.groups_s2
        for at_ms in self._arrivals[first:last]:
            came.came(at_ms / MS_PER_S, 1)
        window = Window(
            (until - now) / MS_PER_S,
            last - first,
            tuple(tuple(batches) for batches in self._seen),
            gap_cv2(
                came.groups - before[0],
                came.gaps - before[1],
                came.gaps_s - before[2],
                came.groups_s2 - before[3],
            ),
            latencies=tuple(self._answered.counts),
            lost=self._lost,
        )
        self._seen = [[] for _ in self._seen]
        self._answered, self._lost = Histogram(), 0
        return window
