"""Decisions: what cannot be planned as it is written leaves what runs alone."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import pytest

from support.clusters import A100, cluster, digest, gpu_node, gpu_place, measured
from support.objects import gpu, instance, node, seen, served, service
from tessera_core.api import ModelProfile, ModelService, RuntimeNode
from tessera_core.api.runtimenode import MOST_LINES, BatchLine
from tessera_core.perf import LatencyProfile, ProfileRow
from tessera_core.plan import state_to_dict
from tessera_core.plan.state import Measured
from tessera_core.plan.steps import Steps, steps_to
from tessera_operator.batches import batch_lines, batch_times
from tessera_operator.config import Config
from tessera_operator.decide import Decider, Decision, capacity
from tessera_operator.traffic import Traffic
from tessera_operator.world import World

Document = dict[str, Any]
FITS = measured("a", gpu_place())
OLD, NEW = service("s", "a"), service("s", "b", generation=2)


def profile(of: Measured, name: str, drift: float = 1.0) -> Document:
    """The ModelProfile of a measurement, with what is recorded of it."""
    (document,) = state_to_dict(cluster([], [], [replace(of, drift=drift)]))["profiles"]
    document["metadata"] = {"name": name, "namespace": "vision"}
    return ModelProfile.from_dict(document).to_dict()


def runs(*services: ModelService, generation: int = 1) -> RuntimeNode:
    """A node with one GPU that runs each member of ``services`` as planned before."""
    copies = [
        seen(instance(each.served_name, member.name, "full", 64))
        for each in services
        for member in each.spec.members
    ]
    return node("n0", gpu("GPU-n0-0", *copies), services=[served(each) for each in services])


class Loop:
    """A decider with its world, as the controller has it."""

    def __init__(self, *documents: Document, config: Config | None = None) -> None:
        self.world, self.traffic = World(), Traffic()
        self.decider = Decider(config or Config(), self.world, self.traffic)
        (pool,) = state_to_dict(cluster([], [], []))["pools"]
        self.put(pool, *documents)

    def put(self, *documents: Document) -> None:
        for document in documents:
            self.world.put(copy.deepcopy(document))

    def decide(self, now_s: float = 0.0, lost: Iterable[str] = ()) -> Decision:
        self.traffic.note(self.world.services, self.world.nodes, now_s)
        return self.decider.decide(now_s, frozenset(lost), afresh=False)


def placed(decision: Decision) -> list[tuple[str, str]]:
    return sorted((each.service, each.member) for each in decision.plan.assignments)


def test_a_service_is_planned_at_its_rate_on_what_there_is() -> None:
    found = Loop(profile(FITS, "pa"), OLD.to_dict(), node("n0", gpu("GPU-n0-0")).to_dict()).decide()
    assert placed(found) == [("vision.s", "a")]
    assert found.errors == {}
    assert found.versions["vision.s"].generation == 1
    (planned,) = found.plan.services
    assert planned.requests_per_second >= 100


def test_it_is_planned_again_only_when_a_fact_has_changed() -> None:
    loop = Loop(profile(FITS, "pa"), OLD.to_dict(), node("n0", gpu("GPU-n0-0")).to_dict())
    first = loop.decide()
    assert first.is_new
    again = loop.decide(1.0)
    assert not again.is_new
    assert again.plan is first.plan
    loop.put(runs(OLD).to_dict())  # what the plan itself has changed
    assert not loop.decide(2.0).is_new
    loop.put(node("n1", gpu("GPU-n1-0")).to_dict())
    assert loop.decide(3.0).is_new
    assert loop.decide(4.0, lost=["n0"]).is_new


def test_a_new_version_is_planned_when_its_models_are_measured() -> None:
    loop = Loop(profile(FITS, "pa"), runs(OLD).to_dict(), NEW.to_dict())
    found = loop.decide()
    assert placed(found) == [("vision.s", "a")]
    assert found.versions["vision.s"].generation == 1
    assert found.newest["vision.s"].generation == 2
    loop.put(profile(measured("b", gpu_place()), "pb"))
    found = loop.decide(1.0)
    assert placed(found) == [("vision.s", "b")]
    assert found.versions["vision.s"].generation == 2


HUGE = measured("b", gpu_place(), memory_mib=500_000)


@pytest.mark.parametrize("later", [0, 1])
def test_a_new_version_that_fits_nowhere_leaves_the_old_one_running(later: int) -> None:
    loop = Loop(profile(FITS, "pa"), profile(HUGE, "pb"), runs(OLD).to_dict(), NEW.to_dict())
    found = loop.decide()
    for _ in range(later):
        found = loop.decide()
        assert not found.is_new
    assert placed(found) == [("vision.s", "a")]
    assert found.versions["vision.s"].generation == 1
    assert [(service, member) for service, member, _ in found.plan.refused] == [("vision.s", "b")]
    # What runs is known to fit, though the new models would not.
    steps_to(found.plan, found.state)
    assert {each.service for each in found.plan.services} == {"vision.s"}
    assert ("vision.s", "a", digest("a")) in found.state.digests


def test_a_version_that_fits_later_takes_over() -> None:
    loop = Loop(profile(FITS, "pa"), profile(HUGE, "pb"), runs(OLD).to_dict(), NEW.to_dict())
    loop.decide()
    loop.put(profile(measured("b", gpu_place()), "pb"))
    assert loop.decide(1.0).versions["vision.s"].generation == 2


def refused(of: ModelService, **spec: Any) -> Document:
    document = of.to_dict()
    document["metadata"]["generation"] = 2
    document["spec"] |= spec
    return document


def profile_of_nobody(of: ModelService) -> Document:
    """The version that runs, whose profile was deleted; only that one knew the digest."""
    document = of.to_dict()
    (member,) = document["spec"]["members"]
    member["profileRef"] = {"name": "of-nobody"}
    del member["model"]["digest"]
    return document


CONTRADICTORY = [
    (profile_of_nobody(OLD), "spec.members[0].profileRef.name"),
    (refused(OLD, priorityClassName="of-nobody"), "spec.priorityClassName"),
    (refused(OLD, slo={"objectives": []}), "spec.slo.objectives"),
    (refused(OLD, members=[]), "spec.members"),
]


@pytest.mark.parametrize(
    ("document", "path"), CONTRADICTORY, ids=[path for _, path in CONTRADICTORY]
)
@pytest.mark.parametrize("was_good", [True, False])
def test_a_service_that_makes_no_sense_any_more_goes_on_as_it_runs(
    document: Document, path: str, was_good: bool
) -> None:
    """Also where this operator has never seen it as it was."""
    loop = Loop(profile(FITS, "pa"), runs(OLD).to_dict())
    if was_good:
        loop.put(OLD.to_dict())
        loop.decide()
    loop.put(document)
    for _ in range(2):
        found = loop.decide()
        assert placed(found) == [("vision.s", "a")]
        assert found.versions["vision.s"].generation == 1
        assert path in [error.path for error in found.errors["vision.s"]]
        assert steps_to(found.plan, found.state) == Steps()
    loop.put(OLD.to_dict())
    found = loop.decide()
    assert found.errors == {}
    assert steps_to(found.plan, found.state) == Steps()


@pytest.mark.parametrize(
    ("document", "path"), CONTRADICTORY, ids=[path for _, path in CONTRADICTORY]
)
def test_a_service_that_makes_no_sense_and_runs_nowhere_is_not_planned(
    document: Document, path: str
) -> None:
    other = service("t", "a")
    idle = node("n0", gpu("GPU-n0-0"))
    found = Loop(profile(FITS, "pa"), idle.to_dict(), document, other.to_dict()).decide()
    assert placed(found) == [("vision.t", "a")]
    if "vision.s" in found.errors:  # else the world has its reason
        assert path in [error.path for error in found.errors["vision.s"]]


def test_a_priority_class_that_is_deleted_stops_nobody() -> None:
    important = service("s", "a", priorityClassName="important")
    loop = Loop(
        profile(FITS, "pa"),
        {
            "kind": "PriorityClass",
            "metadata": {"name": "important", "uid": "u"},
            "apiVersion": "scheduling.k8s.io/v1",
            "value": 1000,
        },
        important.to_dict(),
        runs(important).to_dict(),
    )
    assert loop.decide().errors == {}
    loop.world.remove(("PriorityClass", "", "important"))
    found = loop.decide(1.0)
    assert placed(found) == [("vision.s", "a")]
    assert list(found.errors) == ["vision.s"]
    assert found.versions["vision.s"].service.spec.priority_class_name == "important"


def test_a_model_from_elsewhere_than_allowed_is_not_fetched_and_what_runs_goes_on() -> None:
    config = Config(model_prefixes=(("vision", ("hf://",)),))
    loop = Loop(
        profile(FITS, "pa"),
        runs(OLD).to_dict(),
        NEW.to_dict(),
        service("t", "a").to_dict(),
        config=config,
    )
    found = loop.decide()
    assert placed(found) == [("vision.s", "a")]
    assert set(found.errors) == {"vision.s", "vision.t"}
    assert found.newest == {}


def test_a_service_that_is_being_deleted_is_planned_no_longer() -> None:
    document = OLD.to_dict()
    document["metadata"]["deletionTimestamp"] = "2026-01-31T12:00:00Z"
    found = Loop(profile(FITS, "pa"), runs(OLD).to_dict(), document).decide()
    assert placed(found) == []
    assert found.versions == {}


def test_what_runs_on_a_lost_node_gets_a_second_home() -> None:
    loop = Loop(
        profile(FITS, "pa"),
        OLD.to_dict(),
        runs(OLD).to_dict(),
        node("n1", gpu("GPU-n1-0")).to_dict(),
    )
    assert {each.node for each in loop.decide().plan.assignments} == {"n0"}
    assert {each.node for each in loop.decide(1.0, lost=["n0"]).plan.assignments} == {"n1"}


def test_a_sleeping_service_is_idle() -> None:
    sleepy = service("s", "a", rps=0, scaling={"minReplicas": 0, "idleTimeout": "10s"})
    loop = Loop(profile(FITS, "pa"), sleepy.to_dict(), node("n0", gpu("GPU-n0-0")).to_dict())
    assert placed(loop.decide(0.0)) == [("vision.s", "a")]
    found = loop.decide(10.0)
    assert placed(found) == []
    assert found.plan.idle == ("vision.s",)


def test_batch_times_are_those_of_the_slowest_place() -> None:
    fast, slow = measured("a", gpu_place(), 0.2, 2.0), measured("a", 1, 0.5, 9.0)
    cores = node("n1", gpu("GPU-n1-0"))  # nothing of it is asked for
    found = Loop(profile(fast, "pa"), profile(slow, "pc"), OLD.to_dict(), cores.to_dict()).decide()
    time = batch_times(found)["vision.s", "a"]
    assert time.alpha_ms == pytest.approx(0.2, rel=0.1)
    assert time.tau0_ms == pytest.approx(2.0, rel=0.1)


def test_batch_lines_are_those_of_every_instance_count_where_a_member_is_placed() -> None:
    rows = [
        ProfileRow(batch, instances, ms, 1.5 * ms, 1000 * instances * batch / ms, 100.0)
        for instances, most in ((1, 64), (3, 16))
        for batch in (1, 4, most)
        for ms in [instances * (0.2 * batch + 2.0)]
    ]
    there = replace(FITS, profile=LatencyProfile(tuple(rows)))
    elsewhere = measured("a", gpu_place("3g.40gb"))
    idle = node("n0", gpu("GPU-n0-0")).to_dict()
    loop = Loop(profile(there, "pa"), profile(elsewhere, "pe"), OLD.to_dict(), idle)
    assert batch_lines(loop.decide()) == {
        ("vision.s", "a"): (
            BatchLine(A100, "full", 1, 64, 0.2, 2.0, 1.4),
            BatchLine(A100, "full", 3, 16, 0.6, 6.0, 4.2),
        )
    }


def test_batch_lines_are_no_more_than_a_node_may_be_told() -> None:
    rows = [ProfileRow(1, count, 2.0, 2.0, 500.0 * count, 1.0) for count in range(1, 99)]
    many = replace(FITS, profile=LatencyProfile(tuple(rows)))
    idle = node("n0", gpu("GPU-n0-0")).to_dict()
    (lines,) = batch_lines(Loop(profile(many, "pa"), OLD.to_dict(), idle).decide()).values()
    assert [line.instances for line in lines] == list(range(1, MOST_LINES + 1))


@pytest.mark.parametrize("mode", ["Fixed", "External"])
def test_members_of_services_that_keep_to_the_plan_have_no_lines(mode: str) -> None:
    fixed = service("s", "a", scaling={"mode": mode})
    found = Loop(profile(FITS, "pa"), fixed.to_dict(), node("n0", gpu("GPU-n0-0")).to_dict())
    decision = found.decide()
    assert placed(decision) == [("vision.s", "a")]
    assert batch_lines(decision) == {}


def test_plans_count_with_what_has_drifted_and_lines_are_as_measured() -> None:
    busy = service("s", "a", rps=2600)
    nodes = [node(name, gpu(f"GPU-{name}-0")).to_dict() for name in ("n0", "n1", "n2")]
    loop = Loop(profile(FITS, "pa"), busy.to_dict(), *nodes)
    before = loop.decide()
    assert len(before.plan.assignments) == 1
    loop.put(profile(FITS, "pa", drift=1.5))
    after = loop.decide(1.0)
    assert after.is_new
    assert len(after.plan.assignments) == 2
    assert batch_lines(after) == batch_lines(before)
    # Late requests are dropped by what batches take.
    then, now = (batch_times(each)["vision.s", "a"] for each in (before, after))
    assert now.tau0_ms == pytest.approx(1.5 * then.tau0_ms, rel=1e-3)
    loop.put(profile(FITS, "pa"))
    again = loop.decide(2.0)
    assert again.is_new
    assert len(again.plan.assignments) == 1


def test_a_drift_for_which_nothing_is_left_is_a_shortfall() -> None:
    busy = service("s", "a", rps=2600)
    loop = Loop(profile(FITS, "pa"), busy.to_dict(), node("n0", gpu("GPU-n0-0")).to_dict())
    (enough,) = loop.decide().plan.services
    assert enough.short is None
    loop.put(profile(FITS, "pa", drift=1.5))
    (short,) = loop.decide(1.0).plan.services
    assert short.short is not None


def test_batches_that_take_less_than_measured_take_nothing_away() -> None:
    busy = service("s", "a", rps=5200)
    nodes = [node(name, gpu(f"GPU-{name}-0")).to_dict() for name in ("n0", "n1", "n2")]
    loop = Loop(profile(FITS, "pa"), busy.to_dict(), *nodes)
    before = loop.decide().plan.assignments
    loop.put(profile(FITS, "pa", drift=0.5))
    assert loop.decide(1.0).plan.assignments == before


def test_capacities_are_added_up_over_the_devices_of_a_node() -> None:
    state = cluster([gpu_node("n0", 2)], [service("s", "a", rps=6000)], [FITS])
    nodes, loop = state_to_dict(state)["nodes"], Loop(profile(FITS, "pa"))
    loop.put(*nodes, replace(service("s", "a", rps=6000)).to_dict())
    found = loop.decide()
    rates = [each.rate for each in found.plan.assignments]
    assert len(rates) == 2
    assert capacity(found.plan) == {("n0", "vision.s", "a"): pytest.approx(sum(rates))}
