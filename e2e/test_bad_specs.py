"""What users get wrong is refused or said, with the field and the remedy, and keeps nobody else from being served."""

from __future__ import annotations

from typing import Any

import pytest
from e2e.chart import Object, Refused
from e2e.faults.agents import CORES, Agents
from e2e.faults.fixtures import Operators
from e2e.faults.kube import until
from e2e.faults.operators import SETTINGS
from e2e.faults.scene import NODES, USERS, Scene, model_service

PREFIXES = f"modelPrefixes: {{{USERS}: ['https://models/']}}\n"


def changed(service: Object, **spec: Any) -> Object:
    return {**service, "spec": {**service["spec"], **spec}}


def says(scene: Scene, name: str, kind: str, status: str, reason: str) -> str:
    """Wait until a service's condition says so; its message."""
    until(
        lambda: scene.condition(name, kind)[:2] == (status, reason),
        lambda: f"{kind} {status} {reason}, not {scene.service(name).get('status')}",
    )
    return scene.condition(name, kind)[2]


PLAIN = model_service("wrong")
TWO = model_service("wrong", "https://models/a", "https://models/b")


@pytest.mark.parametrize(
    ("document", "words"),
    [
        pytest.param(
            changed(TWO, ensemble={}), "ensemble.combine: say how", id="an ensemble without a rule"
        ),
        pytest.param(
            changed(PLAIN, slo={"objectives": [{"target": "0ms", "percent": "99"}]}),
            "must be above 0s",
            id="no time",
        ),
        pytest.param(
            model_service("wrong", "file:///models/a.onnx"),
            "file is for local mode only; in a cluster use s3",
            id="a file of the node",
        ),
        pytest.param(changed(PLAIN, replicas=2), "only with scaling.mode External", id="replicas"),
        pytest.param(changed(PLAIN, memebrs=[]), "memebrs", id="a typing error"),
    ],
)
def test_what_the_schema_forbids_is_refused_with_the_remedy(
    scene: Scene, document: Object, words: str
) -> None:
    with pytest.raises(Refused, match=words):
        scene.kube.create(document, dry=True)


@pytest.mark.parametrize(
    ("uri", "remedy"),
    [
        ("https://elsewhere/a.onnx", "https://models/"),
        ("https://models.example.com/a.onnx", "https://models/"),
        ("http://169.254.169.254/latest/meta-data", "https://models/"),
    ],
)
def test_a_model_from_where_the_namespace_may_not_take_it_is_not_accepted(
    scene: Scene, agents: Agents, operators: Operators, uri: str, remedy: str
) -> None:
    operators(settings=SETTINGS + PREFIXES)
    scene.serve(model_service("digits"), model_service("wrong", uri))
    message = says(scene, "wrong", "Accepted", "False", "InvalidSpec")
    for part in ("spec.members[0].model.uri", uri, f"one that starts with {remedy}"):
        assert part in message
    until(lambda: scene.condition("digits", "Ready")[0] == "True", "the other to be served")
    assert scene.homes("wrong") == set()


def test_one_that_refers_to_what_is_not_there_is_not_accepted_and_the_others_go_on(
    scene: Scene, agents: Agents, operators: Operators
) -> None:
    operators()
    scene.serve(changed(PLAIN, priorityClassName="nobody"), model_service("digits"))
    message = says(scene, "wrong", "Accepted", "False", "InvalidSpec")
    assert "priorityClassName" in message
    assert "nobody" in message
    until(lambda: scene.condition("digits", "Ready")[0] == "True", "the other to be served")


def test_a_latency_that_no_device_reaches_says_which_one_is_reached(
    scene: Scene, agents: Agents, operators: Operators
) -> None:
    operators()
    slow = model_service("wrong", "https://models/slow", target="500ms", rate=1)
    scene.serve(slow, model_service("digits"))
    message = says(scene, "wrong", "SLOMet", "False", "Infeasible")
    best_ms = float(message.rpartition(", ")[2].removesuffix(" ms at best"))
    assert best_ms >= 2000  # one row alone takes that
    assert scene.condition("wrong", "Planned")[:2] == ("False", "Infeasible")
    until(lambda: scene.condition("digits", "Ready")[0] == "True", "the other to be served")

    scene.serve(model_service("wrong", "https://models/slow", target="30s", rate=0))
    says(scene, "wrong", "Planned", "True", "Planned")


def test_what_is_missing_is_named_and_closes_the_gap(
    scene: Scene, agents: Agents, operators: Operators
) -> None:
    """A core serves some 400 rows per second: 100,000 are far more than three nodes."""
    operators()
    scene.serve(model_service("wrong", rate=100_000))
    message = says(scene, "wrong", "CapacityShortfall", "True", "InsufficientCapacity")
    assert "would close it" in message
    shortfall = scene.service("wrong")["status"]["shortfall"]
    assert shortfall["devices"] > len(NODES) * CORES
    assert shortfall["reason"].startswith(f"{shortfall['devices']} x cpu")
    event = until(
        lambda: [
            each
            for each in scene.kube.all("Event", USERS)
            if each["reason"] == "InsufficientCapacity" and each["type"] == "Warning"
        ],
        "an event",
    )
    assert event[0]["involvedObject"]["name"] == "wrong"

    scene.serve(model_service("wrong", rate=100))
    scene.settled("wrong")


@pytest.mark.parametrize(
    ("uri", "kind", "reason"),
    [
        ("https://models/broken", "Profiled", "MeasuringFailed"),
        ("https://models/slow", "Planned", "Infeasible"),
        ("https://elsewhere/a", "Accepted", "InvalidSpec"),
    ],
)
def test_a_service_whose_next_version_cannot_run_keeps_the_one_it_has(
    scene: Scene, agents: Agents, operators: Operators, uri: str, kind: str, reason: str
) -> None:
    operators(settings=SETTINGS + PREFIXES)
    scene.serve(model_service("digits"))
    before = scene.settled("digits")
    addresses = scene.addresses("digits")
    scene.serve(model_service("digits", uri))
    says(scene, "digits", kind, "False", reason)
    assert scene.condition("digits", "Ready")[0] == "True"
    assert (scene.picture(), scene.addresses("digits")) == (before, addresses)

    scene.serve(model_service("digits", "https://models/digits-3.onnx"))
    scene.settled("digits")
    assert set(agents.launches().values()) == {1}


def test_a_service_of_somebody_else_is_left_alone(
    scene: Scene, agents: Agents, operators: Operators
) -> None:
    operators()
    port = {"port": 443, "targetPort": 8443, "protocol": "TCP"}
    theirs = scene.kube.create(
        {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {"name": "taken", "namespace": USERS},
            "spec": {"selector": {"app": "theirs"}, "ports": [port]},
        }
    )
    scene.serve(model_service("taken"), model_service("digits"))
    message = says(scene, "taken", "Ready", "False", "NoInstanceReady")
    assert "the Service taken is not Tessera's" in message
    until(lambda: scene.condition("digits", "Ready")[0] == "True", "the other to be served")
    found = scene.kube.get("Service", "taken", USERS)
    assert found is not None
    assert found["spec"] == theirs["spec"]
    assert "ownerReferences" not in found["metadata"]
    mine = {"kubernetes.io/service-name": "taken"}
    slices = scene.kube.all("EndpointSlice", USERS)
    assert [each for each in slices if mine.items() <= each["metadata"]["labels"].items()] == []

    scene.kube.delete({**found, "kind": "Service", "apiVersion": "v1"})
    scene.settled("taken", "digits")
