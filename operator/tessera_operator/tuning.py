"""Tuning of the whole cluster: tasks of nodes, which variants are used, and the status of ModelProfiles with Events.

Everything is in the objects: outcomes in ModelProfiles, tasks in RuntimeNodes. A leader that is new goes on from there.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from tessera_core.api import ModelProfile, RuntimeNode
from tessera_core.api.measurements import ProfilingTask, TuningTask
from tessera_core.api.modelprofile import ModelProfileStatus
from tessera_core.api.records import record
from tessera_core.api.tuning import TuningStatus
from tessera_operator.conditions import dated
from tessera_operator.decide import Decision
from tessera_operator.events import event
from tessera_operator.kinds import Document
from tessera_operator.remembered import Place as Model
from tessera_operator.remembered import place_of
from tessera_operator.tunable import Want, share_out, wants
from tessera_operator.tuned import Reported, condition, merged, progressed, reports, slowed
from tessera_operator.tuning_places import Allows, Ground, to_measure
from tessera_operator.variants import Choice, Orders, Uses, chosen, in_force, turns
from tessera_operator.versions import Version
from tessera_operator.world import World
from tessera_operator.write import Writer

MANAGER = "tessera-operator-tuning"
"""Of the fields that are written here, as drift has one of its own."""


@dataclass(frozen=True, slots=True)
class Tasks:
    """What each node is to do."""

    profiling: Mapping[str, tuple[ProfilingTask, ...]]
    """All of it, of variants too."""
    tuning: Mapping[str, tuple[TuningTask, ...]]


class Tuning:
    """Not thread-safe."""

    def __init__(
        self, writer: Writer, most: int, reserved_cores: int, cpu_slices: Sequence[int]
    ) -> None:
        """``most``: tasks at once, in the whole cluster."""
        self._writer = writer
        self._most = most
        self._reserved_cores = reserved_cores
        self._cpu_slices = tuple(cpu_slices)
        self.choice = Choice({}, {})
        """As of the last look."""

    def look(self, world: World, heard: Iterable[RuntimeNode]) -> Uses:
        """Choose variants by what is known; those that are in force. ``heard``: nodes that are not lost."""
        self.choice = chosen(world.services, world.profiles, world.tuned)
        return in_force(self.choice.uses, heard)

    def orders(self, versions: Iterable[Version], heard: Iterable[RuntimeNode]) -> Orders:
        """Who is to run which variant now. ``versions``: that are planned."""
        digests = {
            (version.name, member): digest
            for version in versions
            for member, digest in version.digests.items()
        }
        return Orders(self.choice.uses, turns(self.choice.uses, heard), digests)

    def keep(
        self,
        decision: Decision,
        world: World,
        nodes: Sequence[RuntimeNode],
        profiling: Mapping[str, tuple[ProfilingTask, ...]],
        allows: Allows,
        now: str,
    ) -> Tasks:
        """Take over what was found, say how far tuning is, and what is next. ``nodes``: that are steady. ``profiling``: what
        they measure of models as they are loaded, which goes first.
        """
        said = reports(world.nodes)
        tuned: dict[Model, list[ModelProfile]] = {}
        for each in world.tuned:
            tuned.setdefault(place_of(each), []).append(each)
        statuses = {
            model: merged(
                each, said.get(model, Reported()), slowed(each, tuned.get(model, ())), now
            )
            for each in world.profiles
            for model in [place_of(each)]
        }
        profiles = [_with(each, statuses[place_of(each)]) for each in world.profiles]
        plan = decision.plan
        ground = Ground(nodes, plan, profiling, self._reserved_cores, allows)
        measured = to_measure(self.choice.unmeasured, ground, self._cpu_slices)
        everything = {**profiling, **{name: (task,) for name, task in measured.items()}}
        wanted = wants(decision.versions, decision.newest, plan, profiles)
        quiet = Ground(nodes, plan, everything, self._reserved_cores, allows)
        shared = share_out(wanted, quiet, self._most)
        self._say(world.profiles, statuses, wanted, shared.where, now)
        return Tasks(everything, shared.tasks)

    def _say(
        self,
        profiles: Iterable[ModelProfile],
        statuses: Mapping[Model, TuningStatus | None],
        wanted: Iterable[Want],
        where: Mapping[Model, tuple[str, ...]],
        now: str,
    ) -> None:
        wants_of = {place_of(want.profile): want for want in wanted}
        for profile in profiles:
            key = place_of(profile)
            here = where.get(key, ())
            status = progressed(
                profile, statuses[key], wants_of.get(key), bool(here), self.choice.uses
            )
            if status is not None:
                self._write(profile, status, here, now)

    def _write(
        self, profile: ModelProfile, status: TuningStatus, where: Sequence[str], now: str
    ) -> None:
        before, metadata = profile.status.tuning, profile.metadata
        said = condition(status, where)
        found = dated(said, profile.status.conditions, metadata.generation, now)
        document: Document = {
            "apiVersion": "tessera.dev/v1alpha1",
            "kind": ModelProfile.KIND,
            "metadata": {"name": metadata.name, "namespace": metadata.namespace},
            "status": record(ModelProfileStatus).encode(
                ModelProfileStatus(conditions=(found,), tuning=status)
            ),
        }
        if not self._writer.put(document, "status", MANAGER) or before == status:
            return
        known = before.quarantined if before is not None else ()
        for each in status.quarantined:
            if each not in known:
                words = f"{each.variant} is not used any more: {each.reason}"
                told = replace(found, reason="Quarantined", message=words)
                self._writer.create(event(ModelProfile.KIND, metadata, told, now, warns=True))
        if before is None or _news(before) != _news(status):
            self._writer.create(event(ModelProfile.KIND, metadata, found, now, warns=False))


def _with(profile: ModelProfile, status: TuningStatus | None) -> ModelProfile:
    if status == profile.status.tuning:
        return profile
    return replace(profile, status=replace(profile.status, tuning=status))


def _news(status: TuningStatus) -> tuple[object, ...]:
    """What people are told of when it changes: not each variant that was tried."""
    return status.phase, status.promoted
