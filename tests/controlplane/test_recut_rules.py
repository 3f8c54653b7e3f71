"""When a GPU is cut and when it is not, what a plan says meanwhile, and what becomes of a cut that fails."""

from __future__ import annotations

from typing import Any

import pytest

from support.cutting_nodes import CuttingNodes, Gpu
from support.objects import pool
from support.recut_cases import CUT, HALVES, WHOLE, measured, two_of_each, wanted
from tessera_core.api import PlacementPlan
from tessera_core.api.runtimenode import CutProblem
from tessera_operator.transactions import CUT_S


def conditions(plan: PlacementPlan) -> dict[str, tuple[str, str]]:
    return {each.type: (each.status.value, each.reason) for each in plan.status.conditions}


def message(plan: PlacementPlan, name: str) -> str:
    (found,) = [each.message for each in plan.status.conditions if each.type == name]
    return found


def cutting(cluster: CuttingNodes) -> list[PlacementPlan]:
    """Plans that cut something, the newest last."""
    found = [
        plan for plan in cluster.plan_objects() if any(s.target.geometry for s in plan.spec.steps)
    ]
    return sorted(found, key=lambda plan: int(plan.metadata.resource_version or 0))


def geometries(cluster: CuttingNodes) -> list[Any]:
    return [cluster.gpus[name, f"GPU-{name}-0"].geometry for name in ("n0", "n1")]


def test_without_approval_what_is_there_goes_on_and_the_plan_shows_what_it_would_cut() -> None:
    cluster = two_of_each(approval="Manual")
    cluster.settle()
    assert cluster.ever_told == set()
    assert cluster.fewest == {("vision.a", "a"): 2, ("vision.c", "c"): 1}
    (proposal,) = cutting(cluster)
    assert conditions(proposal)["Approved"] == ("False", "Waiting")
    assert conditions(proposal)["Waiting"] == ("True", "Approval")
    assert conditions(proposal)["Applied"] == ("False", "Waiting")
    assert not proposal.status.cuts
    assert "cut n1/GPU-n1-0: 7g.80gb@0 -> 3g.40gb@0 + 3g.40gb@4" in proposal.spec.diff


def test_the_plan_that_a_person_has_approved_is_carried_out() -> None:
    cluster = two_of_each(approval="Manual")
    cluster.settle()
    (proposal,) = cutting(cluster)
    cluster.change("PlacementPlan", proposal.metadata.name, approved=True)
    cluster.settle()
    assert geometries(cluster) == [HALVES, HALVES]
    assert cluster.ever_told == CUT
    (done,) = cutting(cluster)
    assert done.metadata.name == proposal.metadata.name
    assert conditions(done)["Applied"] == ("True", "Applied")
    assert "Waiting" not in conditions(done)


def test_cuts_wait_for_a_window_and_say_until_when() -> None:
    """The case begins at noon."""
    windows = [{"schedule": "5 12 * * *", "duration": "1h"}]
    cluster = two_of_each(disruption={"windows": windows})
    cluster.settle()
    (proposal,) = cutting(cluster)
    assert conditions(proposal)["Waiting"] == ("True", "Window")
    assert message(proposal, "Waiting").endswith("no window is open until 2026-01-31T12:05:00Z")
    assert cluster.ever_told == set()
    cluster.tick(1, seconds=300)
    cluster.settle()
    assert geometries(cluster) == [HALVES, HALVES]


def test_a_schedule_that_nobody_can_read_is_no_window() -> None:
    cluster = two_of_each(disruption={"windows": [{"schedule": "61 * * * *", "duration": "1h"}]})
    cluster.settle()
    assert cluster.ever_told == set()
    (proposal,) = cutting(cluster)
    assert "minute: found '61'" in message(proposal, "Waiting")


@pytest.mark.parametrize(("most", "at_once"), [(1, 1), (2, 1)])
def test_no_more_nodes_are_cut_at_once_than_the_budget_allows(most: int, at_once: int) -> None:
    """Two could be, but the copy on the one serves while the other is cut."""
    cluster, seen = two_of_each(disruption={"maxNodes": most}), 0
    for _ in range(25):
        cluster.tick()
        open_cuts = {c.node for p in cutting(cluster) for c in p.status.cuts if c.ended_at is None}
        seen = max(seen, len(open_cuts))
    assert seen == at_once
    assert geometries(cluster) == [HALVES, HALVES]


