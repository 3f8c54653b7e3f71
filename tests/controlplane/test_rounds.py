"""Whole rounds of the operator against an API server in memory, with agents that do at once what they are told."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

from support.clusters import cluster, gpu_place, measured
from support.memory_cluster import MemoryCluster
from support.objects import NOW, cpu, gpu, kubernetes_node, node, pod, pool, service
from tessera_core.api import ModelProfile, ModelService, RuntimeNode
from tessera_core.api.runtimenode import InstanceStatus, ServedStatus
from tessera_core.plan import state_to_dict
from tessera_operator.config import Config
from tessera_operator.controller import Controller, Now
from tessera_operator.kinds import Document, Key
from tessera_operator.pools import Images, Installation
from tessera_operator.reporting import FINALIZER
from tessera_operator.routes import MANAGED_BY

WHERE = Installation("tessera-system", Images("gpu:1", "cpu:1"))
SERVICE: Key = ("ModelService", "vision", "s")


def profile(model: str) -> Document:
    """A measurement of ``model`` on a whole A100."""
    (document,) = state_to_dict(cluster([], [], [measured(model, gpu_place())]))["profiles"]
    document["metadata"] = {"name": f"profile-{model}", "namespace": "vision"}
    return ModelProfile.from_dict(document).to_dict()


class Operator:
    """A leader, its cluster, and runtime nodes with one A100 each."""

    def __init__(self, *documents: Document, nodes: int) -> None:
        self.cluster = MemoryCluster(*documents)
        self.controller = Controller(self.cluster, Config(), WHERE, epoch=1)
        self.now_s = 0.0
        self._taken: dict[Key, Document] = {}
        for index in range(nodes):
            self.join(f"n{index}")

    def join(self, name: str) -> None:
        labels = {"tessera.dev/pool": "p", **MANAGED_BY}
        made = node(name, gpu(f"GPU-{name}"), cpu(), cores=4, told={}, labels=labels).to_dict()
        for each in (made, kubernetes_node(name), pod(f"pod-{name}", name)):
            self.cluster.create(each)

    def leave(self, name: str) -> None:
        """Its pod goes, its machine stays."""
        del self.cluster.objects["Pod", "tessera-system", f"pod-{name}"]

    def rounds(self, count: int, seconds: float = 1.0) -> None:
        for _ in range(count):
            self.now_s += seconds
            objects = self.cluster.objects
            changed: dict[Key, Document | None] = {
                key: copy.deepcopy(each)
                for key, each in objects.items()
                if self._taken.get(key) != each
            }
            changed |= dict.fromkeys(self._taken.keys() - objects.keys())
            self._taken = dict(copy.deepcopy(objects))
            self.controller.take(changed)
            self.controller.round(Now(self.now_s, NOW))
            assert self.controller.writer.failed == []
            for each in self.nodes():
                name = each.metadata.name
                if ("Pod", "tessera-system", f"pod-{name}") in objects:
                    self._obey(each)

    def nodes(self) -> list[RuntimeNode]:
        found = (
            self.cluster.objects[key]
            for key in sorted(self.cluster.objects)
            if key[0] == "RuntimeNode"
        )
        return [RuntimeNode.from_dict(each) for each in found]

    def service(self) -> ModelService:
        return ModelService.from_dict(self.cluster.objects[SERVICE])

    def replicas(self) -> int:
        found = self.cluster.objects["Deployment", "tessera-system", "tessera-runtime-p"]
        return int(found["spec"]["replicas"])

    def plans(self) -> dict[str, dict[str, str]]:
        """By name, the status of each condition."""
        return {
            key[2]: {each["type"]: each["status"] for each in found["status"]["conditions"]}
            for key, found in self.cluster.objects.items()
            if key[0] == "PlacementPlan"
        }

    def running(self) -> set[str]:
        """Names of the nodes that have a copy of the service."""
        return {
            each.metadata.name
            for each in self.nodes()
            if any(device.instances for device in each.status.devices)
        }

    def _obey(self, each: RuntimeNode) -> None:
        told = {device.uuid: device.instances for device in each.spec.devices}
        devices = tuple(
            replace(
                device,
                instances=tuple(
                    InstanceStatus(
                        *(i.service, i.member, i.slice, i.batch, i.state, i.count), ready=i.count
                    )
                    for i in told.get(device.uuid, ())
                ),
            )
            for device in each.status.devices
        )
        services = tuple(
            ServedStatus(served.name, served.generation, ready=True)
            for served in each.spec.services
        )
        status = replace(
            each.status,
            devices=devices,
            services=services,
            observed_generation=each.metadata.generation,
        )
        document = replace(each, status=status).to_dict()
        self.cluster.objects["RuntimeNode", "", each.metadata.name] = document


def started(nodes: int, *, rps: float = 100.0, size: dict[str, Any] | None = None) -> Operator:
    """An operator whose service runs."""
    wanted = service("s", "a", rps=rps, scaling={"minReplicas": 1})
    operator = Operator(
        pool("p", size=size or {"min": nodes, "max": 9}).to_dict(),
        profile("a"),
        wanted.to_dict(),
        nodes=nodes,
    )
    operator.rounds(8)
    return operator


def test_a_service_is_placed_reached_and_reported() -> None:
    operator = started(1)
    assert operator.running() == {"n0"}
    conditions = {each.type: each.status.value for each in operator.service().status.conditions}
    assert conditions["Ready"] == conditions["Placed"] == "True"
    slices = operator.cluster.objects["EndpointSlice", "vision", "s-tessera"]
    assert [each["addresses"] for each in slices["endpoints"]] == [["10.0.0.0"]]
    assert [each["Applied"] for each in operator.plans().values()] == ["True"]
    assert FINALIZER in operator.service().metadata.finalizers


def test_nothing_is_written_while_nothing_changes() -> None:
    operator = started(2)
    operator.rounds(3)
    before = list(operator.cluster.calls)
    operator.rounds(10)
    assert operator.cluster.calls == before


def test_a_plan_is_carried_out_although_a_node_that_has_the_service_is_lost() -> None:
    """Its spec still names the service, and nobody there takes over new routes."""
    operator = started(2, rps=12_000)
    assert operator.running() == {"n0", "n1"}
    operator.leave("n1")
    operator.rounds(45)
    operator.join("n7")
    operator.rounds(10)
    assert "n7" in operator.running()
    assert {each["Applied"] for each in operator.plans().values()} == {"True"}


def deleted(operator: Operator) -> None:
    operator.cluster.objects[SERVICE]["metadata"]["deletionTimestamp"] = NOW


def test_a_service_that_is_deleted_is_unloaded_and_then_let_go() -> None:
    operator = started(1)
    deleted(operator)
    operator.rounds(12)
    assert operator.running() == set()
    assert FINALIZER not in operator.service().metadata.finalizers


def test_a_lost_node_does_not_keep_a_deleted_service() -> None:
    """It may never come back, and its RuntimeNode stays as long as its machine."""
    operator = started(1)
    operator.leave("n0")
    operator.rounds(45)
    deleted(operator)
    operator.rounds(12)
    assert FINALIZER not in operator.service().metadata.finalizers


def test_a_node_is_not_given_back_while_something_runs_on_it() -> None:
    operator = started(1, size={"min": 0, "max": 9})
    assert operator.replicas() == 1
    deleted(operator)
    while operator.running():
        operator.rounds(1)
        assert operator.replicas() == 1 or not operator.running()
    operator.rounds(5)
    assert operator.replicas() == 0


def test_a_node_that_was_asked_for_is_kept_until_the_models_are_measured_there() -> None:
    wanted = service("s", "a", rps=100)
    operator = Operator(pool("p", size={"min": 0, "max": 9}).to_dict(), wanted.to_dict(), nodes=0)
    operator.rounds(1)
    assert operator.replicas() == 1
    operator.join("n0")
    for _ in range(5):
        operator.rounds(1)
        assert operator.replicas() == 1
    (found,) = operator.nodes()
    assert [each.member for each in found.spec.profiling] == ["a"]
