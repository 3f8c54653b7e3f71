"""What a ModelService's status says: each reason for what it is there for, and times only of what changed."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from support.objects import NOW, fetched, service
from tessera_core.api import Condition, FieldError, ModelService
from tessera_core.api.meta import ConditionStatus, NameRef
from tessera_core.plan import Slice
from tessera_core.plan.decision import Assignment, Refusal, ServicePlan, Shortfall, Why
from tessera_operator.conditions import Seen, changes, dated, status_of
from tessera_operator.traffic import SCALED_TO_ZERO, Window

LATER = "2026-01-31T13:00:00Z"
TRUE, FALSE, UNKNOWN = ConditionStatus.TRUE, ConditionStatus.FALSE, ConditionStatus.UNKNOWN
PLANNED = ServicePlan("vision.s", 100, 150, 20, 50, 99)
QUIET = Window(300, 0, 0, None, None, 0)


def placed(
    member: str = "m", device: str = "GPU-0", instances: int = 2, batch: int = 8
) -> Assignment:
    return Assignment(
        *("vision.s", member, "n0", device, Slice(), "NVIDIA-A100-SXM4-80GB/full"),
        *(batch, instances, 200.0, 100.0, 20.0),
    )


def seen(of: ModelService | None = None, **rest: Any) -> Seen:
    """A service that runs as it should, but for ``rest``."""
    well: dict[str, Any] = {
        "service": of or service("s"),
        "errors": (),
        "runs": 1,
        "measuring": "",
        "measured": True,
        "lacking": "",
        "problem": "",
        "planned": PLANNED,
        "refused": (),
        "assigned": (placed(),),
        "ready": {"m": 2},
        "digests": {},
        "addresses": 1,
        "idle": False,
        "window": QUIET,
        "plan": "plan-a",
        "under_way": False,
        "url": "http://s.vision.svc",
    }
    return Seen(**(well | rest))


def said(found: Seen, kind: str) -> tuple[ConditionStatus, str, str]:
    conditions = {each.type: each for each in status_of(found, NOW).conditions}
    each = conditions[kind]
    return each.status, each.reason, each.message


ERROR = FieldError("spec.members[0].model.uri", "'s3://x'", "one that starts with hf://")
SHORT = Refusal(Why.INSUFFICIENT_CAPACITY, "no room", Shortfall(40.0, "NVIDIA-L4/full", 2))
SLOW = Refusal(Why.INFEASIBLE, "too slow", best_ms=80.0)
FOLLOWS = Refusal(Why.MEMBER_REFUSED, "another one was")
REASONS = [
    ("Accepted", {}, TRUE, "Valid", ""),
    ("Accepted", {"errors": (ERROR,)}, FALSE, "InvalidSpec", "spec.members[0].model.uri"),
    ("Profiled", {}, TRUE, "Measured", ""),
    ("Profiled", {"lacking": "m: no GPU is free"}, TRUE, "PartlyMeasured", "m: no GPU is free"),
    ("Profiled", {"measured": False, "measuring": "m on n0"}, FALSE, "Measuring", "m on n0"),
    (
        "Profiled",
        {"measured": False, "measuring": "m on n0", "problem": "m: no such file"},
        FALSE,
        "MeasuringFailed",
        "no such file",
    ),
    ("Profiled", {"measured": False}, FALSE, "NoPlace", "no node"),
    ("Planned", {}, TRUE, "Planned", "p99 20 ms of 50 ms"),
    ("Planned", {"planned": None}, UNKNOWN, "Waiting", ""),
    ("Planned", {"idle": True, "planned": None}, TRUE, SCALED_TO_ZERO, ""),
    (
        "Planned",
        {"planned": None, "refused": (("m", SHORT),)},
        FALSE,
        "InsufficientCapacity",
        "m: no room",
    ),
    (
        "Planned",
        {"planned": None, "refused": (("a", FOLLOWS), ("m", SLOW))},
        FALSE,
        "Infeasible",
        "80 ms at best",
    ),
    # Placed with less than it asked for: planned, and short.
    ("Planned", {"planned": replace(PLANNED, short=SHORT)}, TRUE, "Planned", ""),
    ("Placed", {}, TRUE, "Placed", ""),
    ("Placed", {"ready": {"m": 1}}, FALSE, "Launching", "m: 1 of 2"),
    ("Placed", {"ready": {}, "problem": "out of memory"}, FALSE, "Launching", "out of memory"),
    ("Placed", {"assigned": ()}, FALSE, "NotPlanned", ""),
    ("Placed", {"assigned": (), "idle": True}, TRUE, SCALED_TO_ZERO, ""),
    ("Ready", {}, TRUE, "Serving", ""),
    ("Ready", {"addresses": 0, "problem": "loading"}, FALSE, "NoInstanceReady", "loading"),
    ("Ready", {"idle": True}, TRUE, SCALED_TO_ZERO, "wakes"),
    ("Ready", {"idle": True, "addresses": 0}, FALSE, SCALED_TO_ZERO, "no activator"),
    ("SLOMet", {}, UNKNOWN, "NoTraffic", ""),
    ("SLOMet", {"window": replace(QUIET, good=99, total=100)}, TRUE, "WithinObjective", "99 %"),
    ("SLOMet", {"window": replace(QUIET, good=98, total=100)}, FALSE, "Missed", "within 50 ms"),
    ("SLOMet", {"planned": None, "refused": (("m", SLOW),)}, FALSE, "Infeasible", "too slow"),
    ("CapacityShortfall", {}, FALSE, "Enough", ""),
    (
        "CapacityShortfall",
        {"planned": replace(PLANNED, short=SHORT)},
        TRUE,
        "InsufficientCapacity",
        "2 x NVIDIA-L4/full would close it",
    ),
    (
        "CapacityShortfall",
        {"planned": None, "refused": (("m", SLOW),)},
        TRUE,
        "Infeasible",
        "too slow",
    ),
    ("Progressing", {}, FALSE, "Complete", ""),
    ("Progressing", {"under_way": True}, TRUE, "CarryingOutPlan", ""),
    (
        "Progressing",
        {"service": service("s", generation=2), "under_way": True},
        TRUE,
        "NewVersion",
        "generation 1 runs",
    ),
    (
        "Progressing",
        {"service": service("s", generation=2), "errors": (ERROR,)},
        FALSE,
        "Complete",
        "",
    ),
    ("Progressing", {"runs": 0, "service": service("s", generation=2)}, FALSE, "Complete", ""),
]


@pytest.mark.parametrize(
    ("kind", "given", "status", "reason", "words"),
    REASONS,
    ids=[f"{kind}-{reason}-{index}" for index, (kind, _, _, reason, _) in enumerate(REASONS)],
)
def test_each_condition_says_how_it_is_and_why(
    kind: str, given: dict[str, Any], status: ConditionStatus, reason: str, words: str
) -> None:
    found = said(seen(**given), kind)
    assert found[:2] == (status, reason)
    assert words in found[2]


def test_there_is_one_condition_per_question() -> None:
    kinds = [each.type for each in status_of(seen(), NOW).conditions]
    assert len(kinds) == len(set(kinds)) == 8


def test_a_status_can_be_written_and_read() -> None:
    """Long words of others are cut to what the schema allows."""
    status = status_of(seen(problem="x" * 5000, ready={}, measured=False), NOW)
    written = replace(service("s"), status=status).to_dict()
    assert ModelService.from_dict(written).status == status


def test_the_time_of_a_condition_is_that_of_its_last_change() -> None:
    first = status_of(seen(), NOW)
    again = seen(replace(service("s"), status=first), ready={"m": 1})
    second = {each.type: each for each in status_of(again, LATER).conditions}
    assert second["Placed"].last_transition_time == LATER
    assert second["Ready"].last_transition_time == NOW


def test_another_reason_for_the_same_status_is_no_transition() -> None:
    old = Condition("Ready", FALSE, "Starting", "x", 1, NOW)
    new = dated(Condition("Ready", FALSE, "NoInstanceReady"), [old], 2, LATER)
    assert (new.last_transition_time, new.observed_generation) == (NOW, 2)
    assert dated(Condition("Ready", TRUE, "Serving"), [old], 2, LATER).last_transition_time == LATER
    undated = replace(old, last_transition_time=None)
    assert dated(replace(new), [undated], 2, LATER).last_transition_time == LATER


def test_what_has_not_changed_is_the_same_status() -> None:
    found = seen(window=replace(QUIET, good=99, total=100, p50_s=0.01234567, p99_s=0.2))
    first = status_of(found, NOW)
    known = replace(service("s"), status=first)
    assert status_of(replace(found, service=known), LATER) == first


def test_the_status_counts_what_is_placed_and_what_answers() -> None:
    found = seen(
        service("s", "ab"),
        assigned=(
            placed("a"),
            placed("a", "GPU-1", 1, 4),
            placed("b"),
        ),
        ready={"a": 1},
    )
    status = status_of(found, NOW)
    members = {each.name: (each.ready, each.instances, each.batch) for each in status.members}
    assert members == {"a": (1, 3, 8), "b": (0, 2, 8)}
    assert status.replicas == 1  # one whole set: b has one part
    assert status.plan_ref == NameRef("plan-a")
    assert (status.url, status.observed_generation) == ("http://s.vision.svc", 1)
    assert status.selector == "tessera.dev/namespace=vision,tessera.dev/service=s"


def test_the_selector_of_every_service_is_one_that_kubernetes_takes() -> None:
    """A value of a label has 63 characters at most, and so have namespaces and names of services each."""
    long = service("s" * 63, namespace="n" * 63)
    selector = status_of(seen(long), NOW).selector
    assert selector is not None
    values = [each.partition("=")[2] for each in selector.split(",")]
    assert values == ["n" * 63, "s" * 63]


def test_more_devices_are_no_remedy_where_a_quota_is_short() -> None:
    beyond = replace(SHORT, why=Why.QUOTA_EXCEEDED, detail="namespace vision has 1 of 1 slices")
    _, reason, message = said(seen(planned=replace(PLANNED, short=beyond)), "CapacityShortfall")
    assert (reason, message) == ("QuotaExceeded", "namespace vision has 1 of 1 slices")


def test_an_optional_member_makes_no_replica_fewer() -> None:
    found = service("s", "ab", optional="b")
    assert status_of(seen(found, assigned=(placed("a"),)), NOW).replicas == 1


def test_a_shortfall_is_told_in_numbers() -> None:
    short = status_of(seen(planned=replace(PLANNED, short=SHORT)), NOW).shortfall
    assert short is not None
    assert (short.requests_per_second, short.devices, short.reason) == (
        40.0,
        2,
        "2 x NVIDIA-L4/full",
    )
    assert status_of(seen(), NOW).shortfall is None


def test_measured_latencies_are_told_with_three_digits() -> None:
    window = Window(300, 90, 100, 0.0123456, 0.123456, 1.23456)
    slo = status_of(seen(window=window), NOW).slo
    assert slo is not None
    assert (slo.p50_s, slo.p99_s, slo.attainment) == (0.0123, 0.123, 0.9)
    assert (slo.requests_per_second, slo.window_s) == (1.23, 300)
    quiet = status_of(seen(), NOW).slo
    assert quiet is not None
    assert (quiet.total, quiet.attainment, quiet.p99_s) == (0, None, None)


def test_a_digest_is_kept_while_the_uri_stays() -> None:
    found = fetched(service("s", "m", digests=False), m="sha256:" + "1" * 64)
    (member,) = status_of(seen(found), NOW).members
    assert member.digest == "sha256:" + "1" * 64
    assert member.uri == found.spec.members[0].model.uri
    moved = replace(found.spec.members[0].model, uri="s3://models/elsewhere")
    spec = replace(found.spec, members=(replace(found.spec.members[0], model=moved),))
    (member,) = status_of(seen(replace(found, spec=spec)), NOW).members
    assert (member.digest, member.uri) == (None, None)
    (member,) = status_of(
        seen(replace(found, spec=spec), digests={"m": "sha256:" + "2" * 64}), NOW
    ).members
    assert (member.digest, member.uri) == ("sha256:" + "2" * 64, "s3://models/elsewhere")


def conditions(**statuses: tuple[ConditionStatus, str]) -> tuple[Condition, ...]:
    return tuple(Condition(kind, *each) for kind, each in statuses.items())


def test_what_has_changed_is_news() -> None:
    old = conditions(Ready=(TRUE, "Serving"), Placed=(FALSE, "Launching"), SLOMet=(TRUE, "x"))
    new = conditions(Ready=(TRUE, "Serving"), Placed=(TRUE, "Placed"), SLOMet=(TRUE, "y"))
    assert [each.type for each in changes(old, new)] == ["Placed", "SLOMet"]
    assert changes(new, new) == ()


def test_of_a_new_service_only_what_stops_it_is_news() -> None:
    new = conditions(
        Accepted=(FALSE, "InvalidSpec"),
        Planned=(FALSE, "NoDevice"),
        Ready=(FALSE, "NoInstanceReady"),
        Progressing=(TRUE, "NewVersion"),
    )
    assert [each.type for each in changes((), new)] == ["Accepted", "Planned"]
    assert changes((), conditions(Accepted=(TRUE, "Valid"), Planned=(UNKNOWN, "Waiting"))) == ()
