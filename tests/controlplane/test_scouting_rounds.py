"""A pool whose GPUs nobody has cut: what is measured on slices is found out, by the rules of cuts and behind what serves."""

from __future__ import annotations

from typing import Any

import pytest

from support.cutting_nodes import MODEL, Gpu
from support.measuring_nodes import SLICES, MeasuringNodes, Net, fresh
from support.objects import pool
from support.recut_cases import wanted
from tessera_core.api import PlacementPlan, RuntimeNode
from tessera_core.api.placementplan import Action
from tessera_core.api.runtimenode import CutProblem
from tessera_core.gpu.covers import covers
from tessera_core.gpu.geometry import Placement
from tessera_operator.recutting import RECUT_AT

CUTS = len(covers(MODEL, SLICES))
"""That a model costs at most."""
EVERYWHERE = {*SLICES, "full"}


def conditions(plan: PlacementPlan) -> dict[str, tuple[str, str]]:
    return {each.type: (each.status.value, each.reason) for each in plan.status.conditions}


def scouting_plans(cluster: MeasuringNodes) -> list[PlacementPlan]:
    """Plans that cut a GPU to measure there."""
    return [
        plan
        for plan in cluster.plan_objects()
        if any(", to measure " in line for line in plan.spec.diff)
    ]


def assert_each_model_was_measured_once_wherever_it_can_be(cluster: MeasuringNodes) -> None:
    assert cluster.known() == {(name, kind) for name in cluster.nets for kind in EVERYWHERE}
    assert set(cluster.tried.values()) == {1}


def test_services_end_on_the_cheapest_slices_although_no_gpu_was_ever_cut() -> None:
    """Each has a whole GPU at first; in the end both are on slices of one."""
    cluster = fresh("a", "b")
    cluster.tick(4)
    cluster.watch()
    assert len(cluster.used()) == 2
    cluster.settle()
    assert cluster.ready() == {("vision.a", "a"): 1, ("vision.b", "b"): 1}
    assert min(cluster.fewest.values()) == 1
    assert len(cluster.used()) == 1
    assert_each_model_was_measured_once_wherever_it_can_be(cluster)
    assert cluster.profiled("a") == ("Measured", "")


def test_models_share_the_cuts_and_then_there_are_no_more() -> None:
    cluster = fresh("a", "b", "c", gpus=4)
    cluster.settle()
    assert_each_model_was_measured_once_wherever_it_can_be(cluster)
    assert len(scouting_plans(cluster)) == CUTS
    plans, cut = len(cluster.plan_objects()), [*cluster.cuts]
    cluster.tick(60, seconds=60.0)
    assert (len(cluster.plan_objects()), cluster.cuts) == (plans, cut)


def test_a_second_service_with_the_same_model_costs_no_cut() -> None:
    cluster = fresh("a")
    cluster.settle()
    cut = [*cluster.cuts]
    twin = wanted("a", 1)
    twin["metadata"] = {**twin["metadata"], "name": "twin", "uid": "uid-twin"}
    cluster.cluster.create(twin)
    cluster.settle()
    assert cluster.ready()["vision.twin", "a"] == 1
    assert set(cluster.tried.values()) == {1}
    assert len([each for each in cluster.cuts if each not in cut]) <= 1, "to serve, if at all"


def test_where_a_person_has_to_agree_the_cut_is_proposed_with_what_it_is_for() -> None:
    cluster = fresh("a", "b", approval="Manual")
    cluster.settle()
    assert cluster.ever_told == set()
    (proposal,) = scouting_plans(cluster)
    assert conditions(proposal)["Waiting"] == ("True", "Approval")
    (line,) = proposal.spec.diff
    assert line == (
        "cut n2/GPU-n2-0: not cut -> 1g.10gb@0 + 1g.20gb@6 + 2g.20gb@2, "
        "to measure vision.a/a, vision.b/b"
    )
    assert cluster.profiled("a") == (
        "PartlyMeasured",
        f"a is not measured on {', '.join(SLICES)} of NVIDIA-A100-SXM4-80GB: "
        "n2: nobody has approved the cut",
    )


