"""A cheap lower bound on the cost of a plan, so that every plan carries its optimality gap.

Relaxation: boards may be rented by the fraction, each member runs on whatever class is cheapest for it, at
the throughput of the largest measured batch, with no latency bound. A part's fraction of its board is its
share of the SMs that any packing of the board uses, which sums up to at most one on every real board. The
bound is rounded up to whole boards where all boards cost the same, and every member needs at least the
cheapest board that it may use, on as many nodes as it is spread over.
"""

from __future__ import annotations

from collections.abc import Set
from fractions import Fraction
from math import ceil

from tessera_core.plan.capacity import MILLI
from tessera_core.plan.matrix import Part
from tessera_core.plan.problem import Kind, Problem
from tessera_core.plan.score import Scorer


def lower_bound(problem: Problem, scorer: Scorer, services: Set[str]) -> int:
    """No matrix that serves ``services`` fully costs less; the unit of ``Kind.cost``."""
    kinds = sorted({board.kind for board in problem.boards}, key=str)
    total, least = Fraction(0), 0
    for member, demand in enumerate(problem.demands):
        if demand.service not in services:
            continue
        usable = [kind for kind in kinds if problem.options(member, kind)]
        total += scorer.needs[member] * min(_price(problem, member, kind) for kind in usable)
        least = max(least, demand.min_nodes * min(kind.cost for kind in usable))
    costs = {kind.cost for kind in kinds}
    if len(costs) == 1 and (cost := costs.pop()):
        total = Fraction(cost * ceil(total / cost))
    return max(int(total), least)


def _price(problem: Problem, member: int, kind: Kind) -> Fraction:
    """Least cost of one row/s × ``MILLI`` of ``member`` on boards of ``kind``, which must be usable."""
    whole = kind.cores or max(
        (sum(place.sm_count for place in packing) for packing in kind.packings), default=0
    )
    predictor = problem.predictor
    prices = []
    for place in problem.options(member, kind):
        most = max(
            predictor.service(cell, place).capacity_per_s
            for cell in predictor.cells(member, place)
            if predictor.memory_mib(Part(place, (cell,))) <= place.memory_mib
        )
        share = Fraction(place.sm_count, whole) if whole else Fraction(1)
        prices.append(kind.cost * share / ceil(most * MILLI))
    return min(prices)
