"""The fast loop: each second, how large batches are and how many instances take them, beneath what is planned.

What is placed is the planner's: nothing is loaded or unloaded here. A plan that changes is where the policy begins anew.
"""

from __future__ import annotations

import logging
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from math import inf

import msgspec

from tessera_core.api import RuntimeNode
from tessera_core.api.modelservice import OnTimeout
from tessera_core.api.runtimenode import BatchLine
from tessera_core.control.joint import Joint, JointState
from tessera_core.control.setpoint import Batch, Goal, Setpoint
from tessera_core.control.steer import active_on_each, in_turn, pooled, window
from tessera_core.perf import (
    Counters,
    LatencyProfile,
    ModelHealth,
    member_percentile,
    members_waited_for,
    model_health,
)
from tessera_core.perf.counters import gone_back
from tessera_runtime.target import (
    DeviceTarget,
    InstanceTarget,
    MemberReport,
    MemberTarget,
    ServerReport,
    ServerTarget,
    ServiceReport,
    ServiceTarget,
    placed_alike,
)

log = logging.getLogger(__name__)

Kind = tuple[str, str]
"""(product, kind of slice)."""
Profiles = Mapping[tuple[str, str, Kind], LatencyProfile]
"""By (service, member, kind of device), as measured; what is not here keeps to the plan. Others are another object."""

TOGETHER = ""
"""Stands for the members of a service that run as one."""

NEARLY = 0.9
"""Of the time that a policy waits: reports do not come exactly by the second."""

MOST_DECIDING_S = 0.3
"""In one look; what is left over has its turn in the next one. A decision takes 0.2 ms, and up to 0.2 s where the queue
model has to solve what it was not asked before."""

MOST_SAMPLES = 60
"""Of counters, a second apart, for the mean latency."""

FEWEST_BATCHES = 50
"""From which a correction says something to others."""


@dataclass(frozen=True, slots=True)
class Corrected:
    """What batches take here over what was measured."""

    service: str
    member: str
    kind: Kind
    ratio: float
    latency_ratio: float | None = None
    """Mean latency over what was measured says for the arrivals that came; None where nothing can be said."""


@dataclass(frozen=True, slots=True)
class Measured:
    """Latency of a member, or of several that run as one."""

    service: str
    members: tuple[str, ...]
    health: ModelHealth


@dataclass(frozen=True, slots=True)
class _Place:
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

    @property
    def carries(self) -> float:
        """Rows per second as planned."""
        return self.profile.throughput(self.planned.cap, self.planned.instances)


@dataclass(slots=True)
class _Steered:
    place: _Place
    policy: Joint
    state: JointState
    before: Counters | None = None
    """At the last decision."""
    batches: int = 0
    """That were seen."""
    samples: deque[Counters] = field(default_factory=lambda: deque(maxlen=MOST_SAMPLES))
    """Since what is set has not changed."""

    def health(self) -> ModelHealth:
        place, setpoint = self.place, self.state.setpoint
        return model_health(
            tuple(self.samples), place.profile.service(setpoint.cap, setpoint.instances)
        )

    @property
    def decided_s(self) -> float:
        return self.before.at_s if self.before is not None else -inf


@dataclass(frozen=True, slots=True)
class _Look:
    one: _Steered
    now: Counters
    recent: tuple[tuple[str, Batch], ...]
    slo_ms: float
    share: float
    """Of what comes for its members."""


