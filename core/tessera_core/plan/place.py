"""Finding parts for one member: the step that every stage of the search is made of.

Three ways, of which the cheapest that carries all that is missing is taken:

Parts of its own on one node, where they share a queue. For every kind of board and every way of working
together (``behaviour.Regime``) the cheapest covers at the present prices are held against what the rooms of
the nodes really charge: the fall in worth of the boards, waste included.

A guest's place beside others (``guests``), which costs nothing.

Several nodes, each with an equal share of the rate, where one node is not enough or a spread is wanted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from math import inf

from tessera_core.plan.behaviour import MILLI, Behaviour, Regime
from tessera_core.plan.cover import covers
from tessera_core.plan.guests import Guests
from tessera_core.plan.layout import Layout
from tessera_core.plan.matrix import Cell, Change, Part, row_of
from tessera_core.plan.problem import Kind, Problem
from tessera_core.plan.rooms import Counts, Fit

_DIVISIONS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128)
"""Nodes over which a rate is divided."""
_FRACTIONS = (2, 4, 8, 16)
"""Of a rate that are sought beside others when all of it finds no place."""
_COVERS = 3
"""Covers tried per kind and regime."""
_DEARER = 1.3
"""Covers whose price is above the best real cost by more than this are not looked at: prices are a guide."""
_FIRST_RATES = 6
"""Unequal divisions of a rate that are tried."""
_MOST_NODES = 24
"""Equal nodes that are looked at."""
_MOST_TURNS = 256
"""Bound on the pieces in which one member is placed."""


@dataclass(frozen=True, slots=True)
class Offer:
    """A change that gives a member something."""

    cost: float
    node: int
    change: Change


@dataclass(frozen=True, slots=True)
class Wish:
    """Parts of one kind of board on one node that together carry a rate."""

    kind: Kind
    counts: Counts
    settings: dict[int, tuple[int, int]]
    """(cap, instances) by class."""
    places: tuple[int, ...]
    width: int
    price: float


def _wish(
    problem: Problem, kind: Kind, regime: Regime, counts: Sequence[int], price: float
) -> Wish:
    by_class = [0] * len(kind.classes)
    settings = {}
    places: list[int] = []
    for option, count in zip(regime.options, counts, strict=True):
        if count:
            by_class[kind.position[option.place]] = count
            settings[option.place] = (option.cap, option.instances)
            places += [option.place] * count
    width = sum(problem.width(place) for place in places)
    return Wish(kind, tuple(by_class), settings, tuple(places), width, price)


class Placer:
    """Places members into one layout, towards ``needs`` (rows/s × ``MILLI`` by member)."""

    def __init__(self, layout: Layout, needs: Sequence[int], before: Placer | None = None) -> None:
        """``before``: of another layout of the same problem and prices; what it found out holds here, too."""
        self.layout = layout
        self.problem: Problem = layout.problem
        self.needs = needs
        self._covers: dict[tuple[Behaviour, int, tuple[int, ...]], list[Wish]] = (
            before._covers if before else {}
        )
        self.guests: Guests = Guests(self, before.guests if before else None)

    def missing(self, member: int) -> int:
        """Rows/s × ``MILLI`` that ``member`` lacks."""
        return max(0, self.needs[member] - self.layout.capacity(member))

    def served(self, member: int) -> bool:
        """Whether ``member`` has all that it needs: rate, parts, nodes."""
        demand, layout = self.problem.demands[member], self.layout
        if layout.capacity(member) < self.needs[member]:
            return False
        if len(layout.hosts[member]) < demand.min_parts > layout.parts(member):
            return False
        return demand.min_nodes == 1 or len(layout.nodes(member)) >= demand.min_nodes

    def place(self, member: int, thorough: bool = False) -> bool:
        """Give ``member`` what it lacks; False when not all of it could be had. Harms nobody.

        ``thorough``: several beginnings are tried and the best result is kept, which takes as many times as long.
        """
        if not thorough:
            return self._place_rest(member)
        layout = self.layout
        mark, cost = layout.mark(), layout.score.cost
        done = self._place_rest(member)
        if done and layout.score.cost == cost:
            return True  # no other way costs less
        best = not done, self.missing(member), layout.score
        rows = self._changed(mark)
        layout.rollback(mark)
        for begin in self._beginnings(member):
            if begin():
                done = self._place_rest(member)
                found = not done, self.missing(member), layout.score
                if found < best:
                    best, rows = found, self._changed(mark)
            layout.rollback(mark)
        layout.change(rows)
        return not best[0]

    def _beginnings(self, member: int) -> Iterator[Callable[[], bool]]:
        """First additions other than the usual one: as a guest, or by one part as full as it gets.

        The rest goes elsewhere, for nodes need not carry equal shares of a rate.
        """
        problem = self.problem
        behaviour = problem.predictor.behaviours[member]
        places = {p for index in problem.eligible[member] for p in problem.kinds[index].classes}
        rates = {best.rate for place in places if (best := behaviour.best(place)) is not None}
        missing, (avoid, _) = self.missing(member), self._spread(member)
        room = problem.demands[member].max_parts - self.layout.parts(member)
        yield partial(self.guests.visit, member, (missing,), avoid)
        for rate in sorted((rate for rate in rates if rate < missing), reverse=True)[:_FIRST_RATES]:
            yield partial(self._take_offer, member, rate, avoid, room)

    def _changed(self, mark: int) -> Change:
        layout = self.layout
        return {index: layout.rows[index] for index in layout.changed(mark)}

    def _place_rest(self, member: int) -> bool:
        for _ in range(_MOST_TURNS):
            if self.served(member):
                return True
            mark = self.layout.mark()
            before = self.missing(member), -self.layout.parts(member)
            if not self._step(member):
                return False
            if (self.missing(member), -self.layout.parts(member)) >= before:
                # A slow part can cost a shared queue more than it carries.
                self.layout.rollback(mark)
                return False
        return False

    def _step(self, member: int) -> bool:
        """One addition for ``member``; whether there was one."""
        layout, demand = self.layout, self.problem.demands[member]
        parts, missing = layout.parts(member), self.missing(member)
        if parts >= demand.max_parts:
            return False
        avoid, scattered = self._spread(member)
        if self._add(member, avoid, scattered, demand.max_parts - parts):
            return True
        # With too few nodes, those that it has serve what they can; parts for the others are kept back.
        wanted = demand.max_parts if missing else demand.min_parts
        room = wanted - parts - scattered
        return bool(avoid) and room > 0 and self._add(member, set(), 1, room)

    def _add(self, member: int, avoid: set[int], scattered: int, room: int) -> bool:
        """One addition on a node that is none of ``avoid``, so that of ``room`` parts some are left for ``scattered - 1``
        more nodes; whether there was one.
        """
        missing = self.missing(member)
        small = self.guests.is_small(member, missing)
        if small and self.guests.visit(member, (missing,), avoid):
            return True
        for division in _DIVISIONS:
            if division < scattered:
                continue
            rate = max(1, -(-missing // division))
            if self._take_offer(member, rate, avoid, room - (scattered - 1)):
                return True
            if not missing or (division > 1 and rate < MILLI):
                break
        parts = [missing // part for part in _FRACTIONS if missing // part]
        return self.guests.visit(member, parts if small else [missing, *parts], avoid)

    def _spread(self, member: int) -> tuple[set[int], int]:
        """Nodes that ``member`` has to leave out for the sake of its spread, and how many more it needs."""
        nodes = self.layout.nodes(member)
        lacking = self.problem.demands[member].min_nodes - len(nodes)
        return (set(nodes) if lacking > 0 else set()), max(1, lacking)

    # --- parts of its own

    def _take_offer(self, member: int, rate: int, avoid: set[int], parts: int) -> bool:
        """Take the best offer of at most ``parts`` for ``rate``, on one node that is none of ``avoid``."""
        offer = self._best_offer(member, rate, avoid, parts)
        if offer is None:
            return False
        self.layout.change(offer.change)
        return True

    def take(self, member: int, wish: Wish) -> bool:
        """Give ``member`` the parts of ``wish`` where they cost least; False without room."""
        offer = self._cheapest(member, wish, set(), self.kin(member))
        if offer is None:
            return False
        self.layout.change(offer.change)
        return True

    def _best_offer(self, member: int, rate: int, avoid: set[int], parts: int) -> Offer | None:
        layout, demand = self.layout, self.problem.demands[member]
        kin = self.kin(member)
        best: Offer | None = None
        best_key: tuple[float, ...] = (inf,)
        for wish in self.wishes(member, rate):
            if len(wish.places) > parts:
                continue
            if best is not None and wish.price > best.cost * _DEARER + 1e-6:
                break
            if not layout.within_quota(demand.namespace, wish.kind, wish.places):
                continue
            most = best.cost if best is not None and wish.kind.avoided >= best_key[0] else inf
            offer = self._cheapest(member, wish, avoid, kin, most)
            if offer is None:
                continue
            near = offer.node in kin
            key = (wish.kind.avoided, offer.cost, not near, wish.width, offer.node)
            if key < best_key:
                best_key, best = key, offer
        return best

    def wishes(self, member: int, rate: int) -> list[Wish]:
        """The covers of ``rate`` worth trying, cheapest at the present prices first."""
        behaviour = self.problem.predictor.behaviours[member]
        key = behaviour, rate, self.problem.eligible[member]
        found = self._covers.get(key)
        if found is None:
            found = self._covers[key] = self._priced(member, rate)
        return found

    def _priced(self, member: int, rate: int) -> list[Wish]:
        problem, prices = self.problem, self.layout.prices
        behaviour = problem.predictor.behaviours[member]
        ways: list[tuple[bool, float, int, int, Regime]] = []
        for index in problem.eligible[member]:
            kind = problem.kinds[index]
            for number, regime in enumerate(behaviour.regimes(rate, kind.classes)):
                guess = regime.need * min(
                    prices.of_kind[index][kind.position[option.place]] / option.rate
                    for option in regime.options
                )
                ways.append((kind.avoided, guess, index, number, regime))
        ways.sort(key=lambda way: way[:4])
        found: dict[tuple[int, Counts], Wish] = {}
        least = inf
        tried: set[int] = set()
        for avoided, guess, index, _, regime in ways:
            # The first way of a kind counts however dear it looks: prices share a board out among tenants
            # that there may not be.
            if guess > least * _DEARER and index in tried and not avoided:
                continue
            tried.add(index)
            kind = problem.kinds[index]
            items = [
                (prices.of_kind[index][kind.position[option.place]], option.rate)
                for option in regime.options
            ]
            most = min(regime.most, problem.most_parts(index))
            if most * max(rate for _, rate in items) < regime.need:
                continue
            for price, counts in covers(items, regime.need, most, keep=_COVERS):
                wish = _wish(problem, kind, regime, counts, price)
                found.setdefault((index, wish.counts), wish)
                least = min(least, price)
        return sorted(
            found.values(),
            key=lambda wish: (wish.kind.avoided, wish.price, wish.width, wish.counts),
        )

    def _cheapest(
        self,
        member: int,
        wish: Wish,
        avoid: set[int],
        kin: dict[int, None],
        most: float = inf,
    ) -> Offer | None:
        """The wish where it costs least, ``most`` at most; of equal nodes one that has the service already."""
        layout, kind = self.layout, wish.kind
        fits = [
            (fit.cost, fit, nodes)
            for room, nodes in layout.rooms.of(kind.index).items()
            if (fit := layout.rooms.fit(kind, room, wish.counts)) is not None and fit.cost <= most
        ]
        fits.sort(key=lambda each: each[0])
        best: Offer | None = None
        for cost, fit, nodes in fits:
            if best is not None and cost > best.cost:
                break
            for node in _kin_first(nodes, kin):
                if best is not None and node not in kin:
                    break
                if node in avoid:
                    continue
                change = self._rows(member, kind, node, fit, wish.settings)
                if change is not None:
                    best = Offer(cost, node, change)
                    break
            if best is not None and best.node in kin:
                break
        return best

    def kin(self, member: int) -> dict[int, None]:
        """Nodes that have members of the service: there queues are shared and answers combined."""
        layout, boards = self.layout, self.problem.boards
        return dict.fromkeys(
            sorted(
                {
                    boards[index].node
                    for other in self.problem.service_of(member)
                    for index in layout.hosts[other]
                }
            )
        )

    def _rows(
        self, member: int, kind: Kind, node: int, fit: Fit, settings: dict[int, tuple[int, int]]
    ) -> Change | None:
        """The rows of the boards with the new parts; None where tenants, trust or memory forbid."""
        layout, demand = self.layout, self.problem.demands[member]
        if not layout.admits(node, kind, demand.namespace):
            return None
        change: Change = {}
        for board, place in layout.rooms.boards(kind, node, fit):
            cell = Cell(member, *settings[place])
            row = change.get(board, layout.rows[board])
            change[board] = row_of((*row, Part(place, (cell,))))
        for board, row in change.items():
            if kind.memory_shared and not self.problem.has_memory(kind, row):
                return None
            if layout.rows[board] and not self.problem.isolated(row):
                return None
        return change


def _kin_first(nodes: dict[int, None], kin: Iterable[int]) -> Iterator[int]:
    yield from (node for node in kin if node in nodes)
    yield from islice(nodes, _MOST_NODES)