def test_a_person_is_asked_for_each_cut_and_nothing_else_is_cut() -> None:
    cluster = fresh("a", "b", approval="Manual")
    approved: list[str] = []
    for _ in range(10):
        cluster.settle()
        waiting = [plan for plan in cluster.plan_objects() if "Waiting" in conditions(plan)]
        if not waiting:
            break
        (proposal,) = waiting
        approved.append(proposal.metadata.name)
        cluster.change("PlacementPlan", proposal.metadata.name, approved=True)
    assert_each_model_was_measured_once_wherever_it_can_be(cluster)
    assert len(cluster.used()) == 1
    cuts = {
        plan.metadata.name
        for plan in cluster.plan_objects()
        if any(step.action is Action.PARTITION for step in plan.spec.steps)
    }
    assert cuts == set(approved)


def test_a_leader_that_takes_over_proposes_the_very_same_plan() -> None:
    cluster = fresh("a", approval="Manual")
    cluster.settle()
    (before,) = scouting_plans(cluster)
    cluster.restart()
    cluster.settle()
    (after,) = scouting_plans(cluster)
    assert after == before


def test_nobody_measures_with_cuts_where_the_pool_says_never() -> None:
    cluster = fresh("a", measure="Never")
    cluster.settle()
    assert cluster.known() == {("a", "full")}
    assert cluster.ever_told == set()
    assert cluster.profiled("a") == ("Measured", "")


@pytest.mark.parametrize("backend", ["Static", "MigManager"])
def test_nobody_measures_with_cuts_where_the_own_partitioner_does_not_cut(backend: str) -> None:
    cluster = fresh("a", backend=backend)
    cluster.settle()
    assert cluster.known() == {("a", "full")}
    assert cluster.ever_told == set()


def test_without_a_free_gpu_nothing_is_cut_and_the_service_says_so() -> None:
    cluster = fresh("a", "b", gpus=2)
    cluster.settle()
    assert cluster.ever_told == set()
    assert cluster.ready() == {("vision.a", "a"): 1, ("vision.b", "b"): 1}
    reason, message = cluster.profiled("b")
    assert reason == "PartlyMeasured"
    assert message.endswith(": no GPU of pool p is free to be cut for it")


def test_a_service_that_comes_takes_the_gpu_that_was_to_be_measured_on() -> None:
    cluster = fresh("a", gpus=2, approval="Manual")
    cluster.settle()
    (proposal,) = scouting_plans(cluster)
    cluster.nets["b"] = Net()
    cluster.cluster.create(wanted("b", 1))
    cluster.settle()
    assert cluster.ready() == {("vision.a", "a"): 1, ("vision.b", "b"): 1}
    (given_up,) = scouting_plans(cluster)
    assert conditions(given_up)["Superseded"] == ("True", "NewerPlan")
    cluster.change("PlacementPlan", proposal.metadata.name, approved=True)
    cluster.settle()
    assert cluster.ever_told == set()


def test_a_gpu_that_is_needed_while_it_is_cut_serves_next() -> None:
    """The cut is not undone: its slices are measured on, and the GPU is cut again where that serves."""
    cluster = fresh("a", "b", gpus=3)
    while not cluster.ever_told:
        cluster.tick()
    cluster.nets["c"] = Net()
    cluster.cluster.create(wanted("c", 1))
    cluster.settle()
    assert cluster.ready() == {(f"vision.{name}", name): 1 for name in "abc"}


def test_measuring_waits_for_a_window() -> None:
    """The case begins at noon."""
    cluster = fresh("a", disruption={"windows": [{"schedule": "5 12 * * *", "duration": "1h"}]})
    cluster.settle()
    assert cluster.ever_told == set()
    (proposal,) = scouting_plans(cluster)
    assert conditions(proposal)["Waiting"] == ("True", "Window")
    cluster.tick(1, seconds=300.0)
    cluster.settle()
    assert_each_model_was_measured_once_wherever_it_can_be(cluster)


