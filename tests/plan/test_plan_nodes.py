"""A plan as RuntimeNode specs and as a difference."""

from __future__ import annotations

from dataclasses import replace

from support.clusters import applied, cluster, cpu_node, gpu_node, gpu_place, measured, service
from tessera_core.api import RuntimeNode
from tessera_core.plan import (
    ClusterState,
    PoolRules,
    Running,
    Slice,
    diff,
    plan,
    plan_to_dict,
    to_runtime_nodes,
)


def two_nodes() -> ClusterState:
    rules = PoolRules("p", partition=True, shared_between_namespaces=True)
    return cluster(
        [cpu_node("n"), gpu_node("g")],
        [service("s", "ab", rps=200)],
        [measured("a", 1), measured("b", gpu_place("1g.10gb"))],
        rules,
    )


def test_nodes_carry_epoch_plan_geometry_and_instances() -> None:
    decided = plan(two_nodes())
    gpu, cpu = to_runtime_nodes(decided, epoch=7)
    assert [node.metadata.name for node in (gpu, cpu)] == ["g", "n"]
    assert gpu.spec.epoch == 7
    assert gpu.spec.plan_ref is not None
    assert gpu.spec.plan_ref.name == decided.name
    (device,) = gpu.spec.devices
    (instance,) = device.instances
    (placement,) = device.geometry
    assert instance.slice == str(placement)
    assert [each.slice for each in cpu.spec.devices[0].instances] == ["cpu-1@0"]


def test_nodes_are_valid_documents() -> None:
    for node in to_runtime_nodes(plan(two_nodes()), epoch=0):
        assert RuntimeNode.from_dict(node.to_dict()) == node


def test_a_fresh_cluster_gets_everything_added() -> None:
    state = two_nodes()
    change = diff(plan(state), state)
    assert [(each.node, each.running.member) for each in change.added] == [("g", "b"), ("n", "a")]
    assert change.recut == (("g", "GPU-g-0"),)
    assert not change.removed
    assert not change.changed


def test_an_applied_plan_has_no_difference() -> None:
    state = two_nodes()
    running = applied(plan(state), state)
    assert diff(plan(running), running).empty


def test_what_does_not_belong_is_removed() -> None:
    state = two_nodes()
    running = applied(plan(state), state)
    stray = Running("vision.gone", "x", Slice("cpu-1", 3, (3,)), 4, 1)
    nodes = tuple(
        replace(node, devices=(replace(d, running=(*d.running, stray)),))
        if (d := node.devices[0]).is_cpu
        else node
        for node in running.nodes
    )
    running = replace(running, nodes=nodes)
    change = diff(plan(running), running)
    assert [each.running for each in change.removed] == [stray]
    assert not change.added


def test_another_batch_on_the_same_slice_is_a_change() -> None:
    state = two_nodes()
    decided = plan(state)
    running = applied(decided, state)
    nodes = tuple(
        replace(
            node,
            devices=tuple(
                replace(d, running=tuple(replace(each, batch=3) for each in d.running))
                for d in node.devices
            ),
        )
        for node in running.nodes
    )
    change = diff(decided, replace(running, nodes=nodes))
    assert [(old.running.batch, new.running.member) for old, new in change.changed] == [
        (3, "b"),
        (3, "a"),
    ]
    assert not change.added
    assert not change.removed


def test_the_name_is_of_what_is_done_not_of_predictions() -> None:
    state = two_nodes()
    decided = plan(state)
    busier = replace(state, services=(service("s", "ab", rps=201),))
    other = replace(state, services=(service("s", "ab", rps=200, batch_max=4),))
    assert plan(busier).name == decided.name
    assert plan(other).name != decided.name


def test_a_plan_is_plain_data() -> None:
    decided = plan(two_nodes())
    shown = plan_to_dict(decided)
    assert shown["name"] == decided.name
    assert [device["node"] for device in shown["devices"]] == ["g", "n"]
    assert shown["services"][0]["service"] == "vision.s"
