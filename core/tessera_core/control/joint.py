"""Batches and instances chosen together, by the queue model, and corrected by what batches take.

- *Jump.* For each number of instances that was measured and each cap, the queue model says which rate it carries
  within the SLO, waiting included and for arrivals as bursty as they are. The fewest instances are taken that carry the
  rate with room to spare, with the cap that carries most; where none does, what carries most of all.
- *Trim.* Batches that take longer or shorter than their profile scale it, by the median of their ratios: one stall
  moves nothing. So a change of SLO, rate or device is answered in one decision, and an error of the profile in a few.
- *Shed.* Beyond what anything carries, what comes too late is dropped before its batch, so what counts is the rows
  that are finished: the setting that finishes most is taken of those whose full batches leave a part of the SLO to
  wait in.
- *Stay.* More instances or another cap are set at once; fewer only after what would be left was seen to carry the
  rate, with more room, several decisions in a row. What nothing was seen of moves nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import pairwise
from math import log
from statistics import median

from tessera_core.control.setpoint import Goal, Setpoint, Window
from tessera_core.perf.capacity import max_rate
from tessera_core.perf.pooling import covered
from tessera_core.perf.profile import LatencyProfile
from tessera_core.perf.service import ServiceModel
from tessera_core.perf.shared_queue import Server, equal_rate

INTERVAL_S = 1.0

ROOM = 0.8
"""Of what a setting carries: more is not asked of it."""
ROOM_AFTER_LESS = 0.65
"""Of what would be left after instances were taken away."""
PATIENCE = 5
"""Decisions in a row for which less has to be enough."""
GAIN = 1.03
"""Another cap has to carry so many times as much."""

OVERLOAD = 1.05
"""Of what the best setting carries, as the model has it, which errs low: from there on the rest is shed."""
SHEDDING = 0.8
"""Of the SLO, that a full batch may take then. Of settings with less time to wait batches do not fill, and of those
with more too few rows finish: see the decision record."""

FEWEST_BATCHES = 10
"""In a window, before their times say anything."""
TRIM = 0.3
"""Of the error that is seen, in one decision."""
MOST_ERROR = 8.0
"""A profile that is further off is that of something else: it is not followed there."""
STEP = 1.02
"""Corrections are rounded to powers of this, so that solved settings are used again."""
BURST_STEP = 1.1
"""The same for the variation of gaps, which is known less well: a second of Poisson arrivals says 1 only about so."""

SETTLING = 0.3
"""Weight of a window's rate in the mean, while it fits it."""
SURPRISE = 4.0
"""Standard deviations of a Poisson count from which a rate is a new one, and the mean begins anew."""
LEAST_SURPRISE = 0.15
"""And relative to the rate."""


@dataclass(frozen=True, slots=True)
class JointState:
    setpoint: Setpoint
    rate_per_s: float = 0.0
    """Rows, as they seem to come now; 0 while none has."""
    burstiness: float = 1.0
    error: float = 1.0
    """Batch times here over those of the profile."""
    enough: int = 0
    """Decisions in a row for which fewer instances would have been enough."""
    wait_s: float = INTERVAL_S


