"""What is left on boards, on clusters small enough to see it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from support.clusters import cluster, cpu_node, gpu_node, gpu_place, measured, service
from tessera_core.api import TaintEffect
from tessera_core.gpu.devices import FULL, DeviceClass, cpu_class
from tessera_core.gpu.geometry import Placement
from tessera_core.plan import NodeState, PoolRules
from tessera_core.plan.build import demands_in, problem_of
from tessera_core.plan.layout import Layout
from tessera_core.plan.matrix import Cell, Part, Row, row_of
from tessera_core.plan.prices import prices_of
from tessera_core.plan.problem import Kind
from tessera_core.plan.rooms import Counts, Fit, Room
from tessera_core.plan.shapes import NEVER
from tessera_core.plan.state import Taint

HALF, SMALL = "3g.40gb", "1g.10gb"
SLICES = (FULL, HALF, SMALL)
PRICES = {FULL: 7.0, HALF: 3.0, SMALL: 1.0}
"""A whole board is seven small slices; a half leaves four, two halves leave none."""
COST = 7.0
LOSS = 1e-6
"""Far below a price: what an unused board costs more than a used one that loses as much."""


class Case:
    """The layout of some nodes at prices of one's own, and its rooms of the only kind of board."""

    def __init__(
        self,
        nodes: Iterable[NodeState],
        places: Iterable[DeviceClass] = tuple(map(gpu_place, SLICES)),
        prices: Mapping[str, float] = PRICES,
    ) -> None:
        state = cluster(
            nodes,
            [service("s", rps=1)],
            [measured("m", place) for place in places],
            PoolRules("p", partition=True, shared_between_namespaces=True),
        )
        problem = problem_of(state, demands_in(state))
        (kind,) = problem.kinds
        self.kind: Kind = replace(kind, cost=int(COST))
        self.slices = [problem.places[place].slice for place in kind.classes]
        found = prices_of(problem, [0])
        of_kind = tuple(prices[name] for name in self.slices)
        worth = kind.shape.worth(of_kind)
        self.layout = Layout(problem, replace(found, of_kind=(of_kind,), worth=(worth,)))
        self.rooms = self.layout.rooms

    def row(self, *names: str) -> Row:
        places = (self.kind.classes[self.slices.index(name)] for name in names)
        return row_of(Part(place, (Cell(0, 1, 1),)) for place in places)

    def use(self, board: int, *names: str) -> None:
        """Make ``names`` the parts of ``board``."""
        self.layout.change({board: self.row(*names)})

    def state(self, *names: str) -> int:
        """The state of a board with these parts."""
        return self.layout.state_of(self.kind, self.row(*names))

    def counts(self, *names: str) -> Counts:
        return tuple(names.count(name) for name in self.slices)

    def nodes(self) -> dict[Room, list[int]]:
        return {room: list(nodes) for room, nodes in self.rooms.of(0).items()}

    def fit(self, room: Room, *names: str) -> Fit | None:
        return self.rooms.fit(self.kind, room, self.counts(*names))

    def fitted(self, room: Room, *names: str) -> Fit:
        found = self.fit(room, *names)
        assert found is not None
        return found

    def steps(self, *steps: tuple[int, str]) -> tuple[tuple[int, int], ...]:
        return tuple((state, self.slices.index(name)) for state, name in steps)

    def boards(self, node: int, *names: str) -> list[tuple[int, str]]:
        """(board, slice) that a fit into the room of ``node`` is realised on."""
        fit = self.fitted(self.rooms.room(0, node), *names)
        places = self.layout.problem.places
        return [
            (board, places[place].slice) for board, place in self.rooms.boards(self.kind, node, fit)
        ]


def pairs(count: int) -> Case:
    """``count`` nodes of two boards each: node i has the boards 2i and 2i + 1."""
    return Case([gpu_node(f"n{i}", 2) for i in range(count)])


# --- which nodes are alike


def test_equal_nodes_share_a_room() -> None:
    assert pairs(3).nodes() == {Room((), 2): [0, 1, 2]}


