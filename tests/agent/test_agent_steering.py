"""The fast loop on reports of a server: what is set beneath the plan, and what is told of profiles that are off."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest

from tessera_core.api import ClusterMeta, ModelServiceSpec, RuntimeNode, RuntimeNodeSpec
from tessera_core.api.members import Member as ApiMember
from tessera_core.api.members import Model, ModelFormat
from tessera_core.api.modelservice import Combine, Ensemble, Objective, OnTimeout, Slo
from tessera_core.api.runtimenode import BatchLine, ServedMember, ServedService
from tessera_core.perf.health import mean_ms
from tessera_core.perf.histogram import BOUNDS_S
from tessera_core.perf.profile import LatencyProfile, ProfileRow
from tessera_runtime.agent.places import Profiles, find_places
from tessera_runtime.agent.steering import (
    FEWEST_BATCHES,
    MOST_DECIDING_S,
    Steering,
    told_profiles,
)
from tessera_runtime.target import (
    BatchReport,
    DeviceTarget,
    InstanceTarget,
    MemberReport,
    MemberTarget,
    Ports,
    ServerReport,
    ServerTarget,
    ServiceReport,
    ServiceTarget,
    ServiceTime,
)

KIND = ("gpu", "full")
SLO_MS = 50.0


def batch_ms(rows: int, instances: int) -> float:
    return max(4.0 + 0.2 * rows, instances * (1.5 + 0.15 * rows))


PROFILE = LatencyProfile(
    tuple(
        ProfileRow(rows, n, ms := batch_ms(rows, n), ms, 1e3 * n * rows / ms, 100.0)
        for rows in (1, 2, 4, 8, 16, 32, 64)
        for n in (1, 2, 4)
    )
)


def member(name: str, *places: InstanceTarget, required: bool = True) -> MemberTarget:
    return MemberTarget(name, f"/m/{name}", "ONNX", "d", 64, 16, places, required=required)


def target(*services: ServiceTarget) -> ServerTarget:
    used = {p.device for s in services for m in s.members for p in m.instances}
    devices = tuple(
        DeviceTarget(each, "cpu" if each.startswith("cpu") else "cuda") for each in sorted(used)
    )
    return ServerTarget(devices, services)


def service(*members: MemberTarget, name: str = "test.m", version: str = "1") -> ServiceTarget:
    combine = Combine.NONE if len(members) == 1 else Combine.MEAN
    return ServiceTarget(
        name, version, members, combine, len(members), OnTimeout.FAIL, SLO_MS, 99.0
    )


ONE = target(service(member("a", InstanceTarget("gpu-0", 4, 16))))
PROFILES: Profiles = {("test.m", "a", KIND): PROFILE}


def kind_of(device: str) -> tuple[str, str]:
    return ("cpu", "cpu-1") if device.startswith("cpu") else ("gpu", "full")


NO_OTHERS = (0,) * len(BOUNDS_S)


class FakeServer:
    """Counts as a server does; batches take ``slower`` times their profile."""

    def __init__(self, steering: Steering, planned: ServerTarget = ONE, profiles=PROFILES) -> None:
        self.steering, self.planned, self.profiles = steering, planned, profiles
        self.at_s, self.arrived, self.batches = 100.0, 0, 0
        self.answered, self.latency_s = 0, 0.0
        self.told = planned

    def second(self, rate: int, slower: float = 1.0, version: str = "1", ran: int = 40):
        """What is told after a second more."""
        self.at_s += 1.0
        self.arrived += rate
        self.batches += ran
        report = self.report(slower, version)
        self.told = self.steering.look(self.planned, report, self.profiles)
        return self.told

    def seconds(self, count: int, rate: int, slower: float = 1.0) -> ServerTarget:
        for _ in range(count):
            self.second(rate, slower)
        return self.told

    def report(self, slower: float, version: str) -> ServerReport:
        services = []
        for told in self.told.services:
            members = []
            for each in told.members:
                recent = tuple(
                    BatchReport(
                        place.device,
                        1,
                        4,
                        slower * PROFILE.service_ms(4, place.active or place.count),
                    )
                    for place in each.instances
                ) * (16 // len(each.instances))
                members.append(
                    MemberReport(
                        each.name,
                        "d",
                        wanted=4,
                        ready=4,
                        cap=16,
                        queued_rows=0,
                        batches=self.batches,
                        rows=2 * self.batches,
                        memory_mib=0.0,
                        device="gpu-0",
                        restarts=0,
                        arrived=self.arrived,
                        recent=recent,
                        latency_buckets=(self.answered, *NO_OTHERS),
                        latency_s=self.latency_s,
                    )
                )
            services.append(
                ServiceReport(
                    told.name, version, True, SLO_MS, 0, 0, 0, {}, (), members=tuple(members)
                )
            )
        return ServerReport(0, True, tuple(services), (), 0, 1, self.at_s, 0.0, Ports())


def place(told: ServerTarget, index: int = 0) -> InstanceTarget:
    return told.services[0].members[index].instances[0]


def test_it_begins_with_the_plan():
    told = FakeServer(Steering(kind_of)).second(0)
    assert (place(told).setpoint, place(told).active) == (16, 4)


def test_at_a_low_rate_instances_stand_by_and_a_high_one_has_them_back_in_a_second():
    server = FakeServer(Steering(kind_of))
    assert place(server.seconds(20, rate=50)).active == 1
    more = place(server.second(rate=4000))
    assert more.active is not None
    assert more.active > 1


def test_nothing_is_loaded_or_planned_anew():
    server = FakeServer(Steering(kind_of))
    told = server.seconds(20, rate=50)
    plain = [
        msgspec.structs.replace(p, setpoint=None, active=None)
        for s in told.services
        for m in s.members
        for p in m.instances
    ]
    assert plain == [p for s in ONE.services for m in s.members for p in m.instances]


def test_batches_that_take_longer_are_made_smaller_and_told_as_a_correction():
    server = FakeServer(Steering(kind_of))
    before = place(server.seconds(10, rate=1000))
    after = place(server.seconds(10, rate=1000, slower=3.0))
    full_ms = [PROFILE.service_ms(each.setpoint, each.active) for each in (before, after)]
    assert 3.0 * full_ms[0] > SLO_MS, "what was set before is too much now"
    assert 3.0 * full_ms[1] < 0.8 * SLO_MS
    [told] = server.steering.corrections()
    assert (told.service, told.member, told.kind) == ("test.m", "a", KIND)
    assert told.ratio == pytest.approx(3.0, rel=0.1)


def test_a_few_batches_are_no_correction():
    server = FakeServer(Steering(kind_of))
    for _ in range(5):
        server.second(rate=10, slower=3.0, ran=1)
    assert server.steering.corrections() == ()
    assert FEWEST_BATCHES > 5


def test_a_new_plan_is_where_it_begins_anew_with_what_it_knows_of_batches():
    server = FakeServer(Steering(kind_of))
    server.seconds(20, rate=50, slower=2.0)
    server.planned = target(service(member("a", InstanceTarget("gpu-0", 2, 32))))
    told = place(server.second(0, ran=0))
    assert (told.count, told.setpoint, told.active) == (2, 32, 2)
    [correction] = server.steering.corrections()
    assert correction.ratio == pytest.approx(2.0, rel=0.1)


def test_another_number_of_devices_changes_nothing_of_what_is_known_of_batches():
    server = FakeServer(Steering(kind_of))
    server.seconds(20, rate=50, slower=2.0)
    places = [InstanceTarget(device, 4, 16) for device in ("gpu-0", "gpu-1")]
    server.planned = target(service(member("a", *places)))
    server.second(0, ran=0)
    [correction] = server.steering.corrections()
    assert correction.ratio == pytest.approx(2.0, rel=0.1)


def test_a_server_that_was_started_again_is_sampled_anew():
    server = FakeServer(Steering(kind_of))
    server.seconds(20, rate=50)
    server.batches = 0  # while as much has come as before
    server.seconds(3, rate=50)
    [found] = server.steering.health()
    assert found.health.ratio is None


def test_counters_of_another_version_move_nothing():
    server = FakeServer(Steering(kind_of))
    for _ in range(20):
        server.second(rate=50, version="0")
    assert (place(server.told).setpoint, place(server.told).active) == (16, 4)


def test_what_was_not_measured_keeps_to_the_plan():
    server = FakeServer(Steering(kind_of), profiles={})
    assert server.seconds(5, rate=50) == ONE


def test_devices_of_a_kind_have_the_same_and_kinds_their_own():
    planned = target(
        service(
            member(
                "a",
                InstanceTarget("gpu-0", 2, 16),
                InstanceTarget("gpu-1", 2, 16),
                InstanceTarget("cpu-0", 1, 8),
            )
        )
    )
    profiles = {**PROFILES, ("test.m", "a", ("cpu", "cpu-1")): LatencyProfile.from_fit(2.0, 4.0)}
    server = FakeServer(Steering(kind_of), planned, profiles)
    told = server.seconds(20, rate=50).services[0].members[0].instances
    assert told[0].setpoint == told[1].setpoint
    assert [each.active for each in told] == [1, 1, 1]
    assert {c.kind for c in server.steering.corrections()} == {KIND, ("cpu", "cpu-1")}


def test_members_that_run_as_one_are_set_as_one():
    places = (InstanceTarget("cpu-0", 2, 16),)
    planned = target(service(member("a", *places), member("b", *places)))
    kind = ("cpu", "cpu-1")
    half = PROFILE.scaled(0.5)
    profiles = {("test.m", name, kind): half for name in "ab"}
    server = FakeServer(Steering(kind_of), planned, profiles)
    told = server.seconds(20, rate=50).services[0]
    assert told.members[0].instances == told.members[1].instances
    assert place(server.told).active == 1
    ratios = {each.member: each.ratio for each in server.steering.corrections()}
    assert ratios == {"a": pytest.approx(1.0, abs=0.05), "b": pytest.approx(1.0, abs=0.05)}


@pytest.mark.parametrize("slower", [1.0, 1.5])
def test_mean_latency_is_laid_beside_what_the_profile_says_for_the_arrivals_that_came(
    slower: float,
):
    planned = target(service(member("a", InstanceTarget("gpu-0", 1, 64))))
    server = FakeServer(Steering(kind_of), planned)
    rng, law = np.random.default_rng(3), PROFILE.service(64)
    for _ in range(60):
        came = int(rng.poisson(200))
        server.answered += came
        server.latency_s += slower * came * mean_ms(law, 200.0, 2.0) / 1e3
        server.second(came, ran=came // 2)
    [found] = server.steering.health()
    assert (found.service, found.members) == ("test.m", ("a",))
    assert found.health.ratio == pytest.approx(slower, rel=0.05)


def test_latency_of_several_instances_is_not_compared():
    server = FakeServer(Steering(kind_of))
    server.seconds(30, rate=4000)
    [found] = server.steering.health()
    assert found.health.ratio is None
    assert found.health.unmet is not None


def told_node(*lines: BatchLine) -> RuntimeNode:
    spec = ModelServiceSpec(
        members=(ApiMember("a", Model("s3://m/a.onnx", ModelFormat.ONNX)),),
        ensemble=Ensemble(Combine.NONE, 1),
        slo=Slo((Objective(0.05, 99.0),)),
    )
    served = ServedService("test.m", 1, spec, (ServedMember("a", batch_lines=lines),))
    return RuntimeNode(ClusterMeta("node"), RuntimeNodeSpec(0, services=(served,)))


def test_lines_of_the_operator_are_profiles_of_the_kinds_of_device():
    lines = (
        BatchLine("gpu", "full", 1, 16, alpha_ms=0.5, tau0_ms=2.0, spread_ms=1.0),
        BatchLine("gpu", "full", 2, 16, alpha_ms=1.0, tau0_ms=3.0),
        BatchLine("cpu", "cpu-1", 1, 8, alpha_ms=2.0, tau0_ms=4.0),
    )
    found = told_profiles(told_node(*lines))
    gpu, cpu = found["test.m", "a", KIND], found["test.m", "a", ("cpu", "cpu-1")]
    assert gpu.instance_counts == (1, 2)
    assert gpu.service_ms(4) == pytest.approx(4.0)
    assert gpu.service_ms(4, tail=True) == pytest.approx(5.0)
    assert gpu.service_ms(4, 2) == pytest.approx(7.0)
    assert cpu.service_ms(8) == pytest.approx(20.0)


def test_lines_that_are_no_profile_leave_their_member_to_the_plan():
    twice = BatchLine("gpu", "full", 1, 16, alpha_ms=0.5, tau0_ms=2.0)
    assert told_profiles(told_node(twice, twice)) == {}
    assert told_profiles(told_node(BatchLine("gpu", "full", 1, 16, 0.0, 0.0))) == {}


def test_a_look_ends_in_time_and_everyone_has_a_turn():
    names = [f"test.m{i}" for i in range(6)]
    planned = target(
        *(service(member("a", InstanceTarget("gpu-0", 4, 16)), name=name) for name in names)
    )
    profiles = {(name, "a", KIND): PROFILE for name in names}
    clock = Clock(MOST_DECIDING_S / 2)
    server = FakeServer(Steering(kind_of, clock), planned, profiles)
    for _ in range(30):
        server.second(rate=50)
    assert [s.members[0].instances[0].active for s in server.told.services] == [1] * 6


class Clock:
    """Moves on whenever it is read."""

    def __init__(self, step_s: float) -> None:
        self._now, self._step = 0.0, step_s

    def __call__(self) -> float:
        self._now += self._step
        return self._now


def test_preprocessing_and_members_share_the_latency_target_by_what_they_take() -> None:
    stage = MemberTarget(
        "preprocess", "/m/s", "Preprocess", "d", 64, 1, (InstanceTarget("cpu-0", 2, 1),),
        service_time=ServiceTime(3.0, 0.0),
    )  # fmt: skip
    first = msgspec.structs.replace(
        member("a", InstanceTarget("gpu-0", 4, 16)), service_time=ServiceTime(0.5, 0.5)
    )
    on_core = ("cpu", "cpu-1")
    profiles = PROFILES | {("test.m", "preprocess", on_core): PROFILE}
    of_both = service(first, stage)
    places = find_places(of_both, {}, profiles, kind_of)
    assert {each.members: each.part for each in places} == {("a",): 0.25, ("preprocess",): 0.75}
    assert {each.percent for each in places} == {99.5}
    (alone,) = find_places(service(first), {}, profiles, kind_of)
    assert (alone.part, alone.percent) == (1.0, 99.0)
