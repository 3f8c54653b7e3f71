"""Goodput at part load, full load and overload: every policy on the same arrivals, beside the best static setting."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from bench.control.jobs import Job
from bench.control.lines import line
from bench.control.oracle import Best, capacity, goodput, settings
from bench.control.policies import POLICIES, WATCH, Watch, share_within, watched
from bench.harness import Figures
from bench.lines import Line, Reach

from tessera_core.control.setpoint import Goal, Setpoint
from tessera_core.control.static import Static
from tessera_core.simulate.arrivals import poisson
from tessera_core.simulate.controlled import control

CASE = "Goodput over load"
OF_ORACLE = 0.95
NOISE = 0.01
"""Of all requests, by which a policy may be below another on the same arrivals."""


@dataclass(frozen=True, slots=True)
class Size:
    seeds: int = 1
    loads: tuple[float, ...] = (0.1, 0.3, 0.5, 0.7, 0.9, 1.2)
    watch: Watch = WATCH
    requests: int = 10_000
    """Of one run of the search for the oracle's capacity."""
    sweep: int = 4_000
    """First requests of the first seed, on which all static settings are tried for each load."""
    kept: int = 3
    """Of those, that are tried on all arrivals of every seed."""


QUICK = Size(1, (0.5, 1.2), Watch(30.0, 10.0, 300, 30.0), 2000, 300, 1)


def gaps(size: Size) -> np.ndarray:
    """Between the arrivals with which capacities are searched, of mean 1."""
    return np.random.default_rng(0).exponential(1.0, size.requests)


def load_lines(job: Job, size: Size) -> Iterator[Line]:
    """One line for each load. Loads are of the oracle's capacity."""
    best = capacity(job.law, job.slo_ms, gaps(size))
    assert best is not None, "a lone row is in time in every known job"
    for load in size.loads:
        yield _line(job, best, load, size)


def _line(job: Job, best: Best, load: float, size: Size) -> Line:
    rate = load * best.per_s
    end_s = size.watch.end_s(rate)
    repeats, kept = [], [best.setpoint]
    for seed in range(size.seeds):
        arrivals = poisson(rate, end_s, np.random.default_rng(seed))
        if seed == 0:
            tried = settings(job.law, job.slo_ms)
            swept = goodput(job.law, job.slo_ms, arrivals[: size.sweep], tried)
            kept += [each.setpoint for each in swept[: size.kept]]
        repeats.append(_figures(job, load, rate, end_s, arrivals, kept, size))
    setpoints = {f"{each.cap} x {each.instances}" for each in kept}
    return line(
        f"{CASE}, {load:g}",
        job.name,
        repeats,
        Reach("over_oracle", at_least=OF_ORACLE),
        Reach("over_dnnscaler", at_least=-NOISE),
        Reach("over_clipper", at_least=-NOISE),
        source=str(job.source),
        static=", ".join(sorted(setpoints)),
    )


def _figures(
    job: Job,
    load: float,
    rate: float,
    end_s: float,
    arrivals: np.ndarray,
    kept: list[Setpoint],
    size: Size,
) -> Figures:
    counted, whole = {}, {}
    for name in POLICIES:
        found = watched(name, job, arrivals, end_s)
        counted[name] = share_within(found, size.watch.settling_s, end_s)
        whole[name] = share_within(found, 0.0, end_s)
    goal = Goal(job.slo_ms, kept[0])
    oracle, oracle_whole = 0.0, 0.0
    for setpoint in dict.fromkeys(kept):
        found = control(
            Static(setpoint), [(0.0, goal)], job.law, arrivals, end_s + job.slo_ms / 1e3 + 1
        )
        oracle = max(oracle, share_within(found, size.watch.settling_s, end_s))
        oracle_whole = max(oracle_whole, share_within(found, 0.0, end_s))
    return {
        "rate_per_s": rate,
        **{f"{name}_share": counted[name] for name in POLICIES},
        "oracle_share": oracle,
        "over_oracle": counted["tessera"] / oracle,
        "over_dnnscaler": counted["tessera"] - counted["dnnscaler"],
        "over_clipper": counted["tessera"] - counted["clipper"],
        "from_start": whole["tessera"] / oracle_whole,
        "below_from_start": max(
            0.0, whole["dnnscaler"] - whole["tessera"], whole["clipper"] - whole["tessera"]
        ),
    }
