"""Steps from the present to the wanted state: the cases that a person would try first."""

from __future__ import annotations

from dataclasses import replace

import pytest

from support.clusters import cpu_node, gpu_node, gpu_place, measured, service
from support.step_cases import (
    LEFT,
    ONE,
    RIGHT,
    TWO,
    WIDE,
    at,
    facts,
    needs,
    steps_of,
    words,
)
from support.step_executor import execute, holding, planned
from tessera_core.api import ClusterMeta
from tessera_core.api.placementplan import PlacementPlan, PlacementPlanSpec
from tessera_core.gpu.geometry import Geometry, Placement
from tessera_core.perf import LatencyProfile, ProfileRow
from tessera_core.plan import PoolRules, Slice
from tessera_core.plan.ordering import Loss
from tessera_core.plan.site import measured_memory
from tessera_core.plan.steps import steps_to


def test_a_move_launches_routes_and_only_then_unloads() -> None:
    state = facts(gpu_node("g", geometry=TWO))
    done, steps = steps_of(state, {at("a", "g", LEFT): ONE}, {at("a", "g", RIGHT): ONE})
    assert done == ["launch a g 3g.40gb@4", "route a", "unload a g 3g.40gb@0"]
    assert needs(steps, "unload a g 3g.40gb@0") == ["route a"]
    assert needs(steps, "route a") == ["launch a g 3g.40gb@4"]
    assert steps.steps[0].target.batch == 16
    assert steps.steps[2].target.count == 1


def test_a_chain_of_moves_begins_at_its_free_end() -> None:
    state = facts(gpu_node("g", geometry=TWO), gpu_node("h", geometry=TWO))
    before = {at("a", "g", LEFT): ONE, at("b", "g", RIGHT): ONE, at("c", "h", LEFT): ONE}
    after = {at("a", "g", RIGHT): ONE, at("b", "h", LEFT): ONE, at("c", "h", RIGHT): ONE}
    done, steps = steps_of(state, before, after)
    assert [each for each in done if each.startswith("launch")] == [
        "launch c h 3g.40gb@4",
        "launch b h 3g.40gb@0",
        "launch a g 3g.40gb@4",
    ]
    assert needs(steps, "launch a g 3g.40gb@4") == ["unload b g 3g.40gb@4"]
    assert steps.interruptions == ()


def test_a_whole_gpu_is_cut_in_two_after_its_tenant_moved_to_another() -> None:
    wide, parts = (Placement("7g.80gb", 0),), (Placement("3g.40gb", 4), Placement("4g.40gb", 0))
    state = facts(gpu_node("g", geometry=wide), gpu_node("h", geometry=wide))
    after = {at("a", "h", WIDE): ONE, at("b", "g", RIGHT): ONE}
    cuts = {("g", "GPU-g-0"): parts}
    done, steps = steps_of(state, {at("a", "g", WIDE): ONE}, after, cuts)
    assert done == [
        "launch a h 7g.80gb@0",
        "route a",
        "unload a g 7g.80gb@0",
        "partition g 3g.40gb@4+4g.40gb@0",
        "launch b g 3g.40gb@4",
        "route b",
    ]
    assert needs(steps, "partition g 3g.40gb@4+4g.40gb@0") == ["unload a g 7g.80gb@0"]
    assert needs(steps, "launch b g 3g.40gb@4") == ["partition g 3g.40gb@4+4g.40gb@0"]


def test_a_slice_that_stays_is_not_touched_by_a_cut() -> None:
    state = facts(gpu_node("g", geometry=TWO))
    small = tuple(Placement("1g.10gb", start) for start in (4, 5, 6))
    done, _ = steps_of(
        state,
        {at("a", "g", LEFT): ONE},
        {at("a", "g", LEFT): ONE},
        {("g", "GPU-g-0"): (*small, Placement("3g.40gb", 0))},
    )
    assert done == ["partition g 1g.10gb@4+1g.10gb@5+1g.10gb@6+3g.40gb@0"]


