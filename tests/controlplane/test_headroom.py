"""Spare nodes: a CapacityBuffer is believed when its conditions say so, else pods of low priority hold the room."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from support.memory_cluster import MemoryCluster
from support.objects import pool
from tessera_core.api import RuntimePool
from tessera_operator.headroom import (
    PROVISIONED_S,
    RESOLVED_S,
    Headroom,
    Held,
    buffer_document,
    placeholders,
)
from tessera_operator.pools import RUNTIME, Images, Installation, deployment
from tessera_operator.write import Writer

WHERE = Installation(
    "tessera-system", Images("gpu:1", "cpu:1"), headroom_class="low", has_buffers=True
)
BUFFER = ("CapacityBuffer", "tessera-system", "tessera-headroom-p")
PODS = ("Deployment", "tessera-system", "tessera-headroom-p")


def spare(nodes: int, **rest: Any) -> RuntimePool:
    return pool("p", size={"max": 9, "headroom": {"spareNodes": nodes}}, **rest)


class Kept:
    """A pool's headroom, round by round."""

    def __init__(self, where: Installation = WHERE, cluster: MemoryCluster | None = None) -> None:
        self.cluster = cluster or MemoryCluster()
        self._headroom = Headroom(where)
        self._writer = Writer(self.cluster, self.cluster.objects)

    def at(self, now_s: float, nodes: int = 1, wanted: int = 1) -> Held | None:
        found = self._headroom.keep(self._writer, self.cluster.objects, spare(wanted), nodes, now_s)
        assert self._writer.failed == []
        return found

    def says(self, generation: int = 1, **conditions: str) -> None:
        """What an autoscaler writes."""
        self.cluster.objects[BUFFER]["status"] = {
            "conditions": [
                {"type": name, "status": status, "reason": "R", "observedGeneration": generation}
                for name, status in conditions.items()
            ]
        }

    @property
    def held(self) -> dict[str, int]:
        """Spare nodes, by the kind of what holds them."""
        return {key[0]: each["spec"]["replicas"] for key, each in self.cluster.objects.items()}


def test_a_buffer_holds_the_room_once_somebody_says_so() -> None:
    kept = Kept()
    assert kept.at(0) is Held.WAITING
    assert kept.cluster.objects[BUFFER]["spec"]["replicas"] == 1
    kept.says(ReadyForProvisioning="True", Provisioning="False")
    assert kept.at(RESOLVED_S + 1) is Held.WAITING
    kept.says(ReadyForProvisioning="True", Provisioning="True")
    assert kept.at(RESOLVED_S + 2) is Held.BUFFER
    # The room was taken, and the next is on its way.
    kept.says(ReadyForProvisioning="True", Provisioning="False")
    assert kept.at(10 * PROVISIONED_S) is Held.BUFFER
    assert kept.held == {"CapacityBuffer": 1}


@pytest.mark.parametrize(
    ("conditions", "after_s"),
    [
        ({}, RESOLVED_S),
        ({"ReadyForProvisioning": "False"}, RESOLVED_S),
        ({"ReadyForProvisioning": "True"}, PROVISIONED_S),
        ({"ReadyForProvisioning": "True", "Provisioning": "False"}, PROVISIONED_S),
    ],
)
def test_pods_take_the_place_of_a_buffer_that_nobody_acts_on(
    conditions: dict[str, str], after_s: float
) -> None:
    kept = Kept()
    kept.at(0)
    kept.says(**conditions)
    assert kept.at(after_s - 1) is Held.WAITING
    assert kept.at(after_s) is Held.PODS
    assert kept.held == {"Deployment": 1, "CapacityBuffer": 0}


@pytest.mark.parametrize("between", [0, 1])
def test_a_buffer_that_nobody_acts_on_any_more_is_given_up(between: int) -> None:
    """It is seen when the buffer changes: what was said of it before stays."""
    kept = Kept()
    kept.at(0)
    kept.says(ReadyForProvisioning="True", Provisioning="True")
    assert kept.at(1) is Held.BUFFER
    kept.at(2, nodes=between, wanted=between)
    changed = 2 if between else 1
    for now_s, held in (
        (3, Held.BUFFER if between else Held.WAITING),
        (2 + RESOLVED_S, Held.BUFFER if between else Held.WAITING),
        (3 + RESOLVED_S, Held.PODS),
    ):
        assert kept.at(now_s, nodes=changed, wanted=changed) is held