class Steering:
    """The policies of one node, and what they remember. Not thread-safe."""

    def __init__(
        self, kind_of: Callable[[str], Kind], clock: Callable[[], float] = time.monotonic
    ) -> None:
        """``kind_of``: what kind a device is of, by the id that targets have."""
        self._kind_of = kind_of
        self._clock = clock
        self._steered: dict[tuple[str, str, Kind], _Steered] = {}
        self._profiles: Profiles = {}
        self._found: dict[str, tuple[ServiceTarget, list[_Place]]] = {}
        """Of the last look, by served name."""

    def look(self, planned: ServerTarget, report: ServerReport, profiles: Profiles) -> ServerTarget:
        """``planned`` with what to set now, after what ``report`` tells."""
        devices = {device.id: device for device in planned.devices}
        reports = {each.name: each for each in report.services}
        places = self._find(planned, devices, profiles)
        self._steered = {
            _key(name, place): self._take_up(name, place)
            for name, found in places.items()
            for place in found
        }
        looks = [
            look
            for service in planned.services
            if service.name in reports
            for look in self._looks(
                service, places[service.name], reports[service.name], report.monotonic_s
            )
        ]
        until = self._clock() + MOST_DECIDING_S
        for look in sorted(looks, key=lambda each: each.one.decided_s):
            if self._clock() > until:
                break
            _step(look)
        return msgspec.structs.replace(
            planned,
            services=tuple(
                self._set(service, places[service.name]) for service in planned.services
            ),
        )

    def corrections(self) -> tuple[Corrected, ...]:
        """Of everything that ran enough batches to say."""
        return tuple(
            Corrected(service, member, one.place.kind, one.state.error, one.health().ratio)
            for (service, _, _), one in sorted(self._steered.items())
            if one.batches >= FEWEST_BATCHES
            for member in one.place.members
        )

    def health(self) -> tuple[Measured, ...]:
        """Mean latency of each member that is on one kind of device, beside what its profile says."""
        kinds = Counter((service, members) for service, members, _ in self._steered)
        return tuple(
            Measured(service, one.place.members, one.health())
            for (service, members, _), one in sorted(self._steered.items())
            if kinds[service, members] == 1
        )

    def _find(
        self, planned: ServerTarget, devices: Mapping[str, DeviceTarget], profiles: Profiles
    ) -> dict[str, list[_Place]]:
        """By served name, what is steered; found anew where something of it has changed."""
        known = self._found if profiles is self._profiles else {}
        self._profiles = profiles
        self._found = {
            each.name: known[each.name]
            if each.name in known and known[each.name][0] == each
            else (each, self._places(each, devices, profiles))
            for each in planned.services
        }
        return {name: places for name, (_, places) in self._found.items()}

    def _places(
        self, service: ServiceTarget, devices: Mapping[str, DeviceTarget], profiles: Profiles
    ) -> list[_Place]:
        """What is steered of a service."""
        together = placed_alike(service, devices)
        groups = [service.members] if together else [(member,) for member in service.members]
        waited_for = members_waited_for(
            len(groups),
            sum(group[0].required for group in groups),
            service.min_members,
            service.on_timeout is OnTimeout.PARTIAL,
        )
        percent = member_percentile(service.percent, waited_for)
        found = []
        for members in groups:
            by_kind: dict[Kind, list[InstanceTarget]] = {}
            for instance in members[0].instances:
                by_kind.setdefault(self._kind_of(instance.device), []).append(instance)
            for kind, instances in by_kind.items():
                measured = [profiles.get((service.name, each.name, kind)) for each in members]
                known = [each for each in measured if each is not None]
                profile = in_turn(known) if len(known) == len(members) else None
                if profile is None:
                    continue
                place = _place(members, kind, instances, profile, percent)
                if place.planned.instances in place.profile.instance_counts:
                    found.append(place)
        return found

    def _looks(
        self, service: ServiceTarget, places: list[_Place], report: ServiceReport, at_s: float
    ) -> Iterator[_Look]:
        """What is told of each place, while it is told of this version."""
        if report.version != service.version:
            return
        members = {each.name: each for each in report.members}
        of_all: dict[tuple[str, ...], float] = {}
        for place in places:
            of_all[place.members] = of_all.get(place.members, 0.0) + place.carries
        for place in places:
            told = members.get(place.members[0])
            if told is not None:
                one = self._steered[_key(service.name, place)]
                share = place.carries / of_all[place.members]
                now, recent = counters_of(told, at_s), recent_batches(told)
                yield _Look(one, now, recent, service.slo_ms, share)

    def _take_up(self, service: str, place: _Place) -> _Steered:
        """What is known of ``place``; from the plan on, where that is new."""
        known = self._steered.get(_key(service, place))
        if known is not None and known.place == place:
            return known
        state = JointState(place.planned)
        batches = 0
        if known is not None and known.place.of_one == place.of_one:
            state = replace(known.state, setpoint=place.planned, enough=0)
            batches = known.batches
        return _Steered(place, Joint(place.profile, place.percent), state, batches=batches)

    def _set(self, service: ServiceTarget, places: list[_Place]) -> ServiceTarget:
        """``service`` with what is decided now."""
        wanted: dict[tuple[str, str], tuple[int, int]] = {}
        for place in places:
            setpoint = self._steered[_key(service.name, place)].state.setpoint
            active = active_on_each(setpoint, len(place.devices))
            for member in place.members:
                for device in place.devices:
                    wanted[member, device] = setpoint.cap, active
        return msgspec.structs.replace(
            service,
            members=tuple(
                msgspec.structs.replace(
                    member,
                    instances=tuple(
                        _told(instance, wanted.get((member.name, instance.device)))
                        for instance in member.instances
                    ),
                )
                for member in service.members
            ),
        )


