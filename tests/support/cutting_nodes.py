"""Nodes whose GPUs are cut: agents and partitioners that take their time and may be killed, under a real operator.

Each process does one small thing per tick and keeps nothing but what its real counterpart keeps: what is loaded is the
server's, which outlives its agent; instances are the GPU's, which outlive everybody. What no real node could do, and what
was promised to users, is an AssertionError.
"""

from __future__ import annotations

import copy
from collections import Counter
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any

from support.clusters import A100
from support.memory_operator import Operator
from support.objects import gpu, kubernetes_node, node, pod
from tessera_core.api import Device, PlacementPlan, RuntimeNode
from tessera_core.api.measurements import ProfileResult
from tessera_core.api.runtimenode import (
    CutProblem,
    CutStatus,
    DeviceStatus,
    Health,
    InstanceStatus,
    MigMode,
    RuntimeNodeStatus,
    ServedStatus,
    SliceStatus,
)
from tessera_core.gpu.geometry import Geometry, Placement, canonical
from tessera_core.gpu.recut import Create, Destroy, recut
from tessera_core.gpu.tables import model_of
from tessera_operator.heartbeats import PREFIX, renewals
from tessera_operator.kinds import Document
from tessera_operator.routes import MANAGED_BY

EPOCH = datetime(2026, 1, 31, 12, tzinfo=UTC)
Member = tuple[str, str]
_MODEL = model_of(A100)
assert _MODEL is not None
MODEL = _MODEL


@dataclass
class Gpu:
    """What outlives every process of the node."""

    slices: set[Placement] | None
    """None: MIG is off."""
    copies: dict[tuple[str, str, str], InstanceStatus] = field(default_factory=dict)
    """By (slice, service, member): what the server has loaded."""
    broken: CutProblem | None = None
    """Why the driver refuses to make an instance."""
    withheld: str = ""
    """Why the agent offers no slice of it."""

    @property
    def geometry(self) -> Geometry:
        return canonical(self.slices or ())


