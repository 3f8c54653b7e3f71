"""The planning problem in the form that the search works on: members and boards by index.

A board is a device without its identity's consequences: boards of one ``Kind`` are interchangeable, which
the search uses to try only one of several equal ones. What a board can be cut into is a set of packings, each
a maximal multiset of parts; a row is possible when some packing contains its parts. For MIG these are the
multisets of the maximal layouts (14 on a seven-slice board), so every row has start positions. For cores any
sizes that sum up to at most all of them will do.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

from tessera_core.api import Isolation
from tessera_core.gpu.devices import DeviceClass
from tessera_core.plan.capacity import Predictor
from tessera_core.plan.demand import Demand
from tessera_core.plan.matrix import Change, Matrix, Part, Row
from tessera_core.plan.state import Goal

Packing = tuple[DeviceClass, ...]
"""Parts that exist side by side on one board, sorted."""


@dataclass(frozen=True, slots=True)
class Kind:
    """What the search needs to know of a board."""

    pool: str
    product: str
    memory_mib: int
    cost: int
    """Price of using the board, millionths of a currency unit (or of a GPU) per hour."""
    places: tuple[DeviceClass, ...]
    """Classes that a part can have, most cores or SMs first."""
    packings: tuple[Packing, ...] = ()
    cores: int = 0
    """Cores to divide; 0 for a GPU."""
    private_node: bool = True
    """Whether a node serves one namespace only."""

    def holds(self, places: Packing) -> bool:
        """Whether the board can have parts of ``places`` (sorted) at once."""
        if self.cores:
            return sum(place.sm_count for place in places) <= self.cores
        return _inside(places, self.packings)

    def most(self, place: DeviceClass) -> int:
        """How many parts of class ``place`` fit the board; at least 1."""
        if self.cores:
            return max(1, self.cores // place.sm_count)
        return max((packing.count(place) for packing in self.packings), default=1) or 1


@lru_cache(maxsize=65536)
def _inside(places: Packing, packings: tuple[Packing, ...]) -> bool:
    wanted = Counter(places)
    return any(wanted <= Counter(packing) for packing in packings)


@dataclass(frozen=True, slots=True)
class Board:
    """One device of the cluster."""

    uuid: str
    node: str
    kind: Kind


@dataclass(frozen=True, slots=True)
class Problem:
    """Demands and boards, both sorted, with everything that says what may go where."""

    demands: tuple[Demand, ...]
    boards: tuple[Board, ...]
    predictor: Predictor
    eligible: tuple[frozenset[tuple[str, str]], ...]
    """By member: the (pool, product) pairs that selectors, products and trust let it use."""
    goal: Goal
    siblings: dict[str, tuple[int, ...]]
    """Board indices by node."""
    services: tuple[tuple[int, ...], ...]
    """Members of each service, services and members sorted."""

    def may_use(self, member: int, kind: Kind) -> bool:
        """Whether selectors, products and trust let ``member`` run on boards of ``kind``."""
        return (kind.pool, kind.product) in self.eligible[member]

    def options(self, member: int, kind: Kind) -> tuple[DeviceClass, ...]:
        """Classes of parts on which ``member`` meets its SLO on boards of ``kind``, widest first."""
        if not self.may_use(member, kind):
            return ()
        return tuple(p for p in kind.places if self.predictor.best(member, p) is not None)

    def allows(self, matrix: Matrix, change: Change) -> bool:
        """Whether ``change`` leaves every board within its parts, memory and isolation, every node within
        its trust rules, and no cell that carries nothing within its latency budget.
        """
        return all(
            self.has_room(self.boards[index].kind, row)
            and self._isolated(row)
            and self._trusts(matrix, change, index)
            and all(all(self.predictor.rates(part)) for part in row)
            for index, row in change
        )

    def has_room(self, kind: Kind, row: Row) -> bool:
        """Whether a board of ``kind`` has the parts and the memory for ``row``, tenants left aside."""
        if not kind.holds(tuple(part.place for part in row)):
            return False
        used = [self.predictor.memory_mib(part) for part in row]
        if kind.cores:
            return sum(used) <= kind.memory_mib
        return all(mib <= part.place.memory_mib for mib, part in zip(used, row, strict=True))

    def _isolated(self, row: Row) -> bool:
        services = {cell.member: self.demands[cell.member] for part in row for cell in part.cells}
        tenants = {demand.service for demand in services.values()}
        if len(tenants) < 2:
            return True
        if any(demand.isolation is Isolation.EXCLUSIVE for demand in services.values()):
            return False
        for part in row:
            inside = [services[cell.member] for cell in part.cells]
            apart = any(demand.isolation is Isolation.PARTITION for demand in inside)
            if apart and len({demand.service for demand in inside}) > 1:
                return False
        return True

    def _trusts(self, matrix: Matrix, change: Change, index: int) -> bool:
        board = self.boards[index]
        if not board.kind.private_node:
            return True
        changed = dict(change)
        spaces = {
            self.demands[cell.member].namespace
            for other in self.siblings[board.node]
            for part in changed.get(other, matrix.rows[other])
            for cell in part.cells
        }
        return len(spaces) < 2

    def free_mib(self, index: int, row: Row, part: Part) -> int:
        """Memory left beside ``part`` of ``row``: in the part, or on the board where all parts share it."""
        kind = self.boards[index].kind
        if kind.cores:
            return kind.memory_mib - sum(self.predictor.memory_mib(each) for each in row)
        return part.place.memory_mib - self.predictor.memory_mib(part)

    def candidates(self, matrix: Matrix, used: bool) -> Iterator[int]:
        """Boards that are used, or one unused board of each kind and situation of its node."""
        seen: set[object] = set()
        for index, (board, row) in enumerate(zip(self.boards, matrix.rows, strict=True)):
            if bool(row) is not used:
                continue
            if not used:
                situation = (board.kind, self._neighbourhood(matrix, board))
                if situation in seen:
                    continue
                seen.add(situation)
            yield index

    def _neighbourhood(self, matrix: Matrix, board: Board) -> frozenset[int]:
        """Members on the node of ``board``: what spread and trust depend on."""
        return frozenset(
            cell.member
            for other in self.siblings[board.node]
            for part in matrix.rows[other]
            for cell in part.cells
        )
