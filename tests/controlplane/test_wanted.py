"""What a node is told: the version of everything that it runs or passes on, and nothing new while nothing changed."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from support.clusters import digest
from support.objects import counters, gpu, instance, node, seen, served, service
from tessera_core.api import ModelService, NameRef, RuntimeNode
from tessera_core.api.measurements import ProfilingTask
from tessera_core.api.runtimenode import BatchLine, BatchTime, Route
from tessera_operator.routes import Home
from tessera_operator.versions import latest
from tessera_operator.wanted import MOST_ROUTING_S, QUIET_S, Context, Routers, holds, spec_of

S = service("s")
TIMES = {("vision.s", "m"): BatchTime(0.2, 2.0)}
LINES = {("vision.s", "m"): (BatchLine("NVIDIA-L4", "full", 1, 64, 0.2, 1.5, 0.5),)}


def context(
    *services: ModelService, epoch: int = 1, plan: str | None = None, **rest: Any
) -> Context:
    versions = {each.served_name: latest(each, {}) for each in services}
    return Context(
        versions=rest.get("versions", versions),
        newest=rest.get("newest", versions),
        homes=rest.get("homes", {}),
        times=rest.get("times", {}),
        lines=rest.get("lines", {}),
        epoch=epoch,
        plan=plan,
    )


def runs(*services: str, name: str = "n0") -> RuntimeNode:
    copies = (seen(instance(each)) for each in services)
    return node(name, gpu(f"GPU-{name}", *copies))


def told(of: RuntimeNode, given: Context, *routed: str, tasks: Any = ()) -> RuntimeNode:
    """``of`` once it has the spec that it is to have."""
    return replace(of, spec=spec_of(of, of.spec.devices, routed, tasks, (), given))


def test_the_version_of_every_service_that_runs_or_is_passed_on_is_pinned() -> None:
    found = told(runs("vision.s"), context(S, service("t", generation=4)), "vision.t").spec
    assert [(each.name, each.generation) for each in found.services] == [
        ("vision.s", 1),
        ("vision.t", 4),
    ]
    assert found.services[0].spec == S.spec


def test_members_have_digests_batch_times_lines_and_their_other_homes() -> None:
    homes = {("vision.s", "m"): (Home("n0", "10.0.0.1:8001", 1), Home("n1", "10.0.0.2:8001", 2))}
    (pinned,) = told(
        runs("vision.s"), context(S, homes=homes, times=TIMES, lines=LINES)
    ).spec.services
    (member,) = pinned.members
    assert member.digest == digest("m")
    assert member.batch_time == TIMES["vision.s", "m"]
    assert member.batch_lines == LINES["vision.s", "m"]
    assert member.routes == (Route("n1", "10.0.0.2:8001", 2),)


def test_what_has_not_changed_is_the_same_spec() -> None:
    given = context(S, plan="plan-a", times=TIMES)
    once = told(runs("vision.s"), given)
    assert told(once, given).spec == once.spec
    # Another plan that changes nothing here is nothing to write.
    assert told(once, context(S, plan="plan-b", times=TIMES)).spec == once.spec


def test_a_change_names_the_plan_that_it_is_of() -> None:
    once = told(runs("vision.s"), context(S, plan="plan-a"))
    assert once.spec.plan_ref == NameRef("plan-a")
    changed = told(once, context(service("s", generation=2), plan="plan-b"))
    assert changed.spec.plan_ref == NameRef("plan-b")
    without = told(changed, context(S))
    assert without.spec.plan_ref == NameRef("plan-b")


def test_a_new_leader_writes_its_epoch() -> None:
    once = told(runs("vision.s"), context(S))
    assert told(once, context(S, epoch=2)).spec == replace(once.spec, epoch=2)


def test_a_service_that_was_deleted_stays_as_it_was_until_it_is_gone_from_here() -> None:
    once = told(runs("vision.s"), context(S, times=TIMES))
    assert told(once, context()).spec == once.spec
    gone = replace(once, spec=replace(once.spec, devices=()))
    assert told(gone, context()).spec.services == ()
    assert told(gone, context(), "vision.s").spec.services == once.spec.services


def test_what_is_measured_here_is_the_newest_version() -> None:
    new = service("s", "ab", generation=2, digests=False)
    task = ProfilingTask("vision.s", "a", "GPU-n0", "full")
    given = context(S, newest={"vision.s": latest(new, {})})
    found = told(runs("vision.s"), given, tasks=(task,)).spec
    assert found.profiling == (task,)
    assert [(each.name, each.generation) for each in found.candidates] == [("vision.s", 2)]
    assert found.candidates[0].spec == new.spec
    assert found.services[0].generation == 1
    only_measured = told(node("n1"), given, tasks=(task,)).spec
    assert only_measured.services == ()


@pytest.mark.parametrize(
    ("scaling", "held"),
    [
        ({"minReplicas": 0}, 100),
        ({"minReplicas": 0, "maxHeldRequests": 7}, 7),
        ({"minReplicas": 1, "maxHeldRequests": 7}, 0),
        ({"mode": "Fixed", "minReplicas": 0}, 0),
    ],
)
def test_requests_are_held_for_services_that_may_sleep(scaling: dict[str, Any], held: int) -> None:
    found = service("s", scaling=scaling)
    assert holds(found.spec) == held
    (pinned,) = told(runs("vision.s"), context(found)).spec.services
    assert pinned.hold == held


def left(total: int = 0, held: int = 0, name: str = "n0") -> RuntimeNode:
    """A node that still has vision.s in its spec and runs nothing of it."""
    made = node(name, services=())
    status = replace(made.status, services=(counters(total=total, held=held),))
    return replace(made, spec=replace(made.spec, services=(served(S),)), status=status)


def goes_on(
    routers: Routers,
    of: RuntimeNode,
    now_s: float,
    *,
    listed: bool = False,
    alive: bool = True,
    hosted: bool = False,
) -> bool:
    names = {"vision.s"}
    found = routers.of(
        of, names if hosted else (), names if listed else (), names if alive else (), now_s
    )
    assert set(found) <= names
    return bool(found)


def test_a_service_that_runs_here_is_nothing_that_was_left() -> None:
    routers = Routers()
    assert not goes_on(routers, left(), 0, hosted=True)
    assert not routers.waiting


def test_a_node_that_was_left_passes_requests_on_until_none_came_for_a_while() -> None:
    routers = Routers()
    assert goes_on(routers, left(10), 0)
    assert routers.waiting
    assert goes_on(routers, left(15), 40)
    assert goes_on(routers, left(15), 40 + QUIET_S - 1)
    assert not goes_on(routers, left(15), 40 + QUIET_S)


def test_it_counts_from_when_clients_are_no_longer_sent_there() -> None:
    routers = Routers()
    for second in range(0, 200, 10):
        assert goes_on(routers, left(10), second, listed=True)
    assert goes_on(routers, left(10), 190 + QUIET_S - 1)
    assert not goes_on(routers, left(10), 190 + QUIET_S)


def test_requests_that_are_held_are_not_given_up() -> None:
    routers = Routers()
    for second in range(0, 200, 10):
        assert goes_on(routers, left(10, held=1), second)


def test_it_ends_also_where_requests_never_do() -> None:
    routers = Routers()
    for second in range(0, int(MOST_ROUTING_S), 30):
        assert goes_on(routers, left(second), second)
    assert not goes_on(routers, left(1), MOST_ROUTING_S)


def test_a_deleted_service_is_passed_on_for_a_moment_only() -> None:
    routers = Routers()
    assert goes_on(routers, left(10), 0, alive=False)
    assert goes_on(routers, left(11), 4, alive=False)
    assert not goes_on(routers, left(12), 5, alive=False)


def test_a_service_that_comes_back_and_leaves_again_has_its_time_again() -> None:
    routers = Routers()
    goes_on(routers, left(10), 0)
    assert not goes_on(routers, left(10), QUIET_S)
    goes_on(routers, left(10), 100, hosted=True)
    assert goes_on(routers, left(10), 200)
    assert goes_on(routers, left(10), 200 + QUIET_S - 1)


def test_what_is_gone_is_forgotten() -> None:
    routers = Routers()
    goes_on(routers, left(), 0)
    goes_on(routers, left(name="n1"), 0)
    routers.forget([left(name="n1")])
    assert routers.waiting
    routers.forget([node("n1")])
    assert not routers.waiting
