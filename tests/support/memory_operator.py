"""A leading operator, an API server in memory, and agents that do at once what they are told."""

from __future__ import annotations

import copy
import random
from dataclasses import replace
from typing import Any

from support.clusters import cluster, gpu_place, measured
from support.memory_cluster import MemoryCluster
from support.objects import NOW, cpu, gpu, kubernetes_node, node, pod, pool, service
from tessera_core.api import Instance, ModelProfile, ModelService, RuntimeNode
from tessera_core.api.runtimenode import (
    BatchLine,
    Correction,
    InstanceStatus,
    ServedService,
    ServedStatus,
)
from tessera_core.plan import state_to_dict
from tessera_operator.config import Config
from tessera_operator.controller import Controller, Now
from tessera_operator.kinds import Document, Key
from tessera_operator.pools import ACTIVATOR, NAME_LABEL, Images, Installation
from tessera_operator.routes import MANAGED_BY
from tessera_operator.world import is_activator

WHERE = Installation("tessera-system", Images("gpu:1", "cpu:1"))
SERVICE: Key = ("ModelService", "vision", "s")
PROFILE: Key = ("ModelProfile", "vision", "profile-a")
REPORT_S = 30.0
"""Between two reports of counters."""
DEFAULTS = Config()
_ROWS = 16
"""Of the batches that corrections are taken of."""


def profile(model: str, piece: str = "full") -> Document:
    """A measurement of ``model`` on a whole A100, or on a slice of one."""
    (document,) = state_to_dict(cluster([], [], [measured(model, gpu_place(piece))]))["profiles"]
    name = f"profile-{model}" if piece == "full" else f"profile-{model}-{piece}"
    document["metadata"] = {"name": name, "namespace": "vision"}
    return ModelProfile.from_dict(document).to_dict()


