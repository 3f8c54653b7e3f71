"""Batches and instances chosen together, by the queue model, and corrected by what batches take.

- *Jump.* For each number of instances that was measured and each cap, the queue model says which rate it carries
  within the SLO, waiting included and for arrivals as bursty as they are. The fewest instances are taken that carry the
  rate with room to spare, with the cap that carries most; where none does, what carries most of all.
- *Trim.* Batches that take longer or shorter than their profile scale it, by the median of their ratios: one stall
  moves nothing. So a change of SLO, rate or device is answered in one decision, and an error of the profile in a few.
- *Tail.* Latencies, waiting included, that are longer at the percentile than the queue says for batches as long as these
  divide the SLO that it is asked for. That is quickly learnt and slowly forgotten, and not while a change works.
- *Shed.* Beyond what anything carries, what comes too late is dropped before its batch, so what counts is the rows
  that are finished: the setting that finishes most is taken of those whose full batches leave a part of the SLO to
  wait in.
- *Stay.* More instances or another cap are set at once; fewer only after what would be left was seen to carry the
  rate, with more room, several decisions in a row. Seconds in which nothing comes move nothing; they are counted into
  the rate once something does.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import pairwise
from math import ceil, log
from statistics import median

from tessera_core.control.setpoint import Goal, Setpoint, Window
from tessera_core.perf.histogram import percentile_s
from tessera_core.perf.profile import LatencyProfile
from tessera_core.perf.quick import quick_max_rate
from tessera_core.perf.quick_shared import quick_shared_rate
from tessera_core.perf.service import MS_PER_S, ServiceModel

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

MOST_BURSTINESS = 16.0
"""Beyond it the queue model was not compared with anything, and one pause of a machine reads as several hundred."""

SETTLING = 0.3
"""Weight of a window's rate in the mean, while it fits it."""
SURPRISE = 4.0
"""Standard deviations of a Poisson count, of a mean of one at least, from which a rate is a new one."""
LEAST_SURPRISE = 0.15
"""And relative to the rate."""

MOST_TAIL = 4.0
"""Latencies that are further above what is predicted are those of something else."""
LATE = 1.25
"""Times the SLO, that is taken for the latency where it is among the requests that were lost."""
FEWEST_BEYOND = 3
"""Requests that have to be later than a percentile, before it says something."""
WARMING = 5
"""Decisions after instances were added, in which latencies say nothing yet: they may still load, and work off what waits."""
CLEARLY = 5.0
"""Times the requests that may be late, from which that many lost ones are no chance: then the whole error is taken at once,
since each second that it is learnt in is lost too."""
FORGIVEN = 0.05
"""Of latencies better than was thought, in one decision: slower than TRIM, so that what helped is not undone at once."""
TAIL_STEPS = 7
"""Of the search for a predicted latency: 16 times is halved so often, which leaves 2 %."""

_REMEMBERED = 4096
"""Solved questions: decisions ask the same ones again and again."""


@dataclass(frozen=True, slots=True)
class JointState:
    setpoint: Setpoint
    rate_per_s: float = 0.0
    """Rows, as they seem to come now; 0 while none has."""
    burstiness: float = 1.0
    """Of the gaps between requests."""
    rows_each: float = 1.0
    """Mean rows of a request."""
    span_s: float = INTERVAL_S
    """Mean of what windows with rows stand for: their own seconds, and the idle ones before."""
    idle_s: float = 0.0
    """Since the last window in which something came."""
    error: float = 1.0
    """Batch times here over those of the profile."""
    tail: float = 1.0
    """Latency at the percentile over what the queue says for batches as long as these, waiting included; never below 1:
    the queue model errs on the safe side."""
    seen: tuple[int, ...] = ()
    """Latencies since what is set and the rate are these."""
    pause: int = 1
    """Windows whose latencies do not count: they still waited under another setting or rate."""
    enough: int = 0
    """Decisions in a row for which fewer instances would have been enough."""
    wait_s: float = INTERVAL_S

    @property
    def rows(self) -> int:
        """Of a request, about: a batch has to hold them."""
        return ceil(self.rows_each - 1e-6)

    @property
    def variance(self) -> float:
        """Over mean, of the rows that come; what is smoother than Poisson is taken for Poisson. A request's come at once."""
        return max(self.burstiness, 1.0) * max(self.rows_each, 1.0)


