"""When a GPU is cut and when it is not, what a plan says meanwhile, and what becomes of a cut that fails."""

from __future__ import annotations

from typing import Any

import pytest

from support.cutting_nodes import CuttingNodes, Gpu
from support.memory_operator import profile
from support.objects import pool
from support.recut_cases import (
    CUT,
    HALVES,
    WHOLE,
    measured,
    two_of_each,
    wanted,
    without_partitioner,
)
from tessera_core.api import PlacementPlan, RuntimePool
from tessera_core.api.placementplan import Recut
from tessera_core.api.runtimenode import CutProblem
from tessera_operator.cuts import FIRST_PAUSE_S, cuts_of
from tessera_operator.instants import to_time
from tessera_operator.kinds import Document
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


def one_each(percent: str) -> list[Document]:
    """Two services that are to run once each, on GPUs that are cut where that saves so much."""
    partition = {
        "approval": "Auto",
        "measure": "Never",
        "disruption": {"minGainPercent": percent},
    }
    size = {"min": 3, "max": 3}
    services = [wanted(name, 1) for name in "ab"]
    return [pool(partition=partition, size=size).to_dict(), *measured("a", "b"), *services]


@pytest.mark.parametrize(("percent", "cut"), [("15", [HALVES]), ("60", [])])
def test_gpus_are_cut_for_the_saving_that_the_pool_wants(percent: str, cut: list[Any]) -> None:
    """Each of the services could have a GPU to itself; halves of one would do, which saves half."""
    cluster = CuttingNodes(
        *one_each(percent), gpus={name: [Gpu({WHOLE})] for name in ("n0", "n1", "n2")}
    )
    cluster.settle()
    assert cluster.ready() == {("vision.a", "a"): 1, ("vision.b", "b"): 1}
    assert [each.geometry for each in cluster.gpus.values() if each.geometry != (WHOLE,)] == cut


def test_gpus_that_no_partitioner_has_reported_are_used_as_they_are() -> None:
    cluster = two_of_each()
    without_partitioner(cluster, "n0", "n1")
    cluster.tick(20)
    assert cluster.ever_told == set()
    assert cutting(cluster) == []


def failures(cluster: CuttingNodes) -> list[int]:
    return [each.failures for p in cutting(cluster) for each in p.status.cuts if each.problem]


def test_a_cut_that_cannot_be_is_undone_and_left_alone_for_longer_each_time() -> None:
    cluster = two_of_each()
    gpu = cluster.gpus["n0", "GPU-n0-0"]
    gpu.broken = CutProblem.NO_ROOM
    cluster.tick(10)
    assert gpu.geometry not in ((WHOLE,), HALVES), "it is half cut"
    cluster.tick(1, seconds=CUT_S)
    cluster.settle()
    assert gpu.geometry == (WHOLE,)
    assert cluster.ready()["vision.a", "a"] == 2
    assert cluster.fewest["vision.a", "a"] == 1
    (failed,) = [plan for plan in cutting(cluster) if "RolledBack" in conditions(plan)]
    assert conditions(failed)["RolledBack"] == ("True", "NoRoom")
    assert message(failed, "RolledBack").startswith("n0/GPU-n0-0: NoRoom")
    (cut,) = [each for each in failed.status.cuts if each.problem]
    assert (cut.device, cut.failures) == ("GPU-n0-0", 1)


def test_slices_that_were_cut_and_are_not_offered_are_undone_with_what_the_agent_says() -> None:
    cluster = two_of_each()
    gpu = cluster.gpus["n0", "GPU-n0-0"]
    gpu.withheld = "nvidia-cap12 cannot be opened"
    cluster.tick(10)
    assert gpu.geometry == HALVES
    cluster.tick(1, seconds=CUT_S)
    cluster.settle()
    assert gpu.geometry == (WHOLE,)
    (failed,) = [plan for plan in cutting(cluster) if "RolledBack" in conditions(plan)]
    assert conditions(failed)["RolledBack"] == ("True", "NotOffered")
    assert "nvidia-cap12 cannot be opened" in message(failed, "RolledBack")


def test_what_the_driver_refuses_for_good_is_undone_at_once() -> None:
    """Its refusal is of the cut that was ordered then, not of the way back."""
    cluster = two_of_each()
    gpu = cluster.gpus["n0", "GPU-n0-0"]
    gpu.broken = CutProblem.NOT_PERMITTED
    cluster.settle()
    assert gpu.geometry == (WHOLE,)
    assert cluster.fewest["vision.a", "a"] == 1
    (failed,) = [plan for plan in cutting(cluster) if "RolledBack" in conditions(plan)]
    assert conditions(failed)["RolledBack"] == ("True", "NotPermitted")
    assert failures(cluster) == [1]


