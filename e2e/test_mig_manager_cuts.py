"""GPUs that NVIDIA's MIG manager cuts while services go on: on the real cluster, with the manager and the GPUs stood in for.

Each node has one GPU, which MIG does not divide. ``first`` has both to itself; whoever comes next needs half of one, and one
node after the other may be cut for it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

import pytest
from e2e.system import gpus as stand_in
from e2e.system.gpus import MODEL, Gpus
from e2e.system.installation import Installation
from e2e.system.installation import namespace as one_namespace
from e2e.system.load import Load, zero_failures
from e2e.system.mig_manager import (
    AWAY,
    CONFIG_MAP,
    NAMESPACE,
    STATE,
    Manager,
    config_namespace,
    managers,
)
from e2e.system.models import answer, classifier, example
from e2e.system.services import Service, model_service

WHOLE, HALF = "full", "3g.40gb"
X = example()
FILES = {name: classifier(51 + at) for at, name in enumerate(("first", "second", "third"))}
PARTITION = {
    "backend": "MigManager",
    "approval": "Auto",
    "disruption": {"minInterval": "0s", "windows": []},
}
CUT_S = 180.0
"""Most of it until a node that was left has had no request for a while."""
CALM_S = 2.0

pytestmark = pytest.mark.timeout(240, func_only=True)


@pytest.fixture(scope="module")
def asked(
    release: Installation, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, Manager]]:
    """A manager for each node, whose layouts are there after a second."""
    folder = tmp_path_factory.mktemp("mig-manager")
    release.apply(config_namespace())
    own = {"namespace": NAMESPACE, "configMap": CONFIG_MAP, "syncPeriod": "1s"}
    release.upgrade(folder, partition={"migManager": {"enabled": True, **own}})
    try:
        with managers(release) as found:
            yield found
    finally:
        release.upgrade(folder, partition={"migManager": {"enabled": False}})


@pytest.fixture(scope="module")
def gpus(
    asked: dict[str, Manager], release: Installation, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Gpus]:
    with stand_in.gpus(release, tmp_path_factory.mktemp("gpus"), PARTITION, [MODEL.name]) as found:
        yield found


@pytest.fixture(scope="module")
def first(gpus: Gpus) -> Iterator[Service]:
    with one_namespace(gpus.system, "managed") as namespace:
        found = serve(gpus.system, namespace, "first", 2)
        found.wait_until_serving()
        assert found.nodes() == set(gpus.system.cluster.nodes)
        yield found


def serve(system: Installation, namespace: str, name: str, nodes: int) -> Service:
    """A service of one model, measured on whole GPUs and on halves, once on each of so many nodes."""
    found = system.service(namespace, name)
    digest = f"sha256:{hashlib.sha256(FILES[name]).hexdigest()}"
    for kind in (WHOLE, HALF):
        stand_in.measured(found, digest, kind)
    uri = system.store.put(f"{namespace}/{name}.onnx", FILES[name])
    spread = {"placement": {"isolation": "Partition", "spread": {"minNodes": nodes}}}
    document = model_service(
        namespace, name, {"only": uri}, scaling={"minReplicas": nodes}, **spread
    )
    document["spec"]["members"][0]["model"]["digest"] = digest
    system.apply(document)
    return found


def requests(service: Service) -> Load:
    return Load(service.target(), X, {"right": answer(FILES[service.name], X)})


def kinds(gpus: Gpus) -> dict[str, list[str]]:
    """By node, the kinds of slices of its GPU, where somebody may cut it."""
    return {
        node: [place.partition("@")[0] for place in cut] for (node, _), cut in gpus.cuts().items()
    }


def allow(gpus: Gpus, manager: Manager) -> None:
    """Have Tessera know that a node may be cut: what comes before is planned without."""
    manager.allow()
    gpus.system.wait("it may be cut", lambda: manager.node in kinds(gpus))


def at_rest(gpus: Gpus, asked: dict[str, Manager]) -> bool:
    """Whether all pods are back."""
    pods = {pod["spec"]["nodeName"] for pod in gpus.system.pods(stand_in.RUNTIME)}
    return pods == set(asked) and not any(AWAY in each.labels() for each in asked.values())


def test_a_node_is_emptied_cut_and_serves_again_without_a_failed_request(
    gpus: Gpus, first: Service, asked: dict[str, Manager]
) -> None:
    here, there = asked.values()
    allow(gpus, here)
    with requests(first) as load:
        second = serve(gpus.system, first.namespace, "second", 1)
        second.wait_until_serving(CUT_S)
        gpus.system.wait(
            "first is on both nodes",
            lambda: first.nodes() == set(asked) and len(first.addresses()) == 2,
            CUT_S,
        )
        load.go_on_for(CALM_S)
    zero_failures(load.result)
    assert kinds(gpus) == {here.node: [HALF, HALF]}
    assert here.labels()[STATE] == "success"
    assert (len(here.asked), here.beside, here.problems) == (1, [], [])
    assert (there.asked, there.problems) == ([], [])
    assert at_rest(gpus, asked)


def test_a_cut_that_the_manager_fails_on_is_undone(
    gpus: Gpus, first: Service, asked: dict[str, Manager]
) -> None:
    """The newcomer then gets the node that was emptied as it is."""
    here, there = asked.values()
    there.fails = True
    allow(gpus, there)
    earlier = problems(gpus)
    with requests(first) as load:
        third = serve(gpus.system, first.namespace, "third", 1)
        (problem,) = gpus.system.wait("it fails", lambda: problems(gpus) - earlier, CUT_S)
        third.wait_until_serving()
        load.go_on_for(CALM_S)
    zero_failures(load.result)
    assert problem.startswith("ManagerFailed: NVIDIA's MIG manager failed on tessera-")
    assert third.nodes() == {there.node}
    assert kinds(gpus)[here.node] == [HALF, HALF]
    assert kinds(gpus).get(there.node, []) == []
    assert (there.beside, there.problems) == ([], [])
    assert at_rest(gpus, asked)


def problems(gpus: Gpus) -> set[str]:
    """Of cuts that were given up."""
    return {
        cut["problem"]
        for plan in gpus.system.objects("PlacementPlan")
        for cut in (plan.get("status") or {}).get("cuts") or ()
        if cut.get("problem")
    }