def test_a_changed_board_moves_its_node_to_another_room() -> None:
    case = pairs(3)
    case.nodes()
    case.use(2, HALF)
    used = Room((case.state(HALF),), 1)
    assert case.nodes() == {Room((), 2): [0, 2], used: [1]}
    assert case.rooms.room(0, 1) == used
    # Which of two boards it is makes no difference.
    case.use(5, HALF)
    assert case.nodes() == {Room((), 2): [0], used: [1, 2]}


def test_a_room_that_nobody_has_any_more_is_gone() -> None:
    case = pairs(1)
    mark = case.layout.mark()
    case.use(0, HALF)
    assert case.nodes() == {Room((case.state(HALF),), 1): [0]}
    case.layout.rollback(mark)
    assert case.nodes() == {Room((), 2): [0]}


def test_states_are_sorted_whatever_the_order_of_boards() -> None:
    case = pairs(2)
    case.use(0, HALF)
    case.use(1, SMALL)
    case.use(2, SMALL)
    case.use(3, HALF)
    states = tuple(sorted((case.state(HALF), case.state(SMALL))))
    assert case.nodes() == {Room(states, 0): [0, 1]}


def test_a_board_on_which_nothing_is_worth_adding_is_no_room() -> None:
    case = pairs(2)
    case.use(0, HALF, HALF)
    case.use(2, FULL)
    # Neither used nor full boards of these nodes differ in what they can still take.
    assert case.nodes() == {Room((), 1): [0, 1]}
    cheap = Case([gpu_node("n", 2)], prices=PRICES | {SMALL: 0.0})
    cheap.use(0, HALF)  # leaves a half
    cheap.use(1, HALF, SMALL)  # leaves small slices only, which nobody pays for
    assert cheap.nodes() == {Room((cheap.state(HALF),), 0): [0]}


def test_boards_beyond_what_can_matter_are_not_told_apart() -> None:
    case = Case([gpu_node("a", 16), gpu_node("b", 20)])
    assert case.nodes() == {Room((), 16): [0, 1]}


def test_a_node_that_lets_nothing_new_in_has_no_room() -> None:
    taint = Taint("k", "v", TaintEffect.NO_SCHEDULE)
    case = Case([gpu_node("a"), replace(gpu_node("b"), taints=(taint,))])
    assert case.nodes() == {Room((), 1): [0]}
    case.use(1, HALF)
    assert case.nodes() == {Room((), 1): [0]}
    assert case.rooms.room(0, 1) == Room((), 0)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 20), st.booleans()), max_size=12))
def test_the_index_follows_every_change_and_its_undoing(ops: list[tuple[int, int, bool]]) -> None:
    case = pairs(3)
    layout, shape = case.layout, case.kind.shape
    for board, state, undo in ops:
        names = [
            name
            for name, count in zip(
                case.slices, shape.states[state % len(shape.states)], strict=True
            )
            for _ in range(count)
        ]
        mark = layout.mark()
        case.use(board, *names)
        if undo:
            case.nodes()
            layout.rollback(mark)
    expected: dict[Room, set[int]] = {}
    for node in range(3):
        both = (2 * node, 2 * node + 1)
        used = [layout.state_of(case.kind, layout.rows[i]) for i in both if layout.rows[i]]
        more = [s for s in used if any(following != NEVER for following in shape.after[s])]
        room = Room(tuple(sorted(more)), 2 - len(used))
        expected.setdefault(room, set()).add(node)
        assert case.rooms.room(0, node) == room
    assert {room: set(nodes) for room, nodes in case.nodes().items()} == expected


# --- how parts go into a room


def test_an_unused_board_costs_its_price_less_what_it_is_still_worth() -> None:
    case = pairs(1)
    fit = case.fitted(Room((), 1), HALF)
    assert fit.cost == pytest.approx(COST - 4, abs=LOSS)
    assert fit.steps == case.steps((0, HALF))
    assert case.fitted(Room((), 1), FULL).cost == pytest.approx(COST, abs=LOSS)


