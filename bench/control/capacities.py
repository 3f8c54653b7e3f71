"""What each policy carries within the SLO, counted with the queue and counted without it; and what each knob is worth.

With the queue: requests come as they like (Poisson), and PERCENT of them have an answer within the SLO. Without: the
next batch begins when the last one ends and is always full, and its service time is what is held against the SLO, which
is how the paper's throughputs came about. There the policies are run to their rest on full batches.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from bench.control.jobs import Decoding, Job, batch_path_ms
from bench.control.lines import line
from bench.control.oracle import MOST, PERCENT, capacity, finishes, settings
from bench.control.policies import Watch, policy, share_within, watched
from bench.harness import Figures
from bench.lines import Line, Reach

from tessera_core.control.dnnscaler import Knob
from tessera_core.control.setpoint import Batch, Goal, Setpoint, Window
from tessera_core.simulate.arrivals import poisson

CASE, ABLATION = "Capacity within the SLO", "Batching, multi-tenancy, both"
BATCHING_ONLY, INSTANCES_ONLY = Setpoint(MOST.cap, 1), Setpoint(1, MOST.instances)
_ABOVE = 1.1
"""Times what the best static setting carries: no policy was seen to carry so much."""
_COARSE = 0.8
_FINE = 1.02
"""Up to this factor rates are told apart, here and in what has to be reached."""
_LEAST = 0.02
"""Of the oracle's capacity; what carries less carries nothing here."""
_DECISIONS = 60
_WATCH = Watch(least_s=30.0)


@dataclass(frozen=True, slots=True)
class Size:
    seeds: int = 1
    """Rates are told apart to 2 %, and a search takes some fifty runs."""
    watch: Watch = _WATCH
    requests: int = 10_000


QUICK = Size(1, Watch(30.0, 10.0, 300, 30.0), 2000)


def capacity_lines(job: Job, size: Size, path: Decoding) -> Iterator[Line]:
    """Two lines, one of each case. What the paper counted belongs to the path that decodes in the batch."""
    gaps = np.random.default_rng(0).exponential(1.0, size.requests)
    both = capacity(job.law, job.slo_ms, gaps)
    assert both is not None, "a lone row is in time in every known job"
    one = capacity(job.law, job.slo_ms, gaps, BATCHING_ONLY)
    many = capacity(job.law, job.slo_ms, gaps, INSTANCES_ONLY)
    singles = [each.per_s if each else 0.0 for each in (one, many)]
    repeats, ablations = [], []
    for seed in range(size.seeds):
        carried = {
            name: _carried(name, job, MOST, most_per_s, both.per_s, seed, size)
            for name, most_per_s in (
                ("tessera", both.per_s),
                ("dnnscaler", both.per_s),
                ("clipper", singles[0]),
            )
        }
        limited = {
            most: _carried("tessera", job, most, most_per_s, both.per_s, seed, size)
            for most, most_per_s in zip((BATCHING_ONLY, INSTANCES_ONLY), singles, strict=True)
        }
        repeats.append(
            {
                "oracle_per_s": both.per_s,
                **{f"{name}_per_s": rate for name, rate in carried.items()},
                **_times(carried, both.per_s),
                **_closed(job, path),
            }
        )
        ablations.append(
            {
                "oracle_per_s": both.per_s,
                "batching": singles[0] / both.per_s,
                "instances": singles[1] / both.per_s,
                "joint_gain": both.per_s / max(singles),
                "policy_batching": limited[BATCHING_ONLY] / both.per_s,
                "policy_instances": limited[INSTANCES_ONLY] / both.per_s,
                "policy_joint": carried["tessera"] / both.per_s,
            }
        )
    knobs = {"profiler": str(job.probe.knob), "paper": str(job.paper)}
    yield line(
        f"{CASE}, {path}",
        job.name,
        repeats,
        Reach("times_dnnscaler", at_least=1 / _FINE),
        Reach("times_clipper", at_least=1 / _FINE),
        source=str(job.source),
        **knobs,
    )
    setpoint = f"{both.setpoint.cap} x {both.setpoint.instances}"
    yield line(
        f"{ABLATION}, {path}",
        job.name,
        ablations,
        Reach("joint_gain", at_least=1 / _FINE),
        static=setpoint,
    )


