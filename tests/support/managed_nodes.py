"""Nodes whose GPUs NVIDIA's MIG manager cuts, under a real operator, with what Kubernetes does about their pods.

The manager is as the real one: it looks only when the label changes, reads a file that lags behind the ConfigMap, cannot do
with anybody on the GPUs, and takes a while. What no real one would put up with is an AssertionError.
"""

from __future__ import annotations

import copy
from collections import Counter
from dataclasses import dataclass, field, replace
from enum import Enum, auto

import yaml

from support.cutting_nodes import MODEL, CuttingNodes, Gpu
from support.memory_operator import WHERE
from support.objects import pod
from tessera_core.api import RuntimeNode
from tessera_core.api.runtimenode import DeviceStatus, RuntimeNodeStatus
from tessera_core.gpu.geometry import place
from tessera_operator.config import Config, MigManager
from tessera_operator.controller import Controller
from tessera_operator.kinds import Document
from tessera_operator.mig_layouts import FILE
from tessera_operator.mig_manager import (
    ALLOWED,
    ALLOWED_LABEL,
    AWAY_LABEL,
    CONFIG_LABEL,
    FAILED,
    PENDING,
    STATE_LABEL,
    SUCCESS,
)

SETTINGS = MigManager("gpu-operator", "tessera-layouts", sync_s=5.0)
LONG_S = 8.0
"""Longer than it takes a layout to be on nodes, shorter than it takes nodes to be lost."""
_LAG_S = 4.0
"""Of the file behind the ConfigMap."""
_DEPLOYMENT = "Deployment", WHERE.namespace, "tessera-runtime-p"


class Mood(Enum):
    """What the manager of a node does when it is asked."""

    WORKS = auto()
    SILENT = auto()
    """It is not there."""
    STUCK = auto()
    """It says that it is at work, for ever."""
    FAILS = auto()
    """Before it has touched anything."""
    FAILS_HALFWAY = auto()
    """When the old slices are gone."""
    LIES = auto()
    """It says that it is done, and has done nothing."""


@dataclass
class Manager:
    """Of one node."""

    mood: Mood = Mood.WORKS
    seen: str | None = None
    """The name that it has looked at last."""
    left: int = 0
    """Ticks until it is done."""


@dataclass
class _File:
    """The ConfigMap as kubelets show it."""

    written: list[tuple[float, str]] = field(default_factory=list)

    def note(self, now_s: float, text: str) -> None:
        if not self.written or self.written[-1][1] != text:
            self.written.append((now_s, text))

    def read(self, now_s: float) -> str:
        return [text for at_s, text in self.written if now_s - at_s >= _LAG_S or at_s == 0.0][-1]


