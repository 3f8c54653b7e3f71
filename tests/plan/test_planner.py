"""What the planner decides on clusters small enough to know the answer."""

from __future__ import annotations

from dataclasses import replace

import pytest

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
from tessera_core.gpu.geometry import Placement
from tessera_core.gpu.mps import under_mps
from tessera_core.perf import LatencyProfile
from tessera_core.plan import (
    Budget,
    ClusterState,
    DeviceState,
    Goal,
    NodeState,
    Plan,
    Policy,
    PoolRules,
    Refusal,
    Why,
    diff,
    explain,
    plan,
)

CUTTABLE = PoolRules("p", partition=True, shared_between_namespaces=True)


def places(decided: Plan, member: str) -> list[str]:
    return sorted(
        f"{each.device}:{each.slice.name}" for each in decided.assignments if each.member == member
    )


def refusals(decided: Plan) -> dict[str, Refusal]:
    return {member: refusal for _, member, refusal in decided.refused}


def test_three_busy_members_share_the_cores_of_one_node() -> None:
    state = cluster(
        [cpu_node("n", cores=4)],
        [service("s", "abc", rps=3000)],
        [measured(member, 1) for member in "abc"],
    )
    decided = plan(state)
    cores = [each.slice.cores for each in decided.assignments]
    assert sorted(cores) == [(0,), (1,), (2,)]
    (placed,) = decided.services
    assert placed.short is None
    assert placed.max_requests_per_second >= 3000
    assert placed.latency_ms <= placed.target_ms


def test_reserved_cores_are_left_alone() -> None:
    state = cluster(
        [cpu_node("n", cores=4)],
        [service("s", "ab", rps=3000)],
        [measured(member, 1) for member in "ab"],
        policy=Policy(reserved_cores=2),
    )
    assert sorted(each.slice.cores for each in plan(state).assignments) == [(2,), (3,)]


def test_idle_members_share_one_core() -> None:
    state = cluster(
        [cpu_node("n", cores=4)], [service("s", "abc")], [measured(m, 1) for m in "abc"]
    )
    decided = plan(state)
    assert {each.slice.cores for each in decided.assignments} == {(0,)}
    assert decided.services[0].short is None


def test_one_member_spreads_over_as_many_devices_as_its_rate_needs() -> None:
    state = cluster([gpu_node("g", 4)], [service("s", rps=9000)], [measured("m", gpu_place())])
    decided = plan(state)
    devices = [each.device for each in decided.assignments]
    (placed,) = decided.services
    assert len(devices) == len(set(devices)) == 3
    assert placed.short is None
    assert sum(each.load for each in decided.assignments) == pytest.approx(9000)


def test_several_members_take_turns_on_one_device() -> None:
    state = cluster(
        [gpu_node("g")], [service("s", "abc")], [measured(m, gpu_place()) for m in "abc"]
    )
    decided = plan(state)
    assert places(decided, "a") == places(decided, "b") == places(decided, "c")
    first = decided.assignments[0]
    alone = plan(replace(state, services=(service("s", "a"),))).assignments[0]
    assert first.shares_with == ("vision.s/b", "vision.s/c")
    assert first.rate < alone.rate
    assert first.latency_ms > alone.latency_ms
    assert decided.services[0].short is None


def test_small_slices_serve_more_than_the_whole_device() -> None:
    slices = [measured("m", gpu_place("1g.10gb"), 1.0, 2.0), measured("m", gpu_place(), 0.5, 2.0)]
    state = cluster([gpu_node("g")], [service("s", rps=3500)], slices, CUTTABLE)
    decided = plan(state)
    (device,) = decided.devices
    assert device.recut
    assert {placement.profile for placement in device.geometry} == {"1g.10gb"}
    assert decided.services[0].short is None
    without = plan(replace(state, pools=(replace(CUTTABLE, partition=False),)))
    assert without.services[0].short is not None


def test_geometry_is_untouched_in_a_pool_without_partition() -> None:
    present = (Placement("1g.10gb", 0), Placement("1g.10gb", 1))
    node = gpu_node("g", geometry=present)
    slices = [measured("m", gpu_place("1g.10gb")), measured("m", gpu_place())]
    decided = plan(cluster([node], [service("s", rps=50_000)], slices))
    (device,) = decided.devices
    assert device.geometry == present
    assert not device.recut
    assert places(decided, "m") == ["GPU-g-0:1g.10gb"] * 2
    assert decided.services[0].short is not None


