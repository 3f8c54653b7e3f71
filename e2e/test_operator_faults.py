"""The operator and an API server that refuses, breaks off, hangs, forgets and restarts: it waits, goes on, and asks no more than it must."""

from __future__ import annotations

import json
import urllib.request
from collections import Counter
from random import Random
from threading import Event

from e2e.faults.agents import Agents, digest, pod_of
from e2e.faults.fixtures import Operators
from e2e.faults.kube import NAMESPACE, until
from e2e.faults.operators import SETTINGS, Operator
from e2e.faults.proxy import LEASES, Answer, Call, Fault, Hold, Proxy, Reset
from e2e.faults.scene import NODES, USERS, Scene, model_service

SERVICES = (model_service("digits"), model_service("pair", "https://models/a", "https://models/b"))
FAULTS = (Answer(429, (("Retry-After", "1"),)), Answer(500), Answer(503), Reset())
WRITE_FAULTS = (*FAULTS, Answer(409), Reset(heard=True))
HANGS_S = 30.0
"""After which the operator gives up on an answer."""


def test_a_rollout_succeeds_although_one_call_in_eight_fails(
    scene: Scene, agents: Agents, proxy: Proxy, operators: Operators
) -> None:
    chance, met = Random(1), Counter[Fault]()

    def often(call: Call) -> Fault | None:
        """Renewals of leases pass: a leader that cannot renew ends, which is another test."""
        if call.plural == LEASES or chance.random() > 0.125:
            return None
        fault = chance.choice(WRITE_FAULTS if call.is_write else FAULTS)
        met[fault] += 1
        return fault

    operator = operators()
    with proxy.faulty(often):
        scene.serve(*SERVICES)
        scene.settled("digits", "pair")
        scene.serve(model_service("new"))
        scene.settled("digits", "pair", "new")
    assert len(met) >= len(FAULTS)
    assert operator.exit_code is None
    assert set(agents.launches().values()) == {1}


def test_while_the_api_server_is_away_it_is_asked_less_and_less(
    scene: Scene, agents: Agents, proxy: Proxy, operators: Operators
) -> None:
    operator = operators()
    scene.serve(*SERVICES)
    scene.settled("digits", "pair")
    followed = {call.plural for call in proxy.calls if call.is_watch}
    start = len(proxy.calls)

    def asked() -> Counter[str]:
        return Counter(call.plural for call in proxy.calls[start:])

    with proxy.faulty(lambda call: None if call.plural == LEASES else Reset()):
        proxy.cut()
        until(lambda: min(asked()[each] for each in followed) >= 3, "three tries of each")
        tries = asked()
    # Pauses double: whoever was asked for the third time as the last was not asked often as the first.
    assert max(tries[each] for each in followed) <= 6
    assert proxy.writes(start) == []

    scene.serve(model_service("new"))
    scene.settled("digits", "pair", "new")
    assert operator.exit_code is None


def test_writes_that_fail_are_tried_again_with_pauses(
    scene: Scene, agents: Agents, proxy: Proxy, operators: Operators
) -> None:
    operator = operators()
    scene.serve(*SERVICES)
    scene.settled("digits", "pair")
    start, rounds = len(proxy.calls), operator.rounds
    with proxy.faulty(lambda call: Answer(503) if call.is_write else None):
        scene.serve(model_service("new"))
        until(lambda: operator.rounds >= rounds + 3, "some rounds")
        failed, passed = proxy.writes(start), operator.rounds - rounds
    # Each round tries each object once, and nothing is done of a plan that could not be written.
    tries = Counter((call.plural, call.name) for call in failed)
    assert max(tries.values()) <= passed + 1
    assert not [call for call in failed if call.plural == "runtimenodes" and b'"new"' in call.body]
    scene.settled("digits", "pair", "new")


def test_what_was_deleted_while_nobody_watched_is_noticed(
    scene: Scene, agents: Agents, proxy: Proxy, operators: Operators
) -> None:
    operator = operators(settings=f"{SETTINGS}lostAfter: 2s\n")
    scene.serve(*SERVICES)
    scene.settled("digits", "pair")
    blind = ("services", "endpointslices", "modelprofiles", "pods")
    empty = next(node for node, told in scene.picture().items() if not told)

    with proxy.faulty(
        lambda call: Answer(503) if call.plural in blind and not call.is_write else None
    ):
        assert sum(proxy.cut(each) for each in blind) == len(blind)
        for kind in ("Service", "EndpointSlice"):
            for each in scene.kube.all(kind, USERS):
                scene.kube.delete(each)
        pod = scene.kube.get("Pod", pod_of(empty), NAMESPACE)
        assert pod is not None
        scene.kube.end(pod)
    until(lambda: scene.kube.get("RuntimeNode", empty) is None, "the node without a pod to go")
    scene.settled("digits", "pair")
    assert operator.exit_code is None
    assert set(agents.launches().values()) == {1}


def test_a_watch_that_is_told_410_begins_anew(
    scene: Scene, agents: Agents, proxy: Proxy, operators: Operators
) -> None:
    operators()
    scene.serve(*SERVICES)
    scene.settled("digits", "pair")
    start = len(proxy.calls)
    gone = {
        "kind": "Status",
        "code": 410,
        "reason": "Expired",
        "message": "too old resource version",
    }
    told = ("modelservices", "runtimenodes")
    for plural in told:
        assert proxy.tell(plural, {"type": "ERROR", "object": gone}) == 1
    until(
        lambda: all(asked(proxy, each, start)[:2] == ["list", "watch"] for each in told),
        "what was told to be listed, and watched from there",
    )
    scene.serve(model_service("new"))
    scene.settled("digits", "pair", "new")


