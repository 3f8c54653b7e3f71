"""Runtime pods and their RuntimeNodes: made with the pod, kept for the next one, gone with the machine."""

from __future__ import annotations

from typing import Any

import pytest

from support.memory_cluster import MemoryCluster
from support.objects import kubernetes_node, node, pod, ready
from tessera_core.api import RuntimeNode, RuntimeNodeSpec
from tessera_core.api.meta import ConditionStatus
from tessera_operator.kinds import Document, Key, key_of
from tessera_operator.mig_manager import AWAY_LABEL
from tessera_operator.pools import Images, Installation
from tessera_operator.runtime_pods import (
    RETURN_S,
    Present,
    RuntimePods,
    node_document,
    owned_labels,
)
from tessera_operator.world import ACTIVATOR_LABEL
from tessera_operator.write import Writer

WHERE = Installation("tessera-system", Images("gpu:1", "cpu:1"))
LOST_S = 40.0
DELETED = {"deletionTimestamp": "2026-01-31T12:00:00Z"}


def documents(*found: Document) -> dict[Key, Document]:
    return {key_of(each): each for each in found}


def look(
    pods: list[Document],
    nodes: list[RuntimeNode],
    silent: tuple[str, ...] = (),
    of: RuntimePods | None = None,
    now_s: float = 0.0,
) -> Present:
    of = of or RuntimePods(WHERE, LOST_S)
    return of.see(documents(*pods), nodes, frozenset(silent), now_s)


def names(found: tuple[RuntimeNode, ...]) -> list[str]:
    return [each.metadata.name for each in found]


def test_a_node_with_a_pod_that_is_heard_of_is_steady() -> None:
    found = look([pod("pod-n0", "n0")], [node("n0")])
    assert (found.lost, found.unsure) == (frozenset(), frozenset())
    assert found.steady == {"n0"}
    assert names(found.by_pool["p"]) == ["n0"]


def test_a_status_of_a_pod_that_is_gone_says_nothing_any_more() -> None:
    found = look([pod("another", "n0")], [node("n0")])
    assert found.answering == ()
    assert found.lost == frozenset()
    assert found.steady == frozenset()


@pytest.mark.parametrize("phase", ["Failed", "Succeeded"])
def test_a_pod_that_has_ended_is_none(phase: str) -> None:
    found = look([pod("pod-n0", "n0", phase=phase)], [node("n0")])
    assert (found.answering, found.by_pool) == ((), {})


def test_a_silent_node_is_lost() -> None:
    found = look([pod("pod-n0", "n0"), pod("pod-n1", "n1")], [node("n0"), node("n1")], ("n0", "nx"))
    assert (found.lost, found.unsure) == ({"n0"}, {"n0"})
    assert names(found.by_pool["p"]) == ["n1"]
    assert found.steady == {"n1"}


@pytest.mark.parametrize(
    ("pods", "unsure"),
    [
        ([pod("pod-n0", "n0", **DELETED)], True),
        ([pod("pod-n0", "n0", **DELETED), pod("pod-new", "n0")], False),
    ],
)
def test_a_node_whose_pods_all_end_is_about_to_go(pods: list[Document], unsure: bool) -> None:
    found = look(pods, [node("n0")])
    assert found.unsure == ({"n0"} if unsure else frozenset())
    assert found.lost == frozenset()
    assert names(found.answering) == ["n0"]


def test_a_node_that_says_that_it_drains_is_about_to_go() -> None:
    drains = node("n0", conditions=(ready(ConditionStatus.FALSE, "Draining"),))
    assert look([pod("pod-n0", "n0")], [drains]).unsure == {"n0"}


def test_a_node_without_a_pod_is_lost_after_a_while_and_found_with_the_next_one() -> None:
    of, nodes = RuntimePods(WHERE, LOST_S), [node("n0")]
    assert look([], nodes, of=of, now_s=0).lost == frozenset()
    assert look([], nodes, of=of, now_s=39).lost == frozenset()
    assert look([], nodes, of=of, now_s=40).lost == {"n0"}
    assert look([pod("pod-n0", "n0")], nodes, of=of, now_s=50).lost == frozenset()
    assert look([], nodes, of=of, now_s=60).lost == frozenset()
    assert look([], nodes, of=of, now_s=100).lost == {"n0"}


def kept(
    pods: list[Document],
    nodes: list[RuntimeNode],
    machines: tuple[Document, ...] = (),
    *,
    after_s: float = 0.0,
) -> MemoryCluster:
    """The cluster once its RuntimeNodes are as they are to be."""
    of = RuntimePods(WHERE, LOST_S)
    cluster = MemoryCluster(*pods, *machines, *(each.to_dict() for each in nodes))
    known: dict[Key, Document] = dict(cluster.objects)
    for now_s in (0.0, after_s):
        of.see(known, nodes, frozenset(), now_s)
    of.keep_nodes(Writer(cluster, known), known, nodes, 7)
    return cluster


def calls(cluster: MemoryCluster, kind: str = "RuntimeNode") -> list[tuple[str, str]]:
    return [(verb, key[2]) for verb, key in cluster.calls if key[0] == kind]


def activator(name: str) -> Document:
    labels = {"app.kubernetes.io/name": "tessera-activator"}
    return pod(name, "n0", labels=labels)


def test_a_node_whose_pod_is_away_for_a_cut_is_neither_lost_nor_about_to_go() -> None:
    of, here = RuntimePods(WHERE, LOST_S), [node("n0")]
    closed = kubernetes_node("n0", labels={AWAY_LABEL: "tessera-1-a"})
    for pods in ([pod("pod-n0", "n0")], [pod("pod-n0", "n0", **DELETED)], []):
        found = look([closed, *pods], here, ("n0",), of, now_s=2 * LOST_S)
        assert (found.lost, found.unsure, found.steady) == (frozenset(), frozenset(), frozenset())
        assert (found.closed, found.awaited) == ({"n0"}, frozenset())
        assert found.with_pod == {"n0"} if pods else not found.with_pod
        assert names(found.by_pool["p"]) == ["n0"]
    assert not found.bound


