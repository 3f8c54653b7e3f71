"""Copies stay where they are unless something else is gained: interchangeable GPUs and slices are not exchanged."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from itertools import permutations
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from support.clusters import applied, cluster, cpu_node, gpu_node, gpu_place, measured, service
from tessera_core.api import ModelService
from tessera_core.gpu.geometry import Placement
from tessera_core.plan import ClusterState, DeviceState, NodeState, Plan, Running, Slice, plan
from tessera_core.plan.build import demands_in, problem_of
from tessera_core.plan.layout import Layout
from tessera_core.plan.matrix import Cell, Part, Row, row_of
from tessera_core.plan.prices import prices_of
from tessera_core.plan.problem import Problem
from tessera_core.plan.repair import keep
from tessera_core.plan.settle import settle
from tessera_core.plan.state import PoolRules
from tessera_core.plan.stay import assigned, stay

SPEEDS = {"1g.10gb": 0.13, "2g.20gb": 0.28, "3g.40gb": 0.42, "7g.80gb": 0.97, "full": 1.0}
ONES = tuple(Placement("1g.10gb", start) for start in range(7))
ONES_AT = tuple(Slice("1g.10gb", start) for start in range(7))


def state_of(node: NodeState, members: str) -> ClusterState:
    """A service of one member for each of ``members``, all measured on slices and on cores."""
    places = [gpu_place("1g.10gb"), gpu_place("2g.20gb"), 1, 2]
    return cluster(
        [node],
        [service(f"s{name}", name, rps=10.0) for name in members],
        [measured(name, place) for name in members for place in places],
        PoolRules("p", partition=True, shared_between_namespaces=True),
    )


def problem(state: ClusterState) -> Problem:
    return problem_of(state, demands_in(state))


def runs(member: str, piece: Slice, batch: int = 4) -> Running:
    return Running(f"vision.s{member}", member, piece, batch, 1)


def part(of: Problem, name: str, *members: str, batch: int = 4) -> Part:
    """``members`` in a part of a class."""
    (place,) = (index for index, each in enumerate(of.places) if each.slice == name)
    keys = [demand.member for demand in of.demands]
    return Part(place, tuple(sorted(Cell(keys.index(each), batch, 1) for each in members)))


def with_device(node: NodeState, index: int, **changes: object) -> NodeState:
    devices = list(node.devices)
    devices[index] = replace(devices[index], **changes)  # type: ignore[arg-type]
    return replace(node, devices=tuple(devices))


def two_gpus() -> tuple[Layout, dict[int, Row]]:
    """``a`` and ``b`` on slices of the first, ``c`` on one of the second; and these rows."""
    node = with_device(
        gpu_node("n", 2),
        0,
        geometry=ONES,
        running=(runs("a", Slice("1g.10gb", 2)), runs("b", Slice("1g.10gb", 5))),
    )
    node = with_device(node, 1, geometry=ONES, running=(runs("c", Slice("1g.10gb", 0)),))
    of = problem(state_of(node, "abcd"))
    layout = Layout(of, prices_of(of, [10_000] * len(of.demands)))
    keep(layout)
    return layout, layout.used()


def test_rows_that_were_exchanged_go_back() -> None:
    layout, present = two_gpus()
    mark = layout.mark()
    layout.change({0: present[1], 1: present[0]})
    stay(layout, mark)
    assert layout.used() == present


def test_a_row_goes_where_most_of_it_runs_even_if_that_board_is_cut_for_it() -> None:
    layout, present = two_gpus()
    of = layout.problem
    more = row_of((*present[0], part(of, "2g.20gb", "d")))
    mark = layout.mark()
    layout.change({0: row_of([part(of, "1g.10gb", "d")]), 1: more})
    stay(layout, mark)
    assert layout.rows == [more, row_of([part(of, "1g.10gb", "d")])]


def test_of_boards_that_keep_as_much_the_one_that_need_not_be_cut_is_taken() -> None:
    node = with_device(gpu_node("n", 2), 1, geometry=ONES, running=(runs("c", ONES_AT[0]),))
    of = problem(state_of(node, "cd"))
    layout = Layout(of, prices_of(of, [10_000] * len(of.demands)))
    keep(layout)
    mark = layout.mark()
    row = row_of([part(of, "1g.10gb", "d")])
    layout.change({0: row, 1: ()})
    stay(layout, mark)
    assert layout.rows == [(), row]


def test_a_board_that_takes_nothing_new_keeps_its_row() -> None:
    layout, present = two_gpus()
    boards = tuple(replace(each, closed=True) for each in layout.problem.boards)
    closed = Layout(replace(layout.problem, boards=boards), layout.prices)
    closed.change({0: present[1], 1: present[0]})
    stay(closed, 0)
    assert closed.used() == {0: present[1], 1: present[0]}


@given(
    st.integers(1, 5).flatmap(
        lambda n: st.lists(
            st.lists(st.integers(0, 9), min_size=n, max_size=n), min_size=n, max_size=n
        )
    )
)
def test_the_assignment_is_the_best_of_all(worths: list[list[int]]) -> None:
    def worth(columns: tuple[int, ...]) -> int:
        return sum(row[column] for row, column in zip(worths, columns, strict=True))

    found = tuple(assigned(worths))
    assert sorted(found) == list(range(len(worths)))
    assert worth(found) == max(map(worth, permutations(range(len(worths)))))


# --- slices of one device


def settled(node: NodeState, *parts: tuple[str, str], batch: int) -> dict[str, Slice]:
    """Where members are when a device gets ``parts`` (class, member) with another batch."""
    of = problem(state_of(node, "abc"))
    row = row_of(part(of, name, member, batch=batch) for name, member in parts)
    return {
        of.demands[cell.member].member: piece
        for piece, each in settle(of, 0, row).parts
        for cell in each.cells
    }


@pytest.mark.parametrize("geometry", [ONES, (ONES[1], ONES[4])])
def test_members_that_are_only_set_differently_keep_their_slices(
    geometry: tuple[Placement, ...],
) -> None:
    b_first = (runs("b", ONES_AT[1]), runs("a", ONES_AT[4]))
    node = with_device(gpu_node("n"), 0, geometry=geometry, running=b_first)
    parts = [("1g.10gb", "a"), ("1g.10gb", "b")]
    assert settled(node, *parts, batch=16) == {"a": ONES_AT[4], "b": ONES_AT[1]}
    # Also where the GPU is cut for somebody else.
    cut = settled(node, *parts, ("2g.20gb", "c"), batch=16)
    assert (cut["a"], cut["b"]) == (ONES_AT[4], ONES_AT[1])


def test_a_copy_that_runs_exactly_so_comes_before_one_that_is_set_differently() -> None:
    there = (runs("a", ONES_AT[3], batch=4), runs("b", ONES_AT[5], batch=16))
    node = with_device(gpu_node("n"), 0, geometry=(ONES[3], ONES[5]), running=there)
    of = problem(state_of(node, "abc"))
    # Beside both there is one place for two slices of its kind.
    wide = [part(of, "2g.20gb", "c")] * 2
    row = row_of([part(of, "1g.10gb", "a"), part(of, "1g.10gb", "b"), *wide])
    found = {each: piece for piece, each in settle(of, 0, row).parts}
    assert found[part(of, "1g.10gb", "a")] == ONES_AT[3]
    assert found[part(of, "1g.10gb", "b")] != ONES_AT[5]


def test_members_that_are_only_set_differently_keep_their_cores() -> None:
    b_first = (runs("b", Slice("cpu-1", 1, (1,))), runs("a", Slice("cpu-1", 3, (3,))))
    node = with_device(cpu_node("n"), 0, running=b_first)
    found = settled(node, ("cpu-1", "a"), ("cpu-1", "b"), batch=16)
    assert {name: piece.cores for name, piece in found.items()} == {"a": (3,), "b": (1,)}


def test_cores_in_the_way_of_a_wider_part_are_given_up() -> None:
    apart = (runs("b", Slice("cpu-1", 1, (1,))), runs("a", Slice("cpu-1", 2, (2,))))
    node = with_device(cpu_node("n", cores=4), 0, running=apart)
    found = settled(node, ("cpu-1", "a"), ("cpu-1", "b"), ("cpu-2", "c"), batch=4)
    assert sorted(core for piece in found.values() for core in piece.cores) == [0, 1, 2, 3]


# --- whole plans


def copies(pieces: object) -> Counter[tuple[str, str, str]]:
    return Counter((each.slice.name, each.service, each.member) for each in pieces)  # type: ignore[attr-defined]


def stays(rows: tuple[Counter, ...], devices: tuple[DeviceState, ...]) -> int:
    """Copies that are where they were."""
    pairs = zip(rows, devices, strict=True)
    return sum((row & copies(device.running)).total() for row, device in pairs)


def changed(seed: int) -> tuple[ClusterState, Plan]:
    """What a few GPUs of one node run, after rates have changed, and the plan for it, which may cut all of them."""
    random = Random(seed)
    models = [
        (f"m{index}", random.choice((0.1, 0.3, 0.8, 1.5)), random.choice((1.0, 3.0, 8.0)))
        for index in range(random.randint(2, 5))
    ]

    def asked(name: str) -> ModelService:
        rps = random.choice((50.0, 200.0, 600.0, 1500.0))
        return service(f"s-{name}", [name], rps=rps, target=random.choice(("50ms", "200ms")))

    first = cluster(
        [gpu_node("n", random.choice((2, 3, 4)))],
        [asked(name) for name, _, _ in models],
        [
            measured(name, gpu_place(piece), alpha_ms / speed, tau0_ms, random.choice((1e3, 9e3)))
            for name, alpha_ms, tau0_ms in models
            for piece, speed in SPEEDS.items()
        ],
        PoolRules("p", partition=True, shared_between_namespaces=True),
    )
    now = applied(plan(first), first)
    some = [
        asked(name) if random.random() < 0.4 else old
        for (name, _, _), old in zip(models, now.services, strict=True)
    ]
    after = replace(now, services=tuple(some))
    return after, plan(after)


@pytest.mark.parametrize("seed", range(16, 24))
def test_no_exchange_of_what_interchangeable_gpus_get_would_keep_more_copies(seed: int) -> None:
    state, found = changed(seed)
    (node,) = state.nodes
    planned = {each.uuid: copies(each.assignments) for each in found.devices}
    rows = tuple(planned[device.uuid] for device in node.devices)
    assert stays(rows, node.devices) == max(
        stays(order, node.devices) for order in permutations(rows)
    )
