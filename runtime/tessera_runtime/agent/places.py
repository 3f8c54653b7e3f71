"""Which queues the policies steer: devices of one kind with instances of one member, or of all that run as one."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from tessera_core.api.modelservice import OnTimeout
from tessera_core.control.setpoint import Setpoint
from tessera_core.control.steer import in_turn, pooled
from tessera_core.perf import LatencyProfile, member_percentile, members_waited_for
from tessera_core.perf.ensemble import stage_part, stage_percentile
from tessera_runtime.target import (
    DeviceTarget,
    InstanceTarget,
    MemberTarget,
    ServerTarget,
    ServiceTarget,
    placed_alike,
)

Kind = tuple[str, str]
"""(product, kind of slice)."""
Profiles = Mapping[tuple[str, str, Kind], LatencyProfile]
"""By (service, member, kind of device), as measured; what is not here keeps to the plan. Others are another object."""
PlaceKey = tuple[str, str, Kind]
"""(service, member or TOGETHER, kind of device)."""

TOGETHER = ""
"""Stands for the members of a service that run as one."""


@dataclass(frozen=True, slots=True)
class Place:
    """Devices of one kind with instances of one member, or of all that run as one."""

    members: tuple[str, ...]
    kind: Kind
    devices: frozenset[str]
    planned: Setpoint
    """Of all devices together."""
    largest: int
    """Rows of a batch."""
    of_one: LatencyProfile
    """Of one device."""
    profile: LatencyProfile
    """Of all devices together."""
    percent: float
    """Of the requests, that are to be within the SLO here so that enough are in all."""
    part: float = 1.0
    """Of the SLO's target, that is for this place."""

    @property
    def carries(self) -> float:
        """Rows per second as planned."""
        return self.profile.throughput(self.planned.cap, self.planned.instances)

    def key(self, service: str) -> PlaceKey:
        return service, self.members[0] if len(self.members) == 1 else TOGETHER, self.kind


class Places:
    """What a target has to steer, remembered as long as nothing of it changes. Not thread-safe."""

    def __init__(self, kind_of: Callable[[str], Kind]) -> None:
        """``kind_of``: what kind a device is of, by the id that targets have."""
        self._kind_of = kind_of
        self._profiles: Profiles = {}
        self._found: dict[str, tuple[ServiceTarget, tuple[Place, ...]]] = {}
        """Of the last look, by served name."""

    def find(self, planned: ServerTarget, profiles: Profiles) -> dict[str, tuple[Place, ...]]:
        """By served name, what is steered; found anew where something of it has changed."""
        devices = {device.id: device for device in planned.devices}
        known = self._found if profiles is self._profiles else {}
        self._profiles = profiles
        self._found = {
            each.name: known[each.name]
            if each.name in known and known[each.name][0] == each
            else (each, find_places(each, devices, profiles, self._kind_of))
            for each in planned.services
        }
        return {name: places for name, (_, places) in self._found.items()}


def find_places(
    service: ServiceTarget,
    devices: Mapping[str, DeviceTarget],
    profiles: Profiles,
    kind_of: Callable[[str], Kind],
) -> tuple[Place, ...]:
    """Where members of ``service`` run whose batch times are known, with as many instances as were measured.

    ``devices``: by id.
    """
    together = placed_alike(service, devices)
    groups = [service.members] if together else [(member,) for member in service.answering]
    percent, part, stage = service.percent, 0.0, service.stage
    if stage is not None:
        percent = stage_percentile(percent)
        required = [member for member in service.answering if member.required]
        part = stage_part(_alone_ms([stage]), _alone_ms(required))
    waited_for = members_waited_for(
        len(groups),
        sum(group[0].required for group in groups),
        service.min_members,
        service.on_timeout is OnTimeout.PARTIAL,
    )
    found = []
    wanted = [(group, member_percentile(percent, waited_for), 1 - part) for group in groups]
    if stage is not None:
        wanted.append(((stage,), percent, part))
    for members, percent, part in wanted:
        by_kind: dict[Kind, list[InstanceTarget]] = {}
        for instance in members[0].instances:
            by_kind.setdefault(kind_of(instance.device), []).append(instance)
        for kind, instances in by_kind.items():
            measured = [profiles.get((service.name, each.name, kind)) for each in members]
            known = [each for each in measured if each is not None]
            profile = in_turn(known) if len(known) == len(members) else None
            if profile is None:
                continue
            place = _place(members, kind, instances, profile, percent, part)
            if place.planned.instances in place.profile.instance_counts:
                found.append(place)
    return tuple(found)


def _place(
    members: tuple[MemberTarget, ...],
    kind: Kind,
    instances: list[InstanceTarget],
    profile: LatencyProfile,
    percent: float,
    part: float,
) -> Place:
    first, count = members[0], len(instances)
    most = max(each.count for each in instances)
    cap = max(each.cap or first.cap for each in instances)
    return Place(
        members=tuple(each.name for each in members),
        kind=kind,
        devices=frozenset(each.device for each in instances),
        planned=Setpoint(cap, count * most),
        largest=min(each.max_batch for each in members),
        of_one=profile,
        profile=pooled(profile, count),
        percent=percent,
        part=part,
    )


def _alone_ms(members: Sequence[MemberTarget]) -> float | None:
    """What one row takes at the slowest of ``members``; None where it is not known of one."""
    known = [each.service_time.seconds(1) for each in members if each.service_time is not None]
    return 1e3 * max(known) if known and len(known) == len(members) else None
