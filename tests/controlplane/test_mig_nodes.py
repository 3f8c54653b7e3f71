"""Re-cuts by NVIDIA's MIG manager: the node is empty, its pod away and back, whoever is killed or fails meanwhile."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

import pytest

from support.cutting_nodes import Gpu
from support.managed_nodes import SETTINGS, ManagedNodes, Manager, Mood
from support.objects import pool
from support.recut_cases import HALVES, WHOLE, measured, wanted
from tessera_core.api import RuntimeNode, RuntimePool
from tessera_core.api.runtimenode import CutProblem
from tessera_operator.kinds import head, key_of
from tessera_operator.mig_manager import (
    ALLOWED_LABEL,
    AWAY_LABEL,
    CONFIG_LABEL,
    FAILED,
    MANAGER_S,
    STATE_LABEL,
    SUCCESS,
)
from tessera_operator.partitioners import PARTITIONER

TICKS = 54
"""That two nodes take one after the other."""
BACKEND = {"backend": "MigManager", "approval": "Auto"}


@cache
def _uncut(gpus: int = 1, services: str = "ab") -> ManagedNodes:
    """Two nodes with so many GPUs of one slice each, which the last of the services finds taken."""
    names = ("n0", "n1")
    found = ManagedNodes(
        pool(partition={"backend": "Static"}, size={"min": 2, "max": 2}, gpus=gpus).to_dict(),
        *measured(*services),
        *(wanted(name, 2) for name in services),
        gpus={name: [Gpu({WHOLE}) for _ in range(gpus)] for name in names},
    )
    found.settle()
    assert sum(found.ready().values()) == 2 * gpus
    return found


def two_of_each(gpus: int = 1, services: str = "ab", **partition: Any) -> ManagedNodes:
    """The same, and from now on they may be cut."""
    found = _uncut(gpus, services).twin()
    found.change("RuntimePool", "p", partition={**BACKEND, **partition})
    found.watch()
    return found


def geometries(cluster: ManagedNodes) -> list[Any]:
    return [each.geometry for each in cluster.gpus.values()]


def problems(cluster: ManagedNodes) -> dict[str, str]:
    """By GPU."""
    cuts = (cut for plan in cluster.plan_objects() for cut in plan.status.cuts)
    return {cut.device: cut.problem for cut in cuts if cut.problem}


def assert_is_as_planned(cluster: ManagedNodes) -> None:
    """Both services run twice, on halves; pods are back, labels away, and no other node was asked for."""
    assert geometries(cluster) == [HALVES, HALVES]
    assert cluster.ready() == {("vision.a", "a"): 2, ("vision.b", "b"): 2}
    assert min(cluster.fewest.values()) >= 1, cluster.fewest
    assert_is_at_rest(cluster)
    assert not problems(cluster)
    cuts = [cut for plan in cluster.plan_objects() for cut in plan.status.cuts]
    assert all(each.ended_at for each in cuts)


def assert_is_at_rest(cluster: ManagedNodes) -> None:
    assert all(cluster.pod_on(name) for name in cluster.managers)
    assert not any(AWAY_LABEL in cluster.labels(name) for name in cluster.managers)
    assert cluster.most_pending <= 0
    assert cluster.replicas() == len(cluster.managers)


def test_a_node_is_emptied_cut_and_served_again_one_after_the_other() -> None:
    cluster, away = two_of_each(), 0
    for _ in range(TICKS):
        cluster.tick()
        away = max(away, sum(cluster.pod_on(name) is None for name in cluster.managers))
    assert away == 1
    cluster.settle()
    assert_is_as_planned(cluster)
    states = {cluster.labels(name)[STATE_LABEL] for name in cluster.managers}
    assert states == {SUCCESS}


def test_all_gpus_of_a_node_are_cut_in_one_go() -> None:
    cluster = two_of_each(2, "abc")
    pods = {name: {cluster.pod_on(name)} for name in cluster.managers}
    for _ in range(TICKS + 20):
        cluster.tick()
        for name, seen in pods.items():
            seen.add(cluster.pod_on(name))
    cluster.settle(400)
    assert cluster.ready() == {(f"vision.{name}", name): 2 for name in "abc"}
    assert min(cluster.fewest.values()) >= 1
    cut = [cut.device for plan in cluster.plan_objects() for cut in plan.status.cuts]
    assert sorted(cut) == [f"GPU-{name}-{index}" for name in pods for index in (0, 1)]
    assert {name: len(seen - {None}) for name, seen in pods.items()} == {"n0": 2, "n1": 2}
    assert_is_at_rest(cluster)


@cache
def with_another_leader() -> tuple[ManagedNodes, ...]:
    """By tick, what another leader finds who leads from then on."""
    cluster, found = two_of_each(), list[ManagedNodes]()
    for _ in range(TICKS):
        found.append(cluster.twin())
        cluster.tick()
    return tuple(found)


@pytest.mark.parametrize("tick", range(TICKS))
def test_whenever_the_operator_is_killed_the_cuts_end_as_planned(tick: int) -> None:
    cluster = with_another_leader()[tick].twin()
    cluster.settle(400)
    assert_is_as_planned(cluster)


@pytest.mark.parametrize("tick", range(0, TICKS, 6))
@pytest.mark.parametrize("name", ["n0", "n1"])
def test_whenever_an_agent_is_killed_the_cuts_end_as_planned(name: str, tick: int) -> None:
    cluster = two_of_each()
    cluster.tick(tick)
    cluster.kill("agent", name, 4.0)
    cluster.settle(400)
    assert_is_as_planned(cluster)


def until_asked(cluster: ManagedNodes) -> str:
    """The first node whose manager was asked."""
    for _ in range(TICKS):
        cluster.tick()
        for name in cluster.managers:
            if cluster.labels(name).get(CONFIG_LABEL, "").startswith("tessera-"):
                return name
    raise AssertionError("nobody was asked")


@pytest.mark.parametrize(
    ("mood", "wait_s", "reason", "words"),
    [
        (Mood.FAILS, 0, CutProblem.MANAGER_FAILED, "its log says why"),
        (Mood.FAILS_HALFWAY, 0, CutProblem.MANAGER_FAILED, "its log says why"),
        (Mood.LIES, 0, CutProblem.MANAGER_FAILED, "the GPUs are cut otherwise"),
        (Mood.SILENT, MANAGER_S, CutProblem.OUT_OF_TIME, "says pending of tessera-"),
        (Mood.STUCK, MANAGER_S, CutProblem.OUT_OF_TIME, "says pending of tessera-"),
    ],
)
def test_what_fails_is_put_back(mood: Mood, wait_s: float, reason: CutProblem, words: str) -> None:
    cluster = two_of_each()
    for manager in cluster.managers.values():
        manager.mood = mood
    name = until_asked(cluster)
    cluster.tick(8)
    cluster.tick(1, seconds=wait_s)
    cluster.tick(4)
    found = problems(cluster)[f"GPU-{name}-0"]
    assert found.startswith(f"{reason.value}: ")
    assert words in found
    for each, manager in cluster.managers.items():
        # One that did not answer is started anew.
        cluster.managers[each] = Manager() if wait_s else replace(manager, mood=Mood.WORKS)
    cluster.settle(400)
    assert cluster.gpus[name, f"GPU-{name}-0"].geometry == (WHOLE,)
    assert min(cluster.fewest.values()) >= 1
    assert_is_at_rest(cluster)


def test_a_layout_that_somebody_else_asks_for_meanwhile_stays() -> None:
    cluster = two_of_each()
    name = until_asked(cluster)
    other = "n1" if name == "n0" else "n0"
    cluster.managers[other].mood = Mood.FAILS
    cluster.tick()
    cluster.labels(name)[CONFIG_LABEL] = "all-disabled"
    cluster.tick(2)
    found = problems(cluster)[f"GPU-{name}-0"]
    assert found.startswith("ChangedByHand: somebody set nvidia.com/mig.config to all-disabled")
    cluster.settle(400)
    assert cluster.labels(name)[CONFIG_LABEL] == "all-disabled"


def pool_says(cluster: ManagedNodes) -> tuple[str, str]:
    found = RuntimePool.from_dict(cluster.cluster.objects["RuntimePool", "", "p"])
    (each,) = [each for each in found.status.conditions if each.type == "Partitioning"]
    return each.reason, each.message


def test_nodes_without_the_administrators_label_are_used_as_they_are() -> None:
    cluster = _uncut().twin()
    for name in cluster.managers:
        del cluster.labels(name)[ALLOWED_LABEL]
    cluster.change("RuntimePool", "p", partition=BACKEND)
    cluster.settle()
    assert geometries(cluster) == [(WHOLE,), (WHOLE,)]
    reason, message = pool_says(cluster)
    assert reason == "NoPartitioner"
    assert "tessera.dev/repartition=true" in message


def test_without_approval_nobody_is_asked_and_the_layout_is_there_when_approval_comes() -> None:
    cluster = two_of_each(approval="Manual")
    cluster.settle()
    assert pool_says(cluster)[0] == "Ready"
    written = cluster.cluster.objects["ConfigMap", SETTINGS.namespace, SETTINGS.config_map]
    assert "3g.40gb: 2" in written["data"]["config.yaml"]
    assert not any(CONFIG_LABEL in cluster.labels(name) for name in cluster.managers)


def test_a_label_that_is_left_when_nothing_is_to_be_cut_is_taken_away() -> None:
    cluster = _uncut().twin()
    cluster.change("RuntimePool", "p", partition={**BACKEND, "approval": "Manual"})
    cluster.labels("n0")[AWAY_LABEL] = "tessera-000000000000-a"
    cluster.settle()
    assert_is_at_rest(cluster)


def test_a_label_that_is_left_in_a_pool_that_others_cut_is_taken_away_and_nothing_is_said() -> None:
    cluster = _uncut().twin()
    cluster.labels("n0")[AWAY_LABEL] = "tessera-000000000000-a"
    told = {"uuid": "GPU-n0-0", "generation": 7}
    cluster.cluster.objects["RuntimeNode", "", "n0"]["status"]["cuts"] = [told]
    cluster.tick(3)
    assert AWAY_LABEL not in cluster.labels("n0")
    assert cluster.cluster.objects["RuntimeNode", "", "n0"]["status"]["cuts"][0]["generation"] == 7


@pytest.mark.parametrize("by_another_leader", [False, True])
def test_nothing_more_is_told_of_nodes_that_somebody_else_is_to_cut(
    by_another_leader: bool,
) -> None:
    cluster = two_of_each()
    cluster.settle(400)
    if by_another_leader:
        cluster.restart()
    cluster.change("RuntimePool", "p", partition={"backend": "NVML", "approval": "Auto"})
    told = {"uuid": "GPU-new", "generation": 7}
    document = cluster.cluster.objects["RuntimeNode", "", "n0"]
    cluster.cluster.apply(head(key_of(document)) | {"status": {"cuts": [told]}}, "status", "other")
    cluster.tick(3)
    nodes = [cluster.cluster.objects["RuntimeNode", "", name]["status"] for name in ("n0", "n1")]
    assert [[cut["uuid"] for cut in node.get("cuts", [])] for node in nodes] == [["GPU-new"], []]
    writes = len(cluster.cluster.calls)
    cluster.tick(3)
    beside_beats = cluster.cluster.calls[writes:]
    assert not [call for call in beside_beats if call == ("apply", key_of(document))]


@pytest.mark.parametrize("backend", ["Static", "MigManager"])
def test_what_a_partitioner_told_of_a_node_that_it_cuts_no_more_is_taken_back(backend: str) -> None:
    cluster = _uncut().twin()
    cluster.change("RuntimePool", "p", partition={**BACKEND, "backend": "NVML"})
    document = cluster.cluster.objects["RuntimeNode", "", "n0"]
    status = {"status": {"cuts": [{"uuid": "GPU-gone"}]}}
    cluster.cluster.apply(head(key_of(document)) | status, "status", PARTITIONER)
    cluster.tick()
    cuts = cluster.cluster.objects["RuntimeNode", "", "n0"]["status"]["cuts"]
    assert [cut["uuid"] for cut in cuts] == ["GPU-gone"]
    cluster.change("RuntimePool", "p", partition={**BACKEND, "backend": backend})
    cluster.tick(2)
    cuts = cluster.cluster.objects["RuntimeNode", "", "n0"]["status"].get("cuts", [])
    assert "GPU-gone" not in {cut["uuid"] for cut in cuts}


def test_a_failed_state_of_somebody_elses_layout_is_no_reason_to_wait() -> None:
    cluster = two_of_each()
    for name, manager in cluster.managers.items():
        cluster.labels(name).update({CONFIG_LABEL: "gone", STATE_LABEL: FAILED})
        manager.seen = "gone"
    cluster.settle(400)
    assert_is_as_planned(cluster)


def test_the_agent_is_told_the_places_that_were_planned() -> None:
    cluster = two_of_each()
    cluster.settle(400)
    for name in cluster.managers:
        found = RuntimeNode.from_dict(cluster.cluster.objects["RuntimeNode", "", name])
        (cut,) = found.status.cuts
        assert [(each.profile, each.start) for each in cut.slices] == [
            (each.profile, each.start) for each in HALVES
        ]
        assert cut.problem is None
