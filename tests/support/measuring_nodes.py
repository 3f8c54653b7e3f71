"""Nodes whose GPUs are cut and whose agents measure, and a pool that was never cut: what tests of scouting start from."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

from support.clusters import digest, gpu_place, measured
from support.cutting_nodes import MODEL, CuttingNodes, Gpu
from support.objects import pool
from support.recut_cases import wanted
from tessera_core.api import ModelProfile, ModelService, RuntimeNode
from tessera_core.api.measurements import ProfileResult, ProfilingTask
from tessera_core.gpu.devices import FULL
from tessera_core.gpu.geometry import Geometry
from tessera_core.gpu.mig import find_profile
from tessera_operator.kinds import Document

SLICES = ("7g.80gb", "4g.40gb", "3g.40gb", "2g.20gb", "1g.20gb", "1g.10gb")
"""Of an A100, without media extensions."""
Measurement = tuple[str, str]
"""(member, kind of slice)."""


@dataclass(frozen=True)
class Net:
    """A model as it would be measured."""

    row_ms: float = 0.2
    """On a whole GPU; on a slice as many times longer as it has fewer of the seven compute slices."""
    memory_mib: float = 1000.0
    breaks_on: frozenset[str] = frozenset()
    """Kinds of slices on which measuring fails."""


class MeasuringNodes(CuttingNodes):
    """Nodes that measure ``nets``, by member, within one tick."""

    def __init__(
        self, *documents: Document, gpus: dict[str, list[Gpu]], nets: dict[str, Net]
    ) -> None:
        super().__init__(*documents, gpus=gpus)
        self.nets = nets
        self.tried: Counter[Measurement] = Counter()
        """How often agents began to measure."""
        self.cuts: list[tuple[str, Geometry]] = []
        """GPUs, and what they were ordered to be cut into, once they are."""
        self._last: dict[str, tuple[ProfilingTask, ...]] = {}

    def twin(self) -> MeasuringNodes:
        found = MeasuringNodes(gpus={}, nets=self.nets)
        found._become(self)
        found.tried, found._last = self.tried.copy(), dict(self._last)
        return found

    def tick(self, count: int = 1, seconds: float = 1.0) -> None:
        for _ in range(count):
            before = {key: found.geometry for key, found in self.gpus.items()}
            super().tick(1, seconds)
            for key, found in self.gpus.items():
                if found.geometry != before[key]:
                    told = RuntimeNode.from_dict(self.cluster.objects["RuntimeNode", "", key[0]])
                    goals = {each.uuid: each.geometry for each in told.spec.devices}
                    if goals.get(key[1]) == found.geometry:
                        self.cuts.append((key[1], found.geometry))

    def known(self) -> set[Measurement]:
        """What was measured, of A100s."""
        names = {digest(name): name for name in self.nets}
        found = [
            ModelProfile.from_dict(each)
            for key, each in self.cluster.objects.items()
            if key[0] == "ModelProfile"
        ]
        return {
            (names[each.spec.model_digest], each.spec.device_class.slice)
            for each in found
            if each.status.rows
        }

    def profiled(self, service: str) -> tuple[str, str]:
        """Reason and message of the condition."""
        found = ModelService.from_dict(self.cluster.objects["ModelService", "vision", service])
        (said,) = [each for each in found.status.conditions if each.type == "Profiled"]
        return said.reason, said.message

    def used(self) -> set[str]:
        """GPUs on which something runs."""
        return {uuid for (_, uuid), found in self.gpus.items() if found.copies}

    def _profiles(self, now: RuntimeNode) -> tuple[ProfileResult, ...]:
        name, tasks = now.metadata.name, now.spec.profiling
        new = [each for each in tasks if each not in self._last.get(name, ())]
        self._last[name] = tasks
        return tuple(self._measure(name, each, is_new=each in new) for each in tasks)

    def _measure(self, node: str, task: ProfilingTask, *, is_new: bool) -> ProfileResult:
        net, kind = self.nets[task.member], task.slice.partition("@")[0]
        self.tried[task.member, kind] += is_new
        if not self._exists(self.gpus[node, task.device], task.slice):
            problem = f"{task.device} has no slice {task.slice}"
            return ProfileResult(task.service, task.member, problem=problem)
        place = gpu_place(kind)
        if kind in net.breaks_on or net.memory_mib > place.memory_mib:
            problem = f"{kind}: out of memory"
            return ProfileResult(task.service, task.member, digest(task.member), problem=problem)
        profile = find_profile(MODEL, kind)
        share = 1.0 if kind == FULL or profile is None else profile.compute_slices / 7
        found = measured(
            task.member, place, net.row_ms / share, 1.0 / share, memory_mib=net.memory_mib
        )
        rows = found.profile.rows
        return ProfileResult(
            *(task.service, task.member, digest(task.member), place, "torch 2.8.0", "570"),
            rows=rows,
        )


def fresh(
    *names: str, gpus: int = 3, nets: dict[str, Net] | None = None, **partition: Any
) -> MeasuringNodes:
    """Nodes of one whole A100 each, and services that nobody has measured, each of which needs a GPU or a slice of its own."""
    rules = {"approval": "Auto", **partition}
    return MeasuringNodes(
        pool(partition=rules, size={"min": gpus, "max": gpus}).to_dict(),
        *(wanted(name, 1) for name in names),
        gpus={f"n{index}": [Gpu(None)] for index in range(gpus)},
        nets={**{name: Net() for name in names}, **(nets or {})},
    )