def test_present_geometry_is_kept_where_it_suffices() -> None:
    present = tuple(Placement("1g.10gb", start) for start in range(7))
    nodes = [gpu_node("g"), gpu_node("h", geometry=present)]
    slices = [measured("m", gpu_place("1g.10gb"))]
    state = cluster(
        [NodeState("n", "p", nodes[0].devices + nodes[1].devices)], [service("s")], slices, CUTTABLE
    )
    decided = plan(state)
    assert not any(device.recut for device in decided.devices)
    assert places(decided, "m") == ["GPU-h-0:1g.10gb"]


def test_only_allowed_profiles_are_cut() -> None:
    slices = [measured("m", gpu_place(name)) for name in ("1g.10gb", "2g.20gb")]
    rules = replace(CUTTABLE, allowed_profiles=("2g.20gb",))
    decided = plan(cluster([gpu_node("g")], [service("s")], slices, rules))
    assert places(decided, "m") == ["GPU-g-0:2g.20gb"]


def test_a_device_that_hides_mig_is_used_whole() -> None:
    node = gpu_node("g")
    hidden = replace(node, devices=(replace(node.devices[0], cuttable=False),))
    slices = [measured("m", gpu_place("1g.10gb"))]
    decided = plan(cluster([hidden], [service("s")], slices, CUTTABLE))
    assert refusals(decided)["m"].why is Why.NO_PROFILE


def test_unhealthy_devices_get_nothing() -> None:
    node = gpu_node("g", 2)
    sick = replace(node.devices[0], healthy=False)
    state = cluster(
        [replace(node, devices=(sick, node.devices[1]))],
        [service("s")],
        [measured("m", gpu_place())],
    )
    assert places(plan(state), "m") == ["GPU-g-1:full"]


def test_the_cheaper_pool_is_used() -> None:
    pools = (
        PoolRules("dear", cost_per_node_hour=10.0),
        PoolRules("cheap", cost_per_node_hour=1.0),
    )
    state = replace(
        cluster(
            [gpu_node("a", pool="dear"), gpu_node("b", pool="cheap")],
            [service("s")],
            [measured("m", gpu_place())],
        ),
        pools=pools,
    )
    decided = plan(state)
    assert places(decided, "m") == ["GPU-b-0:full"]
    assert decided.cost == 1.0


def test_maximising_the_rate_uses_every_device() -> None:
    state = cluster(
        [gpu_node("g", 3)],
        [service("s", rps=10)],
        [measured("m", gpu_place())],
        policy=Policy(objective=Goal.MAXIMISE_RATE),
    )
    assert len(plan(state).assignments) == 3
    assert len(plan(replace(state, policy=Policy())).assignments) == 1


def test_spread_keeps_every_member_on_two_nodes() -> None:
    wanted = service("s", "ab", placement={"spread": {"minNodes": 2}})
    state = cluster(
        [gpu_node("g"), gpu_node("h")], [wanted], [measured(m, gpu_place()) for m in "ab"]
    )
    decided = plan(state)
    for member in "ab":
        assert places(decided, member) == ["GPU-g-0:full", "GPU-h-0:full"]
    assert decided.services[0].short is None


def test_external_scaling_places_as_many_parts_as_replicas() -> None:
    wanted = service("s", rps=1, scaling={"mode": "External"}, replicas=3)
    state = cluster([cpu_node("n", cores=4)], [wanted], [measured("m", 1)])
    assert len(plan(state).assignments) == 3


def test_more_replicas_than_room_is_a_quantified_shortfall() -> None:
    wanted = service("s", rps=1, scaling={"mode": "Fixed", "minReplicas": 6})
    state = cluster([cpu_node("n", cores=4)], [wanted], [measured("m", 1)])
    decided = plan(state)
    short = decided.services[0].short
    assert len(decided.assignments) == 4
    assert short is not None
    assert short.shortfall is not None
    assert (short.why, short.shortfall.devices) == (Why.INSUFFICIENT_CAPACITY, 2)


def test_max_replicas_bounds_the_parts() -> None:
    wanted = service("s", rps=100_000, scaling={"maxReplicas": 2})
    decided = plan(cluster([gpu_node("g", 4)], [wanted], [measured("m", gpu_place())]))
    short = decided.services[0].short
    assert len(decided.assignments) == 2
    assert short is not None
    assert "maxReplicas allows 2" in short.detail


