"""What keeps a large cluster cheap: counters alone start no round, and objects that differ are written at once."""

from __future__ import annotations

import copy
import threading
from typing import Any

import pytest

from support.memory_cluster import MemoryCluster
from tessera_operator.cluster import Unreachable
from tessera_operator.facts import Facts
from tessera_operator.kinds import Document
from tessera_operator.write import Writer

KEY = "RuntimeNode", "", "n0"


def node(**served: Any) -> dict[str, Any]:
    service = {"name": "vision.s", "ready": True, "good": 9, "total": 10, "latencyBuckets": [10]}
    return {
        "apiVersion": "tessera.dev/v1alpha1",
        "kind": "RuntimeNode",
        "metadata": {"name": "n0", "resourceVersion": str(len(served))},
        "spec": {"epoch": 1},
        "status": {"services": [service | served]},
    }


def taken(first: Document) -> Facts:
    """Facts of which nothing is news."""
    facts = Facts()
    facts.put(copy.deepcopy(dict(first)))
    facts.changed()
    return facts


def test_a_node_that_only_counts_on_is_taken_over_when_somebody_asks() -> None:
    facts = taken(node())
    correction = {"member": "m", "product": "cpu", "slice": "cpu-1", "ratio": "1.2"}
    counted = {"good": 18, "total": 20, "latencyBuckets": [20], "corrections": [correction]}
    facts.put(node(**counted))
    assert not facts.wait(0, 0, 0)
    assert facts.has_changed
    assert facts.changed() == {KEY: node(**counted)}
    assert not facts.has_changed


@pytest.mark.parametrize(
    "served", [{"held": 1}, {"ready": False}, {"total": 20, "problem": "lost"}]
)
def test_whatever_else_a_node_says_is_news(served: dict[str, Any]) -> None:
    facts = taken(node())
    facts.put(node(**served))
    assert facts.wait(0, 0, 0)


def test_what_was_just_reported_of_a_service_is_no_news_but_what_a_user_changes_is() -> None:
    service = {
        "apiVersion": "tessera.dev/v1alpha1",
        "kind": "ModelService",
        "metadata": {"name": "s", "namespace": "vision", "resourceVersion": "1", "generation": 1},
        "spec": {"replicas": 1},
    }
    facts = taken(service)
    reported = {**service, "status": {"replicas": 1}}
    facts.put({**reported, "metadata": {**service["metadata"], "resourceVersion": "2"}})
    assert not facts.wait(0, 0, 0)
    assert facts.has_changed
    facts.put({**reported, "spec": {"replicas": 2}, "metadata": dict(service["metadata"])})
    assert facts.wait(0, 0, 0)


def services(count: int) -> list[dict[str, Any]]:
    return [
        {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {"name": f"s{index}", "namespace": "vision"},
            "spec": {"ports": []},
        }
        for index in range(count)
    ]


def test_objects_are_written_at_once() -> None:
    together = threading.Barrier(4, timeout=10)

    class Waiting(MemoryCluster):
        """Answers when four writes are under way."""

        def apply(self, document: Document, *rest: str) -> dict[str, Any]:
            together.wait()
            return super().apply(document, *rest)

    cluster = Waiting()
    writer = Writer(cluster, {})
    writer.put_all(services(8))
    assert writer.failed == []
    assert len(cluster.objects) == 8


def test_of_many_objects_those_are_written_that_differ() -> None:
    present = MemoryCluster(*services(3))
    writer = Writer(present, dict(present.objects))
    *same, changed = services(3)
    changed["spec"]["type"] = "ClusterIP"
    writer.put_all([*same, changed])
    assert present.calls == [("apply", ("Service", "vision", "s2"))]


def test_one_write_that_fails_leaves_the_others_alone() -> None:
    cluster = MemoryCluster()
    cluster.failing["Service", "vision", "s1"] = Unreachable("no route")
    writer = Writer(cluster, {})
    writer.put_all(services(3))
    assert writer.failed == ["apply Service vision/s1: no route"]
    assert sorted(name for _, _, name in cluster.objects) == ["s0", "s2"]
