"""The cheapest choice of covers and packings, proven by a mixed-integer solver where one is installed.

Problem: each member of each ensemble can be served in several ways (its *covers*: so many parts of each class
of one kind of board), and parts come only in the combinations that a board can hold (its *packings*, e.g. the
14 maximal MIG layouts of an A100). A heuristic chooses well; only a solver can say that nothing is cheaper.

Approach: boards of one kind are interchangeable, so the program counts them instead of naming them:

    minimise    Σ cost_k · y[k, P],  then  Σ width_j · x[g, j]
    subject to  Σ_j x[g, j] = members of g                        every member gets one cover
                Σ parts_j[c] · x[g, j] ≤ Σ P[c] · y[k, P]         the parts of class c of kind k exist
                Σ_P y[k, P] ≤ boards_k                            as do the boards
                x, y integers ≥ 0

It is the pattern formulation of cutting stock (Gilmore and Gomory, "A Linear Programming Approach to the
Cutting-Stock Problem", Operations Research 9, 1961). Members with the same covers form one group g, so 50 copies
of a fleet cost no more than one. The two objectives are two solves, the second under the cost of the first: one
weighted sum would need weights too far apart for the solver's tolerances.

Speed comes from the relaxation's prices. A cover's *excess* is its priced parts minus those of the group's
cheapest cover; any choice costs at least the relaxation's bound plus its covers' excesses (reduced cost fixing).
So the solver sees the covers of least excess, and a cover left out can only be part of a choice that costs
more than ``bound + reach``: the answer stays proven whenever it costs no more than that.

The budget is a number of branch-and-bound nodes, never a clock, so equal input gives equal output. The solver's
answers are rounded and checked in integers, and the relaxation's bound is recomputed exactly from its prices.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf

from tessera_core.plan.exact_highs import Goal, Reason, part_prices, solve
from tessera_core.plan.exact_program import (
    Choice,
    Cover,
    Program,
    Supply,
    grouped,
    used,
)

__all__ = [
    "Chosen",
    "Cover",
    "Fractional",
    "Reason",
    "Supply",
    "Unsolved",
    "choose",
    "fractional",
]

_GRAIN = 1 << 30
"""Prices, excesses and the relaxation's bound are integers in 1 / this of a cost unit."""
_COLUMNS = (10_000, 30_000)
"""Covers (over all groups) that the first and every later solve may see; ties with the last one join."""


@dataclass(frozen=True, slots=True)
class Chosen:
    """A choice that the boards can hold."""

    covers: tuple[int, ...]
    """Per member, the index of its cover."""
    boards: tuple[tuple[int, ...], ...]
    """Per kind and packing, how many boards are so packed; none can be left out."""
    cost: int
    """Price of those boards."""
    width: int
    """Sum of the covers' widths."""
    bound: int
    """No choice among the given covers costs less."""
    optimal: bool
    """Proven: no choice costs less, and none of the same cost is narrower. ``cost == bound`` proves the first half."""


@dataclass(frozen=True, slots=True)
class Unsolved:
    """There is no answer."""

    reason: Reason


@dataclass(frozen=True, slots=True)
class Fractional:
    """The relaxation, in which boards and members may be split."""

    bound: int
    """No choice among the given covers costs less. One with a cover that was not given may."""
    prices: tuple[tuple[float, ...], ...]
    """Per kind and class, the cost of one more part, ≥ 0. A class in surplus is free; where boards are short, a
    board's parts are worth more than the board costs."""


def choose(
    supplies: Sequence[Supply],
    covers: Sequence[Sequence[Cover]],
    max_nodes: int,
    start: Sequence[int] | None = None,
) -> Chosen | Unsolved:
    """One cover for each member, at the least cost and then the least width.

    ``covers[m]`` are the ways to serve member m. ``max_nodes`` ≥ 1 bounds the branch-and-bound nodes of each of the
    at most four solves; a solve's work before it first branches is bounded by the covers that it sees. ``start``, a
    cover's index per member, is a known choice: the result costs no more, if the boards can hold it and the nodes
    suffice to pack it; otherwise it is ignored. Deterministic; neither the order of the members nor that of a
    member's covers changes cost, width or bound.

    Raises ValueError, naming the field, for negative numbers, unknown kinds or indexes and lengths that differ.
    """
    program = grouped(supplies, covers)
    if max_nodes < 1:
        raise ValueError(f"max_nodes: {max_nodes}, at least 1")
    seen = None if start is None else used(program, covers, start)
    if not covers:
        unused = tuple((0,) * len(supply.packings) for supply in supplies)
        return Chosen((), unused, cost=0, width=0, bound=0, optimal=True)
    relaxed = _relax(program)
    if isinstance(relaxed, Reason):
        return Unsolved(relaxed)
    best = None
    if seen is not None:
        answer = solve(program, seen, Goal.COST, None, max_nodes)
        if isinstance(answer, Reason):
            return Unsolved(answer)
        best = answer.choice
    cheapest = _cheapest(program, relaxed, best, max_nodes)
    if isinstance(cheapest, Reason):
        return Unsolved(cheapest)
    best, bound = cheapest

    needed = best.cost * _GRAIN - relaxed.bound
    reach = min(needed, relaxed.reach(_COLUMNS[-1]))
    answer = solve(program, relaxed.within(reach, best), Goal.WIDTH, best, max_nodes)
    optimal = False
    if not isinstance(answer, Reason) and answer.choice is not None:
        optimal = best.cost == bound and answer.optimal and reach == needed
        best = answer.choice
    return _dealt(program, covers, best, bound, optimal)


