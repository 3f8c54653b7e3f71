"""The step that every stage of the search is made of: parts for one member, where they cost least."""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from math import ceil

import pytest

from support.clusters import (
    applied,
    cluster,
    gpu_node,
    gpu_place,
    measured,
    service,
)
from support.plan_rules import broken_rules
from tessera_core.gpu.devices import FULL, DeviceClass
from tessera_core.plan import (
    ClusterState,
    DeviceState,
    NodeState,
    Plan,
    PoolRules,
    Running,
    Slice,
    plan,
)
from tessera_core.plan.behaviour import MILLI
from tessera_core.plan.build import demands_in, problem_of
from tessera_core.plan.layout import Layout
from tessera_core.plan.place import Placer
from tessera_core.plan.prices import prices_of
from tessera_core.plan.repair import keep

ONE_GPU = 4237.8
"""Rows/s that the model of ``measured`` carries on one A100 within 50 ms."""
KINDS = {"big": (0.2, 1.0), "mid": (0.28, 0.9), "small": (0.45, 0.3)}
"""ms per row and price of boards that are not cut; they carry 4237, 3096 and 1910 rows/s."""
MEMORY = 24_000


def placer_of(state: ClusterState) -> Placer:
    """A placer of what runs in ``state``."""
    demands = demands_in(state)
    problem = problem_of(state, demands)
    needs = [ceil(demand.rate * MILLI) for demand in demands]
    layout = Layout(problem, prices_of(problem, needs))
    keep(layout)
    return Placer(layout, needs)


def used(placer: Placer) -> list[str]:
    """Nodes of used boards, in order."""
    problem = placer.problem
    return [problem.nodes[problem.boards[index].node] for index in placer.layout.used()]


def fleet(boards: str, rate: float, **spec: object) -> ClusterState:
    """One node per kind named in ``boards``, each kind a pool of its own; one service."""
    names = boards.split()
    nodes = [
        NodeState(f"n{number}-{kind}", kind, (DeviceState(f"GPU-{number}", kind, MEMORY),))
        for number, kind in enumerate(names)
    ]
    sizes = [
        measured("m", DeviceClass(kind, FULL, sm_count=0, memory_mib=MEMORY), alpha)
        for kind, (alpha, _) in KINDS.items()
    ]
    pools = tuple(PoolRules(kind, cost_per_node_hour=price) for kind, (_, price) in KINDS.items())
    wanted = service("s", rps=rate, **spec)  # type: ignore[arg-type]
    return replace(cluster(nodes, [wanted], sizes), pools=pools)


def devices(decided: Plan, service: str) -> set[str]:
    return {each.device for each in decided.assignments if each.service == f"vision.{service}"}


# --- a rate on several nodes


@pytest.mark.parametrize("gpus", [1.5, 2.3, 3.9])
def test_a_rate_that_no_node_carries_is_divided_among_as_few_as_carry_it(gpus: float) -> None:
    nodes = [gpu_node(f"g{index}") for index in range(6)]
    state = cluster(nodes, [service("s", rps=gpus * ONE_GPU)], [measured("m", gpu_place())])
    placer = placer_of(state)
    assert placer.place(0)
    assert len(used(placer)) == ceil(gpus)
    assert len(plan(state).assignments) == ceil(gpus)


def test_what_the_nodes_cannot_carry_together_is_not_called_placed() -> None:
    placer = placer_of(fleet("big mid", 8000))
    for thorough in (False, True):
        assert not placer.place(0, thorough)
        assert used(placer) == ["n0-big", "n1-mid"]


def test_unequal_nodes_carry_unequal_shares() -> None:
    decided = plan(fleet("big mid small", 9000))
    loads = [each.load for each in decided.assignments]
    assert decided.services[0].short is None
    assert len(loads) == 3
    assert max(loads) > 2 * min(loads)
    assert all(each.load <= each.rate for each in decided.assignments)


@pytest.mark.parametrize(
    ("boards", "rate", "equal"),
    [("mid mid big small", 6000, 1.8), ("big mid mid small", 5500, 1.8)],
)
def test_a_thorough_division_takes_unequal_nodes_where_they_cost_less(
    boards: str, rate: float, equal: float
) -> None:
    state = fleet(boards, rate)
    costs = {}
    for thorough in (False, True):
        placer = placer_of(state)
        assert placer.place(0, thorough)
        costs[thorough] = placer.layout.score.cost / 1e6
    assert costs == {False: equal, True: 1.3}
    assert plan(state).cost == pytest.approx(1.3)


def test_a_part_that_is_not_needed_in_the_end_is_given_back() -> None:
    """Trying other divisions leaves nothing behind: one node is enough here."""
    placer = placer_of(fleet("big mid small", 1500))
    assert placer.place(0, thorough=True)
    assert used(placer) == ["n2-small"]


# --- which node


@pytest.mark.parametrize("home", ["g0", "g1", "g2"])
def test_a_member_comes_to_the_node_of_its_service_where_all_cost_the_same(home: str) -> None:
    nodes = []
    for name in ("g0", "g1", "g2"):
        node = gpu_node(name, 2)
        first, second = node.devices
        if name == home:
            first = replace(first, running=(Running("vision.s", "a", Slice(), 64, 1),))
        nodes.append(replace(node, devices=(first, second)))
    # Too much for one board together, so that neither can be the other's guest.
    state = cluster(
        nodes,
        [service("s", "ab", rps=3500)],
        [measured(member, gpu_place()) for member in "ab"],
    )
    assert {each.node for each in plan(state).assignments} == {home}
    placer = placer_of(state)
    assert placer.place(1)
    assert used(placer) == [home, home]