def test_measuring_waits_for_the_interval_after_a_cut_but_begins_none() -> None:
    """A cut of a GPU that nobody uses disturbs nobody, and must not keep a service from what it saves."""
    cluster = fresh("a", gpus=2)
    cluster.settle()
    assert len(cluster.cuts) >= CUTS
    notes = [
        dict(RuntimeNode.from_dict(each).metadata.annotations)
        for key, each in cluster.cluster.objects.items()
        if key[0] == "RuntimeNode"
    ]
    assert all(RECUT_AT not in each for each in notes)
    other = fresh("a", gpus=2, disruption={"minInterval": "30m"})
    for name in ("n0", "n1"):
        metadata = other.cluster.objects["RuntimeNode", "", name]["metadata"]
        metadata["annotations"] = {RECUT_AT: other.text()}
    other.settle()
    assert other.ever_told == set()
    (proposal,) = scouting_plans(other)
    assert conditions(proposal)["Waiting"] == ("True", "Interval")
    other.tick(1, seconds=1800.0)
    other.settle()
    assert_each_model_was_measured_once_wherever_it_can_be(other)


def test_one_gpu_at_a_time_is_cut_to_measure() -> None:
    cluster = fresh("a", gpus=4)
    most = 0
    for _ in range(40):
        cluster.tick()
        open_cuts = {
            c.device for p in cluster.plan_objects() for c in p.status.cuts if not c.ended_at
        }
        most = max(most, len(open_cuts))
    assert most == 1
    assert_each_model_was_measured_once_wherever_it_can_be(cluster)


def test_only_allowed_profiles_are_measured() -> None:
    cluster = fresh("a", allowedProfiles=["3g.40gb", "1g.10gb"])
    cluster.settle()
    assert {kind for _, kind in cluster.known()} == {"full", "3g.40gb", "1g.10gb"}
    assert len(scouting_plans(cluster)) == 1


def test_slices_without_room_for_a_model_are_not_cut_for_it() -> None:
    cluster = fresh("a", nets={"a": Net(memory_mib=30_000.0)})
    cluster.settle()
    assert {kind for _, kind in cluster.known()} == {"full", "7g.80gb", "4g.40gb", "3g.40gb"}
    assert len(scouting_plans(cluster)) == CUTS - 1
    assert cluster.profiled("a") == ("Measured", "")


def test_nothing_is_cut_for_a_model_that_is_too_slow_on_a_whole_gpu() -> None:
    """The SLO wants answers within 50 ms."""
    cluster = fresh("a", nets={"a": Net(row_ms=60.0)})
    cluster.settle()
    assert cluster.known() == {("a", "full")}
    assert cluster.ever_told == set()
    assert cluster.profiled("a") == ("Measured", "")


def test_what_cannot_be_measured_is_tried_a_few_times_and_keeps_nothing_waiting() -> None:
    cluster = fresh("a", nets={"a": Net(breaks_on=frozenset({"2g.20gb"}))})
    cluster.tick(300, seconds=5.0)
    kinds = {kind for _, kind in cluster.known()}
    assert {"full", "7g.80gb", "4g.40gb", "3g.40gb"} <= kinds
    assert "2g.20gb" not in kinds
    assert len(scouting_plans(cluster)) <= CUTS


def test_a_gpu_that_cannot_be_cut_costs_nothing_but_tries_further_and_further_apart() -> None:
    cluster = MeasuringNodes(
        pool(partition={"approval": "Auto"}, size={"min": 2, "max": 2}).to_dict(),
        wanted("a", 1),
        gpus={f"n{i}": [Gpu(None, broken=CutProblem.RESET_REQUIRED)] for i in range(2)},
        nets={"a": Net()},
    )
    cluster.tick(240, seconds=60.0)
    assert cluster.ready() == {("vision.a", "a"): 1}
    failures = {cut.device: cut.failures for p in cluster.plan_objects() for cut in p.status.cuts}
    assert len(failures) == 1
    assert 3 <= max(failures.values()) <= 6


def test_slices_that_are_there_are_measured_before_another_gpu_is_cut() -> None:
    cluster = MeasuringNodes(
        pool(partition={"approval": "Auto"}, size={"min": 2, "max": 2}).to_dict(),
        wanted("a", 1),
        gpus={"n0": [Gpu({Placement("7g.80gb", 0)})], "n1": [Gpu({Placement("3g.40gb", 0)})]},
        nets={"a": Net()},
    )
    cluster.settle()
    assert {kind for _, kind in cluster.known()} == set(SLICES), "no GPU is whole"
    kinds: list[Any] = [{each.profile for each in geometry} for _, geometry in cluster.cuts]
    assert not any(one & other for one in kinds for other in kinds if one is not other)