class ManagedNodes(CuttingNodes):
    """``CuttingNodes`` without partitioners: managers, a ReplicaSet and a scheduler instead."""

    def __init__(self, *documents: Document, gpus: dict[str, list[Gpu]]) -> None:
        self.managers = {name: Manager() for name in gpus}
        self._file = _File()
        self._pods = 0
        self._is_busy = True
        self.most_pending = 0
        """Pods without a node, at worst: an autoscaler brings a node for each."""
        super().__init__(*documents, gpus=gpus)
        if not gpus:
            return
        metadata = {"name": SETTINGS.config_map, "namespace": SETTINGS.namespace}
        self.cluster.create({"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata})
        for name in gpus:
            self.labels(name)[ALLOWED_LABEL] = ALLOWED
        self.restart()

    def restart(self) -> None:
        self.epoch += 1
        self.controller = Controller(self.cluster, Config(mig_manager=SETTINGS), WHERE, self.epoch)
        self._taken = {}

    def twin(self) -> ManagedNodes:
        found = ManagedNodes(gpus={})
        found.cluster, found.gpus = self.cluster.copy(), copy.deepcopy(self.gpus)
        found.managers, found._file = copy.deepcopy((self.managers, self._file))
        found.fewest, found._watched = copy.copy(self.fewest), self._watched
        found.now_s, found.epoch, found._pods = self.now_s, self.epoch, self._pods
        found.restart()
        return found

    def labels(self, name: str) -> dict[str, str]:
        """Of a Node; a change is seen as one."""
        metadata = self.cluster.objects["Node", "", name]["metadata"]
        found: dict[str, str] = metadata.setdefault("labels", {})
        return found

    def pod_on(self, name: str) -> str | None:
        """The runtime pod of a node."""
        return next(
            (
                key[2]
                for key, each in self.cluster.objects.items()
                if key[0] == "Pod" and each["spec"].get("nodeName") == name
            ),
            None,
        )

    def tick(self, count: int = 1, seconds: float | None = None) -> None:
        """As long as it takes, where nobody says how long: a second, or more when nobody did anything in the last one."""
        for _ in range(count):
            before = len(self.cluster.calls), copy.deepcopy(self.gpus)
            super().tick(1, seconds or (1.0 if self._is_busy else LONG_S))
            self._is_busy = before != (len(self.cluster.calls), self.gpus) or any(
                each.left for each in self.managers.values()
            )
            self._schedule()
            found = self.cluster.objects["ConfigMap", SETTINGS.namespace, SETTINGS.config_map]
            self._file.note(self.now_s, found.get("data", {}).get(FILE, "{}"))
            for name, manager in self.managers.items():
                self._manage(name, manager)

    def is_still(self) -> bool:
        return super().is_still() and not any(AWAY_LABEL in self.labels(n) for n in self.managers)

    def _is_up(self, who: str, name: str) -> bool:
        if who == "partitioner":
            return False
        return self.pod_on(name) is not None and super()._is_up(who, name)

    def _reported(self, now: RuntimeNode, status: RuntimeNodeStatus) -> RuntimeNodeStatus:
        found = super()._reported(now, status)
        answers = {service for (service, _), copies in self.ready().items() if copies}
        services = tuple(replace(each, ready=each.name in answers) for each in found.services)
        return replace(found, services=services, pod=self.pod_on(now.metadata.name))

    def _schedule(self) -> None:
        """As many pods as the Deployment asks for, on nodes that may have one."""
        wanted = int(self.cluster.objects[_DEPLOYMENT]["spec"]["replicas"])
        without = [name for name in sorted(self.managers) if self.pod_on(name) is None]
        for name in without:
            assert not any(each.copies for _, each in self.boards(name)), (
                "a pod that served is gone"
            )
        free = [name for name in without if AWAY_LABEL not in self.labels(name)]
        missing = wanted - (len(self.managers) - len(without))
        for name in free[: max(0, missing)]:
            self._pods += 1
            self.cluster.create(pod(f"pod-{name}-{self._pods}", name))
        self.most_pending = max(self.most_pending, missing - len(free))

    def _manage(self, name: str, manager: Manager) -> None:
        labels, mood = self.labels(name), manager.mood
        config = labels.get(CONFIG_LABEL)
        if mood is Mood.SILENT or config is None:
            return
        if manager.left == 0 and config != manager.seen:
            manager.seen = config
            if mood is not Mood.STUCK and self._is_so(name, config):
                labels[STATE_LABEL] = SUCCESS  # and nobody is disturbed
                return
            assert self.pod_on(name) is None, "the manager begins beside a pod"
            manager.left = 3
            labels[STATE_LABEL] = PENDING
        elif manager.left > 0 and mood is not Mood.STUCK:
            assert self.pod_on(name) is None, "a pod came while the manager was at work"
            manager.left -= 1
            if manager.left == 0:
                labels[STATE_LABEL] = self._apply(name, manager.seen or "", mood)

    def _asked(self, name: str, config: str) -> dict[str, tuple[str, ...] | None]:
        """By GPU, the profiles of its slices; None: MIG is off."""
        configs = yaml.safe_load(self._file.read(self.now_s))["mig-configs"]
        assert config in configs, f"{config} is not in the file yet"
        found: dict[str, tuple[str, ...] | None] = {}
        for entry in configs[config]:
            gpus = range(len(self.boards(name))) if entry["devices"] == "all" else entry["devices"]
            counts = Counter(entry["mig-devices"]) if entry["mig-enabled"] else None
            profiles = None if counts is None else tuple(sorted(counts.elements()))
            found |= {f"GPU-{name}-{index}": profiles for index in gpus}
        return found

    def _is_so(self, name: str, config: str) -> bool:
        asked = self._asked(name, config)
        return all(_profiles(found) == asked[uuid] for uuid, found in self.boards(name))

    def _apply(self, name: str, config: str, mood: Mood) -> str:
        if mood is Mood.LIES:
            return SUCCESS
        if mood is Mood.FAILS:
            return FAILED
        for uuid, profiles in self._asked(name, config).items():
            found = self.gpus[name, uuid]
            assert not found.copies, "cut below a model"
            if profiles is None:
                found.slices = None
            elif _profiles(found) != profiles:
                made = place(MODEL, profiles)
                assert made is not None, "counts that fit no GPU"
                found.slices = set(made) if mood is Mood.WORKS else set()
        return FAILED if mood is Mood.FAILS_HALFWAY else SUCCESS

    def _device(self, uuid: str, found: Gpu) -> DeviceStatus:
        return replace(super()._device(uuid, found), index=int(uuid.rpartition("-")[2]))


def _profiles(found: Gpu) -> tuple[str, ...] | None:
    return None if found.slices is None else tuple(sorted(each.profile for each in found.slices))