def test_the_second_half_of_a_board_is_charged_for_the_slice_it_wastes() -> None:
    case = pairs(1)
    fit = case.fitted(Room((case.state(HALF),), 0), HALF)
    assert fit.cost == pytest.approx(4, abs=LOSS)
    assert fit.steps == case.steps((case.state(HALF), HALF))


def test_a_part_goes_where_the_fall_of_worth_is_least() -> None:
    case = pairs(1)
    # A half beside a half costs 4, beside a small slice only its own 3: three more small ones still fit.
    half, small = case.state(HALF), case.state(SMALL)
    fit = case.fitted(Room(tuple(sorted((half, small))), 0), HALF)
    assert fit.cost == pytest.approx(3, abs=LOSS)
    assert fit.steps == case.steps((small, HALF))
    # The same on a fresh board, which the half of a used one loses to.
    assert case.fitted(Room((half,), 1), HALF).steps == case.steps((0, HALF))
    assert case.fitted(Room((half,), 1), SMALL).steps == case.steps((half, SMALL))


def test_of_boards_that_lose_as_much_the_one_that_is_paid_for_is_taken() -> None:
    case = pairs(1)
    half = case.state(HALF)
    fit = case.fitted(Room((half,), 1), SMALL)
    fresh = case.fitted(Room((), 1), SMALL)
    assert fresh.cost == pytest.approx(fit.cost, abs=LOSS)
    assert fit.steps == case.steps((half, SMALL))


def test_of_states_that_lose_as_much_the_fuller_is_taken() -> None:
    case = pairs(1)
    one, two = case.state(SMALL), case.state(SMALL, SMALL)
    assert one < two
    assert case.fitted(Room((one, two), 0), SMALL).steps == case.steps((two, SMALL))


def test_wide_parts_go_first_and_later_ones_see_what_they_left() -> None:
    case = pairs(1)
    half = case.state(HALF)
    # The half goes to the first board; the small one joins it there for its price.
    fit = case.fitted(Room((), 2), SMALL, HALF)
    assert fit.steps == case.steps((0, HALF), (half, SMALL))
    assert fit.cost == pytest.approx(3 + 1, abs=LOSS)
    # Halves take a board each, for the second one of a board costs a slice more.
    fit = case.fitted(Room((), 2), HALF, HALF)
    assert fit.steps == case.steps((0, HALF), (0, HALF))
    assert fit.cost == pytest.approx(6, abs=LOSS)
    fit = case.fitted(Room((), 1), HALF, HALF)
    assert fit.steps == case.steps((0, HALF), (half, HALF))
    assert fit.cost == pytest.approx(7, abs=LOSS)


def test_equal_boards_of_a_room_are_each_used_once() -> None:
    case = pairs(1)
    half = case.state(HALF)
    fit = case.fitted(Room((half, half), 0), HALF, HALF)
    assert fit.steps == case.steps((half, HALF), (half, HALF))
    assert case.fit(Room((half,), 0), HALF, HALF) is None


def test_what_finds_no_place_has_no_fit() -> None:
    case = pairs(1)
    assert case.fit(Room((), 0), SMALL) is None
    assert case.fit(Room((case.state(SMALL),), 0), FULL) is None
    assert case.fit(Room((), 1), HALF, HALF, HALF) is None
    assert case.fit(Room((), 1), *[SMALL] * 8) is None
    assert case.fitted(Room((), 1), *[SMALL] * 7).cost == pytest.approx(COST, abs=LOSS)


def test_nothing_fits_everywhere_for_nothing() -> None:
    assert pairs(1).fit(Room((), 0)) == Fit(0.0, ())


def test_without_faith_in_later_members_a_used_board_costs_nothing_and_a_fresh_one_all() -> None:
    case = pairs(1)
    half = case.state(HALF)
    room = Room((half,), 1)
    assert case.fitted(room, HALF).steps == case.steps((0, HALF))
    case.layout.faith = 0.0
    fit = case.fitted(room, HALF)
    assert fit.steps == case.steps((half, HALF))
    assert fit.cost == pytest.approx(0, abs=LOSS)
    assert case.fitted(Room((), 1), HALF).cost == pytest.approx(COST, abs=LOSS)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.sampled_from(SLICES), max_size=5), st.lists(st.integers(1, 20), max_size=2))
