"""A device that must not be used: its copies get another home first, everybody is told, and it is used again later."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from support.clusters import cluster, gpu_place, measured
from support.memory_operator import SERVICE, Operator, profile, started
from support.objects import NOW, cpu, gpu, node, pool, service
from tessera_core.api import ModelProfile, RuntimeNode, RuntimePool
from tessera_core.api.meta import ConditionStatus
from tessera_core.api.runtimenode import Health
from tessera_core.plan import state_to_dict
from tessera_operator.profiling import spots
from tessera_operator.quarantine import Healths, condition, counts, products, sick_of
from tessera_operator.reporting import FINALIZER

KIND = "PlacementPlan"
PROBLEM = "Xid 95: needs a reset of the GPU"


def ail(operator: Operator, name: str, health: Health = Health.UNHEALTHY) -> None:
    """What the agent of a node says of its GPU from now on."""
    for device in operator.cluster.objects["RuntimeNode", "", name]["status"]["devices"]:
        if device["product"] != "cpu":
            device["health"] = health.value
            device["problem"] = PROBLEM if health is Health.UNHEALTHY else ""


def ordered(operator: Operator) -> set[str]:
    """Names of the nodes that are told to run something."""
    return {
        each.metadata.name
        for each in operator.nodes()
        if any(device.instances for device in each.spec.devices)
    }


def pool_status(operator: Operator) -> Any:
    return RuntimePool.from_dict(operator.cluster.objects["RuntimePool", "", "p"]).status


def devices_healthy(operator: Operator) -> Any:
    return next(each for each in pool_status(operator).conditions if each.type == "DevicesHealthy")


def conditions(operator: Operator) -> dict[str, tuple[str, str]]:
    return {
        each.type: (each.status.value, each.reason) for each in operator.service().status.conditions
    }


def events(operator: Operator) -> list[tuple[str, str, str]]:
    """Of nodes: type, reason and node."""
    return [
        (each["type"], each["reason"], each["involvedObject"]["name"])
        for key, each in operator.cluster.objects.items()
        if key[0] == "Event" and each["involvedObject"]["kind"] == "RuntimeNode"
    ]


def addresses(operator: Operator) -> list[str]:
    found = operator.cluster.objects["EndpointSlice", "vision", "s-tessera"]
    return [address for each in found["endpoints"] for address in each["addresses"]]


def test_copies_have_another_home_before_they_leave_a_device_that_must_not_be_used() -> None:
    operator = started(2)
    (home,) = operator.running()
    ail(operator, home)
    history = []
    for _ in range(8):
        operator.rounds(1)
        assert operator.running(), "nobody answers"
        assert addresses(operator)
        history.append(ordered(operator))
    assert {"n0", "n1"} in history
    assert ordered(operator) == operator.running() == {"n0", "n1"} - {home}
    assert {each["Applied"] for each in operator.plans().values()} == {"True"}


def test_the_plan_says_what_leaves_and_in_which_order() -> None:
    operator = started(2)
    (home,) = operator.running()
    ail(operator, home)
    operator.rounds(8)
    specs = [each["spec"] for key, each in operator.cluster.objects.items() if key[0] == KIND]
    (plan,) = (each for each in specs if each["steps"][-1]["action"] == "Unload")
    assert [each["action"] for each in plan["steps"]] == ["Launch", "Route", "Unload"]
    assert plan["steps"][-1]["requires"] == [plan["steps"][1]["id"]]
    assert plan["diff"][0] == (f"- vision.s/a 1 on {home}/GPU-{home} full, which must not be used")


def test_a_device_that_is_healthy_again_is_free_and_moves_nothing() -> None:
    operator = started(2)
    (home,) = operator.running()
    ail(operator, home)
    operator.rounds(8)
    ail(operator, home, Health.HEALTHY)
    operator.rounds(2)
    before = list(operator.cluster.calls)
    operator.rounds(10)
    assert operator.cluster.calls == before
    assert operator.running() == {"n0", "n1"} - {home}


def test_a_device_that_is_healthy_again_is_planned_on() -> None:
    operator = started(2, rps=6_000)
    assert operator.running() == {"n0", "n1"}
    ail(operator, "n1")
    operator.rounds(8)
    assert conditions(operator)["CapacityShortfall"][0] == "True"
    ail(operator, "n1", Health.HEALTHY)
    operator.rounds(8)
    assert operator.running() == {"n0", "n1"}
    assert conditions(operator)["CapacityShortfall"] == ("False", "Enough")


def test_what_has_no_room_elsewhere_stays_and_the_shortfall_is_told() -> None:
    operator = started(1)
    ail(operator, "n0")
    operator.rounds(8)
    assert operator.running() == {"n0"}
    assert addresses(operator) == ["10.0.0.0"]
    assert conditions(operator)["Ready"] == ("True", "Serving")
    assert conditions(operator)["Planned"][0] == "False"
    assert conditions(operator)["CapacityShortfall"][0] == "True"
    spec = operator.nodes()[0].spec.devices
    ail(operator, "n0", Health.HEALTHY)
    operator.rounds(8)
    assert operator.nodes()[0].spec.devices == spec
    assert conditions(operator)["CapacityShortfall"] == ("False", "Enough")


def test_another_node_is_asked_for_and_taken_when_it_comes() -> None:
    operator = started(1)
    ail(operator, "n0")
    operator.rounds(3)
    assert operator.replicas() == 2
    operator.join("n7")
    operator.rounds(8)
    assert ordered(operator) == operator.running() == {"n7"}


def test_a_deleted_service_leaves_such_a_device_too() -> None:
    operator = started(1)
    ail(operator, "n0")
    operator.rounds(3)
    operator.cluster.objects[SERVICE]["metadata"]["deletionTimestamp"] = NOW
    operator.rounds(8)
    assert operator.running() == set()
    assert FINALIZER not in operator.service().metadata.finalizers


def test_a_lost_node_with_such_a_device_makes_no_plan_after_plan() -> None:
    operator = started(2)
    (home,) = operator.running()
    ail(operator, home)
    operator.leave(home)
    operator.rounds(45)
    before = list(operator.cluster.calls)
    operator.rounds(10)
    assert operator.cluster.calls == before
    assert operator.running() >= {"n0", "n1"} - {home}


def test_the_pool_names_device_and_problem_and_counts_it_as_not_free() -> None:
    operator = started(2)
    assert devices_healthy(operator).status is ConditionStatus.TRUE
    assert pool_status(operator).free_capacity[0] == ("NVIDIA-A100-SXM4-80GB/full", 1)
    (home,) = operator.running()
    (spare,) = {"n0", "n1"} - {home}
    ail(operator, spare)
    operator.rounds(3)
    told = devices_healthy(operator)
    assert (told.status, told.reason) == (ConditionStatus.FALSE, "DeviceUnhealthy")
    assert told.message == f"1 must not be used: GPU-{spare} of {spare}: {PROBLEM}"
    assert pool_status(operator).gpus == 2
    assert dict(pool_status(operator).free_capacity)["NVIDIA-A100-SXM4-80GB/full"] == 0


def test_each_change_is_one_event_about_the_node() -> None:
    operator = started(2)
    assert events(operator) == []
    ail(operator, "n1")
    operator.rounds(5)
    assert events(operator) == [("Warning", "DeviceUnhealthy", "n1")]
    ail(operator, "n1", Health.HEALTHY)
    operator.rounds(5)
    assert sorted(events(operator)) == [
        ("Normal", "DeviceHealthy", "n1"),
        ("Warning", "DeviceUnhealthy", "n1"),
    ]
    (found, *_) = (
        each
        for key, each in operator.cluster.objects.items()
        if key[0] == "Event" and each["reason"] == "DeviceUnhealthy"
    )
    assert found["metadata"]["namespace"] == "default"
    assert "namespace" not in found["involvedObject"]
    assert PROBLEM in found["message"]


def test_an_operator_that_was_restarted_tells_no_news_again() -> None:
    operator = started(2)
    ail(operator, "n1")
    operator.rounds(5)
    before = events(operator)
    operator.restart()
    operator.rounds(5)
    assert events(operator) == before


def test_a_pool_shows_what_of_it_may_be_used_and_nothing_where_all_its_gpus_may_not() -> None:
    well = node("n0", gpu("GPU-0"), cpu(), cores=4)
    sick = RuntimeNode.from_dict(_sick(node("n1", gpu("GPU-1")).to_dict()))
    lonely = node("n2", cpu(), cores=4)
    assert products([well, sick]) == {"NVIDIA-A100-SXM4-80GB", "cpu"}
    assert products([sick, lonely]) == frozenset()
    assert products([lonely]) == {"cpu"}


def test_a_problem_that_ended_while_nobody_led_is_no_news_and_one_that_came_is() -> None:
    nodes = [node("n0", gpu("GPU-0"))]
    assert list(Healths().changes(nodes, expected=True)) == []
    sick = RuntimeNode.from_dict(_sick(nodes[0].to_dict()))
    assert [each.reason for _, each in Healths().changes([sick], expected=True)] == [
        "DeviceUnhealthy"
    ]
    assert list(Healths().changes([sick], expected=False)) == []


def test_a_node_that_comes_back_is_seen_anew() -> None:
    healths = Healths()
    sick = RuntimeNode.from_dict(_sick(node("n0", gpu("GPU-0")).to_dict()))
    assert len(list(healths.changes([sick], expected=True))) == 1
    assert list(healths.changes([sick], expected=True)) == []
    healths.forget(set())
    assert len(list(healths.changes([sick], expected=True))) == 1


def test_a_condition_names_a_few_devices_and_counts_the_others() -> None:
    nodes = [
        RuntimeNode.from_dict(_sick(node(f"n{each}", gpu(f"GPU-{each}")).to_dict()))
        for each in range(8)
    ]
    told = condition(nodes)
    assert told.message.startswith("8 must not be used: GPU-0 of n0")
    assert told.message.endswith("; and 3 more")
    assert len(sick_of(nodes)) == 8
    assert counts({"p": nodes, "q": []}) == {("p", "Unhealthy"): 8}


@pytest.mark.parametrize("health", list(Health))
def test_nothing_is_measured_on_a_device_that_must_not_be_used(health: Health) -> None:
    document = node("n0", gpu("GPU-0"), cpu(), cores=4).to_dict()
    document["status"]["devices"][0]["health"] = health.value
    found = spots(RuntimeNode.from_dict(document), (1, 2))
    assert [each.device for each in found] == ([] if health is Health.UNHEALTHY else ["GPU-0"])


def _sick(document: dict[str, Any]) -> dict[str, Any]:
    found = copy.deepcopy(document)
    for device in found["status"]["devices"]:
        device["health"] = Health.UNHEALTHY.value
    return found


def started_on_slices(rps: float) -> Operator:
    """One node with an A100 in two halves."""
    (measurement,) = state_to_dict(cluster([], [], [measured("a", gpu_place("3g.40gb"))]))[
        "profiles"
    ]
    measurement["metadata"] = {"name": "profile-a", "namespace": "vision"}
    operator = Operator(
        pool("p", size={"min": 1, "max": 1}).to_dict(),
        ModelProfile.from_dict(measurement).to_dict(),
        service("s", "a", rps=rps, scaling={"minReplicas": 1}).to_dict(),
        nodes=1,
    )
    cut(operator, 0, 4)
    operator.rounds(8)
    return operator


def cut(operator: Operator, *starts: int) -> None:
    """Somebody else cuts the GPU, or resets it."""
    device = operator.cluster.objects["RuntimeNode", "", "n0"]["status"]["devices"][0]
    device["migMode"] = "Enabled"
    device["slices"] = [
        {"uuid": f"MIG-{start}", "profile": "3g.40gb", "start": start} for start in starts
    ]


def slices(operator: Operator) -> list[str]:
    """That are ordered to run something."""
    (found,) = operator.nodes()
    return [each.slice for device in found.spec.devices for each in device.instances]


def test_what_ran_on_a_mig_instance_that_is_gone_gets_another_one() -> None:
    operator = started_on_slices(100)
    assert slices(operator) == ["3g.40gb@0"]
    cut(operator, 4)
    operator.rounds(8)
    assert slices(operator) == ["3g.40gb@4"]
    cut(operator, 0, 4)
    operator.rounds(8)
    assert slices(operator) == ["3g.40gb@4"]


def test_a_mig_instance_that_comes_back_is_planned_on_again() -> None:
    operator = started_on_slices(6_000)
    assert slices(operator) == ["3g.40gb@0", "3g.40gb@4"]
    cut(operator, 4)
    operator.rounds(8)
    assert slices(operator) == ["3g.40gb@4"]
    assert conditions(operator)["CapacityShortfall"][0] == "True"
    cut(operator, 0, 4)
    operator.rounds(8)
    assert slices(operator) == ["3g.40gb@0", "3g.40gb@4"]


def test_a_service_that_sleeps_leaves_such_a_device() -> None:
    wanted = service("s", "a", rps=100, scaling={"minReplicas": 0, "idleTimeout": "60s"})
    operator = Operator(
        pool("p", size={"min": 1, "max": 1}).to_dict(), profile("a"), wanted.to_dict(), nodes=1
    )
    operator.join_activator("tessera-activator-x")
    operator.rounds(8)
    ail(operator, "n0")
    operator.rounds(3)
    operator.rounds(8, seconds=60.0)
    assert operator.running() == set()
