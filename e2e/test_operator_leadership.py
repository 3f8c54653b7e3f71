"""Two operators: one ends in every way there is, the other goes on, and nothing is done twice or by the wrong one."""

from __future__ import annotations

import json
from collections.abc import Callable
from threading import Event
from typing import Any

import pytest
from e2e.chart import APPLY, Object
from e2e.faults.agents import Agents
from e2e.faults.fixtures import Operators
from e2e.faults.kube import NAMESPACE, until
from e2e.faults.operators import Operator
from e2e.faults.proxy import Call, Fault, Hold, Proxy
from e2e.faults.scene import NODES, USERS, Scene, is_open, model_service

TAKES_OVER_S = 30.0
"""After SIGKILL."""
HANDS_OVER_S = 5.0
"""After SIGTERM."""
KINDS = (
    *("ModelService", "ModelProfile", "PlacementPlan", "RuntimePool"),
    *("Service", "EndpointSlice", "Deployment", "PodDisruptionBudget"),
)
"""What the operator writes but for RuntimeNodes, which bear its epoch."""


@pytest.fixture
def other(scene: Scene) -> Any:
    """The second operator's way to the API server."""
    with Proxy(scene.plane.access()).running() as proxy:
        yield proxy


@pytest.fixture
def pair(operators: Operators, other: Proxy) -> tuple[Operator, Operator]:
    """The one that leads, and the one that waits."""
    first = operators("operator-1")
    until(lambda: first.leads, "the first to lead")
    second = operators("operator-2", other)
    until(lambda: any(call.plural == "leases" for call in other.calls), "the second to want it")
    return first, second


def epochs(scene: Scene) -> set[int]:
    return {each["spec"]["epoch"] for each in scene.kube.all("RuntimeNode")}


def versions(scene: Scene) -> dict[tuple[str, str], str]:
    return {
        (kind, each["metadata"]["name"]): each["metadata"]["resourceVersion"]
        for kind in KINDS
        for each in scene.kube.all(kind)
        if each["metadata"].get("namespace") in (None, NAMESPACE, USERS)
    }


def generations(scene: Scene) -> dict[str, int]:
    nodes = scene.kube.all("RuntimeNode")
    return {each["metadata"]["name"]: each["metadata"]["generation"] for each in nodes}


def holder(scene: Scene) -> str:
    lease = scene.kube.get("Lease", "tessera-operator", NAMESPACE)
    assert lease is not None
    return str(lease["spec"].get("holderIdentity", ""))


def leads(scene: Scene, operator: Operator, epoch: int) -> Callable[[], bool]:
    """Whether ``operator`` has looked at everything as the leader of that number."""
    return lambda: operator.leads and operator.rounds > 1 and epochs(scene) == {epoch}


@pytest.mark.parametrize(
    ("end", "within_s"), [(Operator.kill, TAKES_OVER_S), (Operator.terminate, HANDS_OVER_S)]
)
def test_another_one_takes_over_and_does_nothing_that_was_done(
    scene: Scene,
    agents: Agents,
    pair: tuple[Operator, Operator],
    other: Proxy,
    end: Callable[[Operator], None],
    within_s: float,
) -> None:
    scene.serve(model_service("digits"), model_service("pair", "https://m/a", "https://m/b"))
    running = scene.settled("digits", "pair")
    before, orders, launched = versions(scene), generations(scene), agents.launches()
    first, second = pair

    end(first)
    until(lambda: second.leads, "the second to lead", within_s)

    until(leads(scene, second, 2), lambda: f"a round of the second: {second.tail()}")
    assert scene.settled("digits", "pair") == running
    assert versions(scene) == before
    assert generations(scene) == {name: generation + 1 for name, generation in orders.items()}
    written = sorted((call.plural, call.name) for call in other.writes())
    # Each pool's Deployment once, because fields of an earlier version would not be seen; it did not change.
    assert written == [
        ("deployments", "tessera-runtime-cpu"),
        *[("runtimenodes", node) for node in NODES],
    ]
    assert agents.launches() == launched
    assert set(launched.values()) == {1}


def test_what_a_deposed_leader_had_sent_is_refused_and_it_ends(
    scene: Scene,
    agents: Agents,
    pair: tuple[Operator, Operator],
    proxy: Proxy,
) -> None:
    first, second = pair
    scene.serve(model_service("digits"))
    scene.settled("digits")
    on_its_way = Event()
    held: list[Call] = []

    def hold(call: Call) -> Fault | None:
        if call.is_write and call.plural == "runtimenodes" and not held:
            held.append(call)
            return Hold(on_its_way)
        return None

    with proxy.faulty(hold):
        scene.serve(model_service("late"))
        until(lambda: held, "an order to be on its way")
        first.suspend()
        until(lambda: second.leads, "the second to lead", TAKES_OVER_S)
        until(leads(scene, second, 2), "a round of the second")
        running = scene.settled("digits", "late")
        orders, heard = generations(scene), len(proxy.answers)
        assert json.loads(held[0].body)["spec"]["epoch"] == 1

        on_its_way.set()
        until(lambda: len(proxy.answers) > heard, "the API server's answer")
    _, status, words = proxy.answers[heard]
    assert status == 422
    assert b"a leader that was deposed" in words

    first.resume()
    assert first.wait() == 1
    assert (holder(scene), epochs(scene)) == ("operator-2", {2})
    assert (scene.settled("digits", "late"), generations(scene)) == (running, orders)


def test_one_that_cannot_renew_ends_before_another_leads_who_finishes_its_rollout(
    scene: Scene, agents: Agents, pair: tuple[Operator, Operator], proxy: Proxy
) -> None:
    first, second = pair
    agents.hold(f"{USERS}.digits")
    scene.serve(model_service("digits", placement={"spread": {"minNodes": 2}}))
    until(lambda: scene.homes("digits"), "a launch")

    never = Event()
    with proxy.faulty(lambda _: Hold(never, goes_on=False)):
        proxy.cut()
        assert first.wait(TAKES_OVER_S) == 1
        assert not second.leads
        until(lambda: second.leads, "the second to lead", TAKES_OVER_S)
        never.set()
    until(leads(scene, second, 2), "a round of the second")
    agents.hold()

    scene.settled("digits")
    assert len(scene.homes("digits")) == 2
    assert set(agents.launches().values()) == {1}


def test_what_a_deposed_leader_can_still_write_is_put_right(
    scene: Scene, agents: Agents, operators: Operators
) -> None:
    """EndpointSlices bear no epoch, and a plan is new: such writes land."""
    operators()
    scene.serve(model_service("digits"))
    scene.settled("digits")
    stale = scene.kube.get("EndpointSlice", "digits-tessera", USERS)
    assert stale is not None
    metadata = {name: stale["metadata"][name] for name in ("name", "namespace")}
    emptied = {**stale, "metadata": metadata, "endpoints": []}
    late = _plan_of(scene.kube.all("PlacementPlan")[0], "0123456789" * 4)

    scene.kube.create(late)
    as_operator = f"{scene.kube._path(emptied)}?fieldManager=tessera-operator&force=true"
    answer = scene.kube.call("PATCH", as_operator, emptied, APPLY)
    assert not answer["endpoints"]

    scene.settled("digits")
    assert not is_open(scene.kube.read(late))


def _plan_of(plan: Object, name: str) -> Object:
    """The same decision under another name, as if it had come later."""
    return {
        **{each: plan[each] for each in ("apiVersion", "kind", "spec")},
        "metadata": {"name": name},
    }
