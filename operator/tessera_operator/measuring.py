"""Measurements under way: what nodes are asked to measure, and ModelProfiles of what they found."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from tessera_core.api import ModelProfile, RuntimeNode
from tessera_core.api.measurements import ProfileResult, ProfilingTask
from tessera_core.api.modelprofile import ModelProfileSpec, ModelProfileStatus
from tessera_core.api.records import record
from tessera_operator.decide import Decision
from tessera_operator.profiling import (
    Trust,
    Wanted,
    assign,
    cramped,
    missing,
    spots_of,
    tenants,
    to_profile,
)
from tessera_operator.routes import MANAGED_BY
from tessera_operator.world import World
from tessera_operator.write import Writer

_FIRST_PAUSE_S, _MOST_PAUSE_S = 15.0, 600.0
"""After a measurement failed, before it is tried again; twice as long each time."""
_GIVEN_UP = 3
"""Failures after which nothing is kept or cut for a measurement any more."""


class Measuring:
    """What failed and how often, and the digests of what was fetched. Not thread-safe."""

    def __init__(self, cpu_slices: Sequence[int]) -> None:
        self._cpu_slices = tuple(cpu_slices)
        self._failed: dict[Wanted, tuple[int, int, float, str]] = {}
        """(generation, failures, not again before, why)."""
        self._tasks: dict[str, tuple[ProfilingTask, ...]] = {}
        self._missing: tuple[Wanted, ...] = ()
        self._trust = Trust({}, {}, {})
        self.digests: dict[tuple[str, str, str], str] = {}
        """By (service, member, URI): of models that some node has fetched."""

    def see(
        self, nodes: Sequence[RuntimeNode], decision: Decision, writer: Writer, now_s: float
    ) -> None:
        """Keep what the nodes have measured."""
        for node in nodes:
            candidates = {each.name: each for each in node.spec.candidates}
            for result in node.status.profiles:
                candidate = candidates.get(result.service)
                member = (
                    next((m for m in candidate.spec.placed if m.name == result.member), None)
                    if candidate is not None
                    else None
                )
                if candidate is None or member is None:
                    continue
                if result.model_digest is not None:
                    key = result.service, result.member, member.model.uri
                    self.digests[key] = result.model_digest
                profile = to_profile(result)
                if result.variant and profile is None:
                    continue  # whoever has it tried keeps the problem
                if profile is None and (result.problem or result.rows):
                    self._fail(node, result, candidate.generation, now_s)
                elif profile is not None and writer.put(_head(profile)):
                    writer.put(_measured(profile), "status")
        known = decision.newest.keys()
        self.digests = {key: each for key, each in self.digests.items() if key[0] in known}

    def assign(
        self, decision: Decision, world: World, usable: Collection[str], now_s: float
    ) -> Mapping[str, tuple[ProfilingTask, ...]]:
        """What each node is to measure."""
        places = [node for node in world.nodes if node.metadata.name in usable]
        self._missing = missing(
            decision.newest.values(), world.profiles, places, world.pools, self._cpu_slices
        )
        self._failed = {
            key: found
            for key, found in self._failed.items()
            if key[0] in decision.newest and decision.newest[key[0]].generation == found[0]
        }
        waiting = {key: found[2] for key, found in self._failed.items()}
        self._trust = Trust(
            decision.newest,
            {pool.metadata.name: pool for pool in world.pools},
            tenants(world.nodes, decision.plan.assignments),
        )
        self._tasks = assign(
            self._missing, places, usable, waiting, now_s, self._cpu_slices, self._trust.allows
        )
        return self._tasks

    @property
    def given_up(self) -> frozenset[Wanted]:
        """What failed so often that nothing waits for it, though it is tried on where that costs nothing."""
        return frozenset(key for key, found in self._failed.items() if found[1] >= _GIVEN_UP)

    def cramped(self, nodes: Sequence[RuntimeNode]) -> frozenset[str]:
        """Pools that need one node more than ``nodes``, because those have models of other namespaces."""
        return cramped(self._missing, nodes, self._trust)

    def allows(self, service: str, member: str, node: RuntimeNode) -> bool:
        """Whether a member of a service may be run on ``node`` to find something out about it."""
        return service in self._trust.versions and self._trust.allows(service, member, node)

    def words(self, service: str) -> str:
        """What of ``service`` is being measured, for its condition."""
        return "; ".join(
            f"{task.member} on {node} {task.device} {task.slice}"
            for node, tasks in sorted(self._tasks.items())
            for task in tasks
            if task.service == service
        )

    def problem(self, service: str) -> str:
        """Why measuring ``service`` failed; empty: it did not."""
        found = {
            f"{member}: {why}"
            for (name, member, _), (_, _, _, why) in self._failed.items()
            if name == service
        }
        return "; ".join(sorted(found))

    @property
    def under_way(self) -> bool:
        """Whether something is left to be measured on the nodes that there are, which are kept for it."""
        given_up = self.given_up
        return any(key not in given_up for key in self._missing)

    def _fail(
        self, node: RuntimeNode, result: ProfileResult, generation: int, now_s: float
    ) -> None:
        member = result.service, result.member
        tried = {
            spot.place
            for task in self._tasks.get(node.metadata.name, ())
            for spot in spots_of(task.member, node, self._cpu_slices)
            if (task.service, task.member, task.device, task.slice)
            == (*member, spot.device, spot.slice)
        }
        for key in self._missing:
            if not tried or key[:2] != member:
                continue
            # What could not be fetched cannot be elsewhere either; what has no room here may have it there.
            if key[2] not in tried and result.model_digest is not None:
                continue
            _, failures, again_s, _ = self._failed.get(key, (generation, 0, 0.0, ""))
            if now_s < again_s:
                continue  # the same result, seen again
            pause_s = min(_MOST_PAUSE_S, _FIRST_PAUSE_S * 2**failures)
            why = result.problem or "the measurement has no rows"
            self._failed[key] = generation, failures + 1, now_s + pause_s, why


def _head(profile: ModelProfile) -> dict[str, Any]:
    return {
        "apiVersion": "tessera.dev/v1alpha1",
        "kind": "ModelProfile",
        "metadata": {
            "name": profile.metadata.name,
            "namespace": profile.metadata.namespace,
            "labels": dict(MANAGED_BY),
        },
        "spec": record(ModelProfileSpec).encode(profile.spec),
    }


def _measured(profile: ModelProfile) -> dict[str, Any]:
    head = _head(profile)
    del head["spec"], head["metadata"]["labels"]
    return {**head, "status": record(ModelProfileStatus).encode(profile.status)}