def test_a_service_without_traffic_and_minimum_is_scaled_to_zero() -> None:
    wanted = service("s", rps=0, scaling={"minReplicas": 0})
    decided = plan(cluster([gpu_node("g")], [wanted], [measured("m", gpu_place())]))
    assert decided.idle == ("vision.s",)
    assert decided.assignments == decided.refused == ()


def test_requests_of_several_rows_need_more_capacity() -> None:
    def loaded(items: int) -> ClusterState:
        wanted = service("s", traffic={"requestsPerSecond": 50, "itemsPerRequest": items})
        return cluster([gpu_node("g", 1)], [wanted], [measured("m", gpu_place())])

    one, many = plan(loaded(1)), plan(loaded(8))
    assert many.assignments[0].load == pytest.approx(8 * one.assignments[0].load)
    assert many.services[0].max_requests_per_second < one.services[0].max_requests_per_second
    assert many.services[0].latency_ms > one.services[0].latency_ms


def test_a_target_below_one_batch_is_infeasible_and_says_what_is_reachable() -> None:
    decided = plan(
        cluster([gpu_node("g")], [service("s", target="3ms")], [measured("m", gpu_place(), 0.5, 4)])
    )
    refusal = refusals(decided)["m"]
    assert refusal.why is Why.INFEASIBLE
    assert refusal.best_ms == pytest.approx(0.5 + 4 + 1)
    assert not decided.assignments


def test_a_model_that_was_not_measured_is_refused() -> None:
    decided = plan(cluster([gpu_node("g")], [service("s")], [measured("other", gpu_place())]))
    assert refusals(decided)["m"].why is Why.NO_PROFILE


def test_a_model_larger_than_any_part_is_refused() -> None:
    big = measured("m", gpu_place(), memory_mib=100_000)
    refusal = refusals(plan(cluster([gpu_node("g")], [service("s")], [big])))["m"]
    assert refusal.why is Why.INSUFFICIENT_MEMORY
    assert "100000 MiB" in refusal.detail


def test_memory_that_others_hold_is_a_reason_too() -> None:
    sizes = [measured(member, gpu_place(), memory_mib=50_000) for member in "ab"]
    state = cluster([gpu_node("g")], [service("s", "a"), service("t", "b")], sizes)
    decided = plan(state)
    assert places(decided, "a") == ["GPU-g-0:full"]
    refusal = refusals(decided)["b"]
    assert refusal.why is Why.INSUFFICIENT_MEMORY
    assert refusal.shortfall is not None
    assert (refusal.shortfall.device, refusal.shortfall.devices) == (f"{A100}/full", 1)


def test_what_was_measured_in_one_process_says_nothing_of_a_gpu_under_mps() -> None:
    shared = gpu_node("g", product=under_mps(A100))
    apart = cluster([shared], [service("s")], [measured("m", gpu_place())])
    assert refusals(plan(apart))["m"].why is Why.NO_PROFILE
    known = replace(apart, measured=(measured("m", gpu_place(product=under_mps(A100))),))
    assert places(plan(known), "m") == ["GPU-g-0:full"]


@pytest.mark.parametrize(
    "placement", [{"products": ["NVIDIA-T4"]}, {"poolSelector": {"matchLabels": {"tier": "gold"}}}]
)
def test_selectors_that_match_nothing_are_named(placement: dict[str, object]) -> None:
    state = cluster(
        [gpu_node("g")], [service("s", placement=placement)], [measured("m", gpu_place())]
    )
    assert refusals(plan(state))["m"].why is Why.NO_DEVICE


def test_a_pool_selector_matches_labels() -> None:
    wanted = service("s", placement={"poolSelector": {"matchLabels": {"tier": "gold"}}})
    state = cluster(
        [gpu_node("g")],
        [wanted],
        [measured("m", gpu_place())],
        PoolRules("p", labels=(("tier", "gold"),)),
    )
    assert places(plan(state), "m") == ["GPU-g-0:full"]


def test_code_runs_only_where_the_pool_allows_it() -> None:
    wanted = service("s", formats={"m": "TorchScript"})
    state = cluster([gpu_node("g")], [wanted], [measured("m", gpu_place())])
    assert refusals(plan(state))["m"].why is Why.FORMAT_NOT_ALLOWED
    allowed = replace(state, pools=(PoolRules("p", allow_code=True),))
    assert places(plan(allowed), "m") == ["GPU-g-0:full"]