def test_a_pod_that_was_away_is_waited_for_and_not_for_ever() -> None:
    machine, here = kubernetes_node("n0"), [node("n0")]
    closed = kubernetes_node("n0", labels={AWAY_LABEL: "tessera-1-a"})

    def after_a_cut() -> RuntimePods:
        of = RuntimePods(WHERE, LOST_S)
        look([closed], here, ("n0",), of, now_s=0.0)
        return of

    starts = [machine, pod("pod-n0-2", "n0")]
    of = after_a_cut()
    assert look(starts, here, ("n0",), of, now_s=RETURN_S - 1).awaited == {"n0"}
    late = look(starts, here, ("n0",), of, now_s=RETURN_S)
    assert (late.lost, late.awaited) == ({"n0"}, frozenset())
    of = after_a_cut()
    back = look(starts, [node("n0", pod="pod-n0-2")], (), of, now_s=10.0)
    assert (back.steady, back.awaited) == ({"n0"}, frozenset())
    assert look(starts, here, ("n0",), of, now_s=20.0).lost == {"n0"}


def test_a_pod_that_has_its_node_gets_a_runtime_node_of_its_pool() -> None:
    cluster = kept([pod("a", "n0"), pod("b", None)], [])
    assert calls(cluster) == [("apply", "n0")]
    made = RuntimeNode.from_dict(cluster.objects["RuntimeNode", "", "n0"])
    assert dict(made.metadata.labels)["tessera.dev/pool"] == "p"
    assert made.spec == RuntimeNodeSpec(epoch=7)


def test_an_activator_has_a_runtime_node_of_its_own_name() -> None:
    cluster = kept([activator("tessera-activator-x"), pod("a", "n0")], [])
    assert calls(cluster) == [("apply", "n0"), ("apply", "tessera-activator-x")]
    labels = cluster.objects["RuntimeNode", "", "tessera-activator-x"]["metadata"]["labels"]
    assert labels[ACTIVATOR_LABEL] == "true"
    assert "tessera.dev/pool" not in labels


def test_a_node_that_is_there_is_not_written_again() -> None:
    assert calls(kept([pod("a", "n0")], [node("n0")], (kubernetes_node("n0"),))) == []


def test_a_runtime_node_that_cannot_be_read_is_not_overwritten() -> None:
    of = RuntimePods(WHERE, LOST_S)
    unread = {**node("n0").to_dict(), "spec": {"epoch": "x"}}
    known = documents(pod("a", "n0"), unread)
    of.see(known, [], frozenset(), 0)
    cluster = MemoryCluster()
    of.keep_nodes(Writer(cluster, known), known, [], 1)
    assert cluster.calls == []


TAINTS: list[dict[str, Any]] = [
    {"key": "b", "effect": "NoSchedule", "timeAdded": "2026-01-31T12:00:00Z"},
    {"key": "a", "effect": "NoExecute", "value": "x"},
]


def test_the_taints_of_the_machine_are_copied_once() -> None:
    machine = kubernetes_node("n0", taints=TAINTS)
    cluster = kept([pod("a", "n0")], [node("n0")], (machine,))
    assert calls(cluster) == [("apply", "n0")]
    found = RuntimeNode.from_dict(cluster.objects["RuntimeNode", "", "n0"])
    assert [(each.key, each.value) for each in found.status.taints] == [("a", "x"), ("b", "")]
    assert found.status.pod == "pod-n0"
    assert calls(kept([pod("a", "n0")], [found], (machine,))) == []


def test_taints_that_are_gone_are_taken_away() -> None:
    tainted = kept([pod("a", "n0")], [node("n0")], (kubernetes_node("n0", taints=TAINTS),))
    found = RuntimeNode.from_dict(tainted.objects["RuntimeNode", "", "n0"])
    cluster = kept([pod("a", "n0")], [found], (kubernetes_node("n0"),))
    after = RuntimeNode.from_dict(cluster.objects["RuntimeNode", "", "n0"])
    assert after.status.taints == ()


def test_a_runtime_node_goes_with_its_machine_and_not_with_its_pod() -> None:
    machine = kubernetes_node("n0")
    assert calls(kept([], [node("n0")], (machine,), after_s=LOST_S)) == []
    assert calls(kept([], [node("n0")], after_s=LOST_S - 1)) == []
    gone = kept([], [node("n0")], after_s=LOST_S)
    assert calls(gone) == [("delete", "n0")]
    assert calls(gone, "Lease") == [("delete", "tessera-node-n0")]


def test_the_runtime_node_of_an_activator_goes_with_its_pod() -> None:
    found = node("tessera-activator-x", labels={ACTIVATOR_LABEL: "true"})
    assert calls(kept([], [found], after_s=LOST_S)) == [("delete", "tessera-activator-x")]


def test_a_document_without_spec_says_nothing_of_labels() -> None:
    """What is left out of an apply is taken back, and a status is applied by itself."""
    assert node_document("n0", {"a": "b"}, None)["metadata"] == {"name": "n0"}
    full = node_document("n0", {"tessera.dev/pool": "p"}, RuntimeNodeSpec(epoch=1))
    assert full["metadata"]["labels"]["tessera.dev/pool"] == "p"
    assert full["spec"] == {"epoch": 1}


def test_labels_of_others_are_not_the_operators() -> None:
    assert owned_labels(node("n0", labels={"tessera.dev/pool": "p", "zone": "a"})) == {
        "tessera.dev/pool": "p"
    }
