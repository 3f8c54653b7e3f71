"""What holds for every plan, checked by an oracle that shares no code with the search."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st

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
from tessera_core.api import Isolation, RuntimeNode
from tessera_core.gpu.geometry import violations
from tessera_core.plan import (
    Assignment,
    Budget,
    ClusterState,
    DevicePlan,
    DeviceState,
    Measured,
    NodeState,
    Plan,
    Policy,
    PoolRules,
    Slice,
    diff,
    explain,
    plan,
    to_runtime_nodes,
)

A30 = "NVIDIA-A30"
SMALL = Budget(max_iterations=20, max_neighbours=40)


def _catalogue() -> tuple[Measured, ...]:
    """Four models of different weight on every kind of place; the last does not run on CPUs."""
    found = []
    for index, model in enumerate("abcd"):
        alpha, tau0, memory = 0.2 * (index + 1), 1.0 + index, 3000.0 * (index + 1) ** 2
        for name, factor in (("full", 1.0), ("3g.40gb", 2.0), ("1g.10gb", 6.0)):
            place = gpu_place(name)
            found.append(measured(model, place, alpha * factor, tau0, memory, (1, 4, 16)))
        for name, factor in (("full", 2.0), ("1g.6gb", 8.0)):
            place = gpu_place(name, A30)
            found.append(measured(model, place, alpha * factor, tau0, memory, (1, 4, 16)))
        for cores in (1, 2) if model != "d" else ():
            found.append(measured(model, cores, 5 * alpha / cores, tau0, memory, (1, 4, 16)))
    return tuple(found)


CATALOGUE = _catalogue()
PROFILES = {(m.digest, m.place.product, m.place.slice): m.profile for m in CATALOGUE}

nodes = st.lists(st.sampled_from(["cpu", "a100", "a100x2", "a30"]), min_size=0, max_size=3).map(
    lambda shapes: tuple(
        {
            "cpu": lambda name: cpu_node(name, cores=4, memory_mib=30_000),
            "a100": lambda name: gpu_node(name),
            "a100x2": lambda name: gpu_node(name, 2),
            "a30": lambda name: gpu_node(name, product=A30),
        }[shape](f"n{index}")
        for index, shape in enumerate(shapes)
    )
)


@st.composite
def services(draw: st.DrawFn) -> tuple[object, ...]:
    found = []
    for index in range(draw(st.integers(1, 3))):
        members = draw(st.lists(st.sampled_from("abcd"), min_size=1, max_size=2, unique=True))
        isolation = draw(st.sampled_from(["Any", "Any", "Partition", "Exclusive"]))
        spread = draw(st.sampled_from([1, 1, 2]))
        found.append(
            service(
                f"s{index}",
                sorted(members),
                rps=draw(st.sampled_from([0, 20, 400, 3000])),
                target=draw(st.sampled_from(["20ms", "100ms", "3ms"])),
                batch_max=draw(st.sampled_from([2, 64])),
                optional=draw(st.sampled_from(["", "b"])) if len(members) > 1 else "",
                scaling=draw(
                    st.sampled_from([{}, {"mode": "Fixed", "minReplicas": 2}, {"maxReplicas": 1}])
                ),
                namespace=draw(st.sampled_from(["red", "blue"])),
                placement={"isolation": isolation, "spread": {"minNodes": spread}},
            )
        )
    return tuple(found)


@st.composite
def states(draw: st.DrawFn) -> ClusterState:
    rules = PoolRules(
        "p",
        partition=draw(st.booleans()),
        shared_between_namespaces=draw(st.booleans()),
    )
    return cluster(
        draw(nodes),
        draw(services()),  # type: ignore[arg-type]
        CATALOGUE,
        rules,
        budget=SMALL,
        policy=Policy(reserved_cores=draw(st.sampled_from([0, 1]))),
    )


def memory_of(each: Assignment, device: DevicePlan) -> float:
    """Memory of one assignment, from the measured rows."""
    key = (digest(each.member), device.product, each.slice.name)
    rows = PROFILES[key].rows
    return max(row.memory_mib for row in rows if row.instances == each.instances)


def broken_rules(decided: Plan, state: ClusterState) -> Iterator[str]:
    """Every physical and tenancy rule that ``decided`` breaks."""
    facts = {(n.name, d.uuid): d for n in state.nodes for d in n.devices}
    for device in decided.devices:
        fact = facts[device.node, device.uuid]
        by_slice: dict[Slice, list[Assignment]] = {}
        for each in device.assignments:
            by_slice.setdefault(each.slice, []).append(each)
        if fact.is_cpu:
            yield from _cpu_rules(decided, state, device, fact, by_slice)
        else:
            yield from _gpu_rules(state, device, fact, by_slice)
        yield from _isolation_rules(state, device, by_slice)
    (pool,) = state.pools
    if not pool.shared_between_namespaces:
        for node in state.nodes:
            spaces = {e.service.split(".")[0] for e in decided.assignments if e.node == node.name}
            if len(spaces) > 1:
                yield f"{node.name} is shared by {spaces}"


def _cpu_rules(
    decided: Plan,
    state: ClusterState,
    device: DevicePlan,
    fact: DeviceState,
    by_slice: dict[Slice, list[Assignment]],
) -> Iterator[str]:
    cores = Counter(core for piece in by_slice for core in piece.cores)
    if any(count > 1 for count in cores.values()):
        yield f"{device.node}: cores given twice"
    if any(not state.policy.reserved_cores <= core < fact.cores for core in cores):
        yield f"{device.node}: cores outside the usable ones"
    if any(piece.name != f"cpu-{len(piece.cores)}" for piece in by_slice):
        yield f"{device.node}: a set whose name is not its size"
    if sum(memory_of(e, device) for e in device.assignments) > fact.memory_mib:
        yield f"{device.node}: over memory"


def _gpu_rules(
    state: ClusterState,
    device: DevicePlan,
    fact: DeviceState,
    by_slice: dict[Slice, list[Assignment]],
) -> Iterator[str]:
    assert fact.model is not None
    yield from (v.detail for v in violations(fact.model, device.geometry))
    if device.recut and not state.pools[0].partition:
        yield f"{device.uuid}: cut in a pool that forbids it"
    present = {Slice(each.profile, each.start) for each in device.geometry} or {Slice()}
    memory = {profile.name: profile.memory_mib for profile in fact.model.profiles}
    memory["full"] = fact.model.memory_mib
    for piece, inside in by_slice.items():
        if piece not in present:
            yield f"{device.uuid}: {piece} does not exist"
        if sum(memory_of(each, device) for each in inside) > memory[piece.name]:
            yield f"{device.uuid}: {piece} over memory"


def _isolation_rules(
    state: ClusterState, device: DevicePlan, by_slice: dict[Slice, list[Assignment]]
) -> Iterator[str]:
    isolation = {s.served_name: s.spec.placement.isolation for s in state.services}
    on_device = {each.service for each in device.assignments}
    if len(on_device) > 1 and any(isolation[s] is Isolation.EXCLUSIVE for s in on_device):
        yield f"{device.uuid}: an exclusive service is not alone"
    for inside in by_slice.values():
        tenants = {each.service for each in inside}
        if len(tenants) > 1 and any(isolation[s] is Isolation.PARTITION for s in tenants):
            yield f"{device.uuid}: a partition is shared"


def unaccounted(decided: Plan, state: ClusterState) -> set[tuple[str, str]]:
    """Demands that are neither placed nor refused, or both."""
    wanted = Counter(
        (each.served_name, member.name) for each in state.services for member in each.spec.members
    )
    placed = {(each.service, each.member) for each in decided.assignments}
    refused = {(name, member) for name, member, _ in decided.refused}
    return {key for key in wanted if (key in placed) == (key in refused)}


@settings(max_examples=40, deadline=None)
@given(states())
def test_no_rule_is_broken_and_every_demand_is_answered(state: ClusterState) -> None:
    decided = plan(state)
    assert list(broken_rules(decided, state)) == []
    assert unaccounted(decided, state) == set()
    for each in decided.services:
        if each.short is None:
            assert each.max_requests_per_second >= each.requests_per_second
            assert each.latency_ms <= each.target_ms * (1 + 1e-3)
    assert decided.lower_bound <= decided.cost
    for node in to_runtime_nodes(decided, epoch=1):
        assert RuntimeNode.from_dict(node.to_dict()) == node
    assert {each.service for each in explain(decided)} == {s.served_name for s in state.services}


@settings(max_examples=40, deadline=None)
@given(states(), st.randoms(use_true_random=False))
def test_the_order_of_facts_changes_nothing(state: ClusterState, random: object) -> None:
    def shuffled(values: tuple[object, ...]) -> tuple[object, ...]:
        copy = list(values)
        random.shuffle(copy)  # type: ignore[attr-defined]
        return tuple(copy)

    mixed = replace(
        state,
        nodes=tuple(
            replace(node, devices=shuffled(node.devices)) for node in shuffled(state.nodes)
        ),
        services=shuffled(state.services),
        measured=shuffled(state.measured),
    )
    assert plan(mixed) == plan(state)


@settings(max_examples=40, deadline=None)
@given(states())
def test_planning_an_applied_plan_changes_nothing(state: ClusterState) -> None:
    first = plan(state)
    running = applied(first, state)
    again = plan(running)
    assert diff(again, running).empty
    assert again.name == first.name


@settings(max_examples=40, deadline=None)
@given(states(), states())
def test_whatever_runs_now_the_plan_is_legal_and_serves_the_same(
    state: ClusterState, before: ClusterState
) -> None:
    running = applied(plan(replace(before, nodes=state.nodes, pools=state.pools)), state)
    decided = plan(running)
    assert list(broken_rules(decided, running)) == []
    if state.pools[0].partition:
        assert decided.services == plan(state).services


def test_every_pair_of_small_services_on_one_cuttable_gpu() -> None:
    rules = PoolRules("p", partition=True, shared_between_namespaces=True)
    for (one, two), first, second in itertools.product(
        itertools.combinations_with_replacement("abc", 2), (20, 400), (20, 3000)
    ):
        state = cluster(
            [gpu_node("g")],
            [service("s", one, rps=first), service("t", two, rps=second)],
            CATALOGUE,
            rules,
            budget=SMALL,
        )
        decided = plan(state)
        assert list(broken_rules(decided, state)) == []
        assert unaccounted(decided, state) == set()


def test_equal_nodes_are_filled_in_order() -> None:
    state = cluster(
        [cpu_node(f"n{index}") for index in range(4)],
        [service("s", "a", rps=20)],
        CATALOGUE,
    )
    used: set[str] = {each.node for each in plan(state).assignments}
    assert used == {"n0"}


def test_an_unused_node_makes_no_difference_when_it_is_lost() -> None:
    every: tuple[NodeState, ...] = tuple(cpu_node(f"n{index}") for index in range(3))
    state = cluster(every, [service("s", "ab", rps=20)], CATALOGUE)
    decided = plan(state)
    used = {each.node for each in decided.assignments}
    fewer = replace(state, nodes=tuple(node for node in every if node.name in used))
    assert plan(fewer).assignments == decided.assignments
