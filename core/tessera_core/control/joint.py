"""Batches and instances chosen together, by the queue model, and corrected by what batches take.

- *Jump.* For each number of instances that was measured and each cap, the queue model says which rate it carries
  within the SLO, waiting included and for arrivals as bursty as they are. The fewest instances are taken that carry the
  rate with room to spare, with the cap that carries most; where none does, what carries most of all.
- *Trim.* Batches that take longer or shorter than their profile scale it, by the median of their ratios: one stall
  moves nothing. So a change of SLO, rate or device is answered in one decision, and an error of the profile in a few.
- *Stay.* More instances or another cap are set at once; fewer only after what would be left was seen to carry the
  rate, with more room, several decisions in a row. What nothing was seen of moves nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from math import log
from statistics import median

from tessera_core.control.setpoint import Goal, Setpoint, Window
from tessera_core.perf.capacity import max_rate
from tessera_core.perf.profile import LatencyProfile

INTERVAL_S = 1.0

ROOM = 0.8
"""Of what a setting carries: more is not asked of it."""
ROOM_AFTER_LESS = 0.65
"""Of what would be left after instances were taken away."""
PATIENCE = 5
"""Decisions in a row for which less has to be enough."""
GAIN = 1.03
"""Another cap has to carry so many times as much."""

FEWEST_BATCHES = 10
"""In a window, before their times say anything."""
TRIM = 0.3
"""Of the error that is seen, in one decision."""
MOST_ERROR = 8.0
"""A profile that is further off is that of something else: it is not followed there."""
STEP = 1.02
"""Corrections are rounded to powers of this, so that solved settings are used again."""

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

    def start(self, goal: Goal) -> JointState:
        """One instance, and the cap with which it carries most: nothing is known of the rate."""
        return JointState(self._best_cap(1, goal, 1.0, 1.0)[0])

    def step(self, state: JointState, window: Window, goal: Goal) -> JointState:
        state = self._seen(state, window)
        if not state.rate_per_s:
            return state
        wanted, _ = self._wanted(state, goal, ROOM)
        now = state.setpoint
        if wanted.instances >= now.instances:
            kept = self._kept(state, wanted, goal)
            return replace(state, setpoint=kept, enough=0)
        less, carried = self._wanted(state, goal, ROOM_AFTER_LESS)
        if less.instances >= now.instances or not carried:
            best, _ = self._best_cap(now.instances, goal, state.error, state.burstiness)
            return replace(state, setpoint=self._kept(state, best, goal), enough=0)
        if state.enough + 1 < PATIENCE:
            return replace(state, enough=state.enough + 1)
        return replace(state, setpoint=less, enough=0)

    def carries(self, setpoint: Setpoint, goal: Goal, error: float, burstiness: float) -> float:
        """Rows per second within the SLO, when batches take ``error`` times their profile."""
        service = self._profile.service(setpoint.cap, setpoint.instances).scaled(_rounded(error))
        return max_rate(service, goal.slo_ms, self._percent, _rounded(max(burstiness, 1.0)))

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

    def _wanted(self, state: JointState, goal: Goal, room: float) -> tuple[Setpoint, bool]:
        """The fewest instances that carry the rate with ``room``, else what carries most; and whether it is enough."""
        most: tuple[float, Setpoint] | None = None
        for instances in self._counts(goal):
            setpoint, carried = self._best_cap(instances, goal, state.error, state.burstiness)
            if room * carried >= state.rate_per_s:
                return setpoint, True
            if most is None or carried > most[0]:
                most = carried, setpoint
        assert most is not None, "one instance was measured"
        return most[1], False

    def _best_cap(
        self, instances: int, goal: Goal, error: float, burstiness: float
    ) -> tuple[Setpoint, float]:
        """The cap that carries most; of equals the smallest. Where none carries anything, single rows."""
        best, most = Setpoint(1, instances), 0.0
        for cap in self._caps(instances, goal):
            setpoint = Setpoint(cap, instances)
            carried = self.carries(setpoint, goal, error, burstiness)
            if carried > GAIN * most:
                best, most = setpoint, carried
        return best, most

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

    def _caps(self, instances: int, goal: Goal) -> Iterator[int]:
        for row in self._profile.cells(instances):
            if row.batch <= goal.most.cap:
                yield row.batch


def _rounded(ratio: float) -> float:
    """To a power of STEP."""
    return float(STEP ** round(log(ratio) / log(STEP)))
