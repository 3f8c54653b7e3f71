"""Plans as objects: what they are made of, who has approved them, how far they are and which ones are kept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import pytest

from support.clusters import applied, cluster, gpu_node, gpu_place, measured, service
from support.objects import NOW, gpu, instance, node, pool, seen
from support.step_cases import LEFT, ONE, RIGHT, at, facts
from support.step_executor import holding, planned
from tessera_core.api import PlacementPlan, RuntimeNode, RuntimePool
from tessera_core.api.meta import ConditionStatus
from tessera_core.api.placementplan import Action, PlacementPlanStatus, Step, Target
from tessera_core.gpu.geometry import Placement
from tessera_core.plan import ClusterState, Plan, Slice
from tessera_core.plan import plan as decide
from tessera_core.plan.steps import steps_to
from tessera_operator.decide import Decision
from tessera_operator.instants import to_time
from tessera_operator.orders import Present
from tessera_operator.plans import (
    KEPT,
    idle_facts,
    is_open,
    obsolete,
    progress,
    superseded,
    to_object,
    to_spec,
)
from tessera_operator.recutting import NO_CUTS, rules_of
from tessera_operator.rollout import Rollout, begin, proceed

LATER = "2026-01-31T13:00:00Z"
HALVES = (Placement("3g.40gb", 0), Placement("3g.40gb", 4))
NEVER = PlacementPlanStatus()


def decision(state: ClusterState, plan: Plan) -> Decision:
    return Decision(state, plan, {}, {}, {}, is_new=True)


def served() -> tuple[ClusterState, Plan]:
    state = cluster([gpu_node("n0")], [service("s")], [measured("m", gpu_place())])
    return state, decide(state)


def recut() -> tuple[ClusterState, Plan]:
    """A board that holds one copy is cut into halves with a copy each."""
    state = facts(gpu_node("g"))
    where = "g", "GPU-g-0"
    plan = planned(state, {at("a", "g", LEFT): ONE, at("b", "g", RIGHT): ONE}, {where: HALVES})
    return state, plan


def begun(
    made: tuple[ClusterState, Plan],
    pools: Sequence[RuntimePool] = (),
    plans: Sequence[PlacementPlan] = (),
    epoch: int = 1,
) -> Rollout:
    state, plan = made
    nodes = [node(each.name) for each in state.nodes]
    rules = rules_of(pools, nodes, plans, (), to_time(NOW))
    found = begin(decision(state, plan), epoch, nodes, rules)
    assert found is not None
    return found


def cutting(approval: str) -> RuntimePool:
    return pool("p", partition={"approval": approval})


def test_what_is_as_planned_needs_no_plan_object() -> None:
    state, plan = served()
    (copy,) = plan.assignments
    runs = node("n0", gpu("GPU-n0-0", seen(instance(batch=copy.batch))))
    assert begin(decision(applied(plan, state), plan), 1, (runs,), NO_CUTS) is None


def midway(ready: int) -> tuple[ClusterState, Plan, list[RuntimeNode]]:
    """A copy moves from node g to h: h was told to load it, ``ready`` instances answer there, g still serves."""
    full = Slice()
    state = holding(
        facts(gpu_node("g"), gpu_node("h")), {at("a", "g", full): ONE, at("a", "h", full): ONE}
    )
    copy = instance("vision.a", batch=16)
    there = [seen(copy, ready)] if ready >= 0 else []
    nodes = [
        node("g", gpu("GPU-g-0", seen(copy))),
        node("h", gpu("GPU-h-0", *there), told={"GPU-h-0": [copy]}),
    ]
    return state, planned(state, {at("a", "h", full): ONE}), nodes


@pytest.mark.parametrize("ready", [-1, 0])
def test_a_plan_that_takes_over_waits_for_what_was_told_and_does_not_serve_yet(ready: int) -> None:
    """So that a fact that changes meanwhile, or another leader, ends nothing that still serves."""
    state, plan, nodes = midway(ready)
    rollout = begin(decision(state, plan), 1, nodes, NO_CUTS)
    assert rollout is not None
    launch, route, unload = rollout.spec.steps
    assert [each.action for each in rollout.spec.steps] == ["Launch", "Route", "Unload"]
    assert (launch.target.node, unload.target.node) == ("h", "g")
    assert launch.id in route.requires
    assert {launch.id, route.id} & set(unload.requires)


def test_a_plan_that_takes_over_goes_on_with_what_serves() -> None:
    state, plan, nodes = midway(1)
    rollout = begin(decision(state, plan), 1, nodes, NO_CUTS)
    assert rollout is not None
    assert Action.LAUNCH not in [each.action for each in rollout.spec.steps]


def test_what_was_told_and_is_wanted_no_more_is_unloaded_also_before_it_serves() -> None:
    state, _, nodes = midway(-1)
    rollout = begin(
        decision(state, planned(state, {at("a", "g", Slice()): ONE})), 1, nodes, NO_CUTS
    )
    assert rollout is not None
    assert [(each.action, each.target.node) for each in rollout.spec.steps] == [("Unload", "h")]


def test_what_does_not_serve_yet_leaves_before_something_else_takes_its_room() -> None:
    state, _, nodes = midway(-1)
    plan = planned(state, {at("a", "g", Slice()): ONE, at("b", "h", Slice()): ONE})
    rollout = begin(decision(state, plan), 1, nodes, NO_CUTS)
    assert rollout is not None
    gone, launch, _ = rollout.spec.steps
    assert (gone.action, gone.target.node, gone.target.service) == ("Unload", "h", "vision.a")
    assert (launch.action, launch.target.service) == ("Launch", "vision.b")
    assert gone.id in launch.requires


def test_a_copy_that_was_told_other_settings_is_told_the_wanted_ones() -> None:
    state, _, _ = midway(1)
    nodes = [
        node(
            "g",
            gpu("GPU-g-0", seen(instance("vision.a", batch=16))),
            told={"GPU-g-0": [instance("vision.a")]},
        ),
        node("h", gpu("GPU-h-0")),
    ]
    state = holding(state, {at("a", "g", Slice()): (4, 1)})
    rollout = begin(
        decision(state, planned(state, {at("a", "g", Slice()): ONE})), 1, nodes, NO_CUTS
    )
    assert rollout is not None
    assert next((s.action, s.target.batch) for s in rollout.spec.steps) == ("Launch", 16)


def test_a_copy_that_was_told_to_end_and_is_wanted_again_is_launched_again() -> None:
    state, _, _ = midway(1)
    copy = seen(instance("vision.a", batch=16))
    nodes = [node("g", gpu("GPU-g-0", copy), told={}), node("h", gpu("GPU-h-0", copy))]
    plan = planned(state, {at("a", "g", Slice()): ONE})
    rollout = begin(decision(state, plan), 1, nodes, NO_CUTS)
    assert rollout is not None
    steps = [(each.action, each.target.node) for each in rollout.spec.steps]
    assert steps == [("Launch", "g"), ("Route", None), ("Unload", "h")]


def test_a_copy_of_which_not_all_instances_answer_is_launched_until_they_do() -> None:
    state, _plan, nodes = midway(1)
    more = planned(state, {at("a", "h", Slice()): (16, 2)})
    state = holding(state, {at("a", "h", Slice()): (16, 2)})
    half = seen(instance("vision.a", batch=16, count=2), ready=1)
    nodes = [nodes[0], node("h", gpu("GPU-h-0", half))]
    rollout = begin(decision(state, more), 1, nodes, NO_CUTS)
    assert rollout is not None
    assert [each.action for each in rollout.spec.steps] == ["Launch", "Route"]


def test_a_plan_can_be_written_and_read() -> None:
    found = to_object(begun(served()).spec)
    assert PlacementPlan.from_dict(found.to_dict()) == found
    assert found.metadata.name == found.spec.name
    assert found.spec.steps
    assert [line[0] for line in found.spec.diff] == ["+"]


def test_the_same_decision_is_the_same_plan_also_of_another_leader() -> None:
    assert begun(served()).name == begun(served(), epoch=7).name
    other = cluster([gpu_node("n0")], [service("s", rps=4000)], [measured("m", gpu_place())])
    assert begun((other, decide(other))).name != begun(served()).name


def test_the_basis_does_not_depend_on_what_a_plan_itself_changes() -> None:
    state, plan = served()
    assert idle_facts(applied(plan, state)) == idle_facts(state)
    steps = steps_to(plan, state)
    again = applied(plan, state)
    assert to_spec(plan, steps, again, 1).basis == to_spec(plan, steps, state, 1).basis


@pytest.mark.parametrize(("approval", "approved"), [("Auto", True), ("Manual", False)])
def test_cuts_wait_for_a_person_unless_their_pool_needs_none(approval: str, approved: bool) -> None:
    assert begun(recut(), [cutting(approval)]).spec.approved is approved
    assert not begun(recut()).spec.approved


def test_a_plan_that_cuts_nothing_needs_nobody() -> None:
    assert begun(served()).spec.approved
    assert begun(served(), [cutting("Manual")]).spec.approved


def test_an_approval_holds_for_the_next_plan_with_the_same_cuts_while_it_is_under_way() -> None:
    asked = begun(recut(), [cutting("Manual")])
    granted = to_object(replace(asked.spec, approved=True))
    state, plan = recut()
    next_state = holding(state, {at("c", "g", replace(LEFT, name="full", start=0)): ONE})
    following = (next_state, plan)
    assert begun(following, [cutting("Manual")], [granted]).spec.approved
    assert not begun(following, [cutting("Manual")], [to_object(asked.spec)]).spec.approved
    over = replace(granted, status=superseded(NEVER, NOW))
    assert not begun(following, [cutting("Manual")], [over]).spec.approved


def test_an_approval_is_for_no_other_cuts() -> None:
    granted = to_object(replace(begun(recut(), [cutting("Manual")]).spec, approved=True))
    state, _ = recut()
    where = "g", "GPU-g-0"
    other = planned(state, {}, {where: (Placement("7g.80gb", 0),)})
    assert not begun((state, other), [cutting("Manual")], [granted]).spec.approved


@pytest.mark.parametrize("approved", [True, False])
def test_without_approval_no_cut_is_begun(approved: bool) -> None:
    rollout = begun(recut(), [cutting("Manual")])
    nodes = {"g": node("g")}
    granted = [to_object(replace(rollout.spec, approved=approved))]
    cutters = [("g", "GPU-g-0")]
    rules = rules_of([cutting("Manual")], nodes.values(), granted, cutters, to_time(NOW))
    found = proceed(rollout, nodes, (), lambda service: True, rules, 0.0)
    assert any(step.action is Action.PARTITION for step in found.begun) is approved
    assert not found.is_done


def test_a_rollout_is_done_when_all_its_steps_are() -> None:
    rollout = begun(served())
    everything = frozenset(step.id for step in rollout.spec.steps)
    assert not rollout.is_done
    assert replace(rollout, done=everything).is_done
    assert Present({}).routed("anything")


LAUNCH = Step("l", Action.LAUNCH, Target("n0", "GPU-0", "full", "vision.s", "m", batch=1, count=1))
ROUTE = Step("r", Action.ROUTE, Target(service="vision.s"), ("l",))
CUT = Step("c", Action.PARTITION, Target("n0", "GPU-0", geometry=HALVES))
STEPS = (LAUNCH, ROUTE)


def told(
    before: PlacementPlanStatus, done: str, begun: str, steps: Sequence[Step] = STEPS, **rest: Any
) -> PlacementPlanStatus:
    given: Mapping[str, Any] = {"approved": True, "now": NOW, **rest}
    under_way = [step for step in steps if step.id in begun]
    return progress(before, steps, frozenset(done), under_way, **given)


def states(status: PlacementPlanStatus) -> dict[str, tuple[bool, str]]:
    return {
        each.type: (each.status is ConditionStatus.TRUE, each.reason) for each in status.conditions
    }


def test_the_status_names_the_step_under_way_and_how_many_are_done() -> None:
    first = told(NEVER, "", "l")
    assert states(first)["Applied"] == (False, "UnderWay")
    assert first.step is not None
    assert (first.step.id, first.step.started_at, first.step.result) == ("l", NOW, None)
    second = told(first, "l", "lr", now=LATER)
    assert second.step is not None
    assert (second.step.id, second.step.started_at) == ("r", LATER)
    (applied_condition,) = (each for each in second.conditions if each.type == "Applied")
    assert applied_condition.message == "1 of 2 steps done"
    assert applied_condition.last_transition_time == NOW


def test_a_plan_that_is_carried_out_says_so() -> None:
    status = told(told(NEVER, "", "l"), "lr", "lr", now=LATER)
    assert states(status) == {
        "Approved": (True, "NotNeeded"),
        "Applied": (True, "Applied"),
        "Superseded": (False, "Current"),
    }
    assert status.step is not None
    assert status.step.result == "Done"
    assert not is_open(replace(to_object(begun(served()).spec), status=status))


def test_nothing_new_is_the_same_status() -> None:
    first = told(NEVER, "", "l")
    assert told(first, "", "l", now=LATER) == first
    done = told(first, "lr", "lr")
    assert told(done, "lr", "lr", now=LATER) == done


@pytest.mark.parametrize(
    ("approved", "state"), [(True, (True, "Approved")), (False, (False, "Waiting"))]
)
def test_the_status_says_whether_it_waits_for_a_person(
    approved: bool, state: tuple[bool, str]
) -> None:
    status = told(NEVER, "", "", (CUT,), approved=approved)
    assert states(status)["Approved"] == state


def test_a_plan_that_waits_has_no_step_under_way() -> None:
    first = told(NEVER, "", "l", (LAUNCH, CUT), approved=False)
    waits = told(first, "l", "l", (LAUNCH, CUT), approved=False, now=LATER)
    assert waits.step is not None
    assert (waits.step.id, waits.step.result) == ("l", "Waiting")
    goes_on = told(waits, "l", "lc", (LAUNCH, CUT), now=LATER)
    assert goes_on.step is not None
    assert (goes_on.step.id, goes_on.step.result) == ("c", None)


def test_a_plan_that_another_one_took_over_from_is_over() -> None:
    status = superseded(told(NEVER, "", "l"), LATER)
    assert states(status)["Superseded"] == (True, "NewerPlan")
    assert states(status)["Applied"] == (False, "UnderWay")
    made = to_object(begun(served()).spec)
    assert is_open(made)
    assert not is_open(replace(made, status=status))
    assert superseded(status, "2026-02-01T00:00:00Z") == status


def dated(name: str, created: str | None) -> PlacementPlan:
    made = to_object(begun(served()).spec)
    metadata = replace(made.metadata, name=name, creation_timestamp=created)
    return replace(made, metadata=metadata)


def test_the_newest_plans_are_kept_and_the_current_one_always() -> None:
    plans = [
        dated(f"p{index:02}", f"2026-01-{index + 1:02}T00:00:00Z") for index in range(KEPT + 3)
    ]
    assert obsolete(plans, ()) == ("p02", "p01", "p00")
    assert obsolete(plans, {"p00"}) == ("p02", "p01")
    assert obsolete(plans[:KEPT], ()) == ()
