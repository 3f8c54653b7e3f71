"""What a part of a board is worth, and from it a lower bound on the cost of every plan.

Problem: many members compete for few kinds of parts, and a part that is cheap alone may spoil its board. A
plan's optimality gap also needs a bound that no plan can beat. Both come from the same linear program:

    boards may be bought by the fraction, each cut into any mix of its packings; every member buys rate from
    whatever parts it may use, at most what a part can finish within the latency budget.

Its dual has one price per (kind, class), such that no packing of a board is worth more than the board, and
the bound is the sum of what the members pay at those prices. ANY such prices give a bound, so they need not
be optimal: a few rounds of ascent find good ones (raise what is bought more than its share of the best
packing, lower the rest). The price of a kind that is scarce rises above its cost until its boards suffice.

Fractions make the bound hold for members that share a part, too. A service that shares with nobody (isolation
``Partition`` or ``Exclusive``) has whole parts, so it pays at least for the cheapest whole ones of any of its
members (``cover.cheapest``): with one member, that is the bound of the configuration linear program.
"""

from __future__ import annotations

from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from math import ceil, exp, gcd, sqrt

import numpy as np
from numpy.typing import NDArray

from tessera_core.api import Isolation
from tessera_core.plan.cover import cheapest
from tessera_core.plan.problem import Problem

_ROUNDS = 60
_STEP = 0.6
_SAFE = 1 - 1e-9

Vector = NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class Market:
    """Arrays of the program: buyers × columns, a column being a class of one kind."""

    needs: Vector
    rates: Vector
    """Shape (buyers, columns), 0 where the buyer cannot use the column."""
    first: tuple[int, ...]
    """First column of each kind; one more at the end."""
    packings: tuple[Vector, ...]
    """By kind, shape (packings, classes)."""
    costs: Vector
    supply: Vector


@dataclass(frozen=True, slots=True, eq=False)
class Prices:
    """One price per class of every kind, and what they prove."""

    of_kind: tuple[tuple[float, ...], ...]
    """By kind, by position of the class in ``Kind.classes``: price of the part, in the unit of cost."""
    worth: tuple[tuple[float, ...], ...]
    """By kind, by state of its board: the most that further parts can earn."""
    bound: float
    """No plan that serves everything costs less: the linear program, before any rounding."""
    market: Market
    """The program that they were found for."""


def prices_of(problem: Problem, needs: Sequence[int]) -> Prices:
    """Prices at which members buy ``needs``, rows/s × ``MILLI`` each."""
    market = _market(problem, needs)
    found, bound = _ascend(market)
    of_kind = tuple(
        tuple(found[low:high].tolist())
        for low, high in zip(market.first[:-1], market.first[1:], strict=True)
    )
    worth = tuple(
        kind.shape.worth(prices) for kind, prices in zip(problem.kinds, of_kind, strict=True)
    )
    return Prices(of_kind, worth, bound, market)


def lower_bound(
    problem: Problem, needs: Sequence[int], prices: Prices, served: AbstractSet[str]
) -> int:
    """No plan that serves the services of ``served`` fully costs less; the unit of ``Kind.cost``.

    ``needs`` are those that ``prices`` were found for.
    """
    if not served:
        return 0
    market = prices.market
    alone = len(problem.services) == 1
    by_column = [price for each in prices.of_kind for price in each]
    scarcity = sum(
        float(supply) * max(0.0, worth[0] - kind.cost)
        for kind, worth, supply in zip(problem.kinds, prices.worth, market.supply, strict=True)
    )
    paid = _payments(market.needs, market.rates, np.array(by_column)).tolist()
    total = 0.0
    least = 0
    cheapest_board: dict[tuple[int, ...], int] = {}
    for members in problem.services:
        if problem.demands[members[0]].service not in served:
            continue
        shares, whole = 0.0, 0.0
        for member in members:
            demand, eligible = problem.demands[member], problem.eligible[member]
            if eligible not in cheapest_board:
                cheapest_board[eligible] = min(
                    (problem.kinds[index].cost for index in eligible), default=0
                )
            if demand.min_parts:
                least = max(least, demand.min_nodes * cheapest_board[eligible])
            shares += paid[member]
            if needs[member] and (demand.isolation is not Isolation.ANY or alone):
                items = tuple(
                    (price, int(rate) + 1)
                    for price, rate in zip(by_column, market.rates[member].tolist(), strict=True)
                    if rate
                )
                whole = max(whole, cheapest(items, needs[member]))
        # Its own members may share the parts of a service that shares with nobody else.
        total += max(shares, whole)
    total = (total - scarcity) * _SAFE
    # Costs are sums of whole boards, so a bound between two such sums is really the higher one.
    unit = gcd(*(kind.cost for kind in problem.kinds)) or 1
    return max(least, unit * ceil(total / unit), 0)


