"""The present objects: what is gone is gone, what says the same is no news, and news is waited for together."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from support.memory_cluster import MemoryCluster
from support.objects import kubernetes_node, pod
from tessera_operator import kinds
from tessera_operator.cluster import ApiError
from tessera_operator.facts import Facts, Follower, Source
from tessera_operator.kinds import Kind

NODES = Source(kinds.NODE)
SERVICES = Source(kinds.MODEL_SERVICE)
LONG_S = 30.0
"""Longer than any test waits."""


def service(
    name: str, version: str = "1", namespace: str = "vision", **rest: Any
) -> dict[str, Any]:
    return {
        "kind": "ModelService",
        "metadata": {"name": name, "namespace": namespace, "resourceVersion": version},
        **rest,
    }


def key(name: str, namespace: str = "vision") -> tuple[str, str, str]:
    return "ModelService", namespace, name


def test_what_was_put_is_news_once() -> None:
    facts = Facts()
    facts.put(service("a"))
    assert facts.changed() == {key("a"): service("a")}
    assert facts.changed() == {}


def test_several_changes_of_one_object_are_one() -> None:
    facts = Facts()
    facts.put(service("a", "1"))
    facts.put(service("a", "2"))
    assert facts.changed() == {key("a"): service("a", "2")}


def test_what_is_removed_is_news_without_a_document() -> None:
    facts = Facts()
    facts.put(service("a"))
    facts.changed()
    facts.remove(key("a"))
    facts.remove(key("never-there"))
    assert facts.changed() == {key("a"): None}


def test_a_list_removes_what_it_lacks_and_leaves_what_is_of_the_same_version() -> None:
    facts = Facts()
    for name in "abc":
        facts.put(service(name))
    facts.changed()
    facts.replace(SERVICES, [service("a"), service("b", "2"), service("d")])
    assert facts.changed() == {
        key("b"): service("b", "2"),
        key("c"): None,
        key("d"): service("d"),
    }


def test_a_list_says_nothing_of_other_kinds_and_namespaces() -> None:
    facts = Facts()
    facts.put(service("a", namespace="red"))
    facts.put(service("a", namespace="blue"))
    facts.put(kubernetes_node("n0"))
    facts.changed()
    facts.replace(Source(kinds.MODEL_SERVICE, "red"), [])
    assert facts.changed() == {key("a", "red"): None}


def test_what_nobody_asks_for_is_not_kept() -> None:
    facts = Facts()
    node = kubernetes_node("n0", labels={"zone": "a"}, taints=[{"key": "x"}], podCIDR="10.1.0.0/24")
    node["metadata"] |= {"managedFields": [{}], "annotations": {"a": "b"}}
    node["status"] = {"images": ["large"] * 50}
    facts.put(node)
    runtime = pod("r", "n0")
    runtime["metadata"]["managedFields"] = [{}]
    runtime["spec"]["containers"] = [{}]
    facts.put(runtime)
    found = facts.changed()
    kept = found["Node", "", "n0"]
    assert kept is not None
    assert kept["metadata"] == {"name": "n0", "resourceVersion": "1", "labels": {"zone": "a"}}
    assert (kept["spec"], kept["status"]) == ({"taints": [{"key": "x"}]}, {})
    kept = found["Pod", "tessera-system", "r"]
    assert kept is not None
    assert (kept["spec"], kept["status"]) == ({"nodeName": "n0"}, {"phase": "Running"})
    assert "managedFields" not in kept["metadata"]


@pytest.mark.parametrize("make", [kubernetes_node, lambda name: pod(name, "n0")])
def test_a_node_or_pod_that_only_beats_is_no_news(make: Any) -> None:
    facts = Facts()
    facts.put(make("x"))
    facts.changed()
    again = make("x")
    again["metadata"]["resourceVersion"] = "2"
    again["status"]["conditions"] = [{"type": "Ready", "lastHeartbeatTime": "later"}]
    facts.put(again)
    assert facts.changed() == {}
    assert facts.wait(0.0, LONG_S, LONG_S) is False
    again = make("x")
    again["metadata"]["labels"] = {"other": "one"}
    facts.put(again)
    assert len(facts.changed()) == 1


def test_without_news_the_wait_ends_with_nothing() -> None:
    assert Facts().wait(0.0, LONG_S, LONG_S) is False


def test_news_that_came_before_the_wait_is_not_missed() -> None:
    facts = Facts()
    facts.put(service("a"))
    assert facts.wait(LONG_S, 0.0, LONG_S)


def test_news_wakes_who_waits() -> None:
    facts, woken = Facts(), threading.Event()
    threading.Thread(
        target=lambda: facts.wait(LONG_S, 0.0, LONG_S) and woken.set(), daemon=True
    ).start()
    facts.put(service("a"))
    assert woken.wait(LONG_S)


def test_a_change_waits_no_longer_than_it_may_while_others_keep_coming() -> None:
    facts, woken, stop = Facts(), threading.Event(), threading.Event()

    def keep_changing() -> None:
        version = 0
        while not stop.wait(0.001):
            version += 1
            facts.put(service("a", str(version)))

    threads = [
        threading.Thread(target=keep_changing),
        # It is never quiet for so long; only the age of the first change ends the wait.
        threading.Thread(target=lambda: facts.wait(LONG_S, LONG_S, 0.05) and woken.set()),
    ]
    for thread in threads:
        thread.start()
    assert woken.wait(LONG_S)
    stop.set()
    for thread in threads:
        thread.join(LONG_S)


def test_who_waits_can_be_woken_without_news() -> None:
    facts, woken = Facts(), threading.Event()
    threading.Thread(
        target=lambda: facts.wait(LONG_S, LONG_S, LONG_S) and woken.set(), daemon=True
    ).start()
    facts.wake()
    assert woken.wait(LONG_S)
    assert facts.changed() == {}


class Watched(MemoryCluster):
    """A server whose watches say what the test puts into ``events``."""

    def __init__(self) -> None:
        super().__init__()
        self.events: queue.Queue[dict[str, Any] | Exception | None] = queue.Queue()
        self.watched: list[str] = []
        """The version that each watch began at."""

    def watch(
        self, kind: Kind, namespace: str, labels: str, version: str, timeout_s: int
    ) -> Iterator[dict[str, Any]]:
        self.watched.append(version)
        while (event := self.events.get()) is not None:
            if isinstance(event, Exception):
                raise event
            yield event


def event(kind: str, document: dict[str, Any]) -> dict[str, Any]:
    return {"type": kind, "object": document}


@pytest.fixture
def followed() -> tuple[Watched, Facts]:
    """A follower goes on until the process ends; without events it waits for ever."""
    cluster, facts = Watched(), Facts()
    cluster.apply(service("a"))
    follower = Follower(cluster, SERVICES, facts)
    follower.start()
    assert follower.listed.wait(LONG_S)
    return cluster, facts


def until(facts: Facts, count: int) -> dict[str, Any]:
    """By name, once so many objects were news."""
    found: dict[str, Any] = {}
    while len(found) < count:
        assert facts.wait(LONG_S, 0.0, LONG_S)
        found |= {key[2]: document for key, document in facts.changed().items()}
    return found


Followed = tuple[Watched, Facts]


def test_a_follower_tells_of_what_was_there_and_of_what_comes(followed: Followed) -> None:
    cluster, facts = followed
    assert set(until(facts, 1)) == {"a"}
    cluster.events.put(event("ADDED", service("b", "7")))
    cluster.events.put(event("BOOKMARK", {"metadata": {"resourceVersion": "8"}}))
    cluster.events.put(event("DELETED", service("a", "9")))
    found = until(facts, 2)
    assert found["a"] is None
    assert found["b"]["metadata"]["resourceVersion"] == "7"


def test_a_watch_goes_on_where_the_one_before_ended(followed: Followed) -> None:
    cluster, facts = followed
    until(facts, 1)
    cluster.events.put(event("BOOKMARK", {"metadata": {"resourceVersion": "8"}}))
    cluster.events.put(None)
    cluster.events.put(event("ADDED", service("b", "9")))
    until(facts, 1)
    assert cluster.watched[1:] == ["8"]


@pytest.mark.parametrize(
    "gone",
    [
        ApiError(410, "too old"),
        event("ERROR", {"kind": "Status", "code": 410}),
        event("ERROR", {"kind": "Status", "code": 500}),
        ApiError(503, "ailing", retry_after_s=0.01),
    ],
    ids=str,
)
def test_who_has_missed_something_lists_again(followed: Followed, gone: Any) -> None:
    cluster, facts = followed
    until(facts, 1)
    cluster.delete({"kind": "ModelService", "metadata": {"name": "a", "namespace": "vision"}})
    cluster.apply(service("c"))
    cluster.events.put(gone)
    found = until(facts, 2)
    assert found["a"] is None
    assert found["c"] is not None