def test_members_of_several_services_stay_together_service_by_service() -> None:
    nodes = [gpu_node(f"g{index}", 2) for index in range(3)]
    services = [service("s", "ab", rps=3500), service("t", "cd", rps=3400)]
    sizes = [measured(member, gpu_place()) for member in "abcd"]
    decided = plan(cluster(nodes, services, sizes))
    for name in ("vision.s", "vision.t"):
        assert len({each.node for each in decided.assignments if each.service == name}) == 1


def test_a_cheaper_node_goes_before_the_one_that_has_the_service() -> None:
    dear = gpu_node("g0", 2, pool="dear")
    first = replace(dear.devices[0], running=(Running("vision.s", "a", Slice(), 64, 1),))
    state = cluster(
        [replace(dear, devices=(first, dear.devices[1])), gpu_node("g1", pool="cheap")],
        [service("s", "ab", rps=3500)],
        [measured(member, gpu_place()) for member in "ab"],
    )
    pools = PoolRules("cheap", cost_per_node_hour=1), PoolRules("dear", cost_per_node_hour=8)
    placer = placer_of(replace(state, pools=pools))
    assert placer.place(1)
    assert used(placer) == ["g0", "g1"]


# --- which kind


def dear_and_cheap(*services: tuple[str, float]) -> ClusterState:
    """A dear board of seven slices, a seventh of which costs less than the whole cheap one beside it."""
    cheap = DeviceClass("cheap", FULL, sm_count=0, memory_mib=MEMORY)
    nodes = [
        gpu_node("n0", pool="dear"),
        NodeState("n1", "cheap", (DeviceState("GPU-cheap", "cheap", MEMORY),)),
    ]
    sizes = [
        measured(name, place, alpha)
        for name, _ in services
        for place, alpha in (
            (gpu_place("1g.10gb"), 1.0),
            (gpu_place("3g.40gb"), 0.4),
            (cheap, 1.0),
        )
    ]
    state = cluster(nodes, [service(name, name, rps=rate) for name, rate in services], sizes)
    return replace(
        state,
        pools=(
            PoolRules("dear", partition=True, shared_between_namespaces=True, cost_per_node_hour=7),
            PoolRules("cheap", shared_between_namespaces=True, cost_per_node_hour=2),
        ),
    )


def test_a_dear_board_is_not_opened_for_a_small_member_that_a_cheap_one_carries() -> None:
    decided = plan(dear_and_cheap(("a", 100)))
    assert devices(decided, "a") == {"GPU-cheap"}
    assert decided.cost == 2


def test_a_dear_board_is_opened_for_what_no_cheap_one_carries() -> None:
    decided = plan(dear_and_cheap(("a", 1500)))
    assert devices(decided, "a") == {"GPU-n0-0"}
    assert decided.services[0].short is None


def test_the_room_of_a_dear_board_that_is_open_anyway_is_used_first() -> None:
    decided = plan(dear_and_cheap(("a", 1500), ("b", 100)))
    assert devices(decided, "a") == devices(decided, "b") == {"GPU-n0-0"}
    assert decided.cost == 7


# --- guests

GUEST_RATES = (50, 600, 1500, 2500, 4000)


def two_members(rates: tuple[float, float], boards: int = 2, **spec: object) -> ClusterState:
    nodes = [gpu_node(f"g{index}") for index in range(boards)]
    services = [
        service(name, name, rps=rate, **spec)  # type: ignore[arg-type]
        for name, rate in zip("ab", rates, strict=True)
    ]
    return cluster(nodes, services, [measured(member, gpu_place()) for member in "ab"])


@pytest.mark.parametrize("rates", list(product(GUEST_RATES, repeat=2)))
def test_a_part_is_shared_only_where_both_keep_what_they_need(rates: tuple[int, int]) -> None:
    state = two_members(rates)
    decided = plan(state)
    assert list(broken_rules(decided, state)) == []
    assert not decided.refused
    for each in decided.services:
        assert each.short is None
        assert each.latency_ms <= each.target_ms
    boards = len({each.device for each in decided.assignments})
    if sum(rates) < 0.4 * ONE_GPU:
        assert boards == 1
    if sum(rates) > ONE_GPU:
        assert boards == 2


@pytest.mark.parametrize(("rate", "comes"), [(50, True), (600, True), (2500, False)])
def test_a_guest_that_would_cost_the_host_its_rate_stays_outside(rate: int, comes: bool) -> None:
    placer = placer_of(two_members((2000, rate)))
    assert placer.place(0)
    before = placer.layout.used()
    assert placer.guests.visit(1, (placer.needs[1],), set()) == comes
    assert placer.served(0)
    if comes:
        assert placer.served(1)
        assert len(placer.layout.used()) == 1
    else:
        assert placer.layout.used() == before


@pytest.mark.parametrize("isolation", ["Partition", "Exclusive"])
def test_who_wants_to_be_alone_is_neither_host_nor_guest(isolation: str) -> None:
    placer = placer_of(two_members((50, 50), placement={"isolation": isolation}))
    assert placer.place(0)
    assert not placer.guests.visit(1, (placer.needs[1],), set())


def test_a_guest_finds_no_place_where_the_memory_is_full() -> None:
    state = two_members((50, 50))
    for mib, comes in ((40_000, True), (45_000, False)):
        sizes = [measured(member, gpu_place(), memory_mib=mib) for member in "ab"]
        placer = placer_of(replace(state, measured=tuple(sizes)))
        assert placer.place(0)
        assert placer.guests.visit(1, (placer.needs[1],), set()) == comes


def test_guests_stay_together_when_they_run() -> None:
    state = two_members((600, 600))
    decided = plan(state)
    assert len({each.device for each in decided.assignments}) == 1
    assert plan(applied(decided, state)).assignments == decided.assignments
