"""Agents of ``memory_operator`` that try one variant a round on each slice that they are told, and measure variants."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

from support.clusters import A100, digest, gpu_place, measured
from support.memory_operator import PROFILE, Operator, profile
from support.objects import pool, service
from tessera_core.api import Instance, ModelProfile, RuntimeNode
from tessera_core.api.measurements import ProfileResult, TuningResult, TuningTask
from tessera_core.api.tuning import FallenBack, Outcome, Reason, TuningStatus
from tessera_operator.config import Config

FAST = "inductor/fp32/max-autotune"
LOW = "inductor/bf16/max-autotune"
"""Faster still, where bfloat16 is allowed."""


def outcome(variant: str, p99_ratio: float = 1.0, error: float = 0.001) -> Outcome:
    """One that was measured, promoted where it takes at least 3 % less."""
    verdict = Reason.FASTER if p99_ratio <= 0.97 else Reason.NOT_FASTER
    return Outcome(variant, verdict, error, p99_ratio, 1 / p99_ratio, "measured")


class TuningNodes(Operator):
    """Of what they try, ``found`` says what comes out; everything else is no faster."""

    def __init__(self, *documents: Any, nodes: int, config: Config) -> None:
        self.found = {FAST: outcome(FAST, 0.5), LOW: outcome(LOW, 0.25)}
        self.broken: dict[str, str] = {}
        """Variants that nodes fall back from, and why."""
        self.unmeasurable: set[str] = set()
        self.tried: Counter[str] = Counter()
        """Variants that were begun."""
        self.at_once = 0
        """Most slices that were tuned on in one round."""
        self._done: dict[tuple[str, TuningTask], dict[str, Outcome]] = {}
        super().__init__(*documents, nodes=nodes, config=config)

    def tuning(self) -> TuningStatus:
        found = ModelProfile.from_dict(self.cluster.objects[PROFILE]).status.tuning
        assert found is not None
        return found

    def variants(self) -> dict[str, str]:
        """By node, the variant that it is told to run."""
        return {
            each.metadata.name: instance.variant
            for each in self.nodes()
            for device in each.spec.devices
            for instance in device.instances
        }

    def tasks(self) -> dict[str, tuple[str, ...]]:
        """By node, what it is told to try."""
        return {
            each.metadata.name: tuple(v for task in each.spec.tuning for v in task.variants)
            for each in self.nodes()
            if each.spec.tuning
        }

    def events(self) -> list[str]:
        """Reasons of Events about ModelProfiles."""
        return [
            each["reason"]
            for key, each in self.cluster.objects.items()
            if key[0] == "Event" and each["involvedObject"]["kind"] == "ModelProfile"
        ]

    def _runs(self, told: Instance) -> str:
        return "" if told.variant in self.broken else told.variant

    def _obey(self, each: RuntimeNode, pod_name: str, serving: set[str]) -> None:
        super()._obey(each, pod_name, serving)
        name = each.metadata.name
        key = "RuntimeNode", "", name
        now = RuntimeNode.from_dict(self.cluster.objects[key])
        self.at_once = max(self.at_once, sum(map(len, self.tasks().values())) and self._slices())
        told = {
            instance.variant
            for device in now.spec.devices
            for instance in device.instances
            if instance.variant in self.broken
        }
        status = replace(
            now.status,
            tuning=tuple(self._tune(name, task) for task in now.spec.tuning),
            profiles=tuple(
                self._measure(task.service, task.member, task.variant)
                for task in now.spec.profiling
                if task.variant
            ),
            fallbacks=tuple(
                FallenBack(digest("a"), A100, "full", variant, self.broken[variant])
                for variant in sorted(told)
            ),
        )
        self.cluster.objects[key] = replace(now, status=status).to_dict()

    def _slices(self) -> int:
        return sum(len(each.spec.tuning) for each in self.nodes())

    def _tune(self, node: str, task: TuningTask) -> TuningResult:
        where = node, replace(task, variants=())
        known = {
            name: found
            for name, found in self._done.get(where, {}).items()
            if name in task.variants
        }
        for variant in task.variants:
            if variant not in known:
                self.tried[variant] += 1
                known[variant] = self.found.get(variant) or outcome(variant)
                break
        self._done[where] = known
        place = task.service, task.member, task.device, task.slice
        return TuningResult(*place, digest(task.member), tuple(known.values()))

    def _measure(self, service: str, member: str, variant: str) -> ProfileResult:
        place = gpu_place()
        head = service, member, digest(member), place, "torch 2.8.0", None, variant
        if variant in self.unmeasurable:
            return ProfileResult(*head, problem="out of memory")
        ratio = self.found[variant].p99_ratio or 1.0
        return ProfileResult(*head, measured(member, place, 0.2 * ratio, 2.0 * ratio).profile.rows)


def tuned(
    nodes: int, *, rps: float = 100.0, tasks: int = 4, tuning: dict[str, Any] | None = None
) -> TuningNodes:
    """An operator whose service runs, asks to be tuned, and was not yet."""
    wanted = service(
        "s", "a", rps=rps, scaling={"minReplicas": 1}, tuning=tuning or {"mode": "Auto"}
    )
    return TuningNodes(
        pool("p", size={"min": nodes, "max": 9}).to_dict(),
        profile("a"),
        wanted.to_dict(),
        nodes=nodes,
        config=Config(tuning_tasks=tasks),
    )
