"""A re-cut whose operator, agents and partitioners are killed at every step: it ends as planned, whoever is killed when."""

from __future__ import annotations

from functools import cache

import pytest

from support.cutting_nodes import CuttingNodes
from support.recut_cases import CUT, HALVES, WHOLE, two_of_each
from tessera_core.api.placementplan import Action
from tessera_core.api.runtimenode import CutProblem
from tessera_operator.transactions import CUT_S

TICKS = 20
"""That the re-cut takes, and a bit more."""
SHORT_S, LONG_S = 4.0, 60.0
"""For how long a process is away: less and more than it takes a node to count as lost."""


def assert_kept_its_promises(cluster: CuttingNodes) -> None:
    """Nobody lost all copies, no other GPU was ever told to be cut, none is left half cut, and all plans are over."""
    assert cluster.ever_told <= CUT
    assert min(cluster.fewest.values()) >= 1, cluster.fewest
    assert cluster.gpus["n0", "GPU-n0-1"].slices is None
    geometries = {cluster.gpus[name, f"GPU-{name}-0"].geometry for name in ("n0", "n1")}
    assert geometries <= {(WHOLE,), HALVES}, geometries
    conditions = [
        {each.type: each.status.value for each in plan.status.conditions}
        for plan in cluster.plan_objects()
    ]
    assert all("True" in (each["Applied"], each["Superseded"]) for each in conditions)
    assert not any("RolledBack" in each for each in conditions)
    assert all(each.ended_at for plan in cluster.plan_objects() for each in plan.status.cuts)


def assert_is_as_planned(cluster: CuttingNodes) -> None:
    """Both services run twice, on the halves of GPUs."""
    assert_kept_its_promises(cluster)
    assert cluster.ever_told == CUT
    assert {cluster.gpus[name, f"GPU-{name}-0"].geometry for name in ("n0", "n1")} == {HALVES}
    assert cluster.ready() == {("vision.a", "a"): 2, ("vision.b", "b"): 2, ("vision.c", "c"): 1}


def test_a_recut_is_one_plan_from_its_first_step_to_its_last() -> None:
    """What is only known of the new slices, such as their JPEG engines, calls for no other plan."""
    cluster = two_of_each()
    cluster.settle()
    [plan] = [
        plan
        for plan in cluster.plan_objects()
        if any(step.action is Action.PARTITION for step in plan.spec.steps)
    ]
    [applied] = [each for each in plan.status.conditions if each.type == "Applied"]
    assert (applied.status.value, len(plan.status.cuts)) == ("True", 2)


@cache
def undisturbed() -> tuple[tuple[tuple[str, Action], ...], tuple[frozenset[str], ...]]:
    """Steps of the plan, and by tick those that are under way, where nobody is killed."""
    cluster = two_of_each()
    ticks: list[frozenset[str]] = []
    steps: dict[str, Action] = {}
    for _ in range(TICKS):
        cluster.tick()
        (cutting,) = [plan for plan in cluster.plan_objects() if plan.status.cuts]
        steps = {step.id: step.action for step in cutting.spec.steps}
        ticks.append(frozenset((cutting.status.step.id,)) if cutting.status.step else frozenset())
    assert_is_as_planned(cluster)
    return tuple(steps.items()), tuple(ticks)


def test_a_plan_that_cuts_drains_cuts_loads_and_routes_node_by_node() -> None:
    steps, ticks = undisturbed()
    actions = [action for _, action in steps]
    first = actions.index(Action.PARTITION)
    assert actions[first - 1] is Action.UNLOAD
    assert actions[first + 1] is Action.LAUNCH
    assert actions.count(Action.PARTITION) == 2
    assert ticks[-1] == ticks[-2] == {steps[-1][0]}, (
        "the plan is done within the ticks of the matrix"
    )


@pytest.mark.parametrize("tick", range(TICKS))
@pytest.mark.parametrize(
    "who", ["operator", "agent-n0", "agent-n1", "partitioner-n0", "partitioner-n1"]
)
def test_whoever_is_killed_when_the_cut_ends_as_planned(who: str, tick: int) -> None:
    cluster = two_of_each()
    cluster.tick(tick)
    process, _, name = who.partition("-")
    if name:
        cluster.kill(process, name, SHORT_S)
    else:
        cluster.restart()
    cluster.settle()
    assert_is_as_planned(cluster)


@pytest.mark.parametrize("tick", range(0, TICKS, 2))
@pytest.mark.parametrize("name", ["n0", "n1"])
def test_a_node_that_nobody_hears_of_for_long_is_not_left_half_cut(name: str, tick: int) -> None:
    """The plan that is made meanwhile may be another one."""
    cluster = two_of_each()
    cluster.tick(tick)
    cluster.kill("agent", name, LONG_S)
    cluster.kill("partitioner", name, LONG_S)
    cluster.settle()
    assert_kept_its_promises(cluster)
    assert cluster.ready().keys() == cluster.fewest.keys() | {("vision.b", "b")}


@pytest.mark.parametrize("tick", range(8))
@pytest.mark.parametrize("who", ["operator", "agent-n0", "partitioner-n0"])
def test_whoever_is_killed_on_the_way_back_the_gpu_gets_what_it_had(who: str, tick: int) -> None:
    cluster = two_of_each()
    gpu = cluster.gpus["n0", "GPU-n0-0"]
    gpu.broken = CutProblem.NO_ROOM
    cluster.tick(8)
    assert gpu.geometry not in ((WHOLE,), HALVES)
    cluster.tick(1, seconds=CUT_S)
    cluster.tick(tick)
    process, _, name = who.partition("-")
    if name:
        cluster.kill(process, name, SHORT_S)
    else:
        cluster.restart()
    cluster.settle()
    assert gpu.geometry == (WHOLE,)
    assert min(cluster.fewest.values()) >= 1
    assert cluster.ever_told <= CUT
    cuts = [cut for plan in cluster.plan_objects() for cut in plan.status.cuts]
    assert [(cut.device, cut.failures) for cut in cuts if cut.problem] == [("GPU-n0-0", 1)]
    assert all(cut.ended_at for cut in cuts)
