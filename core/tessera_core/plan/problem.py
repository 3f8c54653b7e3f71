"""The planning problem in the form that the search works on: members, boards and classes by index.

A board is a device without its identity's consequences: boards of one ``Kind`` are interchangeable. What
may go where is decided once, per member and kind; what fits is decided by the kind's automaton (``shapes``).
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from tessera_core.api import Isolation
from tessera_core.gpu.devices import DeviceClass
from tessera_core.plan.capacity import Predictor
from tessera_core.plan.demand import Demand
from tessera_core.plan.matrix import Part, Row
from tessera_core.plan.shapes import Shape
from tessera_core.plan.state import DeviceState, Goal, Policy, Quota

_MOST_PARTS = 64
"""Of one member on one node."""


@dataclass(frozen=True, slots=True, eq=False)
class Kind:
    """What the search needs to know of a board."""

    index: int
    pool: str
    product: str
    memory_mib: int
    cost: int
    """Price of using the board, millionths of a currency unit (or of a GPU) per hour."""
    watts: int
    """Power of the idle board."""
    width: int
    """SMs or usable cores of the whole board; 1 where they are not known."""
    classes: tuple[int, ...]
    """Classes that a part can have, widest first: indices into ``Problem.places``."""
    shape: Shape
    """Its classes are those of ``classes``, in that order."""
    position: dict[int, int]
    """Of each class, its index in ``classes``."""
    memory_shared: bool = False
    """Whether all parts draw on the board's memory: processor cores."""
    private_node: bool = True
    """Whether a node serves one namespace only."""
    avoided: bool = False
    """Whether its nodes are to be used last."""


@dataclass(frozen=True, slots=True, eq=False)
class Board:
    """One device of the cluster."""

    uuid: str
    node: int
    """Index into ``Problem.nodes``."""
    kind: Kind
    closed: bool = False
    """Whether nothing new may come: what runs may stay."""


@dataclass(frozen=True, slots=True, eq=False)
class Fleet:
    """The devices as boards, sorted."""

    places: tuple[DeviceClass, ...]
    """Every class that a part can have, sorted."""
    kinds: tuple[Kind, ...]
    boards: tuple[Board, ...]
    devices: tuple[DeviceState, ...]
    """By board."""
    nodes: tuple[str, ...]
    siblings: tuple[tuple[int, ...], ...]
    """Boards by node."""
    holders: tuple[frozenset[int], ...]
    """By kind: nodes that have a board of it."""
    most_boards: tuple[int, ...]
    """By kind: boards of it on one node, at most."""


@dataclass(frozen=True, slots=True, eq=False)
class Problem(Fleet):
    """Demands, sorted as well, on those boards, with everything that says what may go where."""

    demands: tuple[Demand, ...]
    predictor: Predictor
    demanding: bool
    """Whether any demand sets an isolation."""
    eligible: tuple[tuple[int, ...], ...]
    """By member: the kinds that selectors, products and trust let it use."""
    services: tuple[tuple[int, ...], ...]
    """Members of each service, services and members sorted."""
    policy: Policy
    quotas: dict[str, Quota]
    """By namespace."""

    home: tuple[int, ...]
    """By member: index of its service in ``services``."""

    def service_of(self, member: int) -> tuple[int, ...]:
        """All members of the service of ``member``."""
        return self.services[self.home[member]]

    fewest: tuple[int, ...]
    """By service: members that an answer needs at least."""

    def needed(self, service: int) -> tuple[int, ...]:
        """Members of a service that every answer needs; all of them where none is required."""
        members = self.services[service]
        return tuple(m for m in members if self.demands[m].required) or members

    def answers_without(self, service: int, missing: Collection[int]) -> bool:
        """Whether a service still answers when ``missing`` of its members run nowhere."""
        members = self.services[service]
        enough = len(members) - len(missing) >= self.fewest[service]
        return enough and not any(self.demands[member].required for member in missing)

    @property
    def goal(self) -> Goal:
        return self.policy.objective

    def most_parts(self, kind: int) -> int:
        """Parts that boards of ``kind`` on one node can have together, at most."""
        boards = self.most_boards[kind]
        shape = self.kinds[kind].shape
        return min(_MOST_PARTS, boards * shape.most_parts)

    def homes(self, member: int) -> int:
        """Nodes that have a part on which ``member`` meets its SLO."""
        behaviour = self.predictor.behaviours[member]
        able = (
            self.holders[index]
            for index in self.eligible[member]
            if any(behaviour.best(place) is not None for place in self.kinds[index].classes)
        )
        return len(frozenset[int]().union(*able))

    def isolated(self, row: Row) -> bool:
        """Whether the tenants of one board accept each other."""
        if not self.demanding:
            return True
        members = {cell.member for part in row for cell in part.cells}
        demands = [self.demands[member] for member in members]
        if len({demand.service for demand in demands}) < 2:
            return True
        if any(demand.isolation is Isolation.EXCLUSIVE for demand in demands):
            return False
        return all(self._may_share(part) for part in row if len(part.cells) > 1)

    def _may_share(self, part: Part) -> bool:
        demands = [self.demands[cell.member] for cell in part.cells]
        apart = any(demand.isolation is Isolation.PARTITION for demand in demands)
        return not apart or len({demand.service for demand in demands}) < 2

    def may_join(self, part: Part, member: int) -> bool:
        """Whether ``member`` and the tenants of ``part`` accept each other in one part."""
        newcomer = self.demands[member]
        return all(
            tenant.service == newcomer.service
            or (tenant.isolation is Isolation.ANY and newcomer.isolation is Isolation.ANY)
            for tenant in (self.demands[cell.member] for cell in part.cells)
        )

    def has_memory(self, kind: Kind, row: Row) -> bool:
        """Whether everything in ``row`` fits the memory of its part, or of the board where parts share it."""
        if kind.memory_shared:
            return sum(self.predictor.memory_mib(part) for part in row) <= kind.memory_mib
        # What does not even fit alone has no point to run at, so only parts that are shared can be too full.
        return all(
            self.predictor.memory_mib(part) <= self.places[part.place].memory_mib
            for part in row
            if len(part.cells) > 1
        )

    def share_of(self, kind: Kind, place: int) -> float:
        """What a part counts against a quota of whole devices: its share of the board's SMs or cores."""
        return min(1.0, self.width(place) / kind.width)

    def width(self, place: int) -> int:
        """SMs or cores of a class; an unknown count is 1, for the part still takes room."""
        return max(1, self.places[place].sm_count)
