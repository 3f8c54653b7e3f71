"""What becomes of requests when the SLO or the rate changes at once, and when arrivals come in bursts.

Back in the SLO is the first whole second after the change whose requests, and those of the STAYS_S seconds from it on, are
answered within the SLO under which they came: 99 % of them (in the one second all but one, where there are fewer than
100), or the share of the best static setting, where that is less. Each single second cannot be asked to hold 99 %:
where 99 % of all are in time and 100 come in a second, two or more are late in every fourth.
That setting is the best for what holds after the change, is there from the start, and knows nothing of the change.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from bench.control.jobs import INSTANCE_MIB, Job
from bench.control.lines import NEVER_S, line
from bench.control.oracle import MOST, PERCENT, capacity, goodput, settings
from bench.control.policies import POLICIES, share_within, watched
from bench.harness import Figures
from bench.lines import Line, Reach
from numpy.typing import NDArray

from tessera_core.control.setpoint import Goal, Setpoint
from tessera_core.control.static import Static
from tessera_core.simulate.arrivals import gamma, poisson
from tessera_core.simulate.controlled import Controlled, control

NUMBERS = (1, 6, 12, 15, 18, 23)
"""Jobs: both knobs, SLOs from 35 to 321 ms, 60 to 1,800 requests/s."""
LOAD_S = 3.0
"""For one more instance, where none stands by: the most that the job scripts allow for."""
STAYS_S = 20
WITHIN_S, WITHIN_LOADING_S = 2.0, 10.0
_SETTLED_S = 2
"""After the change: from there on the static setting's seconds are what is asked for."""
_UNSTEADY = 0.8
_BURST_LOAD = 0.5
OF_STATIC = 0.95


@dataclass(frozen=True, slots=True)
class Size:
    seeds: int = 1
    change_s: float = 60.5
    """Between two decisions of the policies, which are at whole seconds."""
    after_s: float = 45.0
    burst_s: float = 120.0
    bursts: tuple[float, ...] = (4.0, 16.0)
    """Squared coefficients of variation of the gaps."""
    requests: int = 10_000
    sweep: int = 4_000
    """Requests after the change, on which all static settings are tried."""


QUICK = Size(1, 10.5, 21.0, 10.0, (4.0,), 2000, 300)


@dataclass(frozen=True, slots=True)
class Scenario:
    name: str
    goals: tuple[tuple[float, Goal], ...]
    arrivals_ms: NDArray[np.float64]
    change_s: float
    end_s: float

    @property
    def last(self) -> Goal:
        return self.goals[-1][1]


def step_lines(job: Job, size: Size) -> Iterator[Line]:
    """For each scenario one line of each policy; ours with instances that stand by and with such that load."""
    found: dict[str, dict[str, list[Figures]]] = {}
    for seed in range(size.seeds):
        for each in _scenarios(job, size, seed):
            figures = _measured(job, each, size)
            for who, seen in figures.items():
                found.setdefault(each.name, {}).setdefault(who, []).append(seen)
    for name, by_policy in found.items():
        for who, repeats in by_policy.items():
            yield line(name, f"{job.name}: {who}", repeats, *_reach(name, who))


def _reach(name: str, who: str) -> tuple[Reach, ...]:
    if not who.startswith("tessera"):
        return ()
    if name.startswith("bursts"):
        return (Reach("over_oracle", at_least=OF_STATIC),)
    return (Reach("back_s", at_most=WITHIN_S if "standing" in who else WITHIN_LOADING_S),)


def _scenarios(job: Job, size: Size, seed: int) -> Iterator[Scenario]:
    rng = np.random.default_rng(seed)
    gaps = np.random.default_rng(0).exponential(1.0, size.requests)
    wide, tight = Goal(job.slo_ms, MOST), Goal(job.slo_ms / 2, MOST)
    at_wide, at_tight = (capacity(job.law, goal.slo_ms, gaps) for goal in (wide, tight))
    assert at_wide is not None, "a lone row is in time in every known job"
    change, end = size.change_s, size.change_s + size.after_s
    if at_tight is not None:
        steady = poisson(_UNSTEADY * at_tight.per_s, end, rng)
        yield Scenario("SLO halved", ((0.0, wide), (change, tight)), steady, change, end)
    much = poisson(_UNSTEADY * at_wide.per_s, end, rng)
    yield Scenario("SLO doubled", ((0.0, tight), (change, wide)), much, change, end)
    before = poisson(_UNSTEADY / 4 * at_wide.per_s, change, rng)
    after = poisson(_UNSTEADY * at_wide.per_s, size.after_s, rng) + change * 1e3
    yield Scenario("rate x 4", ((0.0, wide),), np.concatenate((before, after)), change, end)
    for cv2 in size.bursts:
        bursts = gamma(_BURST_LOAD * at_wide.per_s, cv2, change + size.burst_s, rng)
        name = f"bursts, CV² of gaps {cv2:g}, half of the Poisson capacity"
        yield Scenario(name, ((0.0, wide),), bursts, change, change + size.burst_s)


