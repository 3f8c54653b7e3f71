"""What runs is the start of a plan: what stays, what goes, and what is only set differently."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import ceil

import pytest

from support.clusters import (
    applied,
    cluster,
    cpu_node,
    digest,
    gpu_node,
    gpu_place,
    measured,
    service,
)
from tessera_core.gpu.geometry import Placement
from tessera_core.perf import LatencyProfile, ProfileRow
from tessera_core.plan import (
    ClusterState,
    Measured,
    NodeState,
    Policy,
    PoolRules,
    Running,
    Slice,
    diff,
    plan,
)
from tessera_core.plan.behaviour import MILLI
from tessera_core.plan.build import demands_in, problem_of
from tessera_core.plan.layout import Layout
from tessera_core.plan.matrix import Cell, Part
from tessera_core.plan.place import Placer
from tessera_core.plan.prices import prices_of
from tessera_core.plan.repair import keep, retune, trim

SLACK = 0.1
ONE_GPU = 4237.8
"""Rows/s that the model of ``measured`` carries on one A100 within 50 ms."""


def kept(state: ClusterState) -> Placer:
    """A placer of what stays of that which runs, and nothing else."""
    demands = demands_in(state)
    problem = problem_of(state, demands)
    needs = [ceil(demand.rate * MILLI) for demand in demands]
    layout = Layout(problem, prices_of(problem, needs))
    keep(layout)
    return Placer(layout, needs)


def runs(node: NodeState, *running: Running, device: int = 0) -> NodeState:
    """``node`` with ``running`` on one of its devices."""
    devices = list(node.devices)
    devices[device] = replace(devices[device], running=running)
    return replace(node, devices=tuple(devices))


def one(
    service: str = "s", member: str = "m", cap: int = 64, piece: Slice | None = None
) -> Running:
    return Running(f"vision.{service}", member, piece or Slice(), cap, 1)


def cells(placer: Placer) -> dict[str, list[tuple[str, int]]]:
    """(member, cap) by device, of used devices."""
    problem = placer.problem
    return {
        problem.boards[index].uuid: [
            (problem.demands[cell.member].member, cell.cap) for part in row for cell in part.cells
        ]
        for index, row in placer.layout.used().items()
    }


def spread_out(count: int, rps: float, **spec: object) -> ClusterState:
    """``count`` nodes of one A100, on each of which the one service runs."""
    nodes = [runs(gpu_node(f"g{index}"), one()) for index in range(count)]
    return cluster(nodes, [service("s", rps=rps, **spec)], [measured("m", gpu_place())])  # type: ignore[arg-type]


# --- keep


def test_what_runs_stays_with_its_cap_where_nobody_would_have_put_it() -> None:
    node = runs(gpu_node("g", 3), one(cap=16), device=2)
    state = cluster([gpu_node("f"), node], [service("s")], [measured("m", gpu_place())])
    assert cells(kept(state)) == {"GPU-g-2": [("m", 16)]}
    assert diff(plan(state), state).empty


def test_every_part_of_a_cut_board_stays() -> None:
    slices = [measured(member, gpu_place("1g.10gb"), 1.0) for member in "ab"]
    rules = PoolRules("p", partition=True)
    state = cluster([gpu_node("g")], [service("s", "ab", rps=1500)], slices, rules)
    decided = plan(state)
    now = applied(decided, state)
    assert len(decided.assignments) >= 4
    found = cells(kept(now))["GPU-g-0"]
    assert sorted(found) == sorted((each.member, each.batch) for each in decided.assignments)


def test_a_service_that_is_no_longer_asked_for_goes() -> None:
    node = runs(gpu_node("g", 2), one("gone", cap=16), one(cap=16))
    state = cluster([node], [service("s")], [measured("m", gpu_place())])
    assert cells(kept(state)) == {"GPU-g-0": [("m", 16)]}
    assert [each.running.service for each in diff(plan(state), state).removed] == ["vision.gone"]


def test_a_model_that_was_not_measured_where_it_runs_goes() -> None:
    cores = runs(cpu_node("c"), one(piece=Slice("cpu-1", 0, (0,))))
    state = cluster([cores, gpu_node("g")], [service("s")], [measured("m", gpu_place())])
    assert cells(kept(state)) == {}
    assert [each.node for each in plan(state).assignments] == ["g"]


@pytest.mark.parametrize("cap", [128, 65])
def test_a_cap_beyond_what_was_measured_goes(cap: int) -> None:
    state = cluster(
        [runs(gpu_node("g"), one(cap=cap))], [service("s")], [measured("m", gpu_place())]
    )
    assert cells(kept(state)) == {}
    assert [each.batch <= 64 for each in plan(state).assignments] == [True]


def test_more_instances_than_were_measured_go() -> None:
    twice = replace(one(cap=16), instances=2)
    state = cluster([runs(gpu_node("g"), twice)], [service("s")], [measured("m", gpu_place())])
    assert cells(kept(state)) == {}


def test_of_members_that_together_exceed_the_memory_only_some_stay() -> None:
    sizes = [measured(member, gpu_place(), memory_mib=50_000) for member in "ab"]
    node = runs(gpu_node("g", 2), one("s", "a", 16), one("t", "b", 16))
    state = cluster([node], [service("s", "a"), service("t", "b")], sizes)
    assert cells(kept(state)) == {"GPU-g-0": [("a", 16)]}
    change = diff(plan(state), state)
    assert [each.running.member for each in change.removed] == ["b"]
    assert [each.device for each in change.added] == ["GPU-g-1"]


def test_a_model_that_outgrew_its_slice_goes() -> None:
    geometry = (Placement("1g.10gb", 0),)
    node = runs(gpu_node("g", geometry=geometry), one(cap=4, piece=Slice("1g.10gb", 0)))
    for memory, stays in ((9_000, True), (20_000, False)):
        sizes = [measured("m", gpu_place("1g.10gb"), memory_mib=memory)]
        assert bool(cells(kept(cluster([node], [service("s")], sizes)))) == stays


@pytest.mark.parametrize(("shared", "left"), [(True, ["a", "b"]), (False, ["a"])])
def test_another_namespace_stays_only_on_a_node_that_is_shared(
    shared: bool, left: list[str]
) -> None:
    node = gpu_node("g", 2)
    node = runs(node, one("s", "a", 16))
    node = runs(node, Running("other.t", "b", Slice(), 16, 1), device=1)
    state = cluster(
        [node, gpu_node("h")],
        [service("s", "a"), service("t", "b", namespace="other")],
        [measured(member, gpu_place()) for member in "ab"],
        PoolRules("p", shared_between_namespaces=shared),
    )
    found = cells(kept(state))
    assert sorted(member for inside in found.values() for member, _ in inside) == left
    decided = plan(state)
    assert {each.node for each in decided.assignments if each.member == "b"} == (
        {"g"} if shared else {"h"}
    )


def test_what_is_late_even_when_idle_goes() -> None:
    sizes = [measured("m", gpu_place()), measured("m", 1, 5.0, 20.0)]
    cores = runs(cpu_node("c"), one(cap=4, piece=Slice("cpu-1", 0, (0,))))
    slow = cluster([cores, gpu_node("g")], [service("s", rps=1)], sizes)
    assert cells(kept(slow)) == {"cpu": [("m", 4)]}
    fast = replace(slow, services=(service("s", rps=1, target="20ms"),))
    assert cells(kept(fast)) == {}
    assert [each.node for each in plan(fast).assignments] == ["g"]


def test_a_pool_that_is_no_longer_selected_is_left() -> None:
    wanted = service("s", placement={"poolSelector": {"matchLabels": {"tier": "gold"}}})
    state = cluster(
        [runs(gpu_node("g"), one(cap=16))],
        [wanted],
        [measured("m", gpu_place())],
        PoolRules("p", labels=(("tier", "silver"),)),
    )
    assert cells(kept(state)) == {}


def stepped(times_ms: Sequence[tuple[int, float]]) -> Measured:
    """A measurement whose times are no line: the wait for a large batch is long even for one row."""
    rows = (ProfileRow(batch, 1, ms, ms, 1000 * batch / ms, 1000.0) for batch, ms in times_ms)
    return Measured(digest("m"), gpu_place(), LatencyProfile(tuple(rows)))


def test_a_cap_that_is_too_large_for_a_lowered_target_becomes_a_smaller_one() -> None:
    profile = stepped([(1, 1.0), (4, 8.0), (16, 8.5), (64, 9.0)])
    node = runs(gpu_node("g", 2), one(cap=64), device=1)
    state = cluster([node], [service("s", rps=50)], [profile])
    assert cells(kept(state)) == {"GPU-g-1": [("m", 64)]}
    lowered = replace(state, services=(service("s", rps=50, target="7ms"),))
    [[(_, cap)]] = cells(kept(lowered)).values()
    assert cap < 4
    change = diff(plan(lowered), lowered)
    assert not change.added
    assert not change.removed
    assert [new.running.batch < 4 for _, new in change.changed] == [True]


# --- trim


@pytest.mark.parametrize(
    ("rate", "left"),
    [
        (3 * ONE_GPU * 0.89, 3),
        (2 * ONE_GPU * (1 - SLACK) + 40, 3),
        (2 * ONE_GPU * (1 - SLACK) - 40, 2),
        (ONE_GPU * (1 - SLACK) + 40, 2),
        (ONE_GPU * (1 - SLACK) - 40, 1),
        (1.0, 1),
    ],
)
def test_parts_go_only_when_the_others_have_the_slack_to_spare(rate: float, left: int) -> None:
    state = spread_out(3, rate)
    placer = kept(state)
    trim(placer, SLACK)
    assert placer.layout.parts(0) == left
    assert len(plan(state).assignments) == left


def test_another_slack_is_another_limit() -> None:
    state = spread_out(2, 0.8 * ONE_GPU)
    for slack, left in ((0.1, 1), (0.3, 2)):
        assert len(plan(replace(state, policy=Policy(slack=slack))).assignments) == left


def test_no_more_parts_go_than_are_wanted_at_least() -> None:
    state = spread_out(3, 1.0, scaling={"minReplicas": 2})
    placer = kept(state)
    trim(placer, SLACK)
    assert placer.layout.parts(0) == 2


def test_no_more_nodes_are_left_than_the_spread_allows() -> None:
    twice = runs(runs(gpu_node("g", 2), one()), one(), device=1)
    other = runs(gpu_node("h"), one())
    state = cluster(
        [twice, other],
        [service("s", rps=1.0, placement={"spread": {"minNodes": 2}})],
        [measured("m", gpu_place())],
    )
    placer = kept(state)
    trim(placer, SLACK)
    problem, layout = placer.problem, placer.layout
    assert layout.parts(0) == 2
    assert sorted(problem.nodes[node] for node in layout.nodes(0)) == ["g", "h"]


def test_a_part_that_is_alone_on_its_board_goes_first() -> None:
    slices = [measured(member, gpu_place("3g.40gb")) for member in "ab"]
    geometry = (Placement("3g.40gb", 0), Placement("3g.40gb", 4))
    left, right = (Slice(each.profile, each.start) for each in geometry)
    both = runs(gpu_node("g0", geometry=geometry), one("s", "a", 4, left), one("t", "b", 4, right))
    alone = runs(gpu_node("g1", geometry=geometry), one("s", "a", 4, left))
    state = cluster([both, alone], [service("s", "a", rps=5), service("t", "b", rps=5)], slices)
    placer = kept(state)
    trim(placer, SLACK)
    assert sorted(cells(placer)) == ["GPU-g0-0"]
    assert {each.device for each in plan(state).assignments} == {"GPU-g0-0"}


# --- retune


@pytest.mark.parametrize("rate", [1500.0, 3000.0, 4200.0])
def test_a_higher_rate_is_met_by_another_cap_where_that_suffices(rate: float) -> None:
    node = runs(gpu_node("g", 2), one(cap=4), device=1)
    state = cluster([node], [service("s", rps=rate)], [measured("m", gpu_place())])
    placer = kept(state)
    assert not placer.served(0)
    retune(placer, 0)
    assert placer.served(0)
    change = diff(plan(state), state)
    assert not change.added
    assert not change.removed
    [(before, after)] = change.changed
    assert before.running.batch == 4 < after.running.batch


def test_caps_stay_as_they_are_where_others_would_not_suffice() -> None:
    node = runs(gpu_node("g", 2), one(cap=4), device=1)
    state = cluster([node], [service("s", rps=2 * ONE_GPU)], [measured("m", gpu_place())])
    placer = kept(state)
    retune(placer, 0)
    assert cells(placer) == {"GPU-g-1": [("m", 4)]}


def test_the_caps_of_all_nodes_are_chosen_anew() -> None:
    nodes = [runs(gpu_node(name), one(cap=4)) for name in "gh"]
    state = cluster(nodes, [service("s", rps=1.9 * ONE_GPU)], [measured("m", gpu_place())])
    placer = kept(state)
    retune(placer, 0)
    assert placer.served(0)
    assert all(cap > 4 for inside in cells(placer).values() for _, cap in inside)


def test_a_part_that_is_shared_keeps_its_caps() -> None:
    sizes = [measured(member, gpu_place()) for member in "ab"]
    node = runs(gpu_node("g"), one("s", "a", 4), one("t", "b", 4))
    state = cluster([node], [service("s", "a", rps=3000), service("t", "b", rps=1)], sizes)
    placer = kept(state)
    retune(placer, 0)
    (row,) = placer.layout.used().values()
    assert row == (Part(row[0].place, (Cell(0, 4, 1), Cell(1, 4, 1))),)


def test_of_parts_that_may_go_the_one_that_frees_its_board_goes() -> None:
    both = runs(
        gpu_node("n0"),
        Running("vision.s", "a", Slice(), 4, 1),
        Running("vision.t", "b", Slice(), 4, 1),
    )
    models = [measured(name, gpu_place()) for name in "ab"]
    alone = runs(gpu_node("n1"), Running("vision.s", "a", Slice(), 4, 1))
    state = cluster([both, alone], [service("s", "a", rps=5), service("t", "b", rps=5)], models)
    decided = plan(state)
    assert {each.node for each in decided.assignments} == {"n0"}
    assert diff(plan(applied(decided, state)), applied(decided, state)).empty
