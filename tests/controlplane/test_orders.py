"""What nodes are told on the way to a plan, and what the cluster must show for a step to be done."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from random import Random

import pytest

from support.clusters import gpu_node
from support.objects import cpu, gpu, instance, node, seen
from support.simulated_agents import carry_out
from support.step_cases import LEFT, ONE, RIGHT, TWO, at, facts
from support.step_executor import holding, planned
from tessera_core.api import RuntimeNode
from tessera_core.api.placementplan import Action, Step, Target
from tessera_core.api.runtimenode import (
    CutProblem,
    CutStatus,
    Device,
    InstanceState,
    InstanceStatus,
    MigMode,
    SliceStatus,
)
from tessera_core.gpu.geometry import Placement
from tessera_core.plan.site import measured_memory
from tessera_core.plan.steps import steps_to
from tessera_operator.orders import Present, advance, held_back, ordered

GPU = "GPU-0"
HALVES = (Placement("3g.40gb", 0), Placement("3g.40gb", 4))


def step(key: str, action: Action, *requires: str, node: str = "n0", **target: object) -> Step:
    return Step(key, action, Target(node=node, device=GPU, **target), requires)  # type: ignore[arg-type]


def launch(key: str, service: str = "vision.s", *requires: str, **rest: object) -> Step:
    setting = {"slice": "full", "member": "m", "batch": 4, "count": 1, **rest}
    return step(key, Action.LAUNCH, *requires, service=service, **setting)


def unload(key: str, service: str = "vision.s", *requires: str, **rest: object) -> Step:
    setting = {"slice": "full", "member": "m", "count": 1, **rest}
    return step(key, Action.UNLOAD, *requires, service=service, **setting)


def cut(key: str, *requires: str) -> Step:
    return step(key, Action.PARTITION, *requires, geometry=HALVES)


def present(*nodes: RuntimeNode, lost: tuple[str, ...] = (), routed: bool = True) -> Present:
    return Present({each.metadata.name: each for each in nodes}, lost, lambda service: routed)


def under_way(steps: tuple[Step, ...], found: Present, *waiting: str) -> tuple[str, str]:
    """Ids of the steps that are begun, and of those that are done, in order. ``waiting``: cuts that may not begin."""
    begun, done = advance(steps, frozenset(), found, held_back(steps, (), waiting))
    return "".join(each.id for each in begun), "".join(sorted(done))


A = instance("vision.a")


@pytest.mark.parametrize(
    ("reported", "done"),
    [
        (None, False),
        (seen(A), True),
        (seen(A, ready=0), False),
        (replace(seen(A), batch=8), False),
        (replace(seen(A), count=2), False),
        (replace(seen(A), slice="1g.10gb@0"), False),
        (replace(seen(A), member="other"), False),
        (replace(seen(A), state=InstanceState.STANDBY), False),
    ],
)
def test_a_launch_is_done_when_all_of_it_answers(
    reported: InstanceStatus | None, done: bool
) -> None:
    found = node("n0", gpu(GPU, *([reported] if reported else [])))
    steps = (launch("a", "vision.a"),)
    assert under_way(steps, present(found)) == ("a", "a" if done else "")


@pytest.mark.parametrize(
    ("told", "has", "done"),
    [(True, True, False), (True, False, False), (False, True, False), (False, False, True)],
)
def test_an_unload_is_done_when_the_node_was_told_and_has_done_it(
    told: bool, has: bool, done: bool
) -> None:
    """A copy that was ordered before and is still to come must not count as gone."""
    found = node("n0", gpu(GPU, *([seen(A)] if has else [])), told={GPU: [A]} if told else {})
    steps = (unload("a", "vision.a"),)
    assert under_way(steps, present(found)) == ("a", "a" if done else "")


@pytest.mark.parametrize("slices", [(), HALVES[:1], HALVES, HALVES[::-1]])
def test_a_cut_is_done_when_the_device_has_exactly_the_geometry(
    slices: tuple[Placement, ...],
) -> None:
    found = of_geometry(*slices, told=HALVES)
    assert under_way((cut("c"),), present(found)) == ("c", "c" if len(slices) == 2 else "")
    # Not told yet: it is about to be cut otherwise.
    assert under_way((cut("c"),), present(of_geometry(*slices, told=()))) == ("c", "")
    # Told to have it, and not to cut it: it is what was found there.
    assert under_way((cut("c"),), present(of_geometry(*slices, told=HALVES, is_cut=False))) == (
        "c",
        "",
    )


@pytest.mark.parametrize(
    ("said", "done"),
    [
        ({}, True),
        ({"generation": 4}, False),
        ({"problem": CutProblem.IN_USE}, False),
        ({"slices": ()}, False),
    ],
)
def test_a_cut_is_done_when_the_partitioner_says_so_too(
    said: dict[str, object], done: bool
) -> None:
    found = of_geometry(*HALVES, told=HALVES)
    said = {"slices": found.status.devices[0].slices, "generation": 5, **said}
    found = replace(
        found,
        metadata=replace(found.metadata, generation=5),
        status=replace(
            found.status,
            observed_generation=5,
            cuts=(CutStatus(GPU, **said),),  # type: ignore[arg-type]
        ),
    )
    assert under_way((cut("c"),), present(found))[1] == ("c" if done else "")


def test_a_copy_that_is_about_to_end_is_not_launched() -> None:
    """It may be wanted again before it has gone, and is not to be relied on."""
    found = node("n0", gpu(GPU, seen(A)), told={})
    assert under_way((launch("a", "vision.a"),), present(found)) == ("a", "")


@pytest.mark.parametrize("step", [launch("a", "vision.a"), unload("a", "vision.b"), cut("a")])
def test_what_a_node_says_of_earlier_orders_does_not_count(step: Step) -> None:
    slices = tuple(SliceStatus(f"MIG-{each.start}", each.profile, each.start) for each in HALVES)
    found = node("n0", gpu(GPU, seen(A), mig_mode=MigMode.ENABLED, slices=slices), generation=5)
    told = Device(GPU, HALVES, instances=(A,), cut=True)
    found = replace(found, spec=replace(found.spec, devices=(told,)))
    assert under_way((step,), present(found)) == ("a", "a")
    stale = replace(found, status=replace(found.status, observed_generation=4))
    assert under_way((step,), present(stale)) == ("a", "")


def test_routes_are_done_when_requests_get_everywhere() -> None:
    steps = (Step("r", Action.ROUTE, Target(service="vision.a")),)
    assert under_way(steps, present(routed=False)) == ("r", "")
    assert under_way(steps, present(routed=True)) == ("r", "r")


def test_a_step_is_begun_when_all_that_it_requires_is_done() -> None:
    steps = (
        launch("a", "vision.a"),
        launch("b", "vision.b"),
        unload("c", "vision.c", "a"),
        unload("d", "vision.d", "a", "b"),
    )
    found = node(
        "n0", gpu(GPU, seen(A)), told={GPU: [A, instance("vision.c"), instance("vision.d")]}
    )
    assert under_way(steps, present(found)) == ("abc", "a")


def test_what_was_done_stays_done_and_what_it_allowed_goes_on() -> None:
    steps = (launch("a", "vision.a"), unload("b", "vision.b", "a"))
    fallen = node("n0", gpu(GPU, seen(A, ready=0)), told={GPU: [A, instance("vision.b")]})
    begun, done = advance(steps, frozenset("a"), present(fallen))
    assert ("".join(each.id for each in begun), done) == ("ab", {"a"})


def test_without_leave_no_gpu_is_cut_and_all_else_goes_on() -> None:
    steps = (launch("a", "vision.a"), cut("c"), launch("l", "vision.l", "c", slice="3g.40gb@0"))
    found = node("n0", gpu(GPU, seen(A)))
    assert under_way(steps, present(found), "c") == ("a", "a")
    assert under_way(steps, present(found)) == ("ac", "a")
    begun, _ = advance(steps, frozenset(), present(found), "c")
    assert all(device.geometry == () and not device.cut for device in ordered(found, begun))


def test_what_makes_way_for_a_cut_that_waits_goes_on_serving() -> None:
    """But what is gone for other reasons too, goes."""
    steps = (
        unload("u", "vision.u"),
        unload("v", "vision.v"),
        cut("c", "u", "v"),
        launch("l", "vision.l", "c", slice="3g.40gb@0"),
        launch("m", "vision.m", "v"),
    )
    found = node("n0", gpu(GPU), told={GPU: [instance("vision.u"), instance("vision.v")]})
    assert under_way(steps, present(found), "c") == ("v", "")
    assert under_way(steps, present(found)) == ("uv", "")
    assert held_back(steps, "u", "c") == {"c"}, "what is done is done"


def test_on_a_node_that_nobody_hears_of_nothing_is_launched_and_everything_else_is_over() -> None:
    steps = (launch("a", "vision.a"), unload("b", "vision.b"), cut("c"))
    has_it = node("n0", gpu(GPU, seen(A)))
    assert under_way(steps, present(has_it, lost=("n0",)))[1] == "bc"
    assert under_way(steps, present())[1] == "bc"


def test_a_drained_node_holds_nothing() -> None:
    steps = (Step("d", Action.DRAIN, Target(node="n0")),)
    assert under_way(steps, present(node("n0", gpu(GPU, seen(A)))))[1] == ""
    assert under_way(steps, present(node("n0", gpu(GPU), cpu())))[1] == "d"


def told(of: RuntimeNode, *steps: Step) -> Mapping[str, list[str]]:
    return {
        device.uuid: [f"{each.service} {each.batch}x{each.count}" for each in device.instances]
        for device in ordered(of, steps)
    }


def test_orders_are_the_steps_applied_to_what_was_told() -> None:
    before = node("n0", gpu(GPU), told={GPU: [A, instance("vision.b")]})
    assert told(before) == {GPU: ["vision.a 4x1", "vision.b 4x1"]}
    steps = (
        unload("a", "vision.a"),
        launch("b", "vision.b", batch=16, count=2),
        launch("c", "vision.c"),
    )
    assert told(before, *steps) == {GPU: ["vision.b 16x2", "vision.c 4x1"]}


def test_orders_of_other_nodes_are_none() -> None:
    before = node("n0", gpu(GPU, seen(A)))
    assert ordered(before, [launch("c", "vision.c", node="n1")]) == before.spec.devices


def test_orders_do_not_depend_on_what_runs() -> None:
    """An agent that is slow, or was restarted, is told the same."""
    steps = unload("a", "vision.a"), launch("c", "vision.c")
    full, empty = node("n0", gpu(GPU, seen(A))), node("n0", gpu(GPU), told={GPU: [A]})
    assert ordered(full, steps) == ordered(empty, steps)


def test_a_device_without_orders_is_not_named() -> None:
    before = node("n0", gpu(GPU, seen(A)))
    assert ordered(before, [unload("a", "vision.a")]) == ()


def test_a_copy_that_is_launched_for_a_while_is_gone_in_the_end() -> None:
    before = node("n0", gpu(GPU), told={})
    steps = launch("a", "vision.a"), unload("b", "vision.a", "a"), launch("c", "vision.c", "b")
    assert told(before, *steps[:1]) == {GPU: ["vision.a 4x1"]}
    assert told(before, *steps[:2]) == {}
    assert told(before, *steps) == {GPU: ["vision.c 4x1"]}


def of_geometry(
    *slices: Placement, told: tuple[Placement, ...], is_cut: bool = True
) -> RuntimeNode:
    """A node whose GPU has ``slices`` and was told to have other ones."""
    found = tuple(SliceStatus(f"MIG-{each.start}", each.profile, each.start) for each in slices)
    mode = MigMode.ENABLED if slices else MigMode.DISABLED
    made = node("n0", gpu(GPU, mig_mode=mode, slices=found))
    devices = (Device(GPU, told, cut=is_cut),) if told else ()
    return replace(made, spec=replace(made.spec, devices=devices))


def test_a_cut_is_told_and_stays_told() -> None:
    before = of_geometry(told=())
    (device,) = ordered(before, [cut("c")])
    assert device == Device(GPU, HALVES, cut=True)
    after = of_geometry(*HALVES, told=HALVES)
    assert ordered(after, [cut("c")]) == (device,)


def test_a_gpu_that_is_to_be_whole_again_is_told_so() -> None:
    before = of_geometry(*HALVES, told=HALVES)
    whole = step("c", Action.PARTITION, geometry=())
    assert ordered(before, [whole]) == (Device(GPU, cut=True),)


def test_copies_on_a_gpu_that_somebody_else_has_cut_leave_it_cut() -> None:
    before = of_geometry(*HALVES, told=())
    (device,) = ordered(before, [launch("a", "vision.a", slice="3g.40gb@0")])
    assert device.geometry == HALVES
    assert not device.cut
    assert len(device.instances) == 1


def test_a_cut_of_a_plan_that_was_given_up_is_taken_back() -> None:
    """The plan that took over was made for the geometry that there is."""
    assert ordered(of_geometry(told=HALVES), []) == ()
    (device,) = ordered(of_geometry(HALVES[0], told=HALVES), [])
    assert (device.geometry, device.cut) == (HALVES[:1], False)


def test_a_device_that_is_not_reported_keeps_its_orders() -> None:
    before = replace(node("n0"), spec=replace(node("n0").spec, devices=(Device(GPU, HALVES),)))
    assert ordered(before, []) == (Device(GPU, HALVES),)


@pytest.mark.parametrize("seed", range(10))
def test_a_temporary_home_is_taken_and_left(seed: int) -> None:
    state = facts(gpu_node("g", geometry=TWO), gpu_node("h", geometry=TWO))
    before = {at("a", "g", LEFT): ONE, at("b", "g", RIGHT): ONE, at("c", "h", LEFT): ONE}
    after = {at("b", "g", LEFT): ONE, at("a", "g", RIGHT): ONE, at("c", "h", LEFT): ONE}
    state = holding(state, before)
    plan = planned(state, after)
    steps = steps_to(plan, state)
    homes = [each.target for each in steps.steps if each.action is Action.LAUNCH]
    assert homes[0].node == "h", "this case needs a temporary home"
    assert steps.interruptions == ()
    carry_out(state, plan, steps, measured_memory(state), Random(seed))