def test_a_tenant_that_changes_slices_on_its_only_gpu_is_not_interrupted() -> None:
    # 3g@0 goes, 3g@4 and 4g@0 come: the new 3g is cut beside the old one first.
    state = facts(gpu_node("g", geometry=(Placement("3g.40gb", 0),)))
    cuts = {("g", "GPU-g-0"): (Placement("3g.40gb", 4), Placement("4g.40gb", 0))}
    done, steps = steps_of(state, {at("a", "g", LEFT): ONE}, {at("a", "g", RIGHT): ONE}, cuts)
    assert done == [
        "partition g 3g.40gb@0+3g.40gb@4",
        "launch a g 3g.40gb@4",
        "route a",
        "unload a g 3g.40gb@0",
        "partition g 3g.40gb@4+4g.40gb@0",
    ]
    assert needs(steps, "partition g 3g.40gb@4+4g.40gb@0") == [
        "partition g 3g.40gb@0+3g.40gb@4",
        "unload a g 3g.40gb@0",
    ]
    assert steps.interruptions == ()


@pytest.mark.parametrize(
    ("now", "then", "before", "after"),
    [(None, TWO, Slice(), LEFT), (TWO, None, LEFT, Slice())],
    ids=["on", "off"],
)
def test_mig_is_switched_on_an_empty_gpu_only(
    now: Geometry | None, then: Geometry | None, before: Slice, after: Slice
) -> None:
    state = facts(gpu_node("g", geometry=now))
    cuts = {("g", "GPU-g-0"): then}
    done, steps = steps_of(state, {at("a", "g", before): ONE}, {at("a", "g", after): ONE}, cuts)
    assert [each.split()[0] for each in done] == ["unload", "partition", "launch", "route"]
    assert [each.loss for each in steps.interruptions] == [Loss.OUTAGE]
    with_spare = facts(gpu_node("g", geometry=now), gpu_node("h"))
    _, steps = steps_of(with_spare, {at("a", "g", before): ONE}, {at("a", "g", after): ONE}, cuts)
    assert steps.interruptions == ()


def test_where_whole_nodes_are_cut_all_leave_and_come_back_after_the_last_cut() -> None:
    wide = (Placement("7g.80gb", 0),)
    state = facts(gpu_node("g", 2, geometry=TWO), gpu_node("h", geometry=wide))
    state = replace(state, pools=(replace(state.pools[0], whole_nodes=True),))
    stays = at("a", "g", LEFT, index=1)
    done, steps = steps_of(state, {stays: ONE}, {stays: ONE}, {("g", "GPU-g-0"): wide})
    assert done == [
        "launch a h 7g.80gb@0",
        "route a",
        "unload a g 3g.40gb@0",
        "partition g 7g.80gb@0",
        "launch a g 3g.40gb@0",
        "route a",
        "unload a h 7g.80gb@0",
    ]
    assert needs(steps, "partition g 7g.80gb@0") == ["unload a g 3g.40gb@0"]
    assert needs(steps, "launch a g 3g.40gb@0") == ["partition g 7g.80gb@0"]
    assert steps.interruptions == ()


def test_what_a_lost_node_ran_is_not_unloaded_and_does_not_count() -> None:
    state = facts(gpu_node("g", geometry=TWO), gpu_node("h", geometry=TWO))
    before = {at("a", "g", LEFT): ONE, at("b", "h", LEFT): ONE}
    after = {at("a", "h", RIGHT): ONE, at("b", "h", LEFT): ONE}
    state = holding(state, before)
    plan = planned(state, after, lost={("g", "GPU-g-0")})
    steps = steps_to(plan, state)
    execute(state, plan, steps, measured_memory(state))
    assert [words(steps, index) for index in range(2)] == ["launch a h 3g.40gb@4", "route a"]
    assert len(steps.steps) == 2


def test_what_belongs_to_no_service_is_simply_unloaded() -> None:
    state = facts(gpu_node("g", geometry=TWO))
    done, _ = steps_of(state, {at("gone", "g", LEFT): ONE}, {at("a", "g", LEFT): ONE})
    assert done == ["unload gone g 3g.40gb@0", "launch a g 3g.40gb@0", "route a"]