class Joint:
    """The policy for one member: a profile on the device where it runs."""

    def __init__(self, profile: LatencyProfile, percent: float) -> None:
        """``percent``: of the member's requests that are to be within the SLO, such as 99."""
        self._profile = profile
        self._percent = percent
        self._service = lru_cache(_REMEMBERED)(self._line)
        self._best_cap = lru_cache(_REMEMBERED)(self._search_caps)
        self._all_caps = lru_cache(_REMEMBERED)(self._measured_caps)
        self._profiled_ms = lru_cache(_REMEMBERED)(profile.service_ms)

    def start(self, goal: Goal) -> JointState:
        """One instance, and the cap with which it carries most: nothing is known of the rate."""
        return JointState(self._best_cap(1, goal, 1.0, 1.0, 1)[0])

    def step(self, state: JointState, window: Window, goal: Goal) -> JointState:
        state = self._seen(state, window, goal)
        if not state.rate_per_s:
            return state
        after = self._decided(state, goal)
        if after.setpoint == state.setpoint:
            return after
        more = after.setpoint.instances > state.setpoint.instances
        return replace(after, seen=(), pause=max(after.pause, WARMING if more else 1))

    def _decided(self, state: JointState, asked: Goal) -> JointState:
        # What takes longer than is predicted has to be predicted to take that much less.
        goal = replace(asked, slo_ms=asked.slo_ms / _rounded(state.tail, STEP))
        now = state.setpoint
        wanted, carried = self._wanted(state, goal, ROOM)
        if state.rate_per_s > OVERLOAD * carried:
            return replace(state, setpoint=self._shedding(state, wanted, asked), enough=0)
        if wanted.instances >= now.instances:
            kept = self._kept(state, wanted, goal)
            return replace(state, setpoint=kept, enough=0)
        less, carried = self._wanted(state, goal, ROOM_AFTER_LESS)
        if less.instances >= now.instances or ROOM_AFTER_LESS * carried < state.rate_per_s:
            best, _ = self._best(now.instances, state, goal)
            return replace(state, setpoint=self._kept(state, best, goal), enough=0)
        if state.enough + 1 < PATIENCE:
            return replace(state, enough=state.enough + 1)
        return replace(state, setpoint=less, enough=0)

    def carries(self, setpoint: Setpoint, goal: Goal, error: float, burstiness: float) -> float:
        """Rows per second within the SLO, when batches take ``error`` times their profile.

        ``burstiness``: variance over mean of the rows that come, 1 at least.
        """
        service = self._service(setpoint.cap, setpoint.instances).scaled(_rounded(error, STEP))
        look_up = quick_max_rate if setpoint.instances == 1 else quick_shared_rate
        return look_up(service, goal.slo_ms, self._percent, _rounded(burstiness, BURST_STEP))

    def _line(self, cap: int, instances: int) -> ServiceModel:
        return self._profile.service(cap, instances)

    def _seen(self, state: JointState, window: Window, goal: Goal) -> JointState:
        ratios = [
            batch.ms / self._profiled_ms(batch.rows, state.setpoint.instances)
            for instance in window.batches
            for batch in instance
        ]
        if len(ratios) >= FEWEST_BATCHES:
            moved = state.error * (median(ratios) / state.error) ** TRIM
            state = replace(state, error=min(max(moved, 1 / MOST_ERROR), MOST_ERROR))
        if not window.seconds > 0:
            return state
        if not window.arrivals:
            return replace(state, idle_s=state.idle_s + window.seconds)
        return self._waited(_counted(state, window), window, goal)

    def _waited(self, state: JointState, window: Window, goal: Goal) -> JointState:
        """What latencies say, once there are enough of them."""
        if not window.latencies:
            return state
        if state.pause:
            return replace(state, pause=state.pause - 1)
        before = state.seen or (0,) * len(window.latencies)
        *answered, beyond = map(sum, zip(before, window.latencies, strict=True))
        seen = (*answered, beyond + window.lost)
        allowed = sum(seen) * (1 - self._percent / 100)
        clearly = seen[-1] > CLEARLY * max(allowed, 1.0)
        if allowed < FEWEST_BEYOND and not clearly:
            return replace(state, seen=seen)
        state = replace(state, seen=())
        measured_s = percentile_s(seen, self._percent)
        predicted_ms = self._predicted_ms(state, goal)
        if measured_s is None or predicted_ms is None:
            return state
        ratio = min(MS_PER_S * measured_s, LATE * goal.slo_ms) / predicted_ms
        worse = 1.0 if clearly else TRIM
        weight = worse if ratio > state.tail else FORGIVEN
        moved = state.tail * (ratio / state.tail) ** weight
        return replace(state, tail=min(max(moved, 1.0), MOST_TAIL))

    def _predicted_ms(self, state: JointState, goal: Goal) -> float | None:
        """Latency at the percentile for what is set and comes: the SLO at which it carries the rate. None: beyond 2 SLOs."""
        within, low = 2 * goal.slo_ms, goal.slo_ms / 8

        def carries(slo_ms: float) -> bool:
            asked = replace(goal, slo_ms=slo_ms)
            carried = self.carries(state.setpoint, asked, state.error, state.variance)
            return carried >= state.rate_per_s

        if not carries(within):
            return None
        for _ in range(TAIL_STEPS):
            middle = (low * within) ** 0.5
            low, within = (low, middle) if carries(middle) else (middle, within)
        return within

    def _wanted(self, state: JointState, goal: Goal, room: float) -> tuple[Setpoint, float]:
        """The fewest instances that carry the rate with ``room``, else what carries most; and what it carries."""
        counts = list(self._counts(goal))
        for instances in counts:
            setpoint, carried = self._best(instances, state, goal)
            if room * carried >= state.rate_per_s:
                return setpoint, carried
        return max((self._best(n, state, goal) for n in counts), key=lambda found: found[1])

    def _shedding(self, state: JointState, wanted: Setpoint, goal: Goal) -> Setpoint:
        """What finishes most rows of the settings that leave time to wait; ``wanted`` where none does."""
        # Small batches may take the same few milliseconds longer that large ones do, which looks like a large error. Where
        # not even they would be in time, larger ones as profiled are tried: they tell.
        found = self._leaving_time(goal, state.error, state.rows) or self._leaving_time(
            goal, 1.0, state.rows
        )
        best, most = wanted, 0.0
        # What is set comes first, and then the fewest instances: others have to finish more than a little more.
        for setpoint in sorted(found, key=lambda each: each != state.setpoint):
            rows = setpoint.cap * setpoint.instances
            finished = rows / self._profiled_ms(setpoint.cap, setpoint.instances)
            if finished > GAIN * most:
                best, most = setpoint, finished
        return best

    def _leaving_time(self, goal: Goal, error: float, rows: int) -> list[Setpoint]:
        """Settings whose full batches leave a part of the SLO to wait in."""
        return [
            Setpoint(cap, instances)
            for instances in self._counts(goal)
            for cap in self._caps(instances, goal, rows)
            if self._profiled_ms(cap, instances) * error <= SHEDDING * goal.slo_ms
        ]

    def _best(self, instances: int, state: JointState, goal: Goal) -> tuple[Setpoint, float]:
        error = _rounded(state.error, STEP)
        burstiness = _rounded(state.variance, BURST_STEP)
        return self._best_cap(instances, goal, error, burstiness, state.rows)

    def _search_caps(
        self, instances: int, goal: Goal, error: float, burstiness: float, rows: int
    ) -> tuple[Setpoint, float]:
        """The cap that carries most requests of ``rows``; of about equals the smallest. Where none carries any, that of one."""
        carried = {
            cap: self.carries(Setpoint(cap, instances), goal, error, burstiness)
            for cap in self._caps(instances, goal, rows)
        }
        most = max(carried.values())
        best = min(
            (cap for cap, now in carried.items() if now and GAIN * now >= most),
            default=min(carried),
        )
        return Setpoint(best, instances), carried.get(best, 0.0)

    def _kept(self, state: JointState, wanted: Setpoint, goal: Goal) -> Setpoint:
        """``wanted``, unless what is set has as many instances and carries about as much."""
        now = state.setpoint
        if now.instances != wanted.instances or not state.rows <= now.cap <= goal.most.cap:
            return wanted
        gain = self.carries(wanted, goal, state.error, state.variance)
        same = self.carries(now, goal, state.error, state.variance)
        return wanted if gain > GAIN * same else now

    def _counts(self, goal: Goal) -> Iterator[int]:
        for instances in self._profile.instance_counts:
            if instances <= goal.most.instances or instances == 1:
                yield instances

    def _caps(self, instances: int, goal: Goal, rows: int) -> list[int]:
        """That hold a request of ``rows``, which is not divided."""
        least = min(rows, goal.most.cap)
        return [cap for cap in self._all_caps(instances) if least <= cap <= goal.most.cap] or [
            least
        ]

    def _measured_caps(self, instances: int) -> list[int]:
        """Ascending: what was measured, and the middle between two of those."""
        measured = [row.batch for row in self._profile.cells(instances)]
        middles = [round((low * high) ** 0.5) for low, high in pairwise(measured)]
        return sorted({*measured, *middles})


