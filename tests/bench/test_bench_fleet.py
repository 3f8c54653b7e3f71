"""The mixed fleet: reproducible, of the size that was asked for, and every member can run somewhere."""

from __future__ import annotations

from collections import Counter

import pytest
from bench.planner.fleet import PRODUCTS, mixed_fleet, new_service

from tessera_core.perf import max_rate
from tessera_core.plan.demand import demands_of


def test_the_same_arguments_give_the_same_fleet() -> None:
    assert mixed_fleet(10, 30, seed=1) == mixed_fleet(10, 30, seed=1)
    assert mixed_fleet(10, 30, seed=1).services != mixed_fleet(10, 30, seed=2).services


@pytest.mark.parametrize("nodes", [1, 7, 40])
def test_nodes_are_as_many_as_asked_for_in_the_shares_of_their_sorts(nodes: int) -> None:
    state = mixed_fleet(nodes, 1, seed=0)
    counts = Counter(node.pool for node in state.nodes)
    assert sum(counts.values()) == nodes
    assert all(abs(counts[each.pool] - each.share * nodes) < 1 for each in PRODUCTS)
    assert len({device.uuid for node in state.nodes for device in node.devices}) == 8 * nodes


def test_services_are_what_they_are_said_to_be() -> None:
    services = mixed_fleet(1, 400, seed=3).services
    assert len({service.served_name for service in services}) == 400
    assert {len(service.spec.members) for service in services} == {1, 2, 3, 4}
    assert all(1 <= s.spec.traffic.requests_per_second <= 2000 for s in services)
    assert all(0.02 <= s.spec.slo.objectives[0].target_s <= 0.4 for s in services)
    assert {s.spec.priority_class_name for s in services} == {None, "gold", "silver"}
    assert len({s.spec.placement.isolation for s in services}) == 3
    assert {s.spec.placement.spread.min_nodes for s in services} == {1, 2}
    assert len({s.metadata.namespace for s in services}) == 12


def test_every_member_meets_its_target_on_some_class() -> None:
    state = mixed_fleet(1, 60, seed=4)
    derate = state.policy.neighbour_derate
    whole = [each for each in state.measured if each.place.slice == "full"]
    for service in state.services:
        for demand in demands_of(service, {}, state.policy):
            assert any(
                max_rate(
                    each.profile.scaled(derate).service(cap), demand.budget_ms, demand.percentile
                )
                > 0
                for each in whole
                if each.digest == demand.digest
                for cap in (1, 8)
            ), (service.served_name, demand)


def test_all_slices_of_all_sorts_are_measured_but_media_slices() -> None:
    state = mixed_fleet(1, 1, seed=0)
    places = {(each.place.product, each.place.slice) for each in state.measured}
    assert Counter(product for product, _ in places) == {
        "NVIDIA-A100-SXM4-80GB": 7,
        "NVIDIA-H100-80GB-HBM3": 7,
        "NVIDIA-H200": 7,
        "NVIDIA-A30": 4,
        "NVIDIA-L4": 1,
    }
    assert all(
        row.memory_mib <= m.place.memory_mib for m in state.measured for row in m.profile.rows
    )


def test_a_service_can_be_added_to_a_fleet() -> None:
    state = mixed_fleet(1, 5, seed=8)
    known = {each.digest for each in state.measured}
    added = new_service("newcomer", seed=1, fleet_seed=8)
    assert added.metadata.name == "newcomer"
    assert all(member.model.digest in known for member in added.spec.members)
    assert added == new_service("newcomer", seed=1, fleet_seed=8)


def test_an_empty_fleet_is_refused() -> None:
    with pytest.raises(ValueError, match="nodes: must be >= 1, found 0"):
        mixed_fleet(0, 1, seed=0)
