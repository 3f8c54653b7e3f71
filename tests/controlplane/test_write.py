"""Writing: nothing while all is as wanted, everything that differs, and one object's failure is its own."""

from __future__ import annotations

from typing import Any

import pytest

from support.memory_cluster import MemoryCluster
from support.objects import instance, node
from tessera_operator.cluster import ApiError, Unreachable
from tessera_operator.kinds import Document, Key, covers, key_of
from tessera_operator.runtime_pods import node_document
from tessera_operator.write import Writer


def made(*documents: Document) -> tuple[Writer, MemoryCluster, dict[Key, Document]]:
    cluster = MemoryCluster(*documents)
    known: dict[Key, Document] = dict(cluster.objects)
    return Writer(cluster, known), cluster, known


def service(name: str = "s", **spec: Any) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": name, "namespace": "vision", "labels": {"a": "1"}},
        "spec": {"ports": [{"port": 80}], **spec},
    }


@pytest.mark.parametrize(
    ("present", "wanted", "same"),
    [
        ({"a": 1, "b": 2}, {"a": 1}, True),
        ({"a": 1}, {"a": 1, "b": 2}, False),
        ({"a": {"b": [1, 2]}}, {"a": {"b": [1, 2]}}, True),
        ({"a": [1, 2]}, {"a": [1]}, False),
        ({"a": [1]}, {"a": [1, 2]}, False),
        ({"a": [{"x": 1, "added": 2}]}, {"a": [{"x": 1}]}, True),
        ({"a": 2}, {"a": 1}, False),
        ({"a": "x"}, {"a": {"b": 1}}, False),
        ({"a": {"b": 1}}, {"a": "x"}, False),
        ({"a": "x"}, {"a": ["x"]}, False),
        ({}, {"a": ""}, True),
        ({}, {"a": 0}, True),
        ({}, {"a": []}, True),
        ({}, {"a": {}}, True),
        ({"a": None}, {"a": []}, True),
        ({}, {"a": [0]}, False),
    ],
    ids=str,
)
def test_an_object_covers_what_it_has_all_of(present: object, wanted: object, same: bool) -> None:
    assert covers(present, wanted) is same


def test_a_new_object_is_written_once() -> None:
    writer, cluster, _ = made()
    assert writer.put(service())
    assert writer.put(service())
    assert cluster.calls == [("apply", ("Service", "vision", "s"))]
    assert writer.writes == 1


def test_what_the_server_adds_makes_no_second_write() -> None:
    writer, cluster, known = made()
    writer.put(service())
    found = cluster.objects["Service", "vision", "s"]
    found["spec"]["clusterIP"] = "10.96.0.7"
    found["spec"]["ports"][0]["protocol"] = "TCP"
    known["Service", "vision", "s"] = found
    assert writer.put(service())
    assert writer.writes == 1


def test_an_object_that_is_as_wanted_is_not_written_by_a_new_leader() -> None:
    writer, cluster, _ = made(service(clusterIP="10.96.0.7"))
    assert writer.put(service())
    assert cluster.calls == []


def test_a_number_that_the_server_writes_its_own_way_is_not_written_again_and_again() -> None:
    writer, cluster, known = made()
    writer.put(service(size="1024Mi"))
    known["Service", "vision", "s"] = {
        **cluster.objects["Service", "vision", "s"],
        "spec": {"ports": [{"port": 80}], "size": "1Gi"},
    }
    writer.put(service(size="1024Mi"))
    assert writer.writes == 1


@pytest.mark.parametrize(
    "change", [{"ports": []}, {"ports": [{"port": 81}]}, {"type": "LoadBalancer"}]
)
def test_what_somebody_else_has_changed_is_made_right(change: dict[str, Any]) -> None:
    writer, cluster, known = made()
    wanted = service(type="ClusterIP")
    writer.put(wanted)
    spoilt = cluster.objects["Service", "vision", "s"]
    spoilt = {
        **spoilt,
        "metadata": {**spoilt["metadata"], "generation": 2, "resourceVersion": "9"},
        "spec": {**spoilt["spec"], **change},
    }
    known[key_of(spoilt)] = cluster.objects[key_of(spoilt)] = spoilt
    assert writer.put(wanted)
    assert cluster.objects[key_of(spoilt)]["spec"] == wanted["spec"]


def test_a_label_that_is_missing_is_written_and_one_more_is_left_alone() -> None:
    present = service()
    present["metadata"]["labels"] = {"a": "1", "users": "own"}
    writer, cluster, _ = made(present)
    writer.put(service())
    assert cluster.calls == []
    wanted = service()
    wanted["metadata"]["labels"] = {"a": "2"}
    writer.put(wanted)
    labels = cluster.objects[key_of(present)]["metadata"]["labels"]
    assert labels == {"a": "2", "users": "own"}


def test_what_a_node_is_to_run_no_longer_is_taken_out_of_its_spec() -> None:
    before, after = node("n0", told={"GPU-0": [instance()]}), node("n0")
    assert after.spec.devices == ()
    key = "RuntimeNode", "", "n0"
    writer, cluster, _ = made()
    writer.put(node_document("n0", {}, before.spec))
    assert cluster.objects[key]["spec"]["devices"]
    writer.put(node_document("n0", {}, after.spec))
    assert not cluster.objects[key]["spec"].get("devices")