def test_a_larger_batch_cap_replaces_in_place() -> None:
    state = facts(gpu_node("g", geometry=TWO))
    done, steps = steps_of(state, {at("a", "g", LEFT): (4, 1)}, {at("a", "g", LEFT): (16, 1)})
    assert done == ["launch a g 3g.40gb@0", "route a"]
    assert steps.steps[0].target.batch == 16


def test_a_copy_gets_smaller_only_after_the_new_ones_of_its_member_serve() -> None:
    state = facts(gpu_node("g", geometry=TWO))
    before = {at("a", "g", LEFT): (16, 1)}
    after = {at("a", "g", LEFT): (4, 1), at("a", "g", RIGHT): (4, 1)}
    done, steps = steps_of(state, before, after)
    assert done == ["launch a g 3g.40gb@4", "route a", "launch a g 3g.40gb@0"]
    assert needs(steps, "launch a g 3g.40gb@0") == ["route a"]


def test_old_and_new_in_one_room_fit_together() -> None:
    # With 30 GB each, b may only come into a's slice once a has left it; with 10 GB, at once.
    nodes = gpu_node("g", geometry=TWO), gpu_node("h", geometry=TWO)
    before = {at("a", "g", LEFT): ONE, at("b", "h", LEFT): ONE}
    after = {at("a", "g", RIGHT): ONE, at("b", "g", LEFT): ONE}
    _, steps = steps_of(facts(*nodes), before, after)
    assert needs(steps, "launch b g 3g.40gb@0") == ["unload a g 3g.40gb@0"]
    _, steps = steps_of(facts(*nodes, memory_mib=10_000), before, after)
    assert needs(steps, "launch b g 3g.40gb@0") == []


def test_other_settings_that_take_less_memory_make_room() -> None:
    # b goes from large batches to two instances with small ones, whereby a fits beside it.
    state = facts(gpu_node("g", geometry=TWO))
    rows = ((64, 1, 30_000.0), (4, 1, 20_000.0), (4, 2, 15_000.0))
    profile = LatencyProfile(tuple(ProfileRow(b, n, 5.0, 5.0, 100.0, mib) for b, n, mib in rows))
    state = replace(
        state, measured=(replace(measured("m", gpu_place("3g.40gb")), profile=profile),)
    )
    before = {at("b", "g", LEFT): (64, 1)}
    after = {at("b", "g", LEFT): (4, 2), at("a", "g", LEFT): (4, 1)}
    _, steps = steps_of(state, before, after)
    assert needs(steps, "launch a g 3g.40gb@0") == ["launch b g 3g.40gb@0"]


def test_sets_of_cores_are_not_used_by_two_sets_at_a_time() -> None:
    state = facts(cpu_node("n", cores=6), memory_mib=1000)
    low, high = Slice("cpu-2", 0, (0, 1)), Slice("cpu-2", 2, (2, 3))
    middle = Slice("cpu-2", 1, (1, 2))
    _, steps = steps_of(
        state,
        {at("a", "n", low): ONE},
        {at("a", "n", high): ONE, at("b", "n", Slice("cpu-1", 1, (1,))): ONE},
    )
    assert needs(steps, "launch b n cpu-1@1") == ["unload a n cpu-2@0"]
    done, steps = steps_of(state, {at("a", "n", low): ONE}, {at("a", "n", middle): ONE})
    assert done[0] == "launch a n cpu-2@3", "cores that neither set has are a home meanwhile"
    assert steps.interruptions == ()


def test_a_launch_waits_until_a_tenant_that_it_may_not_meet_has_left_the_node() -> None:
    state = facts(gpu_node("g", 2, geometry=TWO), gpu_node("h", geometry=TWO))
    other = service("x", namespace="other")
    state = replace(state, services=(*state.services, other), pools=(PoolRules("p"),))
    before = {("g", "GPU-g-0", LEFT, "other.x", "m"): ONE}
    after = {("h", "GPU-h-0", LEFT, "other.x", "m"): ONE, at("a", "g", RIGHT, 1): ONE}
    _, steps = steps_of(state, before, after)
    assert needs(steps, "launch a g 3g.40gb@4") == ["unload other.x g 3g.40gb@0"]