def test_a_node_is_not_cut_again_before_the_interval_is_over_also_by_another_leader() -> None:
    cluster = two_of_each(disruption={"minInterval": "30m"})
    cluster.settle()
    for name in "ab":
        cluster.cluster.objects["ModelService", "vision", name]["metadata"]["deletionTimestamp"] = (
            cluster.text()
        )
    cluster.settle()
    assert cluster.ready() == {("vision.c", "c"): 1}
    for each in measured("d"):
        each["status"]["rows"] = [
            {**row, "memoryMiB": "60000"} if "7g" in each["metadata"]["name"] else row
            for row in each["status"]["rows"]
        ]
        if "7g" in each["metadata"]["name"]:
            cluster.cluster.create(each)
    cluster.cluster.create(wanted("d", 1))
    cluster.restart()
    cluster.settle()
    (proposal,) = [plan for plan in cutting(cluster) if "Waiting" in conditions(plan)]
    assert conditions(proposal)["Waiting"] == ("True", "Interval")
    assert geometries(cluster) == [HALVES, HALVES]
    cluster.tick(1, seconds=1800)
    cluster.settle()
    assert (WHOLE,) in geometries(cluster)


@pytest.mark.parametrize("percent", ["15", "60"])
def test_gpus_are_cut_for_the_saving_that_the_pool_wants(percent: str) -> None:
    """Each of two services has a GPU to itself, and a third GPU is free; halves of one would do, which saves half."""
    partition = {"approval": "Auto", "disruption": {"minGainPercent": percent}}
    cluster = CuttingNodes(
        pool(partition=partition, size={"min": 3, "max": 3}).to_dict(),
        *measured("a", "b"),
        wanted("a", 1),
        wanted("b", 1),
        gpus={name: [Gpu({WHOLE})] for name in ("n0", "n1", "n2")},
    )
    cluster.settle()
    assert cluster.ready() == {("vision.a", "a"): 1, ("vision.b", "b"): 1}
    cut = [found for found in cluster.gpus.values() if found.geometry == HALVES]
    assert len(cut) == (1 if percent == "15" else 0)


def test_gpus_that_no_partitioner_has_reported_are_used_as_they_are() -> None:
    cluster = two_of_each()
    for name in ("n0", "n1"):
        cluster.kill("partitioner", name, 1e9)
        cluster.cluster.objects["RuntimeNode", "", name]["status"].pop("cuts", None)
    cluster.restart()
    cluster.tick(20)
    assert cluster.ever_told == set()
    assert cutting(cluster) == []


def test_a_cut_that_cannot_be_is_undone_and_left_alone_for_longer_each_time() -> None:
    cluster = two_of_each()
    gpu = cluster.gpus["n0", "GPU-n0-0"]
    gpu.broken = CutProblem.NO_ROOM
    cluster.tick(10)
    assert gpu.geometry not in ((WHOLE,), HALVES), "it is half cut"
    cluster.tick(1, seconds=CUT_S)
    cluster.settle()
    assert geometries(cluster) == [(WHOLE,), (WHOLE,)]
    assert cluster.ready() == {("vision.a", "a"): 2, ("vision.c", "c"): 1}
    (failed, back) = cutting(cluster)
    assert conditions(failed)["RolledBack"] == ("True", "NoRoom")
    assert conditions(back)["Applied"] == ("True", "Applied")
    (cut,) = [each for each in failed.status.cuts if each.problem]
    assert (cut.device, cut.failures) == ("GPU-n0-0", 1)
    assert cluster.fewest["vision.a", "a"] == 1
    # Another leader leaves it alone as well, until it may be tried again.
    cluster.restart()
    cluster.tick(20)
    assert len(cutting(cluster)) == 2
    cluster.tick(1, seconds=600)
    cluster.tick(10)
    cluster.tick(1, seconds=CUT_S)
    cluster.settle()
    assert geometries(cluster) == [(WHOLE,), (WHOLE,)]
    failures = [each.failures for plan in cutting(cluster) for each in plan.status.cuts]
    assert max(failures) == 2
    gpu.broken = None
    cluster.tick(1, seconds=1200)
    cluster.settle()
    assert geometries(cluster) == [HALVES, HALVES]
    assert cluster.ready() == {("vision.a", "a"): 2, ("vision.b", "b"): 2, ("vision.c", "c"): 1}