def test_a_new_leader_takes_out_of_a_spec_what_the_one_before_had_put_there() -> None:
    before, after = node("n0", told={"GPU-0": [instance()]}), node("n0")
    writer, cluster, _ = made(node_document("n0", {}, before.spec))
    writer.put(node_document("n0", {}, after.spec))
    assert cluster.calls == [("apply", ("RuntimeNode", "", "n0"))]


def deployment(**pod: Any) -> dict[str, Any]:
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": "d", "namespace": "tessera-system"},
        "spec": {"replicas": 1, "template": {"spec": {"containers": [], **pod}}},
    }


def test_a_setting_of_pods_that_is_wanted_no_more_is_taken_away() -> None:
    writer, cluster, _ = made()
    writer.put(deployment(runtimeClassName="nvidia"))
    writer.put(deployment())
    (found,) = cluster.objects.values()
    assert "runtimeClassName" not in found["spec"]["template"]["spec"]


def test_a_new_leader_writes_a_deployment_once_as_its_settings_may_be_others() -> None:
    present = deployment(runtimeClassName="nvidia", dnsPolicy="ClusterFirst")
    writer, cluster, _ = made(present)
    writer.put(deployment())
    writer.put(deployment())
    assert cluster.calls == [("apply", key_of(present))]


def test_the_status_of_an_object_is_apart_from_its_spec() -> None:
    present = node("n0").to_dict()
    writer, cluster, _ = made(present)
    head = {name: present[name] for name in ("apiVersion", "kind")}
    document = {**head, "metadata": {"name": "n0"}, "status": {"taints": [{"key": "a"}]}}
    assert writer.put(document, "status")
    found = cluster.objects["RuntimeNode", "", "n0"]
    assert found["spec"] == present["spec"]
    assert found["status"]["taints"] == [{"key": "a"}]
    assert found["status"]["address"] == present["status"]["address"]


@pytest.mark.parametrize(
    "error", [Unreachable("reset"), ApiError(429, "slow down"), ApiError(500, "")]
)
def test_one_failure_leaves_the_other_objects_alone(error: Exception) -> None:
    writer, cluster, known = made()
    cluster.failing["Service", "vision", "s"] = error  # type: ignore[assignment]
    assert not writer.put(service("s"))
    assert writer.put(service("t"))
    assert len(writer.failed) == 1
    assert writer.failed[0].startswith("apply Service vision/s:")
    assert list(known) == [("Service", "vision", "t")]


def test_a_write_that_failed_is_made_again() -> None:
    writer, cluster, _ = made()
    cluster.failing["Service", "vision", "s"] = Unreachable("reset")
    writer.put(service())
    cluster.failing.clear()
    assert writer.put(service())
    assert cluster.calls == 2 * [("apply", ("Service", "vision", "s"))]


def test_what_one_manager_wants_no_more_leaves_what_another_has_written() -> None:
    def of(**status: Any) -> Document:
        metadata = {"name": "p", "namespace": "vision"}
        return {"kind": "ModelProfile", "metadata": metadata, "status": status}

    def said(kind: str, reason: str) -> dict[str, str]:
        return {"type": kind, "status": "True", "reason": reason}

    writer, cluster, _ = made(of())
    writer.put(of(rows=[1], conditions=[said("Complete", "Measured")]), "status")
    writer.put(of(drift=2, conditions=[said("Drifted", "Longer")]), "status", "other")
    found = cluster.objects["ModelProfile", "vision", "p"]["status"]
    assert (found["rows"], found["drift"]) == ([1], 2)
    assert [each["type"] for each in found["conditions"]] == ["Complete", "Drifted"]
    writer.put(of(conditions=[said("Drifted", "AsMeasured")]), "status", "other")
    found = cluster.objects["ModelProfile", "vision", "p"]["status"]
    assert "drift" not in found
    assert found["rows"] == [1]
    assert [each["reason"] for each in found["conditions"]] == ["Measured", "AsMeasured"]


def test_somebody_elses_object_is_not_taken_over() -> None:
    writer, cluster, _ = made(service(type="LoadBalancer"))
    assert not writer.create(service())
    assert writer.failed == []
    assert cluster.objects["Service", "vision", "s"]["spec"]["type"] == "LoadBalancer"


def test_a_change_of_an_object_that_has_changed_fails() -> None:
    writer, cluster, _ = made(service())
    stale = {**service(), "metadata": {**service()["metadata"], "resourceVersion": "0"}}
    assert not writer.merge(stale)
    assert len(writer.failed) == 1
    current = cluster.objects["Service", "vision", "s"]["metadata"]["resourceVersion"]
    stale["metadata"]["resourceVersion"] = current
    assert writer.merge(stale)


def test_only_what_is_there_is_removed() -> None:
    writer, cluster, _ = made(service())
    assert writer.remove(("Service", "vision", "s"))
    assert writer.remove(("Service", "vision", "t"))
    assert cluster.calls == [("delete", ("Service", "vision", "s"))]
    assert cluster.objects == {}


def test_events_are_not_kept() -> None:
    writer, cluster, known = made()
    event = {"apiVersion": "v1", "kind": "Event", "metadata": {"name": "e", "namespace": "vision"}}
    assert writer.create(event)
    assert known == {}
    assert cluster.calls == [("create", ("Event", "vision", "e"))]
