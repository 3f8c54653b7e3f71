"""Uninstalling: what only the operator could take away goes, what users wrote stays."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from support.memory_cluster import MemoryCluster
from support.objects import node, pool, service
from tessera_operator.cluster import Unreachable
from tessera_operator.kinds import Document, Key
from tessera_operator.partitioners import daemon_set
from tessera_operator.pools import Images, Installation, deployment, disruption_budget
from tessera_operator.reporting import FINALIZER
from tessera_operator.routes import service_document, slice_document
from tessera_operator.uninstall import uninstall

WHERE = Installation("tessera-system", Images("gpu:1", "cpu:1"))


def plain(kind: str, name: str, namespace: str = "", **rest: Any) -> Document:
    metadata = {"name": name, **({"namespace": namespace} if namespace else {})}
    return {"kind": kind, "metadata": metadata, **rest}


def installed() -> MemoryCluster:
    wanted = service("s")
    held = replace(wanted.metadata, finalizers=("users/own", FINALIZER))
    return MemoryCluster(
        replace(wanted, metadata=held).to_dict(),
        service("t").to_dict(),
        pool("p").to_dict(),
        node("n0").to_dict(),
        plain("PlacementPlan", "plan-a"),
        deployment(pool("p"), 2, WHERE),
        disruption_budget(pool("p"), WHERE),
        daemon_set(pool("p"), WHERE),
        plain("Deployment", "tessera-operator", "tessera-system", spec={"replicas": 2}),
        plain("Deployment", "others", "tessera-system", spec={"replicas": 2}),
        service_document(wanted),
        slice_document(wanted, ("10.0.0.1",)),
        plain("Service", "others", "vision"),
        plain("Lease", "tessera-node-n0", "tessera-system"),
        plain("Lease", "others", "tessera-system"),
    )


def test_what_the_operator_has_made_goes_and_all_else_stays() -> None:
    cluster = installed()
    assert uninstall(cluster, "tessera-system") == 0
    left: set[Key] = set(cluster.objects)
    assert left == {
        ("ModelService", "vision", "s"),
        ("ModelService", "vision", "t"),
        ("RuntimePool", "", "p"),
        ("Deployment", "tessera-system", "tessera-operator"),
        ("Deployment", "tessera-system", "others"),
        ("Service", "vision", "others"),
        ("Lease", "tessera-system", "others"),
    }


def test_services_are_let_go_with_the_finalizers_of_others() -> None:
    cluster = installed()
    uninstall(cluster, "tessera-system")
    found = cluster.objects["ModelService", "vision", "s"]["metadata"]["finalizers"]
    assert found == ["users/own"]


def test_who_would_put_it_all_back_is_stopped_first() -> None:
    cluster = installed()
    uninstall(cluster, "tessera-system")
    kinds = [key[0] for _, key in cluster.calls]
    assert set(kinds[:2]) == {"Deployment"}
    assert cluster.objects["Deployment", "tessera-system", "tessera-operator"]["spec"] == {
        "replicas": 0
    }


def test_what_fails_is_counted_and_stops_nothing_else() -> None:
    cluster = installed()
    cluster.failing["RuntimeNode", "", "n0"] = Unreachable("reset")
    assert uninstall(cluster, "tessera-system") == 1
    assert ("PlacementPlan", "", "plan-a") not in cluster.objects


def test_a_second_time_there_is_nothing_left_to_do() -> None:
    cluster = installed()
    uninstall(cluster, "tessera-system")
    cluster.calls.clear()
    assert uninstall(cluster, "tessera-system") == 0
    assert [key for verb, key in cluster.calls if verb == "delete"] == []
