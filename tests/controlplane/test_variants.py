"""Which variant a service uses, when plans count with it, and in which order nodes come to it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from support.clusters import A100, digest, gpu_place, measured
from support.objects import gpu, instance, node, served, service
from support.tuning_nodes import FAST, LOW, outcome
from tessera_core.api import ModelProfile, RuntimeNode
from tessera_core.api.meta import ObjectMeta
from tessera_core.api.modelprofile import Drift, ModelProfileSpec, ModelProfileStatus
from tessera_core.api.runtimenode import Instance, InstanceStatus
from tessera_core.api.tuning import (
    Outcome,
    Precision,
    Quarantined,
    Reason,
    Tuning,
    TuningMode,
    TuningPhase,
    TuningStatus,
)
from tessera_operator.tuned import Reported, merged, slowed
from tessera_operator.variants import (
    Orders,
    Use,
    allows,
    as_used,
    choose,
    in_force,
    known_as,
    names,
    turns,
    usable,
)
from tessera_operator.versions import Version

BOTH = Tuning(TuningMode.AUTO, (Precision.FP32, Precision.BF16))
STRICT = Tuning(TuningMode.AUTO)
PLACE = (A100, "full")
USE = Use("vision.s", "a", digest("a"), PLACE)
NOW = "2026-01-31T12:00:00Z"


def profile(status: TuningStatus | None = None, variant: str = "", **rest: object) -> ModelProfile:
    rows = measured("a", gpu_place()).profile.rows
    return ModelProfile(
        ObjectMeta(name="p", namespace="vision"),
        ModelProfileSpec(digest("a"), gpu_place(), "torch 2.8.0", variant=variant),
        ModelProfileStatus(rows=rows, tuning=status, **rest),  # type: ignore[arg-type]
    )


def found(
    *outcomes: Outcome, held: tuple[str, ...] = (), phase: TuningPhase = TuningPhase.TUNED
) -> TuningStatus:
    quarantined = tuple(Quarantined(each, "it failed") for each in held)
    return TuningStatus(phase, outcomes=outcomes, quarantined=quarantined)


def version(tuning: Tuning, name: str = "s") -> Version:
    made = service(name, "a")
    made = replace(made, spec=replace(made.spec, tuning=tuning))
    return Version(made, 1, {"a": digest("a")})


def running(name: str, told: str, runs: str, ready: int = 1) -> RuntimeNode:
    """A node with one copy that was told ``told``, of which ``runs`` answers."""
    uuid = f"GPU-{name}"
    present = InstanceStatus("vision.s", "a", "full", 4, variant=runs, ready=ready)
    wanted = Instance("vision.s", "a", "full", 4, variant=told)
    services = [served(service("s", "a"))]
    return node(name, gpu(uuid, present), told={uuid: [wanted]}, services=services)


@pytest.mark.parametrize(
    ("tuning", "made", "allowed"),
    [
        (BOTH, outcome(LOW, 0.5), True),
        (STRICT, outcome(LOW, 0.5), False),
        (STRICT, outcome(FAST, 0.5), True),
        (replace(STRICT, mode=TuningMode.OFF), outcome(FAST, 0.5), False),
        (STRICT, outcome(FAST, 0.5, error=0.02), False),
        (replace(STRICT, tolerance=0.05), outcome(FAST, 0.5, error=0.02), True),
        (STRICT, outcome(FAST, 0.99), False),
        (STRICT, replace(outcome(FAST, 0.5), error=None), False),
        (STRICT, outcome("of-a-newer/operator", 0.5), False),
    ],
)
def test_a_service_uses_what_its_precisions_and_tolerance_allow(
    tuning: Tuning, made: Outcome, allowed: bool
) -> None:
    assert allows(tuning, made) is allowed


def test_the_fastest_comes_first_and_quarantine_is_left_out() -> None:
    status = found(outcome(FAST, 0.7), outcome(LOW, 0.4))
    assert usable(BOTH, status) == (LOW, FAST)
    assert usable(BOTH, replace(status, quarantined=(Quarantined(LOW, "it failed"),))) == (FAST,)


def test_what_is_not_measured_is_not_used_yet() -> None:
    untuned = profile(found(outcome(FAST, 0.7), outcome(LOW, 0.4)))
    choice = choose([version(BOTH)], [untuned], [])
    assert (choice.uses, choice.unmeasured) == ({}, {USE: LOW})
    choice = choose([version(BOTH)], [untuned], [profile(variant=FAST)])
    assert (choice.uses, choice.unmeasured) == ({USE: FAST}, {USE: LOW})
    choice = choose([version(BOTH)], [untuned], [profile(variant=FAST), profile(variant=LOW)])
    assert (choice.uses, choice.unmeasured) == ({USE: LOW}, {})


def test_nothing_is_measured_while_more_is_tried() -> None:
    untuned = profile(found(outcome(FAST, 0.7), phase=TuningPhase.TUNING))
    assert choose([version(BOTH)], [untuned], []).unmeasured == {}


def test_a_variant_is_in_force_when_nothing_answers_otherwise() -> None:
    chosen = {USE: FAST}
    assert in_force(chosen, []) == chosen
    assert in_force(chosen, [running("n0", FAST, FAST), running("n1", "", "")]) == {}
    assert in_force(chosen, [running("n0", FAST, FAST), running("n1", FAST, FAST)]) == chosen
    # What is new and does not answer yet is no reason to count with less.
    assert in_force(chosen, [running("n0", FAST, FAST), running("n1", FAST, "", ready=0)]) == chosen
    # What has fallen back is.
    assert in_force(chosen, [running("n0", FAST, "")]) == {}


def test_nodes_are_told_one_after_the_other() -> None:
    first, second = running("n0", "", ""), running("n1", "", "")
    assert turns({USE: FAST}, [first, second]) == {USE: frozenset({"n0"})}
    loading = running("n0", FAST, "")
    assert turns({USE: FAST}, [loading, second]) == {USE: frozenset({"n0"})}
    done = running("n0", FAST, FAST)
    assert turns({USE: FAST}, [done, second]) == {USE: frozenset({"n0", "n1"})}


def orders(chosen: dict[Use, str], *nodes: RuntimeNode) -> dict[str, str]:
    """By node, what it is told."""
    order = Orders(chosen, turns(chosen, nodes), {("vision.s", "a"): digest("a")})
    return {
        each.metadata.name: instance.variant
        for each in nodes
        for device in order.of(each, each.spec.devices)
        for instance in device.instances
    }


def test_a_node_has_what_it_was_told_until_it_is_its_turn() -> None:
    first, second = running("n0", "", ""), running("n1", "", "")
    assert orders({USE: FAST}, first, second) == {"n0": FAST, "n1": ""}
    tuned = [running("n0", FAST, FAST), running("n1", FAST, FAST)]
    assert orders({USE: LOW}, *tuned) == {"n0": LOW, "n1": FAST}


def test_what_is_not_to_be_used_leaves_all_nodes_at_once() -> None:
    tuned = [running("n0", FAST, FAST), running("n1", FAST, FAST)]
    assert orders({}, *tuned) == {"n0": "", "n1": ""}


def test_what_is_new_on_a_node_begins_with_what_is_chosen() -> None:
    empty = node("n1", gpu("GPU-n1"), told={}, services=[served(service("s", "a"))])
    order = Orders({USE: FAST}, {USE: frozenset()}, {("vision.s", "a"): digest("a")})
    device = replace(running("n1", "", "").spec.devices[0], instances=(instance(member="a"),))
    (told,) = order.of(empty, [device])
    assert [each.variant for each in told.instances] == [FAST]


def test_plans_see_the_rows_of_a_variant_under_a_name_of_its_own() -> None:
    fast = replace(
        profile(variant=FAST),
        status=ModelProfileStatus(rows=measured("a", gpu_place(), 0.1).profile.rows),
    )
    small = replace(profile(), spec=replace(profile().spec, device_class=gpu_place("1g.10gb")))
    seen = as_used({USE: FAST}, [profile(), small], [fast])
    name = known_as(digest("a"), {PLACE: FAST})
    assert names({USE: FAST}) == {("vision.s", "a", digest("a")): name}
    assert {each.spec.model_digest for each in seen} == {name}
    assert {each.spec.variant for each in seen} == {""}
    rows = {each.spec.device_class.slice: each.status.rows for each in seen}
    assert rows == {"full": fast.status.rows, "1g.10gb": small.status.rows}
    assert as_used({}, [profile()], [fast]) == ()


def test_what_plans_see_can_be_written_and_read() -> None:
    for each in as_used({USE: FAST}, [profile()], [profile(variant=FAST)]):
        assert ModelProfile.from_dict(each.to_dict()) == each
    assert known_as(digest("a"), {}) == digest("a")


def test_an_outcome_stays_unless_it_was_too_far_off_for_those_who_asked() -> None:
    far = Outcome(LOW, Reason.DIFFERS, 0.02)
    before = profile(found(far, outcome(FAST, 0.7)))
    now = merged(before, Reported((outcome(LOW, 0.5, 0.02), outcome(FAST, 0.9))), (), NOW)
    assert now is not None
    assert {each.variant: each.p99_ratio for each in now.outcomes} == {FAST: 0.7, LOW: 0.5}


def test_a_failure_of_what_nobody_has_tried_is_ignored() -> None:
    now = merged(profile(found(outcome(FAST, 0.7))), Reported((), ((LOW, "it ended"),)), (), NOW)
    assert now is not None
    assert now.quarantined == ()


@pytest.mark.parametrize(
    ("tuned_drift", "own_drift", "is_slowed"),
    [
        (None, None, False),
        (1.2, None, False),
        (1.5, None, True),
        (1.5, 1.4, False),
        (0.5, None, False),
    ],
)
def test_a_variant_that_has_lost_its_gain_is_told(
    tuned_drift: float | None, own_drift: float | None, is_slowed: bool
) -> None:
    drift = None if own_drift is None else Drift(own_drift)
    untuned = profile(found(outcome(FAST, 0.7)), drift=drift)
    fast = profile(variant=FAST, drift=None if tuned_drift is None else Drift(tuned_drift))
    assert [variant for variant, _ in slowed(untuned, [fast])] == ([FAST] if is_slowed else [])