def told_profiles(node: RuntimeNode) -> Profiles:
    """What the operator says that batches take, where it leaves batches and instances to the node."""
    found: dict[tuple[str, str, Kind], LatencyProfile] = {}
    for service in node.spec.services:
        for member in service.members:
            by_kind: dict[Kind, list[BatchLine]] = {}
            for line in member.batch_lines:
                by_kind.setdefault((line.product, line.slice), []).append(line)
            for kind, lines in by_kind.items():
                try:
                    found[service.name, member.name, kind] = LatencyProfile.from_lines(lines)
                except ValueError as error:
                    log.error("%s/%s on %s: %s", service.name, member.name, " ".join(kind), error)
    return found


def _key(service: str, place: _Place) -> tuple[str, str, Kind]:
    return service, place.members[0] if len(place.members) == 1 else TOGETHER, place.kind


def _place(
    members: tuple[MemberTarget, ...],
    kind: Kind,
    instances: list[InstanceTarget],
    profile: LatencyProfile,
    percent: float,
) -> _Place:
    first, count = members[0], len(instances)
    most = max(each.count for each in instances)
    cap = max(each.cap or first.cap for each in instances)
    return _Place(
        members=tuple(each.name for each in members),
        kind=kind,
        devices=frozenset(each.device for each in instances),
        planned=Setpoint(cap, count * most),
        largest=min(each.max_batch for each in members),
        of_one=profile,
        profile=pooled(profile, count),
        percent=percent,
    )


def counters_of(report: MemberReport, at_s: float) -> Counters:
    """``at_s``: by the server's clock, of its whole report."""
    return Counters(
        at_s,
        report.arrived,
        report.batches,
        report.rows,
        report.answered,
        report.latency_s,
        report.lost,
        report.gaps,
        report.gaps_s,
        report.gaps_s2,
    )


def recent_batches(report: MemberReport) -> tuple[tuple[str, Batch], ...]:
    """Oldest first, each with its device."""
    return tuple((each.device, Batch(each.rows, each.ms)) for each in report.recent)


def _step(look: _Look) -> None:
    """Decide, when the policy's time has come."""
    one, now, before = look.one, look.now, look.one.before
    if before is None:
        one.before = now
        return
    if 0 <= now.at_s - before.at_s < NEARLY * one.state.wait_s:
        return
    one.before = now
    _keep_sample(one.samples, now)
    seen = window(before, now, look.recent, one.place.devices, look.share)
    if seen is None:
        return
    one.batches += sum(map(len, seen.batches))
    goal = Goal(look.slo_ms, Setpoint(one.place.largest, one.place.planned.instances))
    setpoint = one.state.setpoint
    one.state = one.policy.step(one.state, seen, goal)
    if one.state.setpoint != setpoint:
        one.samples.clear()


def _keep_sample(samples: deque[Counters], sample: Counters) -> None:
    """Another server counts from the beginning, and by a clock of its own."""
    if samples and gone_back(samples[-1], sample) is not None:
        samples.clear()
    if not samples or sample.at_s > samples[-1].at_s:
        samples.append(sample)


def _told(instance: InstanceTarget, wanted: tuple[int, int] | None) -> InstanceTarget:
    if wanted is None:
        return instance
    setpoint, active = wanted
    return msgspec.structs.replace(instance, setpoint=setpoint, active=min(active, instance.count))
