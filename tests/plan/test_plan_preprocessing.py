"""Preprocessing is planned before the members that wait for it."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from support.clusters import cluster, cpu_node, gpu_node, gpu_place, measured, service
from tessera_core.api import ModelService
from tessera_core.api.stages import STAGE, stage_of
from tessera_core.perf.ensemble import LEAST_PART, MOST_PART, UNKNOWN_PART, stage_part
from tessera_core.plan import ClusterState, Measured, Policy, Why, demands_of, plan
from tessera_core.plan.build import demands_in
from tessera_core.plan.predict import latency_at, member_latency_ms, pools_of
from tessera_core.plan.state import DeviceState

PREPROCESS = {"image": {"size": [224, 224], "resize": 256}}


def images(name: str, members: str = "m", **spec: object) -> ModelService:
    return service(name, members, preprocess=PREPROCESS, **spec)  # type: ignore[arg-type]


def decoding(of: ModelService, ms: float, cores: int = 1) -> Measured:
    """A stage that takes ``ms`` for each row."""
    assert of.spec.preprocess is not None
    digest = stage_of(of.spec.preprocess).model.digest
    assert digest is not None
    return replace(measured("any", cores, alpha_ms=ms, tau0_ms=0.01), digest=digest)


def gpu_and_cores(name: str, cores: int) -> object:
    node = gpu_node(name)
    return replace(node, devices=(*node.devices, DeviceState("cpu", "cpu", 65536, cores=cores)))


def state(cores: int, ms: float = 5.0, **spec: object) -> ClusterState:
    one = images("s", **spec)
    return cluster(
        [gpu_and_cores("a", cores)],  # type: ignore[list-item]
        [one],
        [measured("m", gpu_place(), 0.05, 1.0), decoding(one, ms)],
    )


def test_a_service_of_media_has_a_demand_for_its_preprocessing() -> None:
    one = images("s", "ab", target="100ms", percent="99")
    *members, stage = demands_of(one, {}, Policy(overhead_ms=0.0), share=0.3)
    assert stage.member == STAGE
    assert stage.products == ()
    assert stage.digest == stage_of(one.spec.preprocess).model.digest  # type: ignore[arg-type]
    assert stage.rate == members[0].rate
    assert stage.budget_ms == pytest.approx(30.0)
    assert stage.percentile == pytest.approx(99.5)
    for each in members:
        assert each.budget_ms == pytest.approx(70.0)
        assert each.percentile == pytest.approx(100 * 0.995**0.5)
        assert each.products == ()


def test_a_service_of_tensors_has_none() -> None:
    assert [each.member for each in demands_of(service("s", "ab"), {}, Policy())] == ["a", "b"]


def test_the_latency_is_shared_by_what_a_row_takes_alone() -> None:
    found = {each.member: each.budget_ms for each in demands_in(state(4, ms=3.14, target="101ms"))}
    # 3.15 ms on a core and 1.05 ms on the GPU, of 100 ms without the overhead.
    assert found == {STAGE: pytest.approx(75.0), "m": pytest.approx(25.0)}


@given(st.none() | st.floats(1e-3, 1e4), st.none() | st.floats(1e-3, 1e4))
def test_neither_part_of_the_latency_is_ever_empty(
    stage: float | None, members: float | None
) -> None:
    part = stage_part(stage, members)
    assert LEAST_PART <= part <= MOST_PART
    assert (stage is not None and members is not None) or part == UNKNOWN_PART


def test_preprocessing_gets_as_many_cores_as_the_rate_needs() -> None:
    few, many = (plan(state(16, rps=rps, target="200ms")) for rps in (100.0, 1000.0))
    assert few.refused == many.refused == ()
    cores = [sum(each.member == STAGE for each in found.assignments) for found in (few, many)]
    # 100/s of 5 ms are half of a core, 1000/s are five, and neither may be full.
    assert cores[0] == 1
    assert 6 <= cores[1] <= 9
    assert all(each.device == "cpu" for each in many.assignments if each.member == STAGE)


def test_too_few_cores_are_named_as_what_is_short() -> None:
    found = plan(state(2, rps=1000.0, target="200ms"))
    (one,) = found.services
    assert one.short is not None
    assert one.short.detail.startswith("preprocess carries")
    assert one.short.shortfall is not None
    assert one.short.shortfall.device == "cpu-1"
    assert one.max_requests_per_second < 400


def test_the_predicted_latency_is_of_both() -> None:
    found = plan(state(16, rps=300.0, target="200ms"))
    by_member = {each.member: each.latency_ms for each in found.assignments}
    (one,) = found.services
    assert one.latency_ms == pytest.approx(by_member[STAGE] + by_member["m"] + 1.0)
    assert one.latency_ms <= one.target_ms


@pytest.mark.parametrize("rps", [50.0, 300.0])
def test_the_latency_at_another_rate_is_of_both(rps: float) -> None:
    facts = state(16, rps=300.0, target="200ms")
    found = plan(facts)
    (one,) = found.services
    at = latency_at(found, facts, "vision.s", rps)
    stage, member = (
        member_latency_ms(
            [pool for pool in pools_of(found, facts) if pool.demand.stage == is_stage], rps
        )
        for is_stage in (True, False)
    )
    assert at == pytest.approx(stage + member + 1.0)
    assert (at == pytest.approx(one.latency_ms)) == (rps == 300.0)


def test_a_target_that_preprocessing_leaves_too_little_of_is_refused_with_both_figures() -> None:
    slow = plan(state(16, ms=500.0, rps=10.0, target="51ms"))
    refusals = {member: refusal for _, member, refusal in slow.refused}
    assert refusals[STAGE].why is Why.INFEASIBLE
    assert refusals[STAGE].detail.startswith(
        "the target is 51 ms, of which preprocess may take 41 ms and the members that wait for it the rest; with no"
    )
    one = images("s", rps=10.0, target="51ms")
    known = [measured("m", gpu_place(), 0.05, 200.0), decoding(one, 200.0)]
    facts = cluster([gpu_and_cores("a", 16)], [one], known)  # type: ignore[list-item]
    refusals = {member: refusal for _, member, refusal in plan(facts).refused}
    assert refusals["m"].detail.startswith(
        "the target is 51 ms, of which m may take 26 ms and preprocessing the rest; with no other load"
    )


def test_a_cluster_without_measured_cores_refuses_preprocessing_and_says_so() -> None:
    one = images("s")
    found = plan(cluster([gpu_node("a")], [one], [measured("m", gpu_place())]))
    assert (one.served_name, STAGE) in {each[:2] for each in found.refused}


def test_members_that_may_be_missing_do_not_make_preprocessing_optional() -> None:
    one = images(
        "s",
        "ab",
        optional="b",
        rps=1000.0,
        target="200ms",
        ensemble={"combine": "Mean", "minMembers": 1, "onTimeout": "Partial"},
    )
    known = [measured(each, gpu_place(), 0.05, 1.0) for each in "ab"]
    facts = cluster([gpu_and_cores("a", 2)], [one], [*known, decoding(one, 5.0)])  # type: ignore[list-item]
    (found,) = plan(facts).services
    assert found.max_requests_per_second < 400


def test_a_cpu_cluster_serves_both_on_cores() -> None:
    one = images("s", rps=50.0, target="200ms")
    facts = cluster([cpu_node("a")], [one], [measured("m", 1, 1.0, 2.0), decoding(one, 5.0)])
    assert {each.member for each in plan(facts).assignments} == {"m", STAGE}