class CuttingNodes(Operator):
    """An operator and nodes ``n0``, ``n1``, … of which each has the GPUs that it is given."""

    quiet = 3
    """Ticks: what one process does is answered by others within fewer."""

    def __init__(self, *documents: Document, gpus: dict[str, list[Gpu]]) -> None:
        super().__init__(*documents, nodes=0)
        self.gpus = {
            (name, f"GPU-{name}-{index}"): each
            for name, found in gpus.items()
            for index, each in enumerate(found)
        }
        self.down: dict[tuple[str, str], float] = {}
        """(who, node): when it is there again."""
        self.ever_told: set[str] = set()
        """GPUs that somebody was told to cut."""
        self.fewest: Counter[Member] = Counter()
        """Ready copies of each member, as few as there were since ``watch``."""
        self._watched: frozenset[Member] = frozenset()
        for name in gpus:
            labels = {"tessera.dev/pool": "p", **MANAGED_BY}
            devices = [self._device(uuid, found) for uuid, found in self.boards(name)]
            made = node(name, *devices, told={}, labels=labels).to_dict()
            for each in (made, kubernetes_node(name), pod(f"pod-{name}", name)):
                self.cluster.create(each)

    def twin(self) -> CuttingNodes:
        """The same nodes and objects once more, under a leader of its own."""
        found = CuttingNodes(gpus={})
        found._become(self)
        return found

    def tick(self, count: int = 1, seconds: float | None = None) -> None:
        """One round of the operator, then every process of every node does what it finds to do."""
        for _ in range(count):
            self.now_s += 1.0 if seconds is None else seconds
            self._beat()
            self.lead(self.text())
            for name in sorted({name for name, _ in self.gpus}):
                now = RuntimeNode.from_dict(self.cluster.objects["RuntimeNode", "", name])
                told = {each.uuid: each for each in now.spec.devices}
                self.ever_told |= {uuid for uuid, each in told.items() if each.cut}
                self._serve(name, told)
                status = now.status
                if self._is_up("partitioner", name):
                    status = replace(status, cuts=self._partitioned(now, told))
                if self._is_up("agent", name):
                    status = self._reported(now, status)
                if status != now.status:
                    found = self.cluster.objects["RuntimeNode", "", name]
                    found["status"] = replace(now, status=status).to_dict()["status"]
            self._count()

    def settle(self, most: int = 200) -> None:
        """Go on until everybody is there and nothing has changed for a while; AssertionError after ``most`` ticks."""
        quiet = 0
        for _ in range(most):
            before = len(self.cluster.calls), copy.deepcopy(self.gpus)
            self.tick()
            still = before == (len(self.cluster.calls), self.gpus)
            quiet = quiet + 1 if still and self.is_still() else 0
            if quiet == self.quiet:
                return
        raise AssertionError(f"something still changes after {most} ticks")

    def is_still(self) -> bool:
        """Whether nobody is waited for."""
        return all(map(self._is_back, self.down))

    def kill(self, who: str, name: str, seconds: float) -> None:
        """``who``: agent or partitioner."""
        self.down[who, name] = self.now_s + seconds

    def text(self) -> str:
        return (EPOCH + timedelta(seconds=self.now_s)).strftime("%Y-%m-%dT%H:%M:%SZ")

    def watch(self) -> None:
        """From now on count how few copies of each member are ready, at worst."""
        self.fewest = self.ready()
        self._watched = frozenset(self.fewest)

    def ready(self) -> Counter[Member]:
        """Copies that answer, by member."""
        return Counter(
            (service, member)
            for found in self.gpus.values()
            for (_, service, member), one in found.copies.items()
            if one.ready
        )

    def plan_objects(self) -> list[PlacementPlan]:
        found = [each for key, each in self.cluster.objects.items() if key[0] == "PlacementPlan"]
        return [PlacementPlan.from_dict(each) for each in found]

    def change(self, kind: str, name: str, namespace: str = "", **spec: Any) -> None:
        """As a person does with kubectl."""
        found = self.cluster.objects[kind, namespace, name]
        found["spec"] = {**found["spec"], **spec}
        found["metadata"]["generation"] += 1
        found["metadata"]["resourceVersion"] += "0"

    def _become(self, other: CuttingNodes) -> None:
        self.cluster, self.gpus = other.cluster.copy(), copy.deepcopy(other.gpus)
        self.now_s, self.epoch = other.now_s, other.epoch
        self.restart()

    def boards(self, name: str) -> list[tuple[str, Gpu]]:
        return [(uuid, found) for (at, uuid), found in self.gpus.items() if at == name]

    def _is_up(self, who: str, name: str) -> bool:
        return self._is_back((who, name))

    def _is_back(self, killed: tuple[str, str]) -> bool:
        return self.down.get(killed, 0.0) <= self.now_s

    def _beat(self) -> None:
        """Agents renew their Leases, and the operator looks at them."""
        renewed = {
            name: self.text() if self._is_up("agent", name) else "before"
            for name in {name for name, _ in self.gpus}
        }
        leases: list[dict[str, object]] = [
            {"metadata": {"name": PREFIX + name}, "spec": {"renewTime": at}}
            for name, at in renewed.items()
        ]
        self.controller.heartbeats.look(renewals(leases), self.now_s)

    def _serve(self, name: str, told: dict[str, Device]) -> None:
        """The server goes on with what it was told last; without its agent that does not change."""
        for uuid, found in self.boards(name):
            for key, one in found.copies.items():
                found.copies[key] = replace(one, ready=one.count)
            if not self._is_up("agent", name):
                continue
            wanted = {
                (each.slice, each.service, each.member): each
                for each in (told[uuid].instances if uuid in told else ())
            }
            found.copies = {key: one for key, one in found.copies.items() if key in wanted}
            for key, each in wanted.items():
                old = found.copies.get(key)
                if old is None and not self._exists(found, each.slice):
                    continue
                if old is None or (old.batch, old.count) != (each.batch, each.count):
                    setting = each.service, each.member, each.slice, each.batch, each.state
                    found.copies[key] = InstanceStatus(*setting, each.count, ready=0)

    @staticmethod
    def _exists(found: Gpu, piece: str) -> bool:
        if found.slices is None:
            return piece == "full"
        return piece in {str(each) for each in found.slices}

    def _partitioned(self, now: RuntimeNode, told: dict[str, Device]) -> tuple[CutStatus, ...]:
        """What the partitioner says after one call of the driver at most, for each GPU that is to be cut."""
        cuts = []
        for uuid, found in self.boards(now.metadata.name):
            problem, generation, device = None, 0, told.get(uuid)
            if device is not None and device.cut:
                generation = now.metadata.generation or 0
                problem = self._cut(found, device.geometry)
            cuts.append(CutStatus(uuid, self._slices(uuid, found), generation, problem))
        return tuple(cuts)

    def _cut(self, found: Gpu, wanted: Geometry) -> CutProblem | None:
        if found.slices is None and wanted:
            if found.broken is CutProblem.RESET_REQUIRED:
                return found.broken
            assert not found.copies, "MIG is switched on below a model"
            found.slices = set()
        slices = found.slices
        if slices is None:
            return None
        for step in recut(MODEL, slices, wanted)[:1]:
            if isinstance(step, Destroy):
                if any(piece == str(step.placement) for piece, _, _ in found.copies):
                    return CutProblem.IN_USE
                slices.remove(step.placement)
            elif isinstance(step, Create):
                if found.broken is not None and step.placement in wanted and len(wanted) > 1:
                    return found.broken
                slices.add(step.placement)
        return None if canonical(slices) == wanted else CutProblem.OUT_OF_TIME

    def _reported(self, now: RuntimeNode, status: RuntimeNodeStatus) -> RuntimeNodeStatus:
        """``status`` with what the agent says."""
        found = self.boards(now.metadata.name)
        return replace(
            status,
            devices=tuple(self._device(uuid, each) for uuid, each in found),
            services=tuple(
                ServedStatus(each.name, each.generation, ready=True) for each in now.spec.services
            ),
            observed_generation=now.metadata.generation,
            profiles=self._profiles(now),
        )

    def _profiles(self, now: RuntimeNode) -> tuple[ProfileResult, ...]:
        """What the agent has measured: here nothing, as if it took forever."""
        return ()

    @staticmethod
    def _slices(uuid: str, found: Gpu) -> tuple[SliceStatus, ...]:
        return tuple(
            # As of an A100, which has one for all of it.
            SliceStatus(
                f"MIG-{uuid}-{each}".replace("@", "-"),
                each.profile,
                each.start,
                jpeg_engines=int(each.profile.startswith("7g")),
            )
            for each in found.geometry
        )

    def _device(self, uuid: str, found: Gpu) -> DeviceStatus:
        return gpu(
            uuid,
            *found.copies.values(),
            mig_capable=True,
            mig_mode=MigMode.DISABLED if found.slices is None else MigMode.ENABLED,
            slices=() if found.withheld else self._slices(uuid, found),
            health=Health.HEALTHY,
            problem=found.withheld if found.slices else "",
        )

    def _count(self) -> None:
        present = self.ready()
        for member in self._watched:
            self.fewest[member] = min(self.fewest[member], present[member])