class Operator:
    """A leader, its cluster, and runtime nodes with one A100 each."""

    def __init__(self, *documents: Document, nodes: int, config: Config = DEFAULTS) -> None:
        self.cluster, self._config = MemoryCluster(*documents), config
        self.epoch = 1
        self.controller = Controller(self.cluster, config, WHERE, self.epoch)
        self.now_s = 0.0
        self.slowness: dict[str, float] = {}
        """By member: what batches take over what was measured at first; nodes report nothing of others."""
        self.noise = 0.0
        """Largest error of a report, of 1."""
        self.requests_per_second = 0.0
        """That all nodes together answer."""
        self.deaf: set[str] = set()
        """Nodes that take over nothing and report nothing for now."""
        self._random = random.Random(7)
        self._reports: dict[tuple[str, str], ServedStatus] = {}
        self._taken: dict[Key, Document] = {}
        for index in range(nodes):
            self.join(f"n{index}")

    def join(self, name: str) -> None:
        labels = {"tessera.dev/pool": "p", **MANAGED_BY}
        made = node(name, gpu(f"GPU-{name}"), cpu(), cores=4, told={}, labels=labels).to_dict()
        for each in (made, kubernetes_node(name), pod(f"pod-{name}", name)):
            self.cluster.create(each)

    def join_activator(self, name: str) -> None:
        """A runtime pod without devices; the leader makes its RuntimeNode."""
        labels = {NAME_LABEL: ACTIVATOR}
        self.cluster.create(pod(name, "machine", labels=labels))

    def leave(self, name: str) -> None:
        """Its pod goes, its machine stays."""
        del self.cluster.objects["Pod", "tessera-system", f"pod-{name}"]

    def restart(self) -> None:
        """Another leader, who knows only what the objects say."""
        self.epoch += 1
        self.controller = Controller(self.cluster, self._config, WHERE, self.epoch)
        self._taken = {}

    def lead(self, now: str) -> None:
        """One round of the leader, with the news of all that has changed."""
        objects = self.cluster.objects
        changed: dict[Key, Document | None] = {
            key: copy.deepcopy(each)
            for key, each in objects.items()
            if self._taken.get(key) != each
        }
        changed |= dict.fromkeys(self._taken.keys() - objects.keys())
        self._taken = dict(copy.deepcopy(objects))
        self.controller.take(changed)
        self.controller.round(Now(self.now_s, now))
        assert self.controller.writer.failed == []

    def rounds(self, count: int, seconds: float = 1.0) -> None:
        for _ in range(count):
            self.now_s += seconds
            self.lead(NOW)
            objects = self.cluster.objects
            serving = self.running()
            for each in self.nodes():
                name = each.metadata.name
                pod_name = name if is_activator(each) else f"pod-{name}"
                if ("Pod", "tessera-system", pod_name) in objects and name not in self.deaf:
                    self._obey(each, pod_name, serving)

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

    def profile(self) -> ModelProfile:
        return ModelProfile.from_dict(self.cluster.objects[PROFILE])

    def running(self) -> set[str]:
        """Names of the nodes that have a copy of the service."""
        return {
            each.metadata.name
            for each in self.nodes()
            if any(device.instances for device in each.status.devices)
        }

    def endpoints(self) -> set[str]:
        """Addresses that clients of the service are sent to."""
        found = self.cluster.objects["EndpointSlice", "vision", "s-tessera"]
        return {address for each in found["endpoints"] for address in each["addresses"]}

    def _obey(self, each: RuntimeNode, pod_name: str, serving: set[str]) -> None:
        told = {device.uuid: device.instances for device in each.spec.devices}
        devices = tuple(
            replace(
                device,
                instances=tuple(
                    InstanceStatus(
                        *(i.service, i.member, i.slice, i.batch, i.state, i.count),
                        variant=self._runs(i),
                        ready=i.count,
                    )
                    for i in told.get(device.uuid, ())
                ),
            )
            for device in each.status.devices
        )
        services = tuple(self._report(each, served, serving) for served in each.spec.services)
        status = replace(
            each.status,
            devices=devices,
            services=services,
            observed_generation=each.metadata.generation,
            pod=pod_name,
            address=each.status.address or f"address-of-{pod_name}",
        )
        document = replace(each, status=status).to_dict()
        self.cluster.objects["RuntimeNode", "", each.metadata.name] = document

    def _runs(self, told: Instance) -> str:
        """The variant that a node runs of what it was told."""
        return told.variant

    def _report(self, each: RuntimeNode, served: ServedService, serving: set[str]) -> ServedStatus:
        """What the node says of a service: at once which version answers, every now and then what it counted."""
        key = each.metadata.name, served.name
        before = self._reports.get(key, ServedStatus(served.name))
        found = replace(before, generation=served.generation, ready=bool(serving))
        if self.now_s % REPORT_S == 0 and each.metadata.name in serving:
            total = before.total + round(REPORT_S * self.requests_per_second / len(serving))
            corrections = tuple(
                Correction(
                    member.name,
                    line.product,
                    line.slice,
                    self.slowness[member.name] * self._error(line),
                )
                for member in served.members
                if member.name in self.slowness
                for line in member.batch_lines
            )
            found = replace(found, good=total, total=total, corrections=corrections)
        self._reports[key] = found
        return found

    def _error(self, told: BatchLine) -> float:
        """What batches took when they were measured, over ``told``, as far as it can be seen."""
        (row,) = (row for row in self.profile().status.rows if row.batch == _ROWS)
        noise = self._random.uniform(-self.noise, self.noise)
        return (1 + noise) * row.p50_ms / (told.tau0_ms + _ROWS * told.alpha_ms)


def started(
    nodes: int,
    *,
    rps: float = 100.0,
    size: dict[str, Any] | None = None,
    config: Config = DEFAULTS,
) -> Operator:
    """An operator whose service runs."""
    wanted = service("s", "a", rps=rps, scaling={"minReplicas": 1})
    operator = Operator(
        pool("p", size=size or {"min": nodes, "max": 9}).to_dict(),
        profile("a"),
        wanted.to_dict(),
        nodes=nodes,
        config=config,
    )
    operator.rounds(8)
    return operator
