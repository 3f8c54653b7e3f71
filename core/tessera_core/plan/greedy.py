"""Bounded greedy search on the allocation matrix.

From a standing, try changes of one cell (and moves of one cell, which empty boards), take the best, repeat;
stop when none is better or the budget is spent. Pochelu et al. (arXiv 2208.14049) sample their neighbours at
random and deploy each to measure it; here the order is fixed, the most promising first, and the queue model
judges, so a plan is reproducible and nothing has to be deployed for it.

Changes come in stages and a later stage is looked at only when the earlier ones have nothing better:
capacity for whoever is short on boards that are in use, then on new boards, then savings. Otherwise a whole
new board, which satisfies at once, would win over three more slices of one that is already paid for.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain, islice

from tessera_core.plan.matrix import Cell, Change, Part, replace_part, row_of
from tessera_core.plan.moves import own_part, own_parts, shared_parts
from tessera_core.plan.problem import Problem
from tessera_core.plan.score import FULL, Scorer, Standing
from tessera_core.plan.state import Budget, Goal

_BOUNDLESS = 10**18
"""More than any part carries, so that parts are compared by their rate per price."""


@dataclass(frozen=True, slots=True)
class Searched:
    """Where the search ended."""

    standing: Standing
    truncated: bool
    """Whether the budget ended it, so that more work might find better."""
    iterations: int


def improve(problem: Problem, scorer: Scorer, start: Standing, budget: Budget) -> Searched:
    """The best standing that the budget allows to reach from ``start``; never a worse one."""
    standing = start
    for iteration in range(budget.max_iterations):
        better = _best_change(problem, scorer, standing, budget.max_neighbours)
        if better is None:
            return Searched(standing, truncated=False, iterations=iteration)
        standing = better
    return Searched(standing, truncated=True, iterations=budget.max_iterations)


def _best_change(
    problem: Problem, scorer: Scorer, standing: Standing, most: int
) -> Standing | None:
    for stage in (_grow_here, _grow_elsewhere, _save):
        best: Standing | None = None
        changes = (
            change
            for change in stage(problem, scorer, standing)
            if problem.allows(standing.matrix, change)
        )
        for change in islice(changes, most):
            tried = scorer.after(standing, change)
            if tried.score > (best or standing).score:
                best = tried
        if best is not None:
            return best
    return None


def _short(problem: Problem, scorer: Scorer, standing: Standing) -> list[int]:
    """Members that may use more, the worst served first; members that run nowhere stay out."""
    shares = [(scorer.share(standing, m), m) for m in range(len(problem.demands))]
    everyone = problem.goal is Goal.MAXIMISE_RATE
    return [
        member
        for share, member in sorted(shares)
        if standing.parts[member] and (share < FULL or everyone)
    ]


def _may_grow(problem: Problem, standing: Standing, member: int) -> bool:
    return standing.parts[member] < problem.demands[member].max_parts


def _wanted(problem: Problem, scorer: Scorer, standing: Standing, member: int) -> int:
    """What a further part should carry; to maximise the rate, as much as it can."""
    if problem.goal is Goal.MAXIMISE_RATE:
        return _BOUNDLESS
    return scorer.missing(standing, member)


def _grow_here(problem: Problem, scorer: Scorer, standing: Standing) -> Iterator[Change]:
    for member in _short(problem, scorer, standing):
        if _may_grow(problem, standing, member):
            wanted = _wanted(problem, scorer, standing, member)
            for offer in chain(
                own_parts(problem, standing, member, wanted, used=True),
                shared_parts(problem, scorer, standing, member),
            ):
                yield ((offer.board, offer.row),)
        yield from _resized(problem, scorer, standing, member)
        yield from _recapped(problem, standing, member)


def _grow_elsewhere(problem: Problem, scorer: Scorer, standing: Standing) -> Iterator[Change]:
    for member in _short(problem, scorer, standing):
        if _may_grow(problem, standing, member):
            wanted = _wanted(problem, scorer, standing, member)
            for offer in own_parts(problem, standing, member, wanted, used=False):
                yield ((offer.board, offer.row),)


def _save(problem: Problem, scorer: Scorer, standing: Standing) -> Iterator[Change]:
    """Cells that are not needed, parts that are too large, and cells that fit beside others."""
    matrix = standing.matrix
    lightest = sorted(
        (index for index, row in enumerate(matrix.rows) if row),
        key=lambda index: (sum(len(part.cells) for part in matrix.rows[index]), index),
    )
    for index in lightest:
        for part, cell in _cells(matrix.rows[index]):
            # Nobody is left without a part so that another one fares better.
            if standing.parts[cell.member] > problem.demands[cell.member].min_parts:
                yield _dropped(standing, index, part, cell)
    for member in range(len(problem.demands)):
        yield from _resized(problem, scorer, standing, member)
    for index in lightest:
        for part, cell in _cells(matrix.rows[index]):
            yield from _moved(problem, scorer, standing, index, part, cell)


def _cells(row: tuple[Part, ...]) -> Iterator[tuple[Part, Cell]]:
    for part in row:
        for cell in part.cells:
            yield part, cell


def _dropped(standing: Standing, index: int, part: Part, cell: Cell) -> Change:
    row = standing.matrix.rows[index]
    return ((index, replace_part(row, row.index(part), part.without(cell.member))),)


def _moved(
    problem: Problem, scorer: Scorer, standing: Standing, index: int, part: Part, cell: Cell
) -> Iterator[Change]:
    """``cell`` taken away here and given to another used board."""
    taken = _dropped(standing, index, part, cell)
    without = scorer.after(standing, taken)
    missing = scorer.missing(without, cell.member)
    for offer in chain(
        own_parts(problem, without, cell.member, missing, used=True),
        shared_parts(problem, scorer, without, cell.member),
    ):
        if offer.board != index:
            yield (*taken, (offer.board, offer.row))


def _resized(problem: Problem, scorer: Scorer, standing: Standing, member: int) -> Iterator[Change]:
    """Parts that ``member`` has to itself, replaced by the class that suits what they have to carry."""
    for index in standing.matrix.devices_of(member):
        row, kind = standing.matrix.rows[index], problem.boards[index].kind
        for position, part in enumerate(row):
            if len(part.cells) > 1 or part.of(member) is None:
                continue
            (rate,) = problem.predictor.rates(part)
            wanted = max(0, scorer.needs[member] - standing.capacity[member] + rate)
            rest = row_of((*row[:position], *row[position + 1 :]))
            other = own_part(problem, member, wanted, kind, rest)
            if other is not None and other != part:
                yield ((index, row_of((*rest, other))),)


def _recapped(problem: Problem, standing: Standing, member: int) -> Iterator[Change]:
    """One step up or down of one cap in the parts that ``member`` shares."""
    for index in standing.matrix.devices_of(member):
        row = standing.matrix.rows[index]
        for position, part in enumerate(row):
            if len(part.cells) > 1 and part.of(member) is not None:
                for cell in part.cells:
                    for other in _beside(problem, part, cell):
                        yield ((index, replace_part(row, position, part.with_cell(other))),)


def _beside(problem: Problem, part: Part, cell: Cell) -> tuple[Cell, ...]:
    """The next smaller and larger cap of ``cell``."""
    grid = [
        each
        for each in problem.predictor.cells(cell.member, part.place)
        if each.instances == cell.instances
    ]
    at = grid.index(cell)
    return (*grid[max(0, at - 1) : at], *grid[at + 1 : at + 2])
