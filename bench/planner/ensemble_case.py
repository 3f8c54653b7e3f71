"""The ensemble paper's setting by everybody: requests/s of what each places, by one evaluator.

``Setting.rate`` judges all: devices share their time among their models, and a model's rows among its devices,
at best. That is kinder to any matrix than the planner's own law, in which members of a device take turns.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from statistics import median
from time import perf_counter

import numpy as np
from bench.harness import Figures
from bench.lines import Line, Reach, Says
from bench.planner.ensemble_paper import IMN1, IMN4, IMN12, MOST_GPUS, Network, Setting
from bench.planner.lines import line
from bench.planner.matrix_baselines import Infeasible, best_batch_only, worst_fit_and_greedy

from tessera_core.plan.planner import Planner

ENSEMBLES: tuple[tuple[str, tuple[Network, ...]], ...] = (
    ("1 member", IMN1),
    ("4 members", IMN4),
    ("12 members", IMN12),
)
_PAPERS_BEST = 2.7
"""Times best-batch-only: the paper's largest gain (its abstract)."""
_ASKED = 1.0
"""Requests/s of the demand; what counts is how far the plan can raise it."""


@dataclass(frozen=True, slots=True)
class Size:
    """How large and how often."""

    gpus: tuple[int, ...] = tuple(range(1, MOST_GPUS + 1))
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    """Of the paper's greedy; the median counts."""


QUICK = Size(gpus=(2,), seeds=(0,))


@dataclass(frozen=True, slots=True)
class Rates:
    """Requests/s on one number of GPUs; 0 where a method finds no placement."""

    gpus: int
    batch: float
    greedy: float
    ours: float
    seconds: float


def ensemble_lines(size: Size, says: Says) -> Iterator[Line]:
    """One line per ensemble; the rates of every number of GPUs are its detail."""
    for name, models in ENSEMBLES:
        found = []
        for gpus in size.gpus:
            says(f"{name} on {gpus} GPUs")
            found.append(measured(Setting(models, gpus), size.seeds))
        yield _line(name, found)


def measured(setting: Setting, seeds: tuple[int, ...]) -> Rates:
    """All three on one setting."""
    tables = setting.tables()
    try:
        batch = best_batch_only(tables, setting.rate).score
        search = partial(worst_fit_and_greedy, tables, setting.rate)
        greedy = median(search(np.random.default_rng(seed)).score for seed in seeds)
    except Infeasible:
        batch = greedy = 0.0
    started = perf_counter()
    plan = Planner().plan(setting.cluster(_ASKED))
    seconds = perf_counter() - started
    ours = setting.rate(setting.matrix(plan.assignments))
    return Rates(setting.gpus, batch, greedy, ours, seconds)


def _line(name: str, found: list[Rates]) -> Line:
    both = [each for each in found if each.batch > 0]
    over_batch = [each.ours / each.batch for each in both]
    over_greedy = [each.ours / each.greedy for each in both]
    figures: Figures = {
        "seconds": max(each.seconds for each in found),
        "least_over_batch": min(over_batch),
        "most_over_batch": max(over_batch),
        "least_over_greedy": min(over_greedy),
        "most_over_greedy": max(over_greedy),
        "only_ours": float(sum(each.batch == 0 < each.ours for each in found)),
    }
    reach = [Reach("least_over_batch", at_least=1.0), Reach("least_over_greedy", at_least=1.0)]
    if max(each.gpus for each in found) == MOST_GPUS:
        reach.append(Reach("most_over_batch", at_least=_PAPERS_BEST))
    by_gpus = {
        each.gpus: {
            "best batch only": round(each.batch, 1),
            "WFD+greedy": round(each.greedy, 1),
            "Tessera": round(each.ours, 1),
        }
        for each in found
    }
    gpus = f"{found[0].gpus}-{found[-1].gpus}"
    return line(f"{name} on {gpus} V100", "Tessera", figures, *reach, requests_per_s=by_gpus)
