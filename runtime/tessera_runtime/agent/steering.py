"""The fast loop: each second, how large batches are and how many instances take them, beneath what is planned.

What is placed is the planner's: nothing is loaded or unloaded here. A plan that changes is where the policy begins anew.
"""

from __future__ import annotations

import logging
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from math import inf

import msgspec

from tessera_core.api import RuntimeNode
from tessera_core.api.runtimenode import BatchLine
from tessera_core.control.joint import Joint, JointState
from tessera_core.control.setpoint import Batch, Goal, Setpoint
from tessera_core.control.steer import Told, active_on_each, window
from tessera_core.perf import Counters, LatencyProfile, ModelHealth, model_health
from tessera_core.perf.counters import gone_back
from tessera_runtime.agent.places import Kind, Place, PlaceKey, Places, Profiles
from tessera_runtime.target import (
    InstanceTarget,
    MemberReport,
    ServerReport,
    ServerTarget,
    ServiceReport,
    ServiceTarget,
)

log = logging.getLogger(__name__)

NEARLY = 0.9
"""Of the time that a policy waits: reports do not come exactly by the second."""

MOST_DECIDING_S = 0.3
"""In one look; what is left over has its turn in the next one. A decision takes some ms; of a thousand members not
all have their turn in each second."""

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


@dataclass(slots=True)
class _Steered:
    place: Place
    policy: Joint
    state: JointState
    before: Told | None = None
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
        return self.before.counters.at_s if self.before is not None else -inf


@dataclass(frozen=True, slots=True)
class _Look:
    one: _Steered
    now: Told
    slo_ms: float
    share: float
    """Of what comes for its members."""


class Steering:
    """The policies of one node, and what they remember. Not thread-safe."""

    def __init__(
        self, kind_of: Callable[[str], Kind], clock: Callable[[], float] = time.monotonic
    ) -> None:
        """``kind_of``: what kind a device is of, by the id that targets have."""
        self._places = Places(kind_of)
        self._clock = clock
        self._steered: dict[PlaceKey, _Steered] = {}

    def look(self, planned: ServerTarget, report: ServerReport, profiles: Profiles) -> ServerTarget:
        """``planned`` with what to set now, after what ``report`` tells."""
        reports = {each.name: each for each in report.services}
        places = self._places.find(planned, profiles)
        self._steered = {
            place.key(name): self._take_up(name, place)
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

    def _looks(
        self, service: ServiceTarget, places: tuple[Place, ...], report: ServiceReport, at_s: float
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
                one = self._steered[place.key(service.name)]
                share = place.carries / of_all[place.members]
                yield _Look(one, told_of(told, at_s), service.slo_ms * place.part, share)

    def _take_up(self, service: str, place: Place) -> _Steered:
        """What is known of ``place``; from the plan on, where that is new."""
        known = self._steered.get(place.key(service))
        if known is not None and known.place == place:
            return known
        state = JointState(place.planned)
        batches = 0
        if known is not None and known.place.of_one == place.of_one:
            state = replace(known.state, setpoint=place.planned, enough=0)
            batches = known.batches
        return _Steered(place, Joint(place.profile, place.percent), state, batches=batches)

    def _set(self, service: ServiceTarget, places: tuple[Place, ...]) -> ServiceTarget:
        """``service`` with what is decided now."""
        wanted: dict[tuple[str, str], tuple[int, int]] = {}
        for place in places:
            setpoint = self._steered[place.key(service.name)].state.setpoint
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


def told_of(report: MemberReport, at_s: float) -> Told:
    """``at_s``: by the server's clock, of its whole report."""
    counters = Counters(
        at_s,
        report.arrived,
        report.batches,
        report.rows,
        sum(report.latency_buckets),
        report.latency_s,
        report.lost,
        report.requests,
        report.groups,
        report.gaps,
        report.gaps_s,
        report.groups_s2,
    )
    recent = tuple((each.device, Batch(each.rows, each.ms)) for each in report.recent)
    return Told(counters, report.latency_buckets, recent)


def _step(look: _Look) -> None:
    """Decide, when the policy's time has come."""
    one, now, before = look.one, look.now, look.one.before
    if before is None:
        one.before = now
        return
    if 0 <= now.counters.at_s - before.counters.at_s < NEARLY * one.state.wait_s:
        return
    one.before = now
    _keep_sample(one.samples, now.counters)
    seen = window(before, now, one.place.devices, look.share)
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
