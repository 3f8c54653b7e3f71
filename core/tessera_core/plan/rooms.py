"""Where there is room: nodes grouped by what is left on their boards.

Problem: a fleet has a thousand nodes that could take the next parts, but few that differ. Approach: a node's
room for one kind of board is the sorted list of the states of its used boards that still have something
worth adding, and the number of unused ones. Nodes with equal rooms are equal, so each distinct room is tried
once, and what was found for it is remembered for the next member with the same wish.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

from tessera_core.gpu.devices import FULL
from tessera_core.plan.problem import Kind, Problem
from tessera_core.plan.shapes import NEVER

if TYPE_CHECKING:
    from tessera_core.plan.layout import Layout

_MOST_FRESH = 16
"""Unused boards of one node that are told apart."""
_WORTHLESS = 1e-9

Counts = tuple[int, ...]
"""Parts by position of their class in ``Kind.classes``."""


class Room(NamedTuple):
    """What is left on one node's boards of one kind."""

    states: tuple[int, ...]
    """Of used boards with room, sorted."""
    fresh: int
    """Unused boards, at most ``_MOST_FRESH``."""


class Fit(NamedTuple):
    """How parts go into a room."""

    cost: float
    """Fall of the worth of all boards touched; a fresh one costs its price less what it is still worth."""
    steps: tuple[tuple[int, int], ...]
    """(state before, class position) in order; state 0 with no such board in use opens a fresh one."""


class Rooms:
    """The index of one layout, brought up to date when it is asked."""

    def __init__(self, problem: Problem, layout: Layout) -> None:
        self._problem = problem
        self._layout = layout
        self._boards: list[dict[int, tuple[int, ...]]] = [{} for _ in problem.kinds]
        for node, siblings in enumerate(problem.siblings):
            for index in siblings:
                board = problem.boards[index]
                if not board.closed:
                    of_kind = self._boards[board.kind.index]
                    of_kind[node] = (*of_kind.get(node, ()), index)
        self._room: list[dict[int, Room]] = [{} for _ in problem.kinds]
        self._nodes: list[dict[Room, dict[int, None]]] = [{} for _ in problem.kinds]
        self._stale: dict[tuple[int, int], None] = {}
        self._fits: dict[tuple[int, Room, Counts, float], Fit | None] = {}
        for kind in problem.kinds:
            for node in self._boards[kind.index]:
                self._stale[node, kind.index] = None

    def touch(self, node: int, kind: int) -> None:
        """Note that a board of ``kind`` on ``node`` has changed."""
        if node in self._boards[kind]:
            self._stale[node, kind] = None

    def of(self, kind: int) -> dict[Room, dict[int, None]]:
        """Nodes by room, of one kind."""
        for node, stale in self._stale:
            room = self._now(node, stale)
            before = self._room[stale].get(node)
            if before == room:
                continue
            if before is not None:
                nodes = self._nodes[stale][before]
                del nodes[node]
                if not nodes:
                    del self._nodes[stale][before]
            self._room[stale][node] = room
            self._nodes[stale].setdefault(room, {})[node] = None
        self._stale.clear()
        return self._nodes[kind]

    def room(self, kind: int, node: int) -> Room:
        """The room of one node."""
        self.of(kind)
        return self._room[kind].get(node, Room((), 0))

    def _now(self, node: int, kind: int) -> Room:
        layout = self._layout
        worth = layout.prices.worth[kind]
        states = []
        fresh = 0
        for index in self._boards[kind][node]:
            if not layout.rows[index]:
                fresh += 1
            elif layout.states[index] >= 0 and worth[layout.states[index]] > _WORTHLESS:
                states.append(layout.states[index])
        return Room(tuple(sorted(states)), min(fresh, _MOST_FRESH))

    def fit(self, kind: Kind, room: Room, counts: Counts) -> Fit | None:
        """The parts put one by one where they cost least, widest first; None when one finds no place."""
        key = kind.index, room, counts, self._layout.faith
        if key not in self._fits:
            self._fits[key] = self._fit(kind, room, counts)
        return self._fits[key]

    def _fit(self, kind: Kind, room: Room, counts: Counts) -> Fit | None:
        after = kind.shape.after
        faith = self._layout.faith
        worth = [faith * each for each in self._layout.prices.worth[kind.index]]
        states = list(room.states)
        fresh = room.fresh
        total = 0.0
        steps = []
        for position, count in enumerate(counts):
            for _ in range(count):
                best: tuple[float, int] | None = None
                for state in set(states):
                    following = after[state][position]
                    if following != NEVER:
                        loss = worth[state] - worth[following]
                        if best is None or (loss, -state) < best:
                            best = (loss, -state)
                if fresh and after[0][position] != NEVER:
                    # A board that is paid for goes before one that is not, where both lose the same.
                    loss = kind.cost - worth[after[0][position]] + _WORTHLESS
                    if best is None or loss < best[0] - _WORTHLESS:
                        best = (loss, 0)
                if best is None:
                    return None
                state = -best[1]
                total += best[0]
                if state:
                    states.remove(state)
                else:
                    fresh -= 1
                states.append(after[state][position])
                steps.append((state, position))
        return Fit(total, tuple(steps))

    def boards(self, kind: Kind, node: int, fit: Fit) -> Iterator[tuple[int, int]]:
        """(board, class) of every part of ``fit``, realised on ``node``."""
        layout = self._layout
        now = {
            index: layout.states[index]
            for index in self._boards[kind.index][node]
            if layout.states[index] >= 0
        }
        for state, position in fit.steps:
            place = kind.classes[position]
            index = min(
                (index for index, at in now.items() if at == state),
                key=lambda index: (not self._is_cut(index, place), index),
            )
            now[index] = kind.shape.after[state][position]
            yield index, place

    def _is_cut(self, index: int, place: int) -> bool:
        """Whether a board has a free slice of class ``place`` now: cutting it anew is work."""
        geometry = self._problem.devices[index].geometry
        name = self._problem.places[place].slice
        if geometry is None:
            return name == FULL
        used = sum(part.place == place for part in self._layout.rows[index])
        return sum(each.profile == name for each in geometry) > used
