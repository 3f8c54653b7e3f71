"""What the planner is shown of nodes: what they were told, what still leaves them, and whether they are lost."""

from __future__ import annotations

import copy
from typing import Any

from support.objects import cpu, gpu, instance, node, pool, seen, served, service
from tessera_core.api import RuntimeNode
from tessera_core.plan.state import Budget, NodeState, Policy
from tessera_operator.world import ACTIVATOR_LABEL, World, as_ordered, is_activator

A, B = instance("vision.a"), instance("vision.b")


def shown(of: RuntimeNode, *, lost: bool = False) -> NodeState | None:
    world = World()
    for document in (pool().to_dict(), of.to_dict()):
        world.put(document)
    found = world.observe(Policy(), Budget(), (), {of.metadata.name} if lost else ())
    assert found.rejected == {}
    return next(iter(found.state.nodes), None)


def running(of: NodeState | None) -> list[tuple[str, int]]:
    assert of is not None
    return [(each.service, each.batch) for device in of.devices for each in device.running]


def test_what_was_ordered_counts_as_running_before_it_does() -> None:
    assert running(shown(node("n0", gpu("GPU-0"), told={"GPU-0": [A]}))) == [("vision.a", 4)]


def test_what_is_not_gone_yet_takes_its_place() -> None:
    found = node("n0", gpu("GPU-0", seen(A), seen(B)), told={"GPU-0": [A]})
    assert running(shown(found)) == [("vision.a", 4), ("vision.b", 4)]


def test_a_copy_that_gets_other_settings_counts_once_with_the_new_ones() -> None:
    wider = instance("vision.a", batch=32)
    found = node("n0", gpu("GPU-0", seen(A)), told={"GPU-0": [wider]})
    assert running(shown(found)) == [("vision.a", 32)]


def test_orders_for_a_device_that_is_not_there_are_nothing() -> None:
    assert running(shown(node("n0", gpu("GPU-0"), told={"GPU-9": [A]}))) == []


def test_no_device_of_a_lost_node_can_be_used() -> None:
    for found in (
        node("n0", gpu("GPU-0", seen(A)), cpu(), cores=4),
        node("n0", cpu(), cores=4),
        # An agent that tells of its cores but of no device.
        node("n0", cores=4),
        node("n0", gpu("GPU-0"), cores=4),
    ):
        usable = shown(found)
        assert usable is not None
        assert usable.devices
        assert all(device.healthy for device in usable.devices)
        lost = shown(found, lost=True)
        assert lost is not None
        assert not any(device.healthy for device in lost.devices)


def test_a_node_that_is_found_again_is_as_it_was() -> None:
    world = World()
    for document in (pool().to_dict(), node("n0", gpu("GPU-0", seen(A))).to_dict()):
        world.put(document)
    before = world.observe(Policy(), Budget(), ()).state.nodes
    assert world.observe(Policy(), Budget(), (), {"n0"}).state.nodes != before
    assert world.observe(Policy(), Budget(), ()).state.nodes == before


def test_an_activator_is_no_place_to_run_anything() -> None:
    found = node("activator-1", labels={ACTIVATOR_LABEL: "true"})
    assert is_activator(found)
    assert shown(found) is None


def test_nothing_of_a_node_but_its_instances_and_health_is_changed() -> None:
    found = node("n0", gpu("GPU-0", seen(A)), cpu(), cores=4)
    ordered = as_ordered(found, lost=False)
    assert ordered.spec == found.spec
    assert ordered.status.cpu == found.status.cpu
    assert [device.uuid for device in ordered.status.devices] == ["GPU-0", "cpu"]


def unreadable(name: str) -> dict[str, Any]:
    document = copy.deepcopy(service(name).to_dict())
    document["spec"]["slo"] = {"objectives": []}
    return document


def test_a_service_that_could_never_be_read_is_as_it_runs() -> None:
    world = World()
    world.put(unreadable("s"))
    assert world.services == ()
    found = service("s")
    world.put(node("n0", gpu("GPU-0", seen(instance())), services=[served(found)]).to_dict())
    (stand_in,) = world.services
    assert stand_in.spec == found.spec
    assert stand_in.metadata.uid == "uid-s"
    world.remove(("ModelService", "vision", "s"))
    assert world.services == ()


def test_a_service_that_can_be_read_again_is_itself() -> None:
    world, found = World(), service("s")
    world.put(node("n0", gpu("GPU-0", seen(instance())), services=[served(found)]).to_dict())
    world.put(unreadable("s"))
    world.put(service("s", generation=5, rps=7).to_dict())
    (read,) = world.services
    assert read.metadata.generation == 5