def _times(carried: dict[str, float], oracle: float) -> Figures:
    """Over the baselines; one that carries nothing counts as the least that is told from nothing."""
    return {
        f"times_{name}": carried["tessera"] / max(carried[name], _LEAST * oracle)
        for name in ("dnnscaler", "clipper")
    }


def _carried(
    name: str, job: Job, most: Setpoint, static: float, oracle: float, seed: int, size: Size
) -> float:
    """The highest rate at which PERCENT are in time after the settling, of those tried from above ``static``: what
    the best static setting carries that the policy could set.
    """

    def holds(rate_per_s: float) -> bool:
        end_s = size.watch.end_s(rate_per_s)
        arrivals = poisson(rate_per_s, end_s, np.random.default_rng(seed))
        found = watched(name, job, arrivals, end_s, [(0.0, Goal(job.slo_ms, most))])
        return share_within(found, size.watch.settling_s, end_s) >= PERCENT / 100

    return highest(holds, _ABOVE * static, _LEAST * oracle)


def highest(holds: Callable[[float], bool], top: float, least: float) -> float:
    """The highest rate that holds, found coarsely downwards from ``top`` and then finely; 0 below ``least``."""
    rate = top
    while rate >= least and not holds(rate):
        rate *= _COARSE
    if rate < least:
        return 0.0
    low, high = rate, min(top, rate / _COARSE)
    while high > low * _FINE:
        middle = (low * high) ** 0.5
        low, high = (middle, high) if holds(middle) else (low, middle)
    return low


def _closed(job: Job, path: Decoding) -> Figures:
    """Full batches back to back, judged by their service time."""
    ours = max(
        finishes(job.law, each)
        for each in settings(job.law, job.slo_ms)
        if job.law(each.cap, each.instances) <= job.slo_ms
    )
    dnnscaler, clipper = (closed_per_s(name, job) for name in ("dnnscaler", "clipper"))
    return {
        "closed_times_dnnscaler": ours / dnnscaler,
        "closed_times_clipper": ours / clipper,
        "closed_dnnscaler_times_clipper": dnnscaler / clipper,
        **(_unequal(job) if path is Decoding.TIMED else {}),
    }


def closed_per_s(name: str, job: Job) -> float:
    """Rows per second where a policy comes to rest on batches that are always full."""
    return finishes(job.law, _at_rest(policy(name, job), job.law, job.slo_ms))


def _at_rest(rule: Any, law: Callable[[int, int], float], slo_ms: float) -> Setpoint:
    goal = Goal(slo_ms, MOST)
    state = rule.start(goal)
    for _ in range(_DECISIONS):
        now: Setpoint = state.setpoint
        took = law(now.cap, now.instances)
        rounds = max(1, int(1e3 * state.wait_s / took))
        each = (Batch(now.cap, took),) * rounds
        rows = rounds * now.cap * now.instances
        state = rule.step(state, Window(state.wait_s, rows, (each,) * now.instances), goal)
    found: Setpoint = state.setpoint
    return found


def _unequal(job: Job) -> Figures:
    """As the paper compared: instances on the one path, and on the other, where images are decoded in a batch
    from an iterator that is made anew for it, Clipper and batching.
    """
    if batch_path_ms(job, 1) is None:
        return {}

    def batch_path(rows: int, instances: int) -> float:
        found = batch_path_ms(job, rows)
        assert found is not None
        return found

    ends: dict[str, float] = {}
    for name, rule in (("clipper", policy("clipper", job)), ("batching", policy("batching", job))):
        cap = _at_rest(rule, batch_path, job.slo_ms).cap
        ends[name] = 1e3 * cap / batch_path(cap, 1)
    shared = closed_per_s("instances", job)
    theirs = shared if job.paper is Knob.MULTI_TENANCY else ends["batching"]
    return {"unequal_paths": theirs / ends["clipper"]}