def test_what_was_said_of_another_size_does_not_count() -> None:
    kept = Kept()
    kept.at(0)
    kept.says(generation=0, ReadyForProvisioning="True", Provisioning="True")
    assert kept.at(1) is Held.WAITING


def test_a_new_leader_keeps_to_pods_that_it_finds() -> None:
    kept = Kept()
    kept.at(0)
    kept.at(RESOLVED_S)
    after = Kept(cluster=kept.cluster)
    assert after.at(RESOLVED_S + 1) is Held.PODS
    assert after.at(RESOLVED_S + 2, nodes=0) is Held.PODS
    assert kept.cluster.objects[PODS]["spec"]["replicas"] == 0


def test_pods_hold_the_room_where_there_are_no_buffers() -> None:
    kept = Kept(replace(WHERE, has_buffers=False))
    assert kept.at(0, nodes=2, wanted=2) is Held.PODS
    assert kept.cluster.objects[PODS]["spec"]["replicas"] == 2


def test_without_a_priority_class_nobody_would_give_way() -> None:
    kept = Kept(replace(WHERE, has_buffers=False, headroom_class=""))
    assert kept.at(0) is Held.NOBODY
    assert kept.held == {}


@pytest.mark.parametrize("has_buffers", [True, False])
def test_nothing_is_left_when_no_spare_nodes_are_wanted(has_buffers: bool) -> None:
    kept = Kept(replace(WHERE, has_buffers=has_buffers))
    kept.at(0)
    assert list(kept.held.values()) == [1]
    assert kept.at(1, nodes=0, wanted=0) is None
    assert kept.held == ({"CapacityBuffer": 0} if has_buffers else {})


def test_an_empty_buffer_waits_until_there_may_be_more_nodes() -> None:
    kept = Kept()
    assert kept.at(0, nodes=0) is Held.WAITING
    assert kept.at(10 * PROVISIONED_S, nodes=0) is Held.WAITING


def test_a_buffer_is_of_what_runtime_pods_ask_for() -> None:
    made = deployment(spare(1), 1, WHERE)["metadata"]["name"]
    assert buffer_document(spare(1), 1, WHERE)["spec"]["scalableRef"]["name"] == made


@pytest.mark.parametrize("gpus", [0, 4])
def test_placeholders_ask_for_what_runtime_pods_do_and_give_way(gpus: int) -> None:
    shape = {"selector": {"gpu": "a100"}, "tolerations": [{"operator": "Exists"}]}
    made = spare(1, gpus=gpus, node=shape)
    runtime = deployment(made, 1, WHERE)["spec"]["template"]["spec"]
    held = placeholders(made, 1, WHERE)["spec"]["template"]["spec"]
    assert [each["resources"]["requests"] for each in held["containers"]] == [
        each["resources"]["requests"] for each in runtime["containers"]
    ]
    assert [each["securityContext"] for each in held["containers"]] == [
        each["securityContext"] for each in runtime["containers"]
    ]
    for name in ("nodeSelector", "tolerations", "securityContext"):
        assert held[name] == runtime[name]
    assert held["priorityClassName"] == "low"
    assert held["terminationGracePeriodSeconds"] == 0
    (term,) = held["affinity"]["podAntiAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
    assert RUNTIME in term["labelSelector"]["matchExpressions"][0]["values"]
    assert {each["image"] for each in held["containers"]} == {"gpu:1" if gpus else "cpu:1"}


def test_placeholders_are_none_of_the_pods_that_others_select() -> None:
    labels = placeholders(spare(1), 1, WHERE)["spec"]["template"]["metadata"]["labels"]
    assert "tessera.dev/pool" not in labels
    assert labels["app.kubernetes.io/name"] == "tessera-headroom"
