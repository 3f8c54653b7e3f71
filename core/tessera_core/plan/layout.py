"""The matrix under construction: rows of boards, and everything that follows from them, kept up to date.

Problem: a search changes one or two of ten thousand rows at a time and wants to know at once what that does
to capacity, cost and the tenants of a node, and to take it back when it was no good. Approach: one mutable
object with a single way to change it (``change``) and a journal of what was there before, so that everything since
a mark can be undone. Capacity is computed when it is asked for, of members whose rows changed.

Nothing outside the search ever holds a Layout.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

from tessera_core.plan.matrix import Change, Part, Row, row_of
from tessera_core.plan.prices import Prices
from tessera_core.plan.problem import Kind, Problem
from tessera_core.plan.rooms import Rooms


class Score(NamedTuple):
    """What a layout costs; smaller is better, compared from the left."""

    cost: int
    watts: int
    width: int
    """SMs and cores of used parts."""
    scatter: int
    """Less the squares of the free shares of used boards: room on one board is better than on two."""
    cells: int


class Layout:
    """Rows of all boards of one problem."""

    def __init__(self, problem: Problem, prices: Prices) -> None:
        self.problem = problem
        self.prices = prices
        boards = len(problem.boards)
        self._width = [problem.width(place) for place in range(len(problem.places))]
        self.rows: list[Row] = [()] * boards
        self.states = [0] * boards
        self.hosts: list[dict[int, None]] = [{} for _ in problem.demands]
        """Boards of every member."""
        self._capacity: list[int | None] = [0] * len(problem.demands)
        self._parts = [0] * len(problem.demands)
        self._parts_on: dict[tuple[int, int], int] = {}
        """By (member, node)."""
        self.score = Score(0, 0, 0, 0, 0)
        self._tenants: dict[int, dict[str, int]] = {}
        """Parts per namespace, by private node."""
        self._slices: dict[str, int] = {}
        self._shares: dict[str, float] = {}
        self.sharable: dict[int, None] = {}
        """Used boards, the ones that changed last at the end: where guests may ask."""
        self.faith = 1.0
        """How much of the worth of a board's free parts counts: 1 while many members are still to come, less
        when there will be nobody to use them."""
        self._journal: list[tuple[int, Row]] = []
        self.rooms = Rooms(problem, self)

    def change(self, change: Change) -> None:
        """Put in the rows of ``change``."""
        for index, row in change.items():
            old = self.rows[index]
            if row != old:
                self._journal.append((index, old))
                self._swap(index, old, row)

    def mark(self) -> int:
        """A point to go back to with ``rollback``."""
        return len(self._journal)

    def changed(self, mark: int) -> set[int]:
        """Boards that changed since ``mark``."""
        return {index for index, _ in self._journal[mark:]}

    def rollback(self, mark: int) -> None:
        """Undo every change since ``mark``."""
        while len(self._journal) > mark:
            index, row = self._journal.pop()
            self._swap(index, self.rows[index], row)

    def without(self, member: int, node: int | None = None) -> None:
        """Take ``member`` off all boards, or off those of one node."""
        for index in list(self.hosts[member]):
            if node is None or self.problem.boards[index].node == node:
                self.change({index: row_of(part.without(member) for part in self.rows[index])})

    def _swap(self, index: int, old: Row, row: Row) -> None:
        problem = self.problem
        board = problem.boards[index]
        kind = board.kind
        free, width, cells = -(self._free(index) ** 2), 0, 0
        for part in old:
            width -= self._width[part.place]
            cells -= len(part.cells)
            for member, _, _ in part.cells:
                self.hosts[member].pop(index, None)
                self._parts[member] -= 1
                self._parts_on[member, board.node] -= 1
                self._capacity[member] = None
        for part in row:
            width += self._width[part.place]
            cells += len(part.cells)
            for member, _, _ in part.cells:
                self.hosts[member][index] = None
                self._parts[member] += 1
                here = member, board.node
                self._parts_on[here] = self._parts_on.get(here, 0) + 1
                self._capacity[member] = None
        self.rows[index] = row
        self.sharable.pop(index, None)
        if row:
            self.sharable[index] = None
        self.states[index] = self.state_of(kind, row)
        free += self._free(index) ** 2
        used = bool(row) - bool(old)
        cost, watts, wide, scatter, many = self.score
        self.score = Score(
            cost + used * kind.cost,
            watts + used * kind.watts,
            wide + width,
            scatter - free,
            many + cells,
        )
        if kind.private_node or problem.quotas:
            self._tally(index, old, -1)
            self._tally(index, row, 1)
        self.rooms.touch(board.node, kind.index)

    def _free(self, index: int) -> int:
        """Share of a used board that is still worth something, in 64ths."""
        if not self.rows[index]:
            return 0
        state = self.states[index]
        if state < 0:
            return 0
        worth = self.prices.worth[self.problem.boards[index].kind.index]
        return int(64 * worth[state] / worth[0]) if worth[0] else 0

    def _tally(self, index: int, row: Row, sign: int) -> None:
        problem = self.problem
        board = problem.boards[index]
        for part in row:
            for namespace in {problem.demands[cell.member].namespace for cell in part.cells}:
                if board.kind.private_node:
                    here = self._tenants.setdefault(board.node, {})
                    here[namespace] = here.get(namespace, 0) + sign
                if namespace in problem.quotas:
                    share = problem.share_of(board.kind, part.place)
                    self._slices[namespace] = self._slices.get(namespace, 0) + sign
                    self._shares[namespace] = self._shares.get(namespace, 0.0) + sign * share

    def state_of(self, kind: Kind, row: Row) -> int:
        """The automaton's state of a board with ``row``; ``NEVER`` when its parts do not fit it."""
        state = 0
        for part in row:
            position = kind.position.get(part.place)
            if position is None or state < 0:
                return -1
            state = kind.shape.after[state][position]
        return state

    def parts_of(self, member: int, index: int) -> Iterator[Part]:
        """Parts of board ``index`` in which ``member`` runs."""
        return (part for part in self.rows[index] if part.of(member) is not None)

    def parts(self, member: int) -> int:
        """Parts in which ``member`` runs."""
        return self._parts[member]

    def parts_on(self, member: int, node: int) -> int:
        """Parts of one node in which ``member`` runs."""
        return self._parts_on.get((member, node), 0)

    def nodes(self, member: int) -> dict[int, list[Part]]:
        """Parts of ``member`` by node, nodes ascending."""
        boards = self.problem.boards
        found: dict[int, list[Part]] = {}
        for index in sorted(self.hosts[member]):
            found.setdefault(boards[index].node, []).extend(self.parts_of(member, index))
        return found

    def capacity(self, member: int) -> int:
        """Rows/s × ``MILLI`` that ``member`` is carried with."""
        known = self._capacity[member]
        if known is None:
            predictor, hosts = self.problem.predictor, self.hosts[member]
            if len(hosts) == 1:
                (index,) = hosts
                known = predictor.rate(member, self.rows[index])
            else:
                known = sum(predictor.rate(member, parts) for parts in self.nodes(member).values())
            self._capacity[member] = known
        return known

    def admits(self, node: int, kind: Kind, namespace: str) -> bool:
        """Whether the trust rules let ``namespace`` onto ``node``."""
        if not kind.private_node:
            return True
        return all(
            name == namespace or not count for name, count in self._tenants.get(node, {}).items()
        )

    def within_quota(self, namespace: str, kind: Kind, places: Iterable[int]) -> bool:
        """Whether ``namespace`` may have these further parts."""
        quota = self.problem.quotas.get(namespace)
        if quota is None:
            return True
        more = list(places)
        slices, shares = self.of_quota(namespace)
        slices += len(more)
        shares += sum(self.problem.share_of(kind, place) for place in more)
        return (quota.slices is None or slices <= quota.slices) and (
            quota.shares is None or shares <= quota.shares + 1e-9
        )

    def of_quota(self, namespace: str) -> tuple[int, float]:
        """Slices and shares that a namespace with a quota has."""
        return self._slices.get(namespace, 0), self._shares.get(namespace, 0.0)

    def legal(self, index: int, row: Row) -> bool:
        """Whether board ``index`` can hold ``row``: parts, memory, isolation; trust is the node's."""
        kind = self.problem.boards[index].kind
        return (
            self.state_of(kind, row) >= 0
            and self.problem.has_memory(kind, row)
            and self.problem.isolated(row)
        )

    def used(self) -> Change:
        """The used rows."""
        return {index: row for index, row in enumerate(self.rows) if row}

    def become(self, rows: Change) -> None:
        """Make ``rows`` the used ones."""
        self.change({index: () for index in self.used() if index not in rows})
        self.change(rows)

    def rows_at(self, mark: int) -> Change:
        """What the rows that changed since ``mark`` were then."""
        found: Change = {}
        for index, row in self._journal[mark:]:
            found.setdefault(index, row)
        return found
