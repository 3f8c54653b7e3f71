"""The stages of the search: construct, try failures first, dissolve boards.

``construct`` is worst-fit decreasing with prices: members one by one, the one that buys most first, each
where it costs least. Whoever found no place goes first in the next attempt ("squeaky wheel", Joslin and
Clements 1999), which finds an order that works where one exists for small cases and nearly always else.

``consolidate`` takes the tenants off the emptiest board and places them again elsewhere; when everybody is
still served and the score is lower, that stands, otherwise all of it is undone. Pairs of boards come after
single ones, and thorough placing (``Placer.place``) after both. An attempt is one unit of the budget.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

from tessera_core.plan.layout import Layout
from tessera_core.plan.matrix import Change
from tessera_core.plan.place import Placer
from tessera_core.plan.prices import Prices
from tessera_core.plan.problem import Problem

_SQUEAKS = 12
"""Orders tried until everybody has a place; fewer when there are many members."""
_FORWARD = 4
"""Whoever found no place takes its turn that many times earlier in the next order."""
_STALLED = 3
"""Orders in a row that were no better than the best one: others will hardly be either."""
_MOST_PLACED = 6000
"""Members placed in all those orders together."""
LITTLE_FAITH = 0.1
"""``Layout.faith`` when few members, or none, are still to come."""
_FEW = 8
"""Members that are worth every effort: placed again when they are all that is missing, in every order."""
_PAIRS = 24
"""Boards that are dissolved together with each of the emptiest."""


class Work:
    """What is left of a budget of attempts."""

    def __init__(self, units: int) -> None:
        self.left = units

    def spend(self) -> bool:
        """Take one unit; False when there is none."""
        self.left -= 1
        return self.left >= 0

    @property
    def exhausted(self) -> bool:
        return self.left < 0


def order_of(
    problem: Problem, needs: Sequence[int], prices: Prices, members: Iterable[int]
) -> list[int]:
    """``members``, those of higher priority first, then those that pay more."""

    def pays(member: int) -> float:
        behaviour = problem.predictor.behaviours[member]
        offers = [
            prices.of_kind[index][position] / rate
            for index in problem.eligible[member]
            for position, place in enumerate(problem.kinds[index].classes)
            if (rate := behaviour.most_rate(place)) > 0
        ]
        return min(offers, default=0.0) * max(1, needs[member])

    return sorted(
        members,
        key=lambda m: (-problem.demands[m].priority, -pays(m), m),
    )


def construct(placer: Placer, members: Iterable[int], thorough: bool = False) -> list[int]:
    """Place ``members`` in this order; those that did not get all they need."""
    return [member for member in members if not placer.place(member, thorough)]


class Arranged(NamedTuple):
    """How placing some members went."""

    failed: list[int]
    """Members that lack something."""
    order: list[int]
    """In which all were placed: a good one to begin with where nearly the same is asked again."""


def arrange(placer: Placer, members: Sequence[int], work: Work) -> Arranged:
    """Place ``members`` into what the placer's layout has.

    The best of several orders is kept: fewest failures, of these most members that have something at all.
    """
    layout = placer.layout
    mark = layout.mark()
    order = list(members)
    new = {member for member in order if not layout.hosts[member]}
    best: tuple[tuple[int, int], Arranged, Change] | None = None
    attempts = max(2, min(_SQUEAKS, _MOST_PLACED // max(1, len(order))))
    stalled, tried = 0, set[tuple[int, ...]]()
    for attempt in range(attempts):
        # Few members: worth every effort, once the plain way has failed.
        failed = construct(placer, order, thorough=attempt > 0 and attempts == _SQUEAKS)
        if len(failed) <= _FEW:
            failed = [
                member for member in failed if member not in new or not _afresh(placer, member)
            ]
        found = Arranged(failed, order)
        if not failed:
            return found
        merit = len(failed), sum(not layout.hosts[member] for member in failed)
        stalled += 1
        if best is None or merit < best[0]:
            stalled = 0
            best = merit, found, {index: layout.rows[index] for index in layout.changed(mark)}
        is_stuck = stalled == _STALLED and len(order) > _FEW
        if is_stuck or attempt == attempts - 1 or not work.spend():
            break
        layout.rollback(mark)
        loud = set(failed)
        # To the very front only among few: one that is large upsets everybody there.
        forward = _FORWARD if len(order) > _FEW else len(order) + 1
        turn = {m: at / forward if m in loud else at for at, m in enumerate(order, start=1)}
        tried.add(tuple(order))
        following = sorted(order, key=turn.__getitem__)
        if tuple(following) in tried:
            following.reverse()  # out of the circle
            if attempt and tuple(following) in tried:
                break
        order = following
    assert best is not None
    layout.rollback(mark)
    layout.change(best[2])
    return best[1]


def _afresh(placer: Placer, member: int) -> bool:
    """Place a ``member`` that lacks something again, with every effort; unless that helps nothing is changed."""
    layout = placer.layout
    mark = layout.mark()
    layout.without(member)
    if placer.place(member, thorough=True):
        return True
    layout.rollback(mark)
    return False


def consolidate(placer: Placer, work: Work) -> None:
    """Lower the score of a layout without serving anybody less."""
    layout = placer.layout
    everyone = range(len(placer.problem.demands))
    served = frozenset(member for member in everyone if placer.served(member))
    layout.faith = LITTLE_FAITH
    for thorough, size in ((False, 1), (False, 2), (True, 1), (True, 2)):
        improved = True
        while improved:
            improved = False
            for boards in _neighbourhoods(layout, size):
                if not all(layout.rows[index] for index in boards):
                    continue
                if not work.spend():
                    return
                if _dissolved(placer, boards, served, thorough):
                    improved = True


def _neighbourhoods(layout: Layout, size: int) -> Iterator[tuple[int, ...]]:
    """Used boards to dissolve, alone (``size`` 1) or in pairs, the emptiest first."""
    problem = layout.problem

    def emptiness(index: int) -> tuple[float, int]:
        kind = problem.boards[index].kind
        worth = layout.prices.worth[kind.index][layout.states[index]]
        return -worth / max(kind.cost, 1), index

    used = sorted(
        (i for i, row in enumerate(layout.rows) if row and layout.states[i] >= 0), key=emptiness
    )
    if size == 1:
        yield from ((index,) for index in used)
        return
    for position, index in enumerate(used[:_PAIRS]):
        for other in used[position + 1 :]:
            yield (index, other)


def _dissolved(
    placer: Placer, boards: tuple[int, ...], served: frozenset[int], thorough: bool
) -> bool:
    """Place the tenants of ``boards`` anew; whether the score fell, otherwise nothing is changed."""
    layout, problem = placer.layout, placer.problem
    mark, before = layout.mark(), layout.score
    tenants = sorted(
        {
            (problem.boards[index].node, cell.member)
            for index in boards
            for part in layout.rows[index]
            for cell in part.cells
        }
    )
    parts = {member: layout.parts(member) for _, member in tenants}
    had = {member: _has(layout, member) for member in parts if member not in served}
    for node, member in tenants:
        layout.without(member, node)
    order = sorted(parts, key=lambda member: (-parts[member], member))
    for attempt in (order, order[::-1]):
        inner = layout.mark()
        if all(
            placer.place(member, thorough) or _keeps(layout, member, had) for member in attempt
        ) and (layout.score < before):
            return True
        layout.rollback(inner)
    layout.rollback(mark)
    return False


def _has(layout: Layout, member: int) -> tuple[int, int, int]:
    """What counts for a member that lacks something: rate, parts, nodes."""
    return layout.capacity(member), layout.parts(member), len(layout.nodes(member))


def _keeps(layout: Layout, member: int, had: Mapping[int, tuple[int, int, int]]) -> bool:
    """Whether ``member`` lacked something before, and has no less of anything now."""
    return member in had and all(
        now >= then for now, then in zip(_has(layout, member), had[member], strict=True)
    )