def fractional(
    supplies: Sequence[Supply], covers: Sequence[Sequence[Cover]]
) -> Fractional | Unsolved:
    """The linear relaxation of ``choose``: a lower bound for the given covers, and prices to guide a search.

    The bound is exact: it is the Lagrangian bound of the rounded prices, in integers. Raises as ``choose`` does.
    """
    program = grouped(supplies, covers)
    if not covers:
        return Fractional(0, tuple((0.0,) * len(supply.packings[0]) for supply in supplies))
    relaxed = _relax(program)
    if isinstance(relaxed, Reason):
        return Unsolved(relaxed)
    prices = tuple(
        tuple(price / _GRAIN * program.unit for price in of_kind) for of_kind in relaxed.prices
    )
    return Fractional(_units(relaxed.bound) * program.unit, prices)


@dataclass(frozen=True, slots=True)
class _Relaxed:
    prices: tuple[tuple[int, ...], ...]
    """Per kind and class, in grains."""
    bound: int
    """In grains."""
    excess: tuple[tuple[int, ...], ...]
    """Per group and cover, in grains, ≥ 0."""

    def reach(self, most: int) -> float:
        """The largest excess among the ``most`` covers of least excess; infinite when that is all of them."""
        ordered = sorted(each for of_group in self.excess for each in of_group)
        return inf if len(ordered) <= most else ordered[most - 1]

    def within(self, reach: float, known: Choice | None) -> tuple[tuple[int, ...], ...]:
        """Per group, the covers of excess up to ``reach`` and those that ``known`` uses."""
        x = known.x if known else [(0,) * len(each) for each in self.excess]
        return tuple(
            tuple(j for j, each in enumerate(excess) if each <= reach or counts[j])
            for excess, counts in zip(self.excess, x, strict=True)
        )


def _dealt(
    program: Program,
    covers: Sequence[Sequence[Cover]],
    choice: Choice,
    bound: int,
    optimal: bool,
) -> Chosen:
    """The counts handed out, in the order of the members and of their groups' covers."""
    indexes = [0] * len(covers)
    width = 0
    for group, counts in zip(program.groups, choice.x, strict=True):
        hand = [cover for cover, n in zip(group.covers, counts, strict=True) for _ in range(n)]
        for member, cover in zip(group.members, hand, strict=True):
            indexes[member] = list(covers[member]).index(cover)
            width += cover.width
    boards = []
    for supply, kept, counts in zip(program.supplies, program.packings, choice.y, strict=True):
        packed = dict(zip(kept, counts, strict=True))
        boards.append(tuple(packed.get(p, 0) for p in range(len(supply.packings))))
    unit = program.unit
    return Chosen(tuple(indexes), tuple(boards), choice.cost * unit, width, bound * unit, optimal)


def _cheapest(
    program: Program, relaxed: _Relaxed, best: Choice | None, max_nodes: int
) -> tuple[Choice, int] | Reason:
    """The cheapest choice found and the proven bound in units; first from few covers, then from more."""
    bound, reach = _units(relaxed.bound), -1.0
    for most in _COLUMNS:
        # Only covers within this reach can make a choice that costs less than the best.
        useful = inf if best is None else (best.cost - 1) * _GRAIN - relaxed.bound
        if reach >= useful or (best is not None and best.cost == bound):
            break
        reach = min(relaxed.reach(most), useful)
        answer = solve(program, relaxed.within(reach, best), Goal.COST, best, max_nodes)
        if isinstance(answer, Reason):
            return answer
        best = answer.choice or best
        beyond = inf if reach == inf else _units(relaxed.bound + int(reach))
        if (proven := min(answer.bound, beyond)) == inf:
            return Reason.INFEASIBLE
        bound = max(bound, int(proven))
    return Reason.BUDGET if best is None else (best, bound)


def _relax(program: Program) -> _Relaxed | Reason:
    """The relaxation's prices, and what follows from them exactly.

    For any prices λ ≥ 0 every choice costs at least
    Σ_g members_g · min_j λ·parts_j  +  Σ_k boards_k · min(0, cost_k - max_P λ·P),  plus its covers' excesses.
    """
    if not all(group.covers for group in program.groups):
        return Reason.INFEASIBLE
    found = part_prices(program)
    if isinstance(found, Reason):
        return found
    # Rounded down, so that no board seems worth more than it costs for the sake of the last digit.
    prices = tuple(tuple(int(price * _GRAIN) for price in of_kind) for of_kind in found)
    bound, excess = 0, []
    for group in program.groups:
        priced = [_dot(prices[cover.kind], cover.parts) for cover in group.covers]
        bound += len(group.members) * min(priced)
        excess.append(tuple(each - min(priced) for each in priced))
    for supply, cost, of_kind in zip(program.supplies, program.costs, prices, strict=True):
        worth = max(_dot(of_kind, packing) for packing in supply.packings)
        bound += supply.boards * min(0, cost * _GRAIN - worth)
    return _Relaxed(prices, bound, tuple(excess))


def _units(grains: int) -> int:
    """A bound in whole units, which costs are; none is below 0."""
    return max(0, -(-grains // _GRAIN))


def _dot(prices: Sequence[int], parts: Sequence[int]) -> int:
    return sum(price * n for price, n in zip(prices, parts, strict=True))
