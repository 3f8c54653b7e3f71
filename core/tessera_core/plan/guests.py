"""A guest's place: a member beside others in a part that has time and memory to spare.

It costs nothing, so it goes first for a member that would leave most of its own part idle. With rates r and
batch times h, a round of one batch each takes C = sum of h(cap), and every cap must hold the r*C rows that come
meanwhile; the smallest such caps are found by raising them until they hold, and a little room above
(``_ROOM``) is what keeps the tail short. The queue model then judges: nobody in the part may lose what they
need.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from typing import TYPE_CHECKING

from tessera_core.api import Isolation
from tessera_core.perf.shared_queue import FULLEST_LOAD
from tessera_core.plan.behaviour import MILLI, Behaviour
from tessera_core.plan.matrix import Cell, Part, replace_part
from tessera_core.plan.state import Goal

if TYPE_CHECKING:
    from tessera_core.plan.place import Placer

_ROOM = (1.25, 2.0, 4.0, 8.0, 16.0)
"""Caps tried as multiples of the rows that come in one round."""
_MOST_HOSTS = 24
"""Boards on which a guest looks for a place."""
_IDLE = 0.6
"""A member that would use less of its own part than this tries to be a guest first."""
_LONGEST_ROUND = 0.7
"""Share of the smallest latency budget that one round of a shared part may take: a request that comes at its
start waits for most of it and then takes part in the next."""
_BUSIEST = 0.8
"""Time that the members of one part may need at full batches: above this hardly any latency budget is met, and
trying costs time. Not where the most is to be got out of what there is."""
_MOST_JOINTS = 200_000
_MOST_TENANTS = 16
"""Members in one part."""


Grid = tuple[tuple[int, int, float], ...]
"""(cap, instances, ms of a full batch), caps ascending."""


class Guests:
    """Finds places beside others for the members of one placer."""

    def __init__(self, placer: Placer, before: Guests | None) -> None:
        """``before``: of another layout of the same problem."""
        self._placer = placer
        self._layout = placer.layout
        self._problem = placer.problem
        self._joints: dict[tuple[object, ...], Part | None] = before._joints if before else {}
        self._grids: dict[tuple[Behaviour, int], Grid] = before._grids if before else {}
        self._smallest: dict[tuple[Behaviour, tuple[int, ...]], int] = (
            before._smallest if before else {}
        )

    def visit(self, member: int, wanted: Sequence[int], avoid: set[int]) -> bool:
        """Take a place beside others that carries the first of ``wanted``, or all that is missing, that any does.

        False without one.
        """
        layout = self._layout
        hosts = [
            (index, position, part)
            for index in self._hosts(member, avoid)
            for position, part in enumerate(layout.rows[index])
            if self._may_host(index, part, member)
        ]
        for rate in wanted:
            for index, position, part in hosts:
                joint = self._joint(part, member, rate)
                if joint is not None and self._joined(index, position, joint, member, rate):
                    return True
        return False

    def _may_host(self, index: int, part: Part, member: int) -> bool:
        """Whether the tenants of ``part``, on board ``index``, accept ``member``.

        A member with several parts on one queue runs them close to what they carry, so there is nothing to
        share, unless boards are there to be used up.
        """
        layout = self._layout
        node = self._problem.boards[index].node
        return (
            part.of(member) is None
            and len(part.cells) < _MOST_TENANTS
            and self._problem.may_join(part, member)
            and self._may_count(index, part, member)
            and (
                self._problem.goal is Goal.MAXIMISE_RATE
                or all(layout.parts_on(cell.member, node) == 1 for cell in part.cells)
            )
        )

    def _may_count(self, index: int, part: Part, member: int) -> bool:
        """Whether the quota of the member's namespace allows ``part``, unless it counts for it already."""
        demands = self._problem.demands
        namespace = demands[member].namespace
        return any(demands[cell.member].namespace == namespace for cell in part.cells) or (
            self._layout.within_quota(namespace, self._problem.boards[index].kind, (part.place,))
        )

    def _joined(self, index: int, position: int, joint: Part, member: int, wanted: int) -> bool:
        """Put ``joint`` in; taken back where somebody, on all their parts together, has too little then."""
        layout = self._layout
        before = layout.rows[index]
        row = replace_part(before, position, joint)
        if not layout.legal(index, row):
            return False
        mark = layout.mark()
        tenants = [cell.member for cell in joint.cells if cell.member != member]
        floors = [min(self._placer.needs[each], layout.capacity(each)) for each in tenants]
        aim = min(layout.capacity(member) + wanted, max(self._placer.needs[member], 1))
        layout.change({index: row})
        if layout.capacity(member) >= aim and all(
            layout.capacity(each) >= least for each, least in zip(tenants, floors, strict=True)
        ):
            return True
        layout.rollback(mark)
        return False

    def _hosts(self, member: int, avoid: set[int]) -> list[int]:
        """Boards with tenants: those with the service's other members, those on their nodes, the last changed."""
        layout, problem = self._layout, self._problem
        demand = problem.demands[member]
        kinds = set(problem.eligible[member])
        kin = self._placer.kin(member)
        near = sorted({i for other in problem.service_of(member) for i in layout.hosts[other]})
        others = () if demand.isolation is Isolation.EXCLUSIVE else reversed(layout.sharable)
        found = []
        for index in dict.fromkeys(chain(near, others)):
            board = problem.boards[index]
            if (
                board.kind.index in kinds
                and not board.closed
                and board.node not in avoid
                and layout.admits(board.node, board.kind, demand.namespace)
            ):
                found.append(index)
                if len(found) == _MOST_HOSTS:
                    break
        return sorted(found, key=lambda index: (problem.boards[index].node not in kin,))

    def _joint(self, part: Part, member: int, wanted: int) -> Part | None:
        """``part`` with ``member`` in it carrying ``wanted``, everybody else what they need; None if not."""
        asked = (*(self._asked(cell.member, part) for cell in part.cells), wanted)
        key = part, member, asked
        if key not in self._joints:
            if len(self._joints) > _MOST_JOINTS:
                self._joints.clear()
            self._joints[key] = self._find_joint(part, member, asked)
        return self._joints[key]

    def _asked(self, tenant: int, part: Part) -> int:
        """What ``part`` has to carry of ``tenant``: all that its other parts do not."""
        layout = self._layout
        if layout.parts(tenant) == 1:
            return self._placer.needs[tenant]
        here = self._problem.predictor.rate(tenant, (part,))
        return max(0, self._placer.needs[tenant] - layout.capacity(tenant) + here)

    def _find_joint(self, part: Part, member: int, asked: Sequence[int]) -> Part | None:
        problem, predictor = self._problem, self._problem.predictor
        members = [*(cell.member for cell in part.cells), member]
        busy = 0.0
        for each, rate in zip(members, asked, strict=True):
            most = predictor.behaviours[each].most_rate(part.place)
            if most == 0:
                return None
            busy += rate / most
        if busy > (FULLEST_LOAD if problem.goal is Goal.MAXIMISE_RATE else _BUSIEST):
            return None
        grids = [self.caps(each, part.place) for each in members]
        budget = min(problem.demands[each].budget_ms for each in members)
        floors = [
            max(1, min(rate, predictor.rate(cell.member, (part,))))
            for rate, cell in zip(asked, part.cells, strict=False)
        ]
        tried: tuple[int, ...] = ()
        for room in _ROOM:
            chosen = _balanced(grids, asked, room, budget * _LONGEST_ROUND)
            if chosen is None:
                break
            if chosen == tried:
                continue
            tried = chosen
            joint = _joined_cells(part.place, members, grids, chosen)
            if all(
                predictor.rate(each, (joint,)) >= least
                for each, least in zip(members, [*floors, max(asked[-1], 1)], strict=True)
            ):
                return joint
        return None

    def caps(self, member: int, place: int) -> Grid:
        """Points of ``member`` with the fewest instances: sharing already is several tenants."""
        key = self._problem.predictor.behaviours[member], place
        if key not in self._grids:
            columns = self._problem.predictor.behaviours[member].columns(place)
            points = columns[0].points if columns else ()
            self._grids[key] = tuple((p.cap, p.instances, p.batch_ms) for p in points)
        return self._grids[key]

    def is_small(self, member: int, missing: int) -> bool:
        """Whether the member would leave much of the smallest part of its own idle."""
        problem = self._problem
        key = problem.predictor.behaviours[member], problem.eligible[member]
        if key not in self._smallest:
            behaviour = problem.predictor.behaviours[member]
            self._smallest[key] = min(
                (
                    best.rate
                    for index in problem.eligible[member]
                    for place in problem.kinds[index].classes
                    if (best := behaviour.best(place)) is not None
                ),
                default=0,
            )
        return missing < _IDLE * self._smallest[key]


def _balanced(
    grids: Sequence[Grid], needs: Sequence[int], room: float, longest_ms: float
) -> tuple[int, ...] | None:
    """Index into each grid: the smallest caps that hold ``room`` times what comes in one round of all.

    None when the round takes longer than ``longest_ms``.
    """
    if not all(grids):
        return None
    chosen = [0] * len(grids)
    round_ms = sum(grid[0][2] for grid in grids)
    while round_ms <= longest_ms:
        grown = False
        for index, grid in enumerate(grids):
            at = chosen[index]
            wanted = room * needs[index] * round_ms / (1000 * MILLI)
            if at + 1 < len(grid) and grid[at][0] < wanted:
                chosen[index] = at + 1
                round_ms += grid[at + 1][2] - grid[at][2]
                grown = True
        if not grown:
            return tuple(chosen)
    return None


def _joined_cells(
    place: int, members: Sequence[int], grids: Sequence[Grid], chosen: Sequence[int]
) -> Part:
    cells = (
        Cell(each, *grid[at][:2]) for each, grid, at in zip(members, grids, chosen, strict=True)
    )
    return Part(place, tuple(sorted(cells)))
