"""How good a matrix is: a tuple of integers, compared from the left.

1. services that have all they asked for; 2. the served share, summed over services (a service is served as
far as its worst required member is); 3. the same over all members, so that helping one of two short members
counts; then, to minimise cost: 4. the price of the used boards, 5. SMs and cores used, 6. cells, 7. spare
capacity; to maximise the rate: spare capacity before 4.

Totals are kept beside the matrix, so that a change of one row costs its own cells and one pass over the
members, whatever the number of boards.
"""

from __future__ import annotations

from dataclasses import dataclass

from tessera_core.plan.capacity import MILLI
from tessera_core.plan.matrix import Change, Matrix, Row
from tessera_core.plan.problem import Kind, Problem
from tessera_core.plan.state import Goal

FULL = 1_000_000
"""A share of one, in millionths."""
_MOST_SPARE = 1000 * FULL
"""Bound, so that a service with next to no traffic does not outweigh all others."""

Score = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Standing:
    """A matrix, its totals and its score."""

    matrix: Matrix
    capacity: tuple[int, ...]
    """By member: rows/s times ``MILLI``, over all its cells."""
    parts: tuple[int, ...]
    """By member: parts it runs on."""
    cost: int
    width: int
    """SMs and cores of used parts."""
    cells: int
    score: Score


@dataclass(frozen=True, slots=True)
class _Tally:
    """What one row adds to the totals."""

    rates: tuple[tuple[int, int], ...]
    """(member, rate) of every cell."""
    cost: int
    width: int


class Scorer:
    """Scores the matrices of one problem; remembers rows."""

    def __init__(self, problem: Problem) -> None:
        self._problem = problem
        self._tallies: dict[tuple[Kind, Row], _Tally] = {}
        self.needs = tuple(-int(-demand.rate * MILLI // 1) for demand in problem.demands)
        """By member: rows/s times ``MILLI`` that must be carried, rounded up."""
        # What spare capacity is measured against where no rate has to be carried.
        self._units = tuple(
            max(need, int(demand.load * MILLI), MILLI)
            for need, demand in zip(self.needs, problem.demands, strict=True)
        )
        self._spread = tuple(
            member for member, demand in enumerate(problem.demands) if demand.min_nodes > 1
        )

    def start(self, matrix: Matrix) -> Standing:
        """The standing of ``matrix``."""
        nothing = (0,) * len(self.needs)
        empty = Matrix.empty(len(matrix.rows))
        blank = Standing(empty, nothing, nothing, 0, 0, 0, ())
        return self.after(blank, tuple((i, row) for i, row in enumerate(matrix.rows) if row))

    def after(self, standing: Standing, change: Change) -> Standing:
        """The standing after ``change``, which must be allowed."""
        capacity, parts = list(standing.capacity), list(standing.parts)
        cost, width, cells = standing.cost, standing.width, standing.cells
        for index, row in change:
            kind = self._problem.boards[index].kind
            for sign, tally in (
                (-1, self._tally(kind, standing.matrix.rows[index])),
                (1, self._tally(kind, row)),
            ):
                for member, rate in tally.rates:
                    capacity[member] += sign * rate
                    parts[member] += sign
                cost += sign * tally.cost
                width += sign * tally.width
                cells += sign * len(tally.rates)
        matrix = standing.matrix.after(change)
        fresh = Standing(matrix, tuple(capacity), tuple(parts), cost, width, cells, ())
        return Standing(matrix, fresh.capacity, fresh.parts, cost, width, cells, self._score(fresh))

    def share(self, standing: Standing, member: int) -> int:
        """How much of what ``member`` asked for it has, in millionths."""
        demand, need = self._problem.demands[member], self.needs[member]
        share = FULL if need == 0 else min(FULL, standing.capacity[member] * FULL // need)
        if demand.min_parts:
            share = min(share, standing.parts[member] * FULL // demand.min_parts)
        if demand.min_parts and demand.min_nodes > 1:
            nodes = self.nodes(standing.matrix, member)
            share = min(share, len(nodes) * FULL // demand.min_nodes)
        return share

    def missing(self, standing: Standing, member: int) -> int:
        """Rows/s × ``MILLI`` that ``member`` lacks."""
        return max(0, self.needs[member] - standing.capacity[member])

    def nodes(self, matrix: Matrix, member: int) -> frozenset[str]:
        """Nodes on which ``member`` runs."""
        return frozenset(self._problem.boards[i].node for i in matrix.devices_of(member))

    def _tally(self, kind: Kind, row: Row) -> _Tally:
        key = (kind, row)
        if key not in self._tallies:
            predictor = self._problem.predictor
            rates = tuple(
                (cell.member, rate)
                for part in row
                for cell, rate in zip(part.cells, predictor.rates(part), strict=True)
            )
            # An unknown SM count is 0; the part still takes room.
            width = sum(max(1, part.place.sm_count) for part in row)
            self._tallies[key] = _Tally(rates, kind.cost if row else 0, width)
        return self._tallies[key]

    def _score(self, standing: Standing) -> Score:
        demands = self._problem.demands
        shares = [self.share(standing, member) for member in range(len(demands))]
        spare = [
            min(_MOST_SPARE, capacity * FULL // unit)
            for capacity, unit in zip(standing.capacity, self._units, strict=True)
        ]
        satisfied = served = surplus = 0
        for members in self._problem.services:
            required = [member for member in members if demands[member].required] or members
            worst = min(shares[member] for member in required)
            satisfied += worst == FULL
            served += worst
            surplus += min(spare[member] for member in required)
        head = (satisfied, served, sum(shares))
        thrift = (-standing.cost, -standing.width, -standing.cells)
        if self._problem.goal is Goal.MAXIMISE_RATE:
            return (*head, surplus, sum(spare), *thrift)
        return (*head, *thrift, surplus)