def test_namespaces_do_not_share_a_node_unless_the_pool_says_so() -> None:
    services = [service("s", "a"), service("t", "b", namespace="other")]
    sizes = [measured(member, gpu_place()) for member in "ab"]
    apart = cluster([gpu_node("g", 2)], services, sizes, PoolRules("p"))
    decided = plan(apart)
    assert len({each.service for each in decided.assignments}) == 1
    assert [refusal.why for _, _, refusal in decided.refused] == [Why.ISOLATION_UNMET]
    shared = replace(apart, pools=(PoolRules("p", shared_between_namespaces=True),))
    assert not plan(shared).refused


@pytest.mark.parametrize(
    ("isolation", "devices", "slices"), [("Any", 1, 1), ("Partition", 1, 2), ("Exclusive", 2, 2)]
)
def test_isolation_decides_what_is_shared(isolation: str, devices: int, slices: int) -> None:
    services = [
        service(name, member, placement={"isolation": isolation})
        for name, member in (("s", "a"), ("t", "b"))
    ]
    sizes = [measured(member, gpu_place("7g.80gb")) for member in "ab"]
    sizes += [measured(member, gpu_place("3g.40gb"), 0.4, 3) for member in "ab"]
    if isolation == "Any":
        sizes = sizes[:2]
    decided = plan(cluster([gpu_node("g", 2)], services, sizes, CUTTABLE))
    assert not decided.refused
    assert len({each.device for each in decided.assignments}) == devices
    assert len({(each.device, each.slice) for each in decided.assignments}) == slices


def test_a_required_member_takes_its_service_with_it() -> None:
    state = cluster([gpu_node("g")], [service("s", "ab")], [measured("a", gpu_place())])
    decided = plan(state)
    reasons = {member: refusal.why for member, refusal in refusals(decided).items()}
    assert reasons == {"a": Why.MEMBER_REFUSED, "b": Why.NO_PROFILE}
    assert not decided.assignments


def test_an_optional_member_is_refused_alone() -> None:
    wanted = service("s", "ab", optional="b")
    decided = plan(cluster([gpu_node("g")], [wanted], [measured("a", gpu_place())]))
    assert {m: r.why for m, r in refusals(decided).items()} == {"b": Why.NO_PROFILE}
    assert places(decided, "a") == ["GPU-g-0:full"]


def test_a_service_that_finds_no_room_leaves_it_to_the_others() -> None:
    sizes = [
        measured("a", gpu_place(), memory_mib=50_000),
        measured("b", gpu_place(), memory_mib=45_000),
        measured("c", gpu_place(), memory_mib=40_000),
    ]
    state = cluster([gpu_node("g")], [service("s", "ab"), service("t", "c")], sizes)
    decided = plan(state)
    assert {service for service, _, _ in decided.refused} == {"vision.s"}
    assert places(decided, "c") == ["GPU-g-0:full"]


def test_capacity_that_is_short_is_placed_and_quantified() -> None:
    state = cluster([gpu_node("g", 2)], [service("s", rps=20_000)], [measured("m", gpu_place())])
    decided = plan(state)
    short = decided.services[0].short
    assert short is not None
    assert short.shortfall is not None
    rate = decided.assignments[0].rate
    assert len(decided.assignments) == 2
    assert short.shortfall.requests_per_second == pytest.approx(20_000 - 2 * rate, rel=1e-3)
    enough = 2 + short.shortfall.devices
    fixed = plan(replace(state, nodes=(gpu_node("g", enough),)))
    assert fixed.services[0].short is None
    assert len(fixed.assignments) == enough


def test_the_lower_bound_is_never_above_the_cost() -> None:
    for rate in (10, 3000, 9000):
        state = cluster(
            [gpu_node("g", 8)],
            [service("s", "ab", rps=rate)],
            [measured(m, gpu_place()) for m in "ab"],
        )
        decided = plan(state)
        assert decided.services[0].short is None
        assert 0 < decided.lower_bound <= decided.cost


def test_a_spent_budget_is_said_and_everybody_is_placed_all_the_same() -> None:
    state = cluster([gpu_node("g", 4)], [service("s", rps=9000)], [measured("m", gpu_place())])
    cut = plan(state, Budget(max_iterations=0))
    assert cut.truncated
    assert cut.services[0].short is None
    assert not plan(state).truncated


def test_running_instances_stay_when_another_service_goes() -> None:
    sizes = [measured(member, gpu_place(), memory_mib=50_000) for member in "ab"]
    both = cluster([gpu_node("g", 2)], [service("s", "a"), service("t", "b")], sizes)
    running = applied(plan(both), both)
    left = plan(replace(running, services=running.services[1:]))
    change = diff(left, replace(running, services=running.services[1:]))
    assert [each.running.member for each in change.removed] == ["a"]
    assert not change.added
    assert not change.changed


