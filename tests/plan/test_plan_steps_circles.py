"""Copies that wait for each other in a circle: who steps aside, and where it serves meanwhile."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from support.clusters import cpu_node, gpu_node, gpu_place, measured, service
from support.step_cases import (
    LEFT,
    ONE,
    RIGHT,
    SERVICES,
    TWO,
    at,
    facts,
    steps_of,
)
from tessera_core.api.runtimepool import TaintEffect
from tessera_core.gpu.geometry import Placement
from tessera_core.perf import LatencyProfile, ProfileRow
from tessera_core.plan import ClusterState, PoolRules, Slice
from tessera_core.plan.ordering import Loss
from tessera_core.plan.state import Taint


def test_two_that_change_places_use_a_spare_slice_for_a_while() -> None:
    state = facts(gpu_node("g", geometry=TWO), gpu_node("h", geometry=TWO))
    before = {at("a", "g", LEFT): ONE, at("b", "g", RIGHT): ONE, at("c", "h", LEFT): ONE}
    after = {at("b", "g", LEFT): ONE, at("a", "g", RIGHT): ONE, at("c", "h", LEFT): ONE}
    done, steps = steps_of(state, before, after)
    assert done == [
        "launch a h 3g.40gb@4",
        "route a",
        "unload a g 3g.40gb@0",
        "launch b g 3g.40gb@0",
        "route b",
        "unload b g 3g.40gb@4",
        "launch a g 3g.40gb@4",
        "route a",
        "unload a h 3g.40gb@4",
    ]
    assert steps.interruptions == ()


def test_two_that_change_places_without_a_spare_report_who_is_interrupted() -> None:
    state = facts(gpu_node("g", geometry=TWO))
    before = {at("a", "g", LEFT): ONE, at("b", "g", RIGHT): ONE}
    after = {at("b", "g", LEFT): ONE, at("a", "g", RIGHT): ONE}
    done, steps = steps_of(state, before, after)
    assert done[:2] == ["unload a g 3g.40gb@0", "launch b g 3g.40gb@0"]
    (report,) = steps.interruptions
    assert report.step == steps.steps[0].id
    assert (report.service, report.loss) == ("vision.a", Loss.OUTAGE)
    assert (report.serving, report.expected) == (0, 1)
    assert str(report) == (
        "vision.a/m gives up 3g.40gb@0 of GPU-g-0 on g to vision.b/m before its successor serves: 0 of 1 "
        "copies meanwhile; a free NVIDIA-A100-SXM4-80GB/3g.40gb avoids that"
    )


def test_the_member_with_the_most_other_copies_steps_aside() -> None:
    state = facts(gpu_node("g", geometry=TWO), gpu_node("h", geometry=TWO))
    stay = {at("b", "h", LEFT): ONE, at("b", "h", RIGHT): ONE}
    before = {at("a", "g", LEFT): ONE, at("b", "g", RIGHT): ONE, **stay}
    after = {at("b", "g", LEFT): ONE, at("a", "g", RIGHT): ONE, **stay}
    done, steps = steps_of(state, before, after)
    assert done[0] == "unload b g 3g.40gb@4"
    (report,) = steps.interruptions
    assert (report.service, report.loss) == ("vision.b", Loss.REDUCED)
    assert (report.serving, report.expected) == (2, 3)


def test_of_equals_the_lower_priority_steps_aside() -> None:
    state = facts(gpu_node("g", geometry=TWO), priorities=(("high", 1000),))
    services = [service(name) for name in SERVICES]
    services[0] = service("a", priorityClassName="high")
    state = replace(state, services=tuple(services))
    before = {at("a", "g", LEFT): ONE, at("b", "g", RIGHT): ONE}
    after = {at("b", "g", LEFT): ONE, at("a", "g", RIGHT): ONE}
    _, steps = steps_of(state, before, after)
    assert [each.service for each in steps.interruptions] == ["vision.b"]


def test_an_optional_member_steps_aside_for_a_required_one() -> None:
    state = facts(gpu_node("g", geometry=TWO))
    pair = service("s", ("a", "b"), optional=("a",))
    places = [measured(name, gpu_place("3g.40gb"), memory_mib=30_000) for name in "ab"]
    state = replace(state, services=(pair,), measured=tuple(places))
    spot = ("g", "GPU-g-0")
    before = {(*spot, LEFT, "vision.s", "a"): ONE, (*spot, RIGHT, "vision.s", "b"): ONE}
    after = {(*spot, LEFT, "vision.s", "b"): ONE, (*spot, RIGHT, "vision.s", "a"): ONE}
    _, steps = steps_of(state, before, after)
    assert [each.member for each in steps.interruptions] == ["a"]


def test_a_member_with_surplus_copies_gives_one_up_without_a_report() -> None:
    # b has two copies and keeps one: the one that is in a's way need not wait for b's new one.
    state = facts(gpu_node("g", geometry=TWO), gpu_node("h", geometry=TWO))
    before = {at("a", "g", LEFT): ONE, at("b", "g", RIGHT): ONE, at("b", "h", LEFT): ONE}
    before |= {at("c", "h", RIGHT): ONE}
    after = {at("b", "g", LEFT): ONE, at("a", "g", RIGHT): ONE, at("c", "h", RIGHT): ONE}
    done, steps = steps_of(state, before, after)
    assert done[0] == "unload b g 3g.40gb@4"
    assert steps.interruptions == ()


def test_a_home_has_no_more_instances_than_were_measured_there() -> None:
    state = facts(gpu_node("g", geometry=TWO), gpu_node("h"))
    both = [ProfileRow(16, n, 5.0, 5.0, 1000.0, 15_000.0 * n) for n in (1, 2)]
    profiles = {"3g.40gb": tuple(both), "full": tuple(both[:1])}
    state = replace(
        state,
        measured=tuple(
            replace(measured("m", gpu_place(name)), profile=LatencyProfile(rows))
            for name, rows in profiles.items()
        ),
    )
    before = {at("a", "g", LEFT): (16, 2), at("b", "g", RIGHT): (16, 2)}
    after = {at("b", "g", LEFT): (16, 2), at("a", "g", RIGHT): (16, 2)}
    done, steps = steps_of(state, before, after)
    assert done[0] == "launch a h full"
    assert steps.steps[0].target.count == 1


def with_spare(state: ClusterState, **changes: object) -> ClusterState:
    """``state`` with the spare node changed."""
    g, h = state.nodes
    return replace(state, nodes=(g, replace(h, **changes)))  # type: ignore[arg-type]


def with_services(state: ClusterState, **spec: object) -> ClusterState:
    """``state`` with all its services written so."""
    services = tuple(service(name, **spec) for name in SERVICES)  # type: ignore[arg-type]
    return replace(state, services=services)


def with_pool(state: ClusterState, **rules: object) -> ClusterState:
    """``state`` with the spare node in a pool of its own."""
    pool = PoolRules("q", shared_between_namespaces=True)
    pools = (*state.pools, replace(pool, **rules))  # type: ignore[arg-type]
    return with_spare(replace(state, pools=pools), pool="q")


FORBIDDEN: dict[str, Callable[[ClusterState], ClusterState]] = {
    "taint": lambda s: with_spare(s, taints=(Taint("drain", "", TaintEffect.NO_SCHEDULE),)),
    "products": lambda s: with_services(s, placement={"products": ["NVIDIA-L4"]}),
    "selector": lambda s: with_pool(
        with_services(s, placement={"poolSelector": {"matchLabels": {"fast": "yes"}}})
    ),
    "code": lambda s: with_pool(with_services(s, formats={"m": "TorchScript"})),
    "exclusive": lambda s: replace(
        s, services=(*s.services[:2], service("c", placement={"isolation": "Exclusive"}))
    ),
    "namespace": lambda s: with_pool(
        replace(s, services=(*s.services[:2], service("c", namespace="other"))),
        shared_between_namespaces=False,
    ),
    "unmeasured": lambda s: replace(s, measured=s.measured[3:4]),
    "memory": lambda s: replace(
        s, measured=(*s.measured, measured("m", gpu_place("1g.10gb"), memory_mib=30_000))
    ),
}


@pytest.mark.parametrize("why", FORBIDDEN)
def test_a_home_is_only_where_the_member_may_run(why: str) -> None:
    cut = {
        "unmeasured": (Placement("3g.40gb", 0), Placement("2g.20gb", 4)),
        "memory": (Placement("3g.40gb", 0), Placement("1g.10gb", 4)),
    }.get(why, TWO)
    swapped = with_pool(facts(gpu_node("g", geometry=TWO), gpu_node("h", geometry=cut)))
    stays = {("h", "GPU-h-0", LEFT, f"{'other' if why == 'namespace' else 'vision'}.c", "m"): ONE}
    before = {at("a", "g", LEFT): ONE, at("b", "g", RIGHT): ONE, **stays}
    after = {at("b", "g", LEFT): ONE, at("a", "g", RIGHT): ONE, **stays}
    if cut is TWO and why != "namespace":
        _, steps = steps_of(swapped, before, after)
        assert steps.interruptions == ()
    state = FORBIDDEN[why](facts(gpu_node("g", geometry=TWO), gpu_node("h", geometry=cut)))
    _, steps = steps_of(state, before, after)
    assert [each.loss for each in steps.interruptions] == [Loss.OUTAGE]


@pytest.mark.parametrize(("memory_mib", "home"), [(65_000, True), (55_000, False)])
def test_cores_are_a_home_if_their_device_has_the_memory(memory_mib: int, home: bool) -> None:
    state = facts(gpu_node("g", geometry=TWO), cpu_node("h", 3, memory_mib))
    stays = {at("c", "h", Slice("cpu-1", 0, (0,))): ONE}
    before = {at("a", "g", LEFT): ONE, at("b", "g", RIGHT): ONE, **stays}
    after = {at("b", "g", LEFT): ONE, at("a", "g", RIGHT): ONE, **stays}
    done, steps = steps_of(state, before, after)
    assert (done[0] == "launch a h cpu-2@1") == home
    assert (steps.interruptions == ()) == home


def test_a_home_beside_the_old_place_is_none_if_the_memory_stays_short() -> None:
    # On other cores of its device, a would still take the memory that b waits for.
    nodes = [cpu_node("n", 4, 45_000), cpu_node("o", 2, 15_000)]
    state = facts(gpu_node("g", geometry=TWO[:1]), *nodes)
    rows = ((16, 1, 10_000.0), (64, 1, 40_000.0))
    profile = LatencyProfile(tuple(ProfileRow(b, n, 5.0, 5.0, 100.0, mib) for b, n, mib in rows))
    state = replace(state, measured=tuple(replace(m, profile=profile) for m in state.measured))
    cores = Slice("cpu-2", 0, (0, 1))
    before = {at("a", "n", cores): (16, 1), at("b", "g", LEFT): (64, 1)}
    after = {at("a", "g", LEFT): (16, 1), at("b", "n", cores): (64, 1)}
    done, steps = steps_of(state, before, after)
    assert done[0] == "launch a o cpu-2@0"
    assert steps.interruptions == ()


def test_namespaces_that_change_nodes_find_homes_on_neither() -> None:
    # On a slice beside its old one, a would still keep the other namespace away from its node.
    nodes = [gpu_node(name, geometry=TWO) for name in "ghi"]
    state = facts(*nodes)
    other = service("x", namespace="other")
    state = replace(state, services=(*state.services, other), pools=(PoolRules("p"),))
    before = {at("a", "g", LEFT): ONE, ("h", "GPU-h-0", LEFT, "other.x", "m"): ONE}
    after = {at("a", "h", LEFT): ONE, ("g", "GPU-g-0", LEFT, "other.x", "m"): ONE}
    done, steps = steps_of(state, before, after)
    assert done[0] in ("launch a i 3g.40gb@0", "launch other.x i 3g.40gb@0")
    assert len(done) == 9
    assert steps.interruptions == ()


def test_one_spare_serves_many_circles_in_turn() -> None:
    nodes = [gpu_node(f"n{index:02}", geometry=TWO) for index in range(20)]
    state = facts(*nodes, gpu_node("spare", geometry=TWO))
    state = replace(state, services=tuple(service(f"s{index}") for index in range(41)))
    rest = {at("s40", "spare", RIGHT): ONE}
    before, after = dict(rest), dict(rest)
    for index in range(20):
        one, two = f"s{2 * index}", f"s{2 * index + 1}"
        before |= {at(one, f"n{index:02}", LEFT): ONE, at(two, f"n{index:02}", RIGHT): ONE}
        after |= {at(two, f"n{index:02}", LEFT): ONE, at(one, f"n{index:02}", RIGHT): ONE}
    done, steps = steps_of(state, before, after)
    assert len(done) == 20 * 9
    assert steps.interruptions == ()
    assert max(len(step.requires) for step in steps.steps) == 2


def test_a_copy_that_waits_for_one_with_more_batch_and_fewer_instances_gets_its_room() -> None:
    state = facts(gpu_node("g", geometry=TWO), gpu_node("h", geometry=TWO), memory_mib=15_000)
    before = {at("a", "g", LEFT): (4, 2), at("c", "h", LEFT): (4, 1)}
    after = {at("a", "g", LEFT): (64, 1), at("c", "g", LEFT): (64, 1)}
    done, steps = steps_of(state, before, after)
    assert done == [
        "launch a g 3g.40gb@0",
        "launch c g 3g.40gb@0",
        "route a",
        "route c",
        "unload c h 3g.40gb@0",
    ]
    assert steps.interruptions == ()
