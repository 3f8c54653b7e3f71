"""Prices and the bound: against an independent LP solver, brute force, and cases with a known answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import inf
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from scipy.optimize import linprog

from support.clusters import A100, cluster, cpu_node, gpu_node, gpu_place, measured, service
from support.random_clusters import A30, plain_clusters
from tessera_core.plan import ClusterState, PoolRules
from tessera_core.plan.behaviour import MILLI
from tessera_core.plan.build import Memory, demands_in, problem_of
from tessera_core.plan.curves import Curves
from tessera_core.plan.prices import Prices, lower_bound, prices_of
from tessera_core.plan.problem import Problem

GPU = 1_000_000
"""Cost of a GPU where no pool states one."""
SEEDS = range(60)
ENOUGH = 1e-6
"""Relative; what rounding may add to a worth."""

examples = settings(
    # Drawing a cluster takes a while, which is no fault of the property.
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)


def priced(state: ClusterState, curves: type[Curves] = Curves) -> tuple[Problem, list[int], Prices]:
    problem = problem_of(state, demands_in(state), Memory(curves))
    needs = [-int(-demand.rate * MILLI // 1) for demand in problem.demands]
    return problem, needs, prices_of(problem, needs)


def bound_of(state: ClusterState, *served: str) -> int:
    """The bound for ``served``, all services when none are named."""
    problem, needs, prices = priced(state)
    names = served or tuple(demand.service for demand in problem.demands)
    return lower_bound(problem, needs, prices, frozenset(names))


def supply(problem: Problem) -> list[int]:
    return [sum(board.kind is kind for board in problem.boards) for kind in problem.kinds]


def optimum(problem: Problem, needs: Sequence[int], endless: bool = False) -> float:
    """The linear program of the module's docstring, solved as it stands; ``inf``: there are too few boards.

    Variables: boards by kind and mix, then parts by member and class. ``endless``: as if there were boards
    without end.
    """
    mixes = [(kind, mix) for kind in problem.kinds for mix in kind.shape.mixes]
    columns = [(kind, place) for kind in problem.kinds for place in kind.classes]
    members = len(problem.demands)
    width = len(mixes) + members * len(columns)

    def bought(member: int, column: int) -> int:
        return len(mixes) + member * len(columns) + column

    rows, limits = [], []
    for kind, boards in zip(problem.kinds, supply(problem), strict=True):
        if not endless:
            rows.append(np.zeros(width))
            limits.append(float(boards))
            for index, (owner, _) in enumerate(mixes):
                rows[-1][index] = owner is kind
    for column, (kind, place) in enumerate(columns):
        rows.append(np.zeros(width))
        limits.append(0.0)
        for index, (owner, mix) in enumerate(mixes):
            if owner is kind:
                rows[-1][index] = -mix[kind.position[place]]
        for member in range(members):
            rows[-1][bought(member, column)] = 1
    for member, need in enumerate(needs):
        row = np.zeros(width)
        for column, (kind, place) in enumerate(columns):
            if kind.index in problem.eligible[member]:
                rate = problem.predictor.behaviours[member].most_rate(place)
                row[bought(member, column)] = -rate / MILLI
        if row.any():  # who can buy nothing pays nothing
            rows.append(row)
            limits.append(-need / MILLI)
    costs = np.zeros(width)
    costs[: len(mixes)] = [kind.cost for kind, _ in mixes]
    solved = linprog(costs, A_ub=np.array(rows), b_ub=limits, method="highs")
    return float(solved.fun) if solved.status == 0 else inf


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(Path(__file__).parents[2])  # `bench` is no installed package


def test_where_boards_suffice_prices_prove_what_the_linear_program_does(bench: None) -> None:
    from bench.planner.tiny import tiny_case

    shares = []
    for seed in SEEDS:
        problem, needs, prices = priced(tiny_case(seed))
        best = optimum(problem, needs)
        assert prices.bound <= best * (1 + ENOUGH), seed
        if best < optimum(problem, needs, endless=True) * (1 + ENOUGH):
            shares.append(prices.bound / best)
    assert len(shares) > 40
    assert min(shares) > 0.97
    assert float(np.mean(shares)) > 0.998


@examples
@given(plain_clusters())
def test_prices_never_prove_more_than_the_linear_program(state: ClusterState) -> None:
    problem, needs, prices = priced(state)
    best = optimum(problem, needs)
    assert prices.bound <= best * (1 + ENOUGH)


@examples
@given(plain_clusters())
def test_where_boards_abound_no_packing_is_worth_more_than_its_board(state: ClusterState) -> None:
    problem, _, _ = priced(state)
    prices = prices_of(problem, [1] * len(problem.demands))  # thousandths of a row per second
    for kind, of_kind, worth in zip(problem.kinds, prices.of_kind, prices.worth, strict=True):
        assert len(of_kind) == len(kind.classes)
        assert all(price >= 0 for price in of_kind)
        assert worth == kind.shape.worth(of_kind)
        assert worth[0] <= kind.cost * (1 + ENOUGH)
        for mix in kind.shape.mixes:
            assert np.dot(mix, of_kind) <= kind.cost * (1 + ENOUGH)


def test_no_plan_of_a_tiny_cluster_costs_less_than_the_bound(bench: None) -> None:
    from bench.planner.oracle_case import by_brute_force
    from bench.planner.rules import AloneCurves
    from bench.planner.tiny import tiny_case

    tight = compared = 0
    for seed in SEEDS:
        state = tiny_case(seed)
        least = by_brute_force(state)
        if least is None:
            continue
        problem, needs, prices = priced(state, AloneCurves)
        names = [each.served_name for each in state.services]
        bound = lower_bound(problem, needs, prices, frozenset(names)) / GPU
        assert bound <= least, seed
        # Of a plan that refuses the others, too.
        for name in names:
            kept = [each for each in state.services if each.served_name == name]
            alone = by_brute_force(replace(state, services=tuple(kept)))
            assert alone is not None
            assert lower_bound(problem, needs, prices, {name}) / GPU <= alone, (seed, name)
        tight += bound == least
        compared += 1
    assert compared > 40
    assert tight > compared // 3


def served_by_many(rate: float) -> ClusterState:
    """Needs ``rate`` times what an A100 carries at most; there is one for 1 an hour, four more cost 3 each."""
    place = gpu_place()
    wanted = [measured("m", place)]
    problem, _, _ = priced(cluster([gpu_node("n")], [service("s")], wanted))
    most = problem.predictor.behaviours[0].most_rate(0) / MILLI
    nodes = [gpu_node("n", pool="cheap"), *(gpu_node(f"d{i}", pool="dear") for i in range(4))]
    pools = tuple(
        PoolRules(name, shared_between_namespaces=True, cost_per_node_hour=cost)
        for name, cost in (("cheap", 1.0), ("dear", 3.0))
    )
    state = cluster(nodes, [service("s", rps=rate * most)], wanted)
    return replace(state, pools=pools)


def test_a_kind_that_is_scarce_costs_more_than_its_boards() -> None:
    # Half of the need is 1 for the cheap board and the rest 3 for each of the dear ones.
    problem, needs, prices = priced(served_by_many(1.5))
    cheap, dear = problem.kinds
    assert (cheap.pool, dear.pool) == ("cheap", "dear")
    assert prices.worth[0][0] > 2.5 * GPU
    assert prices.worth[1][0] == pytest.approx(3 * GPU)
    assert 2.4 * GPU < prices.bound <= 2.5 * GPU * (1 + ENOUGH)
    # The only service there is has whole boards: one of each.
    assert lower_bound(problem, needs, prices, {"vision.s"}) == 4 * GPU


def test_a_kind_of_which_there_is_enough_costs_what_its_boards_do() -> None:
    _, _, prices = priced(served_by_many(0.9))
    assert prices.worth[0][0] == pytest.approx(GPU)
    assert prices.bound == pytest.approx(0.9 * GPU, rel=1e-3)


def test_a_part_costs_its_share_of_the_board() -> None:
    # Only the slice of which seven fill a board was measured.
    place = gpu_place("1g.10gb")
    state = cluster(
        [gpu_node("n")],
        [service("s", rps=5)],
        [measured("m", place)],
        PoolRules("p", partition=True, shared_between_namespaces=True),
    )
    problem, needs, prices = priced(state)
    position = problem.kinds[0].position[problem.places.index(place)]
    price = prices.of_kind[0][position]
    assert price == pytest.approx(GPU / 7)
    rate = problem.predictor.behaviours[0].most_rate(problem.places.index(place))
    assert prices.bound == pytest.approx(price * needs[0] / rate)


def small(isolation: str, count: int) -> ClusterState:
    """``count`` members that hardly need any rate on boards of seven slices, each a service of its own."""
    wish = {"isolation": isolation}
    return cluster(
        [gpu_node(f"n{i}") for i in range(9)],
        [service(f"s{i}", rps=1, placement=wish) for i in range(count)],
        [measured("m", gpu_place("1g.10gb"))],
        PoolRules("p", partition=True, shared_between_namespaces=True),
    )


@pytest.mark.parametrize("isolation", ["Partition", "Exclusive"])
def test_members_that_share_with_nobody_pay_for_whole_parts(isolation: str) -> None:
    assert bound_of(small("Any", 15)) == GPU
    assert bound_of(small(isolation, 7)) == GPU
    assert bound_of(small(isolation, 8)) == 2 * GPU
    assert bound_of(small(isolation, 14)) == 2 * GPU
    assert bound_of(small(isolation, 15)) == 3 * GPU


def test_whole_parts_are_the_cheapest_that_carry_the_need() -> None:
    # A whole board, or two halves: what a half cannot do alone costs a whole board, three of them three.
    places = [gpu_place("3g.40gb"), gpu_place("1g.10gb")]
    found = [measured("m", places[0], 0.2, 2.0), measured("m", places[1], 2.0, 20.0)]
    rules = PoolRules("p", partition=True, shared_between_namespaces=True)
    nodes = [gpu_node(f"n{i}") for i in range(9)]
    wish = {"isolation": "Partition"}

    def bound(rps: float, count: int) -> int:
        wanted = [service(f"s{i}", rps=rps, placement=wish) for i in range(count)]
        return bound_of(cluster(nodes, wanted, found, rules))

    probe = cluster(nodes, [service("s", rps=5)], found, rules)
    problem, _, _ = priced(probe)
    most = problem.predictor.behaviours[0].most_rate(problem.places.index(places[0])) / MILLI
    assert bound(0.6 * most, 2) == GPU
    assert bound(0.6 * most, 4) == 2 * GPU
    assert bound(1.2 * most, 2) == 2 * GPU


def test_a_service_that_is_alone_has_nobody_to_be_kept_apart_from() -> None:
    wanted = service("s", ["m", "k", "l"], rps=1, placement={"isolation": "Partition"})
    found = [measured(model, gpu_place()) for model in "mkl"]
    nodes = [gpu_node("a"), gpu_node("b"), gpu_node("c")]
    assert bound_of(cluster(nodes, [wanted], found)) == GPU


def test_only_what_is_served_is_paid_for() -> None:
    state = small("Partition", 15)
    problem, needs, prices = priced(state)
    assert lower_bound(problem, needs, prices, frozenset()) == 0
    assert bound_of(state, "vision.s0") == GPU
    assert bound_of(state, *(f"vision.s{i}" for i in range(8))) == 2 * GPU


def test_a_member_on_several_nodes_pays_for_a_board_on_each() -> None:
    def bound(nodes: int) -> int:
        wanted = service("s", rps=1, placement={"spread": {"minNodes": nodes}})
        found = [measured("m", gpu_place())]
        return bound_of(cluster([gpu_node(f"n{i}") for i in range(4)], [wanted], found))

    assert [bound(nodes) for nodes in (1, 2, 3)] == [GPU, 2 * GPU, 3 * GPU]


def test_what_has_to_run_without_a_rate_needs_a_board() -> None:
    def bound(least: int) -> int:
        wanted = service("s", rps=0, scaling={"minReplicas": least})
        return bound_of(cluster([gpu_node("n")], [wanted], [measured("m", gpu_place())]))

    assert bound(1) == GPU
    assert bound(0) == 0


def test_boards_that_a_member_may_not_use_are_not_paid_for() -> None:
    wanted = service("s", rps=1, placement={"products": [A100]})
    places = [gpu_place(), gpu_place("full", A30)]
    pools = tuple(
        PoolRules(name, shared_between_namespaces=True, cost_per_node_hour=cost)
        for name, cost in (("cheap", 0.25), ("dear", 1.0))
    )
    nodes = [gpu_node("a", pool="cheap", product=A30), gpu_node("b", pool="dear")]
    state = replace(cluster(nodes, [wanted], [measured("m", p) for p in places]), pools=pools)
    assert bound_of(state) == GPU
    assert bound_of(replace(state, services=(service("s", rps=1),))) == GPU // 4


def test_cores_that_come_with_a_gpu_are_free() -> None:
    both = gpu_node("n")
    both = replace(both, devices=(*both.devices, *cpu_node("n").devices))
    found = [measured("m", gpu_place()), measured("m", 2)]
    rules = PoolRules("p", shared_between_namespaces=True, cost_per_node_hour=1.0)
    state = cluster([both], [service("s", rps=1)], found, rules)
    assert bound_of(state) == 0
    without = replace(state, nodes=(replace(both, devices=both.devices[:1]),))
    assert bound_of(without) == GPU


@pytest.mark.parametrize(
    "state",
    [
        cluster([], [], []),
        cluster([gpu_node("n")], [], [measured("m", gpu_place())]),
        cluster([], [service("s")], [measured("m", gpu_place())]),
        cluster([gpu_node("n")], [service("s")], []),
    ],
    ids=["nothing", "no services", "no boards", "no measurements"],
)
def test_where_nothing_can_be_bought_nothing_is_proved(state: ClusterState) -> None:
    problem, needs, prices = priced(state)
    assert prices.bound == 0
    assert lower_bound(problem, needs, prices, frozenset()) == 0
    assert len(prices.of_kind) == len(prices.worth) == len(problem.kinds)


def test_members_of_one_service_may_share_the_parts_it_has_to_itself() -> None:
    wanted = [
        service("x", ["k", "m"], rps=5, placement={"isolation": "Partition"}),
        service("y", "z", rps=5),
    ]
    models = [measured(model, gpu_place()) for model in "kmz"]
    assert bound_of(cluster([gpu_node("a"), gpu_node("b")], wanted, models)) <= 2 * GPU
