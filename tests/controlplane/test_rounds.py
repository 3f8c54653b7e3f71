"""Whole rounds of the operator against an API server in memory, with agents that do at once what they are told."""

from __future__ import annotations

from support.memory_operator import SERVICE, Operator, started
from support.objects import NOW, pool, service
from tessera_operator.reporting import FINALIZER


def test_a_service_is_placed_reached_and_reported() -> None:
    operator = started(1)
    assert operator.running() == {"n0"}
    conditions = {each.type: each.status.value for each in operator.service().status.conditions}
    assert conditions["Ready"] == conditions["Placed"] == "True"
    slices = operator.cluster.objects["EndpointSlice", "vision", "s-tessera"]
    assert [each["addresses"] for each in slices["endpoints"]] == [["10.0.0.0"]]
    assert [each["Applied"] for each in operator.plans().values()] == ["True"]
    assert FINALIZER in operator.service().metadata.finalizers


def test_nothing_is_written_while_nothing_changes() -> None:
    operator = started(2)
    operator.rounds(3)
    before = list(operator.cluster.calls)
    operator.rounds(10)
    assert operator.cluster.calls == before


def test_a_plan_is_carried_out_although_a_node_that_has_the_service_is_lost() -> None:
    """Its spec still names the service, and nobody there takes over new routes."""
    operator = started(2, rps=12_000)
    assert operator.running() == {"n0", "n1"}
    operator.leave("n1")
    operator.rounds(45)
    operator.join("n7")
    operator.rounds(10)
    assert "n7" in operator.running()
    assert {each["Applied"] for each in operator.plans().values()} == {"True"}


def external(operator: Operator, **spec: object) -> None:
    scaling = {"mode": "External", "minReplicas": 2}
    operator.cluster.objects[SERVICE]["spec"].update(scaling=scaling, **spec)


def test_a_service_that_somebody_else_scales_begins_with_its_least() -> None:
    operator = started(3)
    external(operator)
    operator.rounds(8)
    assert operator.cluster.calls.count(("scale", SERVICE)) == 1
    assert operator.service().spec.replicas == 2
    assert operator.service().status.replicas == len(operator.running()) == 2
    operator.cluster.scale(SERVICE, 3)
    operator.rounds(8)
    assert operator.service().status.replicas == len(operator.running()) == 3
    operator.cluster.scale(SERVICE, 1)
    operator.rounds(12)
    assert operator.service().status.replicas == len(operator.running()) == 1


def test_what_somebody_else_has_scaled_to_nothing_stays_so() -> None:
    operator = started(1)
    external(operator, replicas=0)
    operator.rounds(10)
    assert ("scale", SERVICE) not in operator.cluster.calls
    assert operator.running() == set()
    assert operator.service().status.replicas == 0


def deleted(operator: Operator) -> None:
    operator.cluster.objects[SERVICE]["metadata"]["deletionTimestamp"] = NOW


def test_a_service_that_is_deleted_is_unloaded_and_then_let_go() -> None:
    operator = started(1)
    deleted(operator)
    operator.rounds(12)
    assert operator.running() == set()
    assert FINALIZER not in operator.service().metadata.finalizers


def test_a_lost_node_does_not_keep_a_deleted_service() -> None:
    """It may never come back, and its RuntimeNode stays as long as its machine."""
    operator = started(1)
    operator.leave("n0")
    operator.rounds(45)
    deleted(operator)
    operator.rounds(12)
    assert FINALIZER not in operator.service().metadata.finalizers


def test_a_node_is_not_given_back_while_something_runs_on_it() -> None:
    operator = started(1, size={"min": 0, "max": 9})
    assert operator.replicas() == 1
    deleted(operator)
    while operator.running():
        operator.rounds(1)
        assert operator.replicas() == 1 or not operator.running()
    operator.rounds(5)
    assert operator.replicas() == 0


def test_a_node_that_was_asked_for_is_kept_until_the_models_are_measured_there() -> None:
    wanted = service("s", "a", rps=100)
    operator = Operator(pool("p", size={"min": 0, "max": 9}).to_dict(), wanted.to_dict(), nodes=0)
    operator.rounds(1)
    assert operator.replicas() == 1
    operator.join("n0")
    for _ in range(5):
        operator.rounds(1)
        assert operator.replicas() == 1
    (found,) = operator.nodes()
    assert [each.member for each in found.spec.profiling] == ["a"]