def _market(problem: Problem, needs: Sequence[int]) -> Market:
    kinds = problem.kinds
    first = [0]
    for kind in kinds:
        first.append(first[-1] + len(kind.classes))
    columns = np.array([place for kind in kinds for place in kind.classes], dtype=np.int64)
    rates = np.zeros((len(problem.demands), first[-1]))
    if len(columns) and len(rates):
        # By (member, place), then by column, of the kinds that the member may use.
        finished = np.array([each.most_rates() for each in problem.predictor.behaviours])
        rates = finished[:, columns] * _allowed(problem, first)
    supply = np.zeros(len(kinds))
    for board in problem.boards:
        supply[board.kind.index] += 1
    return Market(
        np.asarray(needs, dtype=np.float64),
        rates,
        tuple(first),
        tuple(np.asarray(kind.shape.mixes, dtype=np.float64) for kind in kinds),
        np.array([kind.cost for kind in kinds], dtype=np.float64),
        supply,
    )


def _allowed(problem: Problem, first: Sequence[int]) -> NDArray[np.bool_]:
    """Which columns each member may use, shape (members, columns)."""
    numbers = {each: number for number, each in enumerate(dict.fromkeys(problem.eligible))}
    masks = np.zeros((len(numbers), first[-1]), dtype=bool)
    for eligible, number in numbers.items():
        for index in eligible:
            masks[number, first[index] : first[index + 1]] = True
    allowed: NDArray[np.bool_] = masks[[numbers[eligible] for eligible in problem.eligible]]
    return allowed


def _payments(needs: Vector, rates: Vector, prices: Vector) -> Vector:
    """What each buyer pays at least, shape (buyers,); 0 for one that can buy nothing."""
    with np.errstate(divide="ignore", invalid="ignore"):
        each = np.where(rates > 0, prices / rates, np.inf)
    best = each.min(axis=1, initial=np.inf)
    paid: Vector = np.where(np.isfinite(best), best * needs, 0.0)
    return paid


def _ascend(market: Market) -> tuple[Vector, float]:
    """The best prices found and their bound."""
    total = market.first[-1]
    spans = list(zip(market.first[:-1], market.first[1:], strict=True))
    # A kind's parts start out as dear as the share of its best packing that they fill.
    prices = np.ones(total)
    for index, (low, high) in enumerate(spans):
        packings = market.packings[index]
        if high > low:
            prices[low:high] = 1 / np.maximum(packings.max(axis=0), 1e-9)
    tops = market.costs.copy()
    buyers = market.rates.any(axis=1)
    rates, needs = market.rates[buyers], market.needs[buyers]
    with np.errstate(divide="ignore"):
        inverse = np.where(rates > 0, 1 / np.maximum(rates, 1e-300), np.inf)
    best, best_bound = prices, -np.inf
    for turn in range(_ROUNDS):
        for index, (low, high) in enumerate(spans):
            if high > low:
                worth = float((market.packings[index] @ prices[low:high]).max())
                prices[low:high] *= tops[index] / worth if worth > 0 else 0.0
        each = prices * inverse if len(inverse) else inverse
        chosen = each.argmin(axis=1) if total and len(inverse) else np.zeros(0, dtype=np.int64)
        paid = each[np.arange(len(chosen)), chosen] * needs
        scarcity = float((market.supply * np.maximum(tops - market.costs, 0)).sum())
        bound = float(paid.sum()) - scarcity
        if bound > best_bound:
            best, best_bound = prices.copy(), bound
        spent = np.bincount(chosen, weights=paid, minlength=total)
        step = _STEP / sqrt(1 + turn)
        for index, (low, high) in enumerate(spans):
            if high == low or tops[index] <= 0:
                continue
            here = float(spent[low:high].sum())
            boards = here / tops[index]
            if boards > market.supply[index] or tops[index] > market.costs[index]:
                excess = boards / max(float(market.supply[index]), 1e-9) - 1
                tops[index] = max(
                    market.costs[index], tops[index] * exp(step * max(-1.0, min(1.0, excess)))
                )
            if here > 0:
                packings = market.packings[index]
                mix = packings[int((packings @ prices[low:high]).argmax())] * prices[low:high]
                move = spent[low:high] / here - mix / mix.sum()
                prices[low:high] *= np.exp(step * move)
    return best, max(best_bound, 0.0)