def test_gpus_whose_cuts_fail_are_left_alone_for_longer_each_time_whoever_leads() -> None:
    cluster = two_of_each()
    both = [cluster.gpus[name, f"GPU-{name}-0"] for name in ("n0", "n1")]
    for each in both:
        each.broken = CutProblem.NO_ROOM
    ends: dict[str, dict[int, Recut]] = {uuid: {} for uuid in CUT}
    begins: dict[str, set[str]] = {uuid: set() for uuid in CUT}
    for index in range(240):
        cluster.tick(1, seconds=60.0)
        if index % 50 == 49:
            cluster.restart()
        for plan in cutting(cluster):
            goals = cuts_of(plan.spec.steps)
            for cut in plan.status.cuts:
                if cut.problem:
                    ends[cut.device][cut.failures] = cut
                if goals.get((cut.node, cut.device)) == HALVES:
                    begins[cut.device].add(cut.started_at)
    assert max(map(len, ends.values())) >= 3
    for uuid in CUT:
        found = [ends[uuid][failures] for failures in sorted(ends[uuid])]
        assert [each.failures for each in found] == list(range(1, len(found) + 1))
        pauses = [to_time(e.retry_at or "") - to_time(e.ended_at or "") for e in found]
        assert [each.total_seconds() for each in pauses] == [
            FIRST_PAUSE_S * 2**failures for failures in range(len(found))
        ]
        for each in found:
            later = {begun for begun in begins[uuid] if begun > (each.ended_at or "")}
            assert all(begun >= (each.retry_at or "") for begun in later)
    assert cluster.fewest["vision.a", "a"] == 1
    for each in both:
        each.broken = None
    cluster.tick(200, seconds=120.0)
    assert geometries(cluster) == [HALVES, HALVES]
    assert cluster.ready() == {("vision.a", "a"): 2, ("vision.b", "b"): 2, ("vision.c", "c"): 1}


def test_after_a_failure_a_person_is_asked_anew() -> None:
    cluster = two_of_each(approval="Manual", disruption={"minInterval": "1m"})
    for name in ("n0", "n1"):
        cluster.gpus[name, f"GPU-{name}-0"].broken = CutProblem.NO_ROOM
    cluster.settle()
    (proposal,) = cutting(cluster)
    cluster.change("PlacementPlan", proposal.metadata.name, approved=True)
    cluster.tick(10)
    cluster.tick(1, seconds=CUT_S)
    cluster.tick(20)
    assert geometries(cluster) == [(WHOLE,), (WHOLE,)]
    assert failures(cluster) == [1]
    cluster.tick(1, seconds=FIRST_PAUSE_S)
    cluster.settle()
    assert geometries(cluster) == [(WHOLE,), (WHOLE,)]
    assert failures(cluster) == [1]
    waiting = [plan for plan in cutting(cluster) if "Waiting" in conditions(plan)]
    assert [conditions(plan)["Waiting"] for plan in waiting] == [("True", "Approval")]


def test_a_cut_that_would_need_a_reset_is_given_up_at_once() -> None:
    """MIG is off: there is nothing to be undone, and the model that made way comes back."""
    cluster = CuttingNodes(
        pool(partition={"approval": "Auto"}, size={"min": 2, "max": 2}).to_dict(),
        *(profile(name, piece) for name in "ab" for piece in ("full", "3g.40gb")),
        *(wanted(name, 2) for name in "ab"),
        gpus={name: [Gpu(None, broken=CutProblem.RESET_REQUIRED)] for name in ("n0", "n1")},
    )
    cluster.settle()
    assert all(found.slices is None for found in cluster.gpus.values())
    assert sum(cluster.ready().values()) == 2
    rolled_back = [p for p in cutting(cluster) if "RolledBack" in conditions(p)]
    assert {conditions(p)["RolledBack"][1] for p in rolled_back} == {"ResetRequired"}
    assert failures(cluster) == [1] * len(rolled_back)


def test_a_node_that_is_not_drained_in_time_keeps_its_gpu_as_it_is() -> None:
    cluster = two_of_each(disruption={"drainTimeout": "20s"})
    cluster.kill("agent", "n0", 30.0)
    cluster.tick(25)
    (plan,) = [plan for plan in cutting(cluster) if "RolledBack" in conditions(plan)]
    assert conditions(plan)["RolledBack"] == ("True", "DrainTimedOut")
    assert "unload-1 was not done within 20 s" in message(plan, "RolledBack")
    cluster.settle()
    assert cluster.gpus["n0", "GPU-n0-0"].geometry == (WHOLE,)
    assert "GPU-n0-0" not in cluster.ever_told
    assert cluster.fewest["vision.a", "a"] >= 1
    assert cluster.ready()["vision.a", "a"] == 2


def partitioning(cluster: CuttingNodes) -> tuple[str, str, str]:
    found = RuntimePool.from_dict(cluster.cluster.objects["RuntimePool", "", "p"])
    (each,) = [each for each in found.status.conditions if each.type == "Partitioning"]
    return each.status.value, each.reason, each.message


@pytest.mark.parametrize(
    ("partition", "status", "reason"),
    [
        ({}, "True", "Ready"),
        (
            {"disruption": {"windows": [{"schedule": "* * * * L", "duration": "1h"}]}},
            "False",
            "InvalidWindow",
        ),
    ],
)
def test_a_pool_says_whether_its_gpus_can_be_cut(
    partition: dict[str, Any], status: str, reason: str
) -> None:
    cluster = two_of_each(**partition)
    cluster.tick(3)
    assert partitioning(cluster)[:2] == (status, reason)


def test_a_pool_says_which_gpus_are_left_alone_and_what_lacks_a_partitioner() -> None:
    cluster = two_of_each()
    cluster.gpus["n0", "GPU-n0-0"].broken = CutProblem.NO_ROOM
    cluster.tick(5)
    assert partitioning(cluster) == ("True", "Ready", "3 of 3 GPUs may be cut")
    cluster.tick(1, seconds=CUT_S)
    cluster.tick(2)
    alone = "2 of 3 GPUs may be cut; left alone for a while: GPU-n0-0"
    assert partitioning(cluster) == ("True", "Ready", alone)
    other = two_of_each()
    without_partitioner(other, "n0", "n1")
    other.tick(2)
    assert partitioning(other)[:2] == ("False", "NoPartitioner")