def _rounded(ratio: float, step: float) -> float:
    """To a power of ``step``."""
    return float(step ** round(log(ratio) / log(step)))


def _counted(state: JointState, window: Window) -> JointState:
    """The rate and its burstiness after a window in which something came, and the idle seconds before it."""
    span_s = state.idle_s + window.seconds
    now, over_all = window.arrivals / window.seconds, window.arrivals / span_s
    burstiness = _burstiness(state, window)
    rows_each = _settled(state.rows_each, window.rows_each)
    anew = replace(
        state,
        idle_s=0.0,
        span_s=span_s,
        burstiness=burstiness,
        rows_each=rows_each,
        seen=(),
        pause=max(state.pause, 1),
    )
    if now > state.rate_per_s and _surprises(state, window, window.seconds):
        # After silence too, what comes now is answered now.
        return replace(anew, span_s=window.seconds, rate_per_s=now)
    if not state.rate_per_s or _surprises(state, window, span_s):
        return replace(anew, rate_per_s=over_all)
    rows = _settled(state.rate_per_s * state.span_s, window.arrivals)
    span_s = _settled(state.span_s, span_s)
    burstiness = _settled(state.burstiness, burstiness)
    return replace(
        state,
        idle_s=0.0,
        span_s=span_s,
        burstiness=burstiness,
        rows_each=rows_each,
        rate_per_s=rows / span_s,
    )


def _burstiness(state: JointState, window: Window) -> float:
    """Of the window alone, where it says; else as before."""
    return (
        state.burstiness if window.burstiness is None else min(window.burstiness, MOST_BURSTINESS)
    )


def _settled(mean: float, seen: float) -> float:
    return mean + SETTLING * (seen - mean)


def _surprises(state: JointState, window: Window, seconds: float) -> bool:
    """Whether what came is no chance at the rate that was seen before, over so many seconds."""
    expected = state.rate_per_s * seconds
    deviation = abs(window.arrivals - expected)
    chance = (_burstiness(state, window) * max(expected, 1.0)) ** 0.5
    return bool(deviation > max(SURPRISE * chance, LEAST_SURPRISE * expected))