def _measured(job: Job, scenario: Scenario, size: Size) -> dict[str, Figures]:
    later = scenario.arrivals_ms[scenario.arrivals_ms >= scenario.change_s * 1e3]
    sample = later[: size.sweep] - scenario.change_s * 1e3
    slo_ms = scenario.last.slo_ms
    best = goodput(job.law, slo_ms, sample, settings(job.law, slo_ms))[0].setpoint
    end_s = scenario.end_s + slo_ms / 1e3
    static = control(Static(best), scenario.goals, job.law, scenario.arrivals_ms, end_s)
    needed = min(
        PERCENT / 100, share_within(static, scenario.change_s + _SETTLED_S, scenario.end_s)
    )
    runs = {
        "tessera, standing by": ("tessera", 0.0),
        f"tessera, {LOAD_S:g} s to load": ("tessera", LOAD_S),
        **{name: (name, 0.0) for name in POLICIES if name != "tessera"},
    }
    found = {}
    for who, (name, load_s) in runs.items():
        run = watched(name, job, scenario.arrivals_ms, scenario.end_s, scenario.goals, load_s)
        standing = load_s == 0.0 and name == "tessera"
        found[who] = _figures(run, static, scenario, needed, standing)
    return found


def _figures(
    run: Controlled, static: Controlled, scenario: Scenario, needed: float, standing: bool
) -> Figures:
    change, end = scenario.change_s, scenario.end_s
    late, least = (_late(each, change, end) for each in (run, static))
    first, last = np.searchsorted(run.arrivals_ms, (change * 1e3, end * 1e3))
    came = int(last - first)
    most, mean = _instances([(each.at_s, each.setpoint) for each in run.decisions], end)
    figures = {
        "share": 1 - late / max(came, 1),
        "over_oracle": (came - late) / max(came - least, 1),
        "violations": float(late),
        "least_violations": float(least),
        "most_instances": float(most),
        "mean_count": mean,
        "memory_mib": (MOST.instances if standing else most) * INSTANCE_MIB,
    }
    if not scenario.name.startswith("bursts"):
        figures["back_s"] = back_s(*_by_second(run, change, end), needed)
        figures["oracle_back_s"] = back_s(*_by_second(static, change, end), needed)
    return figures


def back_s(came: NDArray[np.int64], late: NDArray[np.int64], needed: float) -> float:
    """The first second from which on the share ``needed`` is in time; NEVER_S where there is none.

    ``came`` and ``late``: requests by second, shape (seconds,). At the end STAYS_S are what is left.
    """
    for second in range(len(came)):
        stay = slice(second, second + STAYS_S)
        here = late[second] <= max(1.0, (1 - needed) * came[second])
        if here and late[stay].sum() <= max(1.0, (1 - needed) * came[stay].sum()):
            return float(second)
    return NEVER_S


def _by_second(
    run: Controlled, from_s: float, to_s: float
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """How many came in each whole second, and how many of them were answered too late or not at all."""
    second = np.floor(run.arrivals_ms / 1e3 - from_s).astype(int)
    good = run.latency_ms <= run.slo_ms
    seconds = int(to_s - from_s)
    mine = (second >= 0) & (second < seconds)
    came = np.bincount(second[mine], minlength=seconds)
    return came, np.bincount(second[mine & ~good], minlength=seconds)


def _late(run: Controlled, from_s: float, to_s: float) -> int:
    mine = (run.arrivals_ms >= from_s * 1e3) & (run.arrivals_ms < to_s * 1e3)
    return int(np.count_nonzero(run.latency_ms[mine] > run.slo_ms[mine]))


def _instances(decisions: Sequence[tuple[float, Setpoint]], end_s: float) -> tuple[int, float]:
    """The most, and the mean over time."""
    starts = [at for at, _ in decisions]
    lengths = np.diff([*starts, max(end_s, starts[-1])])
    counts = [setpoint.instances for _, setpoint in decisions]
    return max(counts), float(np.average(counts, weights=lengths)) if lengths.sum() else float(
        counts[0]
    )