def test_what_was_never_measured_counts_as_all_of_its_room() -> None:
    state = facts(gpu_node("g", geometry=TWO), memory_mib=10_000)
    before = {at("gone", "g", LEFT): ONE}
    after = {at("a", "g", LEFT): ONE}
    _, steps = steps_of(state, before, after)
    assert needs(steps, "launch a g 3g.40gb@0") == ["unload gone g 3g.40gb@0"]


def test_a_copy_whose_memory_is_no_longer_known_is_loaded_anew_where_it_has_neighbours() -> None:
    # Two instances were never measured: what b runs counts as all of the slice that it shares.
    state = facts(gpu_node("g", geometry=TWO), memory_mib=10_000)
    before = {at("b", "g", LEFT): (4, 2), at("c", "g", LEFT): ONE}
    after = {at("a", "g", LEFT): ONE, at("b", "g", LEFT): ONE, at("c", "g", LEFT): ONE}
    done, steps = steps_of(state, before, after)
    assert done[0] == "unload b g 3g.40gb@0"
    assert {"launch a g 3g.40gb@0", "launch b g 3g.40gb@0"} <= set(done)
    assert [(each.service, each.loss) for each in steps.interruptions] == [
        ("vision.b", Loss.OUTAGE)
    ]


def test_a_plan_for_other_facts_is_refused() -> None:
    state = facts(gpu_node("g", geometry=TWO))
    plan = planned(state, {at("a", "g", LEFT): ONE})
    with pytest.raises(ValueError, match=r"plan\.devices\[g/GPU-g-0\]: an unknown device"):
        steps_to(plan, facts(gpu_node("h", geometry=TWO)))
    with pytest.raises(ValueError, match=r"plan\.devices\[g/GPU-g-0\]: an unhealthy device"):
        steps_to(plan, facts(gpu_node("g", geometry=TWO, healthy=False)))


def test_a_plan_whose_end_is_not_legal_is_refused() -> None:
    state = facts(gpu_node("g", geometry=TWO), cpu_node("n"), memory_mib=30_000)
    crowded = planned(state, {at("a", "g", LEFT): ONE, at("b", "g", LEFT): ONE})
    with pytest.raises(ValueError, match="and its neighbours take 60000 MiB of 40192 MiB"):
        steps_to(crowded, state)
    with pytest.raises(ValueError, match="a slice that the planned geometry does not have"):
        steps_to(planned(state, {at("a", "g", WIDE): ONE}), state)
    small = facts(cpu_node("n"), memory_mib=1000)
    sets = {
        at("a", "n", Slice("cpu-1", 0, (0,))): ONE,
        at("b", "n", Slice("cpu-2", 0, (0, 1))): ONE,
    }
    with pytest.raises(ValueError, match="shares cores with another set"):
        steps_to(planned(small, sets), small)


def test_steps_are_a_valid_placement_plan_however_many_launch_at_once() -> None:
    # One route waits for 350 launches; the API lets a step require 256.
    sevenths = tuple(Placement("1g.10gb", start) for start in range(7))
    state = facts(*(gpu_node(f"n{index}", geometry=sevenths) for index in range(50)))
    state = replace(state, measured=(measured("m", gpu_place("1g.10gb")),))
    spots = [at("a", f"n{n}", Slice("1g.10gb", start)) for n in range(50) for start in range(7)]
    _, steps = steps_of(state, {}, dict.fromkeys(spots, ONE))
    assert len(steps.steps) == 352
    spec = PlacementPlanSpec(1, "sha256:0", 0.0, 0.0, 0.0, steps=steps.steps)
    plan = PlacementPlan(metadata=ClusterMeta(name="plan"), spec=spec)
    assert PlacementPlan.from_dict(plan.to_dict()).spec.steps == steps.steps