def asked(proxy: Proxy, plural: str, start: int) -> list[str]:
    return [
        "watch" if call.is_watch else "list"
        for call in proxy.calls[start:]
        if call.plural == plural and not call.name and call.method == "GET"
    ]


def test_a_history_that_was_compacted_is_listed_anew_after_a_restart(
    scene: Scene, agents: Agents, proxy: Proxy, operators: Operators
) -> None:
    operators()
    scene.serve(*SERVICES)
    scene.settled("digits", "pair")
    blind = ("services", "modelservices")

    with proxy.faulty(lambda call: Reset() if call.plural in blind and call.is_watch else None):
        assert sum(proxy.cut(each) for each in blind) == len(blind)
        for each in scene.kube.all("Service", USERS):
            scene.kube.delete(each)
        scene.serve(model_service("new"))
        compact(scene)
        scene.plane.stop_api_server()
        scene.plane.start_api_server()
        start = len(proxy.calls)
    scene.settled("digits", "pair", "new")
    for plural in blind:
        tries = asked(proxy, plural, start)
        assert tries[:2] == ["watch", "list"], tries  # it was refused what it had not seen


def compact(scene: Scene) -> None:
    """Have etcd forget all that was before now."""
    revision = scene.service("new")["metadata"]["resourceVersion"]
    request = urllib.request.Request(
        f"{scene.plane.etcd_url}/v3/kv/compaction",
        json.dumps({"revision": revision, "physical": True}).encode(),
    )
    with urllib.request.urlopen(request, timeout=10) as answer:
        assert answer.status == 200


def test_a_restart_of_the_api_server_in_the_middle_of_a_rollout(
    scene: Scene, agents: Agents, operators: Operators
) -> None:
    operator = operators()
    agents.hold(f"{USERS}.digits")
    scene.serve(model_service("digits", placement={"spread": {"minNodes": 2}}))
    until(lambda: scene.homes("digits"), "a launch")
    scene.plane.stop_api_server()
    agents.hold()
    scene.plane.start_api_server()
    until(lambda: operator.exit_code is not None or not scene.complaints("digits"), "the end")
    if operator.exit_code is not None:  # it could not renew its lease for too long: as it is to be
        operators("operator-1")
    scene.settled("digits")
    assert set(agents.launches().values()) == {1}


def test_answers_that_never_come_are_waited_for_only_so_long(
    scene: Scene, agents: Agents, proxy: Proxy, operators: Operators
) -> None:
    operator = operators()
    never = Event()
    hung: list[Call] = []

    def first_order(call: Call) -> Fault | None:
        if call.plural != "placementplans" or not call.is_write or hung:
            return None
        hung.append(call)
        return Hold(never, goes_on=False)

    with proxy.faulty(first_order):
        scene.serve(*SERVICES)
        until(lambda: not scene.complaints("digits", "pair"), "all", HANGS_S + 30)
        never.set()
    assert hung
    assert operator.exit_code is None
    assert set(agents.launches().values()) == {1}


def test_nothing_is_written_where_nothing_changed(
    scene: Scene, agents: Agents, proxy: Proxy, operators: Operators
) -> None:
    operator = operators()
    scene.serve(*SERVICES)
    scene.settled("digits", "pair")
    idle(operator)
    start = len(proxy.calls)
    for number in range(5):
        poke(scene, operator, number)
    assert proxy.writes(start) == []


def idle(operator: Operator) -> None:
    """Wait until the operator has come to rest: two seconds without a round."""
    rounds, quiet = operator.rounds, 0
    while quiet < 2:
        Event().wait(1.0)  # whether nothing happens takes time to see
        quiet = quiet + 1 if operator.rounds == rounds else 0
        rounds = operator.rounds


def poke(scene: Scene, operator: Operator, number: int) -> None:
    """Have a round because of changes that concern nobody: an annotation of each kind."""
    rounds = operator.rounds
    for kind, name, namespace in (
        ("ModelService", "digits", USERS),
        ("RuntimeNode", NODES[0], ""),
        ("Service", "digits", USERS),
    ):
        found = scene.kube.get(kind, name, namespace)
        assert found is not None
        scene.kube.merge(
            {**found, "kind": kind}, {"metadata": {"annotations": {"note": str(number)}}}
        )
    until(lambda: operator.rounds > rounds, "a round")


def test_a_decision_writes_each_object_once(
    scene: Scene, agents: Agents, proxy: Proxy, operators: Operators
) -> None:
    operator = operators()
    scene.serve(*SERVICES)
    scene.settled("digits", "pair")
    idle(operator)
    agents.silence(*NODES)
    start = len(proxy.calls)
    # Its model is known and measured already: planned, ordered and reported in one go.
    uri = "https://models/digits.onnx"
    same = model_service("same", uri)
    same["spec"]["members"][0]["model"]["digest"] = digest(uri)
    scene.serve(same)
    until(lambda: scene.homes("same"), "an order")
    idle(operator)
    written = Counter((call.plural, call.name) for call in proxy.writes(start))
    del written["events", ""]
    assert set(written.values()) == {1}, written
    assert {plural for plural, _ in written} == {
        *("services", "endpointslices", "modelservices", "placementplans", "runtimenodes"),
        "runtimepools",
    }
    agents.silence()
    scene.settled("digits", "pair", "same")
