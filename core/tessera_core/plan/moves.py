"""Ways to give a member capacity on one board: what worst-fit and greedy choose from.

A part of its own: the cheapest class of part that carries what is missing or, when none does, the one with
the most rate per price of the board, filled with as many such parts as it takes.

A part shared with others: members take turns, so batch caps have to fit each other. With rates r and batch
times h, a round of one batch each takes C = sum of h(cap), and every cap must hold the r*C rows that come
meanwhile. The smallest such caps are found by raising them until they hold; a little room above (``_ROOM``)
is what keeps the tail short. Caps chosen so are candidates; the queue model judges them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from tessera_core.gpu.devices import DeviceClass
from tessera_core.plan.capacity import MILLI
from tessera_core.plan.matrix import Cell, Part, Row, replace_part, row_of
from tessera_core.plan.problem import Kind, Problem
from tessera_core.plan.score import Scorer, Standing

_ROOM = (1.25, 2.0, 4.0)
"""Caps tried as multiples of the rows that come in one round."""


@dataclass(frozen=True, slots=True)
class Offer:
    """A new row for one board, and the part of it that the member gets."""

    board: int
    row: Row
    part: Part


def own_part(problem: Problem, member: int, missing: int, kind: Kind, row: Row) -> Part | None:
    """A part of its own for ``member`` on a board of ``kind`` that already holds ``row``.

    ``missing``: rows/s × ``MILLI`` that it lacks; 0 asks for the cheapest part that meets the SLO.
    """
    ranked = [
        (appeal(problem, member, missing, kind, place), place)
        for place in problem.options(member, kind)
        if kind.holds(tuple(sorted((*(part.place for part in row), place))))
    ]
    if not ranked:
        return None
    _, place = min(ranked)
    cell = problem.predictor.best(member, place)
    assert cell is not None, "options() gives places with a best cell only"
    return Part(place, (cell,))


def appeal(
    problem: Problem, member: int, missing: int, kind: Kind, place: DeviceClass
) -> tuple[int, float, int]:
    """Sort key of a class of part for ``member``: smaller is better."""
    cell = problem.predictor.best(member, place)
    assert cell is not None, "only classes on which the member meets its SLO have an appeal"
    (rate,) = problem.predictor.rates(Part(place, (cell,)))
    price = max(kind.cost, 1) / kind.most(place)
    if rate >= missing:
        return 0, price, place.sm_count
    return 1, -rate / price, place.sm_count


def own_parts(
    problem: Problem, standing: Standing, member: int, missing: int, used: bool
) -> Iterator[Offer]:
    """A part of its own on every candidate board, used or not."""
    for index in problem.candidates(standing.matrix, used):
        kind, row = problem.boards[index].kind, standing.matrix.rows[index]
        part = own_part(problem, member, missing, kind, row)
        if part is not None:
            yield Offer(index, row_of((*row, part)), part)


def shared_parts(
    problem: Problem, scorer: Scorer, standing: Standing, member: int
) -> Iterator[Offer]:
    """A place in every part where ``member`` does not run yet, with caps that fit everyone there."""
    for index in problem.candidates(standing.matrix, used=True):
        kind, row = problem.boards[index].kind, standing.matrix.rows[index]
        if not problem.may_use(member, kind):
            continue
        for position, part in enumerate(row):
            if part.of(member) is None:
                for joint in _joint(problem, scorer, standing, part, member):
                    yield Offer(index, replace_part(row, position, joint), joint)


def _joint(
    problem: Problem, scorer: Scorer, standing: Standing, part: Part, member: int
) -> Iterator[Part]:
    """Versions of ``part`` with ``member`` in it, roomier caps later; none when a round takes too long."""
    grids = [_caps(problem, each, part.place) for each in (*(c.member for c in part.cells), member)]
    if not all(grids):
        return
    rates = problem.predictor.rates(part)
    needs = [
        # What this part has to carry of the other members: all that their other parts do not.
        max(0, scorer.needs[cell.member] - standing.capacity[cell.member] + rate)
        for cell, rate in zip(part.cells, rates, strict=True)
    ]
    needs.append(scorer.missing(standing, member))
    seen: set[Part] = set()
    for room in _ROOM:
        joint = _balanced(problem, part.place, grids, needs, room)
        if joint is not None and joint not in seen:
            seen.add(joint)
            yield joint


def _caps(problem: Problem, member: int, place: DeviceClass) -> tuple[Cell, ...]:
    """Cells of ``member`` with the fewest instances, by cap: sharing already is several tenants."""
    cells = problem.predictor.cells(member, place)
    fewest = min((cell.instances for cell in cells), default=0)
    return tuple(cell for cell in cells if cell.instances == fewest)


def _balanced(
    problem: Problem,
    place: DeviceClass,
    grids: list[tuple[Cell, ...]],
    needs: list[int],
    room: float,
) -> Part | None:
    """The smallest caps that hold ``room`` times what comes in one round of all members."""
    predictor = problem.predictor
    chosen = [0] * len(grids)
    while True:
        cells = [grid[index] for grid, index in zip(grids, chosen, strict=True)]
        round_ms = sum(predictor.service(cell, place).batch_ms(cell.cap) for cell in cells)
        if any(round_ms > problem.demands[cell.member].budget_ms for cell in cells):
            return None
        small = [
            i
            for i, cell in enumerate(cells)
            if chosen[i] + 1 < len(grids[i])
            and cell.cap < room * needs[i] / MILLI * round_ms / 1000
        ]
        if not small:
            return Part(place, tuple(sorted(cells)))
        for index in small:
            chosen[index] += 1