def test_a_rate_change_keeps_the_slices_that_serve() -> None:
    slices = [measured("m", gpu_place("1g.10gb"), 1.0, 2.0)]
    low = cluster([gpu_node("g")], [service("s", rps=1200)], slices, CUTTABLE)
    running = applied(plan(low), low)
    high = replace(running, services=(service("s", rps=2000),))
    change = diff(plan(high), high)
    assert change.added
    assert not change.removed
    assert not change.changed


def test_a_gpu_without_a_table_is_used_whole() -> None:
    device = DeviceState("GPU-x", "NVIDIA-L4", 23_034)
    place = replace(gpu_place(), product="NVIDIA-L4", memory_mib=23_034)
    state = cluster(
        [NodeState("n", "p", (device,))], [service("s")], [measured("m", place)], CUTTABLE
    )
    assert places(plan(state), "m") == ["GPU-x:full"]


def test_an_empty_cluster_refuses_everything() -> None:
    decided = plan(cluster([], [service("s")], []))
    assert refusals(decided)["m"].why is Why.NO_DEVICE
    assert plan(ClusterState()).devices == ()


def test_explanations_say_where_why_and_what_limits() -> None:
    sizes = [measured("a", gpu_place()), measured("b", gpu_place(), 0.4)]
    state = cluster([gpu_node("g")], [service("s", "ab"), service("t", "x")], sizes)
    served, refused = explain(plan(state), state)
    text = "\n".join(served.lines)
    assert "takes turns with vision.s/b" in text
    assert "limited by" in text
    assert refused.lines[0] == "not placed"
    assert "NoProfile" in refused.lines[1]


def test_nobody_is_dropped_so_that_another_one_is_satisfied() -> None:
    sizes = [measured("a", gpu_place()), measured("b", gpu_place())]
    alone = cluster([gpu_node("g")], [service("s", "a", rps=3900)], sizes)
    assert plan(alone).services[0].short is None
    decided = plan(replace(alone, services=(*alone.services, service("t", "b", rps=1))))
    assert {each.member for each in decided.assignments} == {"a", "b"}
    assert decided.services[0].short is not None


def test_instances_are_used_where_they_were_measured_to_help() -> None:
    one = measured("m", gpu_place())
    two = replace(
        one,
        profile=LatencyProfile(
            (
                *one.profile.rows,
                *(
                    replace(row, instances=2, p50_ms=1.2 * row.p50_ms, p99_ms=1.2 * row.p99_ms)
                    for row in one.profile.rows
                ),
            )
        ),
    )
    wanted = service("s", rps=5500)
    assert plan(cluster([gpu_node("g")], [wanted], [one])).services[0].short is not None
    decided = plan(cluster([gpu_node("g")], [wanted], [two]))
    assert decided.services[0].short is None
    assert decided.assignments[0].instances == 2


def test_an_optional_member_does_not_vanish_so_that_the_required_one_fares_better() -> None:
    sizes = [measured(member, gpu_place()) for member in "ab"]
    wanted = service("s", "ab", rps=3900, optional="b")
    decided = plan(cluster([gpu_node("g")], [wanted], sizes))
    assert {each.member for each in decided.assignments} == {"a", "b"}


def test_replicas_that_cannot_carry_the_expected_rate_are_reported() -> None:
    wanted = service("s", rps=9000, scaling={"mode": "Fixed", "minReplicas": 2})
    decided = plan(cluster([gpu_node("g", 4)], [wanted], [measured("m", gpu_place())]))
    short = decided.services[0].short
    assert len(decided.assignments) == 2
    assert short is not None
    assert short.shortfall is not None
    assert short.shortfall.devices == 1


@pytest.mark.parametrize("isolation", ["Partition", "Exclusive"])
def test_members_of_a_service_that_shares_with_nobody_share_with_each_other(isolation: str) -> None:
    wanted = [
        service("x", ["k", "m"], rps=5, placement={"isolation": isolation}),
        service("y", "z", rps=5),
    ]
    models = [measured(model, gpu_place()) for model in "kmz"]
    decided = plan(cluster([gpu_node("a"), gpu_node("b"), gpu_node("c")], wanted, models))
    assert decided.refused == ()
    assert decided.lower_bound <= decided.cost == 2.0
