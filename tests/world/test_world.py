"""The operator's view of the cluster: broken objects are set aside alone, and what did not change stays itself."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import yaml

from support.clusters import cluster, gpu_node, gpu_place, measured, service
from tessera_core.plan import plan
from tessera_core.plan.state import Budget, ClusterState, Policy
from tessera_core.plan.state_in import state_from_dict
from tessera_core.plan.state_out import state_to_dict
from tessera_operator.kinds import Key
from tessera_operator.world import Observed, World

GOLDEN = sorted((Path(__file__).parents[1] / "plan" / "golden").glob("*.input.yaml"))
Document = dict[str, Any]


def documents(state: ClusterState) -> list[Document]:
    """What the API server would hold of ``state``."""
    lists = state_to_dict(state)
    return [each for name in ("pools", "nodes", "services", "profiles") for each in lists[name]]


@pytest.fixture
def small() -> list[Document]:
    state = cluster(
        [gpu_node("n0"), gpu_node("n1")],
        [service("s", "a", rps=50), service("t", "b", rps=50)],
        [measured(name, gpu_place()) for name in "ab"],
    )
    return documents(state)


def world(found: list[Document]) -> World:
    made = World()
    for document in found:
        made.put(document)
    return made


def observed(of: World) -> Observed:
    return of.observe(Policy(), Budget())


def named(found: list[Document], kind: str, name: str) -> Document:
    (document,) = (
        each for each in found if (each["kind"], each["metadata"]["name"]) == (kind, name)
    )
    return copy.deepcopy(document)


def names(found: Observed) -> tuple[list[str], list[str]]:
    """Names of nodes and services that are planned."""
    state = found.state
    return [node.name for node in state.nodes], [each.served_name for each in state.services]


@pytest.mark.parametrize("path", GOLDEN, ids=lambda path: path.name.partition(".")[0])
def test_the_world_is_the_state_that_its_documents_are_read_as(path: Path) -> None:
    document = yaml.safe_load(path.read_text())
    expected = state_from_dict(document)
    if not document.get("pools"):
        pytest.skip("a file without pools stands for one machine, not for a cluster")
    lists = ("pools", "nodes", "services", "profiles")
    made = world([each for name in lists for each in document.get(name, ())])
    found = made.observe(expected.policy, expected.budget)
    if not (document.get("priorityClasses") or document.get("quotas")):
        assert found.rejected == {}
        assert plan(found.state) == plan(expected)


def test_a_service_that_cannot_be_read_is_set_aside_alone(small: list[Document]) -> None:
    broken = named(small, "ModelService", "s")
    broken["metadata"]["name"] = "u"
    broken["spec"]["slo"] = {"objectives": []}
    found = observed(world([*small, broken]))
    assert names(found) == (["n0", "n1"], ["vision.s", "vision.t"])
    key: Key = ("ModelService", "vision", "u")
    assert list(found.rejected) == [key]
    assert "spec.slo.objectives" in str(found.rejected[key])


def test_a_service_that_becomes_unreadable_counts_as_it_was(small: list[Document]) -> None:
    made = world(small)
    broken = named(small, "ModelService", "s")
    broken["spec"]["slo"] = {"objectives": []}
    made.put(broken)
    found = observed(made)
    assert names(found)[1] == ["vision.s", "vision.t"]
    assert list(found.rejected) == [("ModelService", "vision", "s")]
    made.put(named(small, "ModelService", "s"))
    assert observed(made).rejected == {}


def test_a_node_of_an_unknown_pool_is_set_aside_with_the_label_named(small: list[Document]) -> None:
    stray = named(small, "RuntimeNode", "n1")
    stray["metadata"]["labels"] = {"tessera.dev/pool": "gone"}
    made = world(small)
    made.put(stray)
    found = observed(made)
    assert names(found)[0] == ["n0"]
    (reason,) = found.rejected.values()
    assert "metadata.labels[tessera.dev/pool]" in str(reason)
    assert "nodes[" not in str(reason)


def test_several_contradictions_are_found_together(small: list[Document]) -> None:
    made = world(small)
    made.remove(("RuntimePool", "", "p"))
    found = observed(made)
    assert names(found)[0] == []
    assert set(found.rejected) == {("RuntimeNode", "", "n0"), ("RuntimeNode", "", "n1")}


def test_counters_of_a_status_leave_the_facts_the_same_values(small: list[Document]) -> None:
    made = world(small)
    before = observed(made).state
    beating = named(small, "RuntimeNode", "n0")
    beating["metadata"]["resourceVersion"] = "2"
    beating["status"]["agentVersion"] = "9.9"
    made.put(beating)
    after = observed(made).state
    assert after.nodes is before.nodes
    assert after.measured is before.measured


def test_a_changed_node_leaves_the_others_the_same_values(small: list[Document]) -> None:
    made = world(small)
    before = observed(made).state
    cordoned = named(small, "RuntimeNode", "n0")
    cordoned["status"]["taints"] = [{"key": "a", "effect": "NoSchedule"}]
    made.put(cordoned)
    after = observed(made).state
    assert after.nodes[0] != before.nodes[0]
    assert after.nodes[1] is before.nodes[1]


def test_what_is_removed_is_planned_no_longer(small: list[Document]) -> None:
    made = world(small)
    made.remove(("ModelService", "vision", "s"))
    made.remove(("ModelService", "vision", "never-there"))
    made.put({"kind": "Pod", "metadata": {"name": "p", "namespace": "vision"}})
    assert names(observed(made)) == (["n0", "n1"], ["vision.t"])