class Joint:
    """The policy for one member: a profile on the device where it runs."""

    def __init__(self, profile: LatencyProfile, percent: float) -> None:
        """``percent``: of the member's requests that are to be within the SLO, such as 99."""
        self._profile = profile
        self._percent = percent
        self._services: dict[Setpoint, ServiceModel] = {}
        """Lines through the profile, which decisions ask for again and again."""

    def start(self, goal: Goal) -> JointState:
        """One instance, and the cap with which it carries most: nothing is known of the rate."""
        return JointState(self._best_cap(1, goal, 1.0, 1.0)[0])

    def step(self, state: JointState, window: Window, goal: Goal) -> JointState:
        state = self._seen(state, window)
        if not state.rate_per_s:
            return state
        now = state.setpoint
        wanted, carried = self._wanted(state, goal, ROOM)
        if state.rate_per_s > OVERLOAD * carried:
            return replace(state, setpoint=self._shedding(state, wanted, goal), enough=0)
        if wanted.instances >= now.instances:
            kept = self._kept(state, wanted, goal)
            return replace(state, setpoint=kept, enough=0)
        less, carried = self._wanted(state, goal, ROOM_AFTER_LESS)
        if less.instances >= now.instances or ROOM_AFTER_LESS * carried < state.rate_per_s:
            best, _ = self._best_cap(now.instances, goal, state.error, state.burstiness)
            return replace(state, setpoint=self._kept(state, best, goal), enough=0)
        if state.enough + 1 < PATIENCE:
            return replace(state, enough=state.enough + 1)
        return replace(state, setpoint=less, enough=0)

    def carries(self, setpoint: Setpoint, goal: Goal, error: float, burstiness: float) -> float:
        """Rows per second within the SLO, when batches take ``error`` times their profile."""
        service = self._service(setpoint).scaled(_rounded(error, STEP))
        variance = _rounded(max(burstiness, 1.0), BURST_STEP)
        if setpoint.instances == 1 or covered(service, self._percent):
            return max_rate(service, goal.slo_ms, self._percent, variance)
        # What no table answers would be simulated: a second for each of dozens of settings, in each decision.
        full_ms = service.batch_ms(setpoint.cap)
        server = Server(
            setpoint.cap, full_ms, service.tau0_ms, service.spread_ms, setpoint.instances
        )
        return equal_rate(server, goal.slo_ms, self._percent, variance)

    def _service(self, setpoint: Setpoint) -> ServiceModel:
        service = self._services.get(setpoint)
        if service is None:
            service = self._profile.service(setpoint.cap, setpoint.instances)
            self._services[setpoint] = service
        return service

    def _seen(self, state: JointState, window: Window) -> JointState:
        ratios = [
            batch.ms / self._profile.service_ms(batch.rows, state.setpoint.instances)
            for instance in window.batches
            for batch in instance
        ]
        if len(ratios) >= FEWEST_BATCHES:
            moved = state.error * (median(ratios) / state.error) ** TRIM
            state = replace(state, error=min(max(moved, 1 / MOST_ERROR), MOST_ERROR))
        if not window.seconds > 0 or not window.arrivals:
            return state
        rate = window.arrivals / window.seconds
        expected = state.rate_per_s * window.seconds
        deviation = abs(window.arrivals - expected)
        is_new = deviation > SURPRISE * (window.burstiness * expected) ** 0.5
        if is_new and deviation > LEAST_SURPRISE * expected:
            return replace(state, rate_per_s=rate, burstiness=window.burstiness)
        return replace(
            state,
            rate_per_s=state.rate_per_s + SETTLING * (rate - state.rate_per_s),
            burstiness=state.burstiness + SETTLING * (window.burstiness - state.burstiness),
        )

    def _wanted(self, state: JointState, goal: Goal, room: float) -> tuple[Setpoint, float]:
        """The fewest instances that carry the rate with ``room``, else what carries most; and what it carries."""
        best, most = Setpoint(1, 1), -1.0
        for instances in self._counts(goal):
            setpoint, carried = self._best_cap(instances, goal, state.error, state.burstiness)
            if room * carried >= state.rate_per_s:
                return setpoint, carried
            if carried > most:
                best, most = setpoint, carried
        return best, most

    def _shedding(self, state: JointState, wanted: Setpoint, goal: Goal) -> Setpoint:
        """What finishes most rows of the settings that leave time to wait; ``wanted`` where none does."""
        allowed_ms = SHEDDING * goal.slo_ms / state.error
        found = [
            setpoint
            for instances in self._counts(goal)
            for cap in self._caps(instances, goal)
            for setpoint in [Setpoint(cap, instances)]
            if self._profile.service_ms(cap, instances) <= allowed_ms
        ]
        best, most = wanted, 0.0
        # What is set comes first, and then the fewest instances: others have to finish more than a little more.
        for setpoint in sorted(found, key=lambda each: each != state.setpoint):
            finished = self._profile.throughput(setpoint.cap, setpoint.instances)
            if finished > GAIN * most:
                best, most = setpoint, finished
        return best

    def _best_cap(
        self, instances: int, goal: Goal, error: float, burstiness: float
    ) -> tuple[Setpoint, float]:
        """The cap that carries most; of about equals the smallest. Where none carries anything, single rows."""
        best, carried, most = Setpoint(1, instances), 0.0, 0.0
        for cap in reversed(self._caps(instances, goal)):
            setpoint = Setpoint(cap, instances)
            finished = self._service(setpoint).capacity_per_s / _rounded(error, STEP)
            if GAIN * finished <= most:
                continue  # it cannot carry more than it finishes
            now = self.carries(setpoint, goal, error, burstiness)
            most = max(most, now)
            if now and GAIN * now >= most:
                best, carried = setpoint, now
        return best, carried

    def _kept(self, state: JointState, wanted: Setpoint, goal: Goal) -> Setpoint:
        """``wanted``, unless what is set has as many instances and carries about as much."""
        now = state.setpoint
        if now.instances != wanted.instances or now.cap > goal.most.cap:
            return wanted
        gain = self.carries(wanted, goal, state.error, state.burstiness)
        same = self.carries(now, goal, state.error, state.burstiness)
        return wanted if gain > GAIN * same else now

    def _counts(self, goal: Goal) -> Iterator[int]:
        for instances in self._profile.instance_counts:
            if instances <= goal.most.instances or instances == 1:
                yield instances

    def _caps(self, instances: int, goal: Goal) -> list[int]:
        """Ascending: what was measured, and the middle between two of those."""
        measured = [row.batch for row in self._profile.cells(instances)]
        middles = [round((low * high) ** 0.5) for low, high in pairwise(measured)]
        return [cap for cap in sorted({*measured, *middles}) if cap <= goal.most.cap] or [1]


def _rounded(ratio: float, step: float) -> float:
    """To a power of ``step``."""
    return float(step ** round(log(ratio) / log(step)))
