"""Measurements that are missing although something of them runs.

What runs must not be unloaded because somebody deleted a ModelProfile, or the namespace that it was in: it is known
to work. Until it is measured again it counts as it was measured, and, after a restart of the operator, as the batch
times in the nodes' specs say, which are on the slow side.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

from tessera_core.api import ModelProfile, RuntimeNode
from tessera_core.api.meta import ObjectMeta
from tessera_core.api.modelprofile import ModelProfileSpec, ModelProfileStatus
from tessera_core.api.runtimenode import BatchTime
from tessera_core.gpu.devices import DeviceClass
from tessera_core.gpu.mig import label
from tessera_core.perf import LatencyProfile

Place = tuple[str, str, str]
"""(model digest, product, slice kind)."""
_ENGINE = "remembered"


@dataclass(frozen=True, slots=True)
class _Runs:
    """Something that runs, and what its node was told of it."""

    place: Place
    cores: int
    memory_mib: int
    """Of the whole device."""
    batch: int
    instances: int
    used_mib: float
    time: BatchTime | None


class Remembered:
    """The last content of measurements that are in use. Not thread-safe."""

    def __init__(self) -> None:
        self._last: dict[Place, ModelProfile] = {}
        self._told: dict[Place, ModelProfile] = {}

    def missing(
        self, nodes: Iterable[RuntimeNode], profiles: Iterable[ModelProfile]
    ) -> tuple[ModelProfile, ...]:
        """Stand-ins for what is in use on ``nodes`` and not among ``profiles``; the same values as long as they
        stand in.
        """
        running = {each.place: each for node in nodes for each in _running(node)}
        present = {place_of(each): each for each in profiles}
        self._last = {
            place: present.get(place) or self._last[place]
            for place in running
            if place in present or place in self._last
        }
        told: dict[Place, ModelProfile] = {}
        for place in sorted(running.keys() - present.keys()):
            found = self._told.get(place) or self._last.get(place) or _as_told(running[place])
            if found is not None:
                told[place] = replace(found, metadata=ObjectMeta(name=_name(place)))
        self._told = {
            place: self._told[place] if self._told.get(place) == each else each
            for place, each in told.items()
        }
        return tuple(self._told.values())


def _running(node: RuntimeNode) -> Iterator[_Runs]:
    members = {
        (service.name, member.name): member
        for service in node.spec.services
        for member in service.members
    }
    devices = {device.uuid: device for device in node.status.devices}
    for ordered in node.spec.devices:
        device = devices.get(ordered.uuid)
        if device is None:
            continue
        used = {(e.service, e.member, e.slice): e.memory_mib for e in device.instances}
        for each in ordered.instances:
            member = members.get((each.service, each.member))
            if member is None or member.digest is None:
                continue
            kind = each.slice.partition("@")[0]
            cores = int(kind.removeprefix("cpu-")) if kind.startswith("cpu-") else 0
            yield _Runs(
                place=(member.digest, label(device.product), kind),
                cores=cores,
                memory_mib=max(1, device.memory_mib),
                batch=each.batch,
                instances=each.count,
                used_mib=float(used.get((each.service, each.member, each.slice), 0)),
                time=member.batch_time,
            )


def _as_told(runs: _Runs) -> ModelProfile | None:
    """What a node was told of a member as a measurement of the batches that it runs."""
    time = runs.time
    if time is None or time.tau0_ms + time.alpha_ms <= 0:
        return None
    digest, product, kind = runs.place
    memory = runs.used_mib / runs.instances
    one = LatencyProfile.from_fit(
        max(time.alpha_ms, 1e-6), max(time.tau0_ms, 0.0), _sizes(runs.batch), memory
    )
    rows = one.rows
    if runs.instances > 1:
        rows += tuple(
            replace(
                row,
                instances=runs.instances,
                throughput=row.throughput * runs.instances,
                memory_mib=runs.used_mib,
            )
            for row in rows
        )
    return ModelProfile(
        metadata=ObjectMeta(name=_name(runs.place)),
        spec=ModelProfileSpec(
            digest, DeviceClass(product, kind, runs.cores, runs.memory_mib), _ENGINE
        ),
        status=ModelProfileStatus(rows=rows),
    )


def _sizes(batch: int) -> tuple[int, ...]:
    sizes = {1 << power for power in range(batch.bit_length()) if 1 << power <= batch}
    return tuple(sorted(sizes | {batch}))


def place_of(profile: ModelProfile) -> Place:
    """What ``profile`` is of."""
    place = profile.spec.device_class
    return profile.spec.model_digest, label(place.product), place.slice


def _name(place: Place) -> str:
    return hashlib.sha256(" ".join(place).encode()).hexdigest()[:32]
