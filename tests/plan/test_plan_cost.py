"""What devices cost and who bears it: every split is exact, a service pays for what is held for it."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from support.clusters import (
    A100,
    applied,
    cluster,
    cpu_node,
    gpu_node,
    gpu_place,
    measured,
    service,
)
from support.random_clusters import A30, clusters
from tessera_core.gpu.geometry import Placement, maximal_multisets
from tessera_core.gpu.tables import MODELS, model_of
from tessera_core.plan import ClusterState, DeviceState, NodeState, PoolRules, Running, Slice, plan
from tessera_core.plan.cost import CORES, UNIT, Bill, bill, node_prices, split
from tessera_core.plan.nodes import placed, running
from tessera_core.plan.quotas import quota_use

PRICED = PoolRules("p", shared_between_namespaces=True, cost_per_node_hour=8.0)


def holds(node: NodeState, *tenants: Running, device: int = 0) -> NodeState:
    devices = list(node.devices)
    devices[device] = replace(devices[device], running=tenants)
    return replace(node, devices=tuple(devices))


def has(
    who: str, piece: str = "full", start: int = 0, member: str = "a", batch: int = 4
) -> Running:
    cores = tuple(range(start, start + int(piece[4:]))) if piece.startswith("cpu-") else ()
    return Running(f"vision.{who}", member, Slice(piece, start, cores), batch, 1)


def billed(*nodes: NodeState, pool: PoolRules = PRICED, **rest: object) -> Bill:
    state = cluster(nodes, [], [], pool, **rest)
    return bill(state, running(state))


def units(amount: int) -> float:
    return amount / UNIT


# --- sums


def check_sums(found: Bill, state: ClusterState) -> None:
    amounts = found.by_service().values()
    assert sum(each.cost for each in amounts) + sum(each.idle for each in found.pools) == (
        found.price
    )
    assert sum(each.loaded for each in amounts) + found.unspread == found.price
    for rules, pool in zip(
        sorted(state.pools, key=lambda each: each.name), found.pools, strict=True
    ):
        nodes = [node for node in state.nodes if node.pool == rules.name]
        assert (pool.pool, pool.nodes) == (rules.name, len(nodes))
        if rules.cost_per_node_hour is not None:
            assert pool.price == round(rules.cost_per_node_hour * UNIT) * len(nodes)
        else:
            devices = [device for node in nodes for device in node.devices]
            gpus = sum(not device.is_cpu for device in devices)
            assert Fraction(pool.price, UNIT) == gpus + Fraction(
                sum(device.cores for device in devices), 64
            )
    for by in (found.by_service(), found.by_namespace()):
        assert sum(each.cost for each in by.values()) == sum(
            line.amount.cost for line in found.lines
        )
    assert all(line.amount.cost >= 0 and line.amount.idle >= 0 for line in found.lines)


@settings(max_examples=60, deadline=None)
@given(clusters())
def test_what_services_and_idle_capacity_cost_is_exactly_the_price_of_the_nodes(
    state: ClusterState,
) -> None:
    decided = plan(state)
    check_sums(bill(state, placed(decided)), state)
    check_sums(bill(state, running(state)), state)
    after = applied(decided, state)
    assert bill(after, running(after)) == bill(state, placed(decided))


@settings(max_examples=60, deadline=None)
@given(clusters())
def test_used_devices_cost_what_the_plan_says(state: ClusterState) -> None:
    decided = plan(state)
    used = {(each.node, each.device) for each in decided.assignments}
    rules = {pool.name: pool for pool in state.pools}
    cost = sum(
        price
        for node in state.nodes
        for device, price in zip(node.devices, node_prices(node, rules[node.pool]), strict=True)
        if (node.name, device.uuid) in used
    )
    assert units(cost) == pytest.approx(decided.cost, abs=1e-6 * len(used))


@given(st.integers(0, 10**13), st.lists(st.integers(0, 10**12), max_size=20))
def test_a_split_is_exact_and_fair(total: int, weights: list[int]) -> None:
    parts = split(total, weights)
    whole = sum(weights)
    assert sum(parts) == (total if whole else 0)
    for part, weight in zip(parts, weights, strict=True):
        assert part >= 0
        assert abs(part - Fraction(total * weight, whole or 1)) < 1


@settings(max_examples=40, deadline=None)
@given(clusters())
def test_quotas_count_as_the_planner_counts(state: ClusterState) -> None:
    """Nothing runs before, so whatever the planner allows itself is within the quotas."""
    empty = replace(
        state,
        nodes=tuple(
            replace(node, devices=tuple(replace(each, running=()) for each in node.devices))
            for node in state.nodes
        ),
    )
    for use in quota_use(empty, placed(plan(empty))).values():
        assert use.quota.slices is None or use.slices <= use.quota.slices
        assert use.quota.shares is None or use.shares <= use.quota.shares + 1e-6


# --- parts of devices


@pytest.mark.parametrize(
    ("piece", "cost", "slices"),
    [
        ("1g.10gb", Fraction(15, 112), 1),
        ("1g.20gb", Fraction(22, 112), 1),
        ("2g.20gb", Fraction(30, 112), 2),
        ("3g.40gb", Fraction(52, 112), 3),
        ("4g.40gb", Fraction(60, 112), 4),
        ("7g.80gb", Fraction(1), 7),
        ("full", Fraction(1), 7),
    ],
)
def test_a_slice_pays_half_for_compute_and_half_for_memory(
    piece: str, cost: Fraction, slices: int
) -> None:
    found = billed(holds(gpu_node("n"), has("a", piece)))
    amount = found.by_service()["vision.a"]
    assert amount.cost == pytest.approx(8 * UNIT * cost, abs=1)
    assert (amount.gpu_slices, amount.gpus) == (slices, pytest.approx(slices / 7))
    (pool,) = found.pools
    assert pool.idle_parts == 8 * UNIT - amount.cost
    assert amount.loaded == 8 * UNIT, "the only service of the pool bears all that is idle"


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.name)
def test_whatever_a_board_is_cut_into_never_costs_more_than_the_board(model) -> None:
    board = DeviceState("GPU-0", model.products[0], model.memory_mib, model=model)
    names = tuple(profile.name for profile in model.profiles)
    for cut in maximal_multisets(model, names):
        tenants = [has(f"s{i}", name, start=i) for i, name in enumerate(cut)]
        prices = billed(NodeState("n", "p", (replace(board, running=tuple(tenants)),))).lines
        alone = {
            name: billed(NodeState("n", "p", (replace(board, running=(has("s", name),)),)))
            .lines[0]
            .amount.cost
            for name in set(cut)
        }
        for line in prices:
            assert line.amount.cost == pytest.approx(alone[line.part], abs=1), cut


def test_an_a30_has_quarters_and_a_board_without_a_table_is_one_slice() -> None:
    quarter = billed(holds(gpu_node("n", product=A30), has("a", "1g.6gb"))).by_service()["vision.a"]
    assert (quarter.gpu_slices, quarter.gpus, quarter.cost) == (1, 0.25, 2 * UNIT)
    plain = NodeState("n", "p", (DeviceState("GPU-0", "NVIDIA-L4", 23_034, running=(has("a"),)),))
    whole = billed(plain).by_service()["vision.a"]
    assert (whole.gpu_slices, whole.gpus, whole.cost) == (1, 1, 8 * UNIT)


def test_cores_cost_alike_and_those_of_a_gpu_node_come_with_its_gpus() -> None:
    cores = billed(holds(cpu_node("n", cores=16), has("a", "cpu-2", 4))).by_service()["vision.a"]
    assert (cores.cores, cores.gpus, cores.cost) == (2, 0, UNIT)
    gpus = gpu_node("n", 2)
    cpu = DeviceState("cpu", "cpu", 65_536, cores=8, running=(has("a", "cpu-2"),))
    both = replace(gpus, devices=(*gpus.devices, cpu))
    found = billed(both)
    assert found.by_service()["vision.a"].loaded == 0
    assert not found.pools[0].spread
    assert found.unspread == found.price == 8 * UNIT


def test_a_pool_without_a_price_costs_what_plans_reckon_with() -> None:
    free = PoolRules("p", shared_between_namespaces=True)
    assert billed(gpu_node("n", 2), cpu_node("m", cores=16), pool=free).price == 2.25 * UNIT


# --- who bears what


def test_services_that_take_turns_pay_for_the_time_of_their_batches() -> None:
    models = [measured("a", gpu_place(), 1.0, 2.0), measured("b", gpu_place(), 1.0, 14.0)]
    # Full batches of 4 take 6 and 18 ms.
    tenants = has("x", member="a"), has("y", member="b")
    wanted = [service("x", ["a"]), service("y", ["b"])]
    state = cluster([holds(gpu_node("n"), *tenants)], wanted, models, PRICED)
    found = bill(state, running(state)).by_service()
    assert [units(found[name].cost) for name in ("vision.x", "vision.y")] == [2, 6]
    assert found["vision.y"].gpu_slices == pytest.approx(7 * 0.75)
    unknown = replace(state, measured=tuple(models[:1]))
    equal = bill(unknown, running(unknown)).by_service()
    assert [units(each.cost) for each in equal.values()] == [4, 4], "b was not measured there"


def test_what_is_idle_is_told_apart_by_what_would_use_it() -> None:
    cut = holds(gpu_node("used", 2), has("a", "2g.20gb"), has("b", "2g.20gb", 2))
    found = billed(cut, gpu_node("empty", 2))
    (pool,) = found.pools
    assert pool.nodes == 2
    assert units(pool.idle_nodes) == 8
    assert units(pool.idle_devices) == 4
    assert units(pool.idle_parts) == pytest.approx(4 * (1 - 60 / 112))
    (a, b) = found.by_service().values()
    assert a.loaded == pytest.approx(b.loaded, abs=1)
    assert a.loaded + b.loaded == found.price


def test_a_device_that_is_out_of_order_and_a_node_that_has_said_nothing_are_idle() -> None:
    broken = gpu_node("n", 2)
    devices = (
        replace(broken.devices[0], running=(has("a"),)),
        replace(broken.devices[1], healthy=False),
    )
    (pool,) = billed(replace(broken, devices=devices), NodeState("new", "p", ())).pools
    assert [units(each) for each in (pool.price, pool.idle_devices, pool.idle_nodes)] == [16, 4, 8]


def test_idle_capacity_is_borne_within_its_pool() -> None:
    pools = (replace(PRICED, name="full", cost_per_node_hour=2.0), replace(PRICED, name="spare"))
    nodes = (
        holds(gpu_node("n", pool="full"), has("a")),
        gpu_node("m", pool="full"),
        gpu_node("o", pool="spare"),
    )
    found = bill(state := ClusterState(nodes=nodes, pools=pools), running(state))
    assert units(found.by_service()["vision.a"].loaded) == 4
    assert units(found.unspread) == 8


def test_a_device_that_is_being_cut_anew_is_split_over_all_who_still_hold_it() -> None:
    both = has("old", "4g.40gb", 0), has("new", "7g.80gb", 0)
    found = billed(holds(gpu_node("n"), *both))
    assert sum(each.cost for each in found.by_service().values()) == found.price


def test_namespaces_are_sums_of_their_services() -> None:
    others = replace(has("b", "2g.20gb", 2), service="text.b")
    found = billed(holds(gpu_node("n"), has("a", "2g.20gb"), others, has("c", "3g.40gb", 4)))
    services, spaces = found.by_service(), found.by_namespace()
    assert list(spaces) == ["text", "vision"]
    assert spaces["vision"] == services["vision.a"] + services["vision.c"]


# --- quotas


def test_a_part_counts_once_for_a_namespace_and_by_its_sms() -> None:
    model = model_of(A100)
    assert model is not None
    tenants = has("a", "3g.40gb", 4), has("b", "3g.40gb", 4), replace(has("c"), service="text.c")
    geometry = (Placement("3g.40gb", 4),)
    node = holds(gpu_node("n", 2, geometry=geometry), *tenants[:2])
    node = holds(node, tenants[2], device=1)
    node = replace(
        node,
        devices=(
            *node.devices,
            DeviceState("cpu", "cpu", 1, cores=10, running=(has("a", "cpu-2"),)),
        ),
    )
    state = cluster([node], [], [])
    use = quota_use(state, running(state))
    assert use["text"].slices == use["text"].shares == 1
    assert use["vision"].slices == 2
    assert use["vision"].shares == pytest.approx(42 / 108 + 0.2)


def test_the_kinds_of_parts_are_apart() -> None:
    node = holds(gpu_node("n", 2), has("a", "2g.20gb"), has("a", "3g.40gb", 4))
    cpu = DeviceState("cpu", "cpu", 1, cores=10, running=(has("a", "cpu-2"),))
    found = billed(replace(node, devices=(*node.devices, cpu)))
    assert [line.part for line in found.lines] == ["2g.20gb", "3g.40gb", CORES]