def test_the_cost_is_the_fall_of_worth_and_the_steps_are_edges(
    names: list[str], states: list[int]
) -> None:
    case = pairs(1)
    shape = case.kind.shape
    worth = case.layout.prices.worth[0]
    used = sorted(1 + state % (len(shape.states) - 1) for state in states)
    fit = case.fit(Room(tuple(used), 1), *names)
    if fit is None:
        return
    placed = [case.slices[position] for _, position in fit.steps]
    assert placed == sorted(names, key=case.slices.index)
    paid = sum(worth[state] for state in used)
    now, fresh = list(used), 1
    for state, position in fit.steps:
        if state == 0:
            fresh -= 1
            paid += COST
        else:
            now.remove(state)
        now.append(shape.after[state][position])
        assert now[-1] != NEVER
    assert fresh >= 0
    assert fit.cost == pytest.approx(paid - sum(worth[state] for state in now), abs=LOSS)


# --- which boards a fit is realised on


def cut(*names: tuple[str, int]) -> tuple[Placement, ...]:
    return tuple(Placement(name, start) for name, start in names)


def recut(node: NodeState, *geometries: tuple[Placement, ...] | None) -> NodeState:
    devices = zip(node.devices, geometries, strict=True)
    return replace(
        node, devices=tuple(replace(device, geometry=found) for device, found in devices)
    )


def test_a_slice_that_is_cut_already_is_taken_first() -> None:
    uncut, halves = None, cut((HALF, 0), (HALF, 4))
    case = Case([recut(gpu_node("n", 3), uncut, halves, uncut)])
    assert case.boards(0, HALF) == [(1, HALF)]
    # Nothing is cut into small slices, so any board does; the whole one is not cut at all.
    assert case.boards(0, SMALL) == [(0, SMALL)]
    case = Case([recut(gpu_node("n", 3), halves, uncut, uncut)])
    assert case.boards(0, FULL) == [(1, FULL)]


def test_a_slice_that_is_in_use_is_not_there_to_be_taken() -> None:
    halves, mixed = cut((HALF, 0), (SMALL, 6)), cut((HALF, 0), (SMALL, 4), (SMALL, 5))
    case = Case([recut(gpu_node("n", 2), halves, mixed)])
    case.use(0, HALF, SMALL)
    case.use(1, HALF, SMALL)
    # Both boards have room for a small slice; only the second has one left that is cut.
    assert case.boards(0, SMALL) == [(1, SMALL)]


def test_steps_go_on_with_the_board_that_they_began() -> None:
    case = pairs(2)
    assert case.boards(1, HALF, SMALL) == [(2, HALF), (2, SMALL)]
    assert case.boards(1, HALF, HALF) == [(2, HALF), (3, HALF)]
    case.use(2, HALF)
    assert case.boards(1, SMALL, HALF) == [(3, HALF), (2, SMALL)]


def test_sets_of_cores_are_taken_from_the_cores_of_the_node() -> None:
    case = Case(
        [cpu_node("a", 8), cpu_node("b", 8)],
        places=[cpu_class(4, 16384), cpu_class(2, 16384)],
        prices={"cpu-4": 4.0, "cpu-2": 1.5},
    )
    case.use(1, "cpu-2")
    assert case.nodes() == {Room((), 1): [0], Room((2,), 0): [1]}
    assert case.fit(Room((2,), 0), "cpu-4", "cpu-4") is None
    # Of eight cores six are left, which are worth a four and a two; afterwards a two is.
    fit = case.fitted(Room((2,), 0), "cpu-4")
    assert fit.cost == pytest.approx(4, abs=LOSS)
    assert fit.steps == case.steps((2, "cpu-4"))
    assert case.boards(1, "cpu-4", "cpu-2") == [(1, "cpu-4"), (1, "cpu-2")]
