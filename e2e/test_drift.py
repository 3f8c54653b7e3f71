"""Batches that take longer where a model runs than when it was measured: it is recorded, and plans count with it."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
from e2e.chart import Object
from e2e.system.installation import Installation
from e2e.system.installation import namespace as one_namespace
from e2e.system.load import Load, zero_failures
from e2e.system.models import answer, classifier, example
from e2e.system.services import Service, model_service

X = example()
FILE = classifier(94, layers=4)
LASTING_S = 100.0
"""The twenty seconds of the release for which it has to last, and what agents and the operator take to see and say so."""
SCALING = {"minReplicas": 0, "idleTimeout": "30s"}
"""Of what may sleep, nodes say every ten seconds that it is asked, and with it what batches take."""
SHORTER = 3.0
"""The measurement is made to say this much less than batches take."""

pytestmark = pytest.mark.timeout(240, func_only=True)


@pytest.fixture
def namespace(release: Installation) -> Iterator[str]:
    with one_namespace(release, "drift") as found:
        yield found


def profiles(system: Installation, namespace: str) -> list[Object]:
    return system.objects("ModelProfile", namespace)


def as_on_a_faster_machine(system: Installation, namespace: str) -> None:
    for each in profiles(system, namespace):
        rows = [
            {**row, **{key: f"{float(row[key][:-2]) / SHORTER:.6f}ms" for key in ("p50", "p99")}}
            for row in each["status"]["rows"]
        ]
        system.kubectl(
            *("patch", "modelprofile", each["metadata"]["name"], f"--namespace={namespace}"),
            *("--subresource=status", "--type=merge"),
            f"--patch={json.dumps({'status': {'rows': rows}})}",
        )


def drifts(system: Installation, namespace: str) -> list[float]:
    found = (each["status"].get("drift") for each in profiles(system, namespace))
    return [float(each["ratio"]) for each in found if each is not None]


def lines(system: Installation, service: Service) -> list[Object]:
    """What the nodes that run it are told that batches take."""
    return [
        line
        for node in system.objects("RuntimeNode")
        for served in node["spec"].get("services") or ()
        if served["name"] == service.served_name
        for member in served["members"]
        for line in member.get("batchLines") or ()
    ]


def test_what_lasts_is_recorded_and_nodes_keep_to_what_was_measured(
    release: Installation, namespace: str
) -> None:
    uri = release.store.put(f"{namespace}/digits.onnx", FILE)
    release.apply(model_service(namespace, "digits", {"only": uri}, scaling=SCALING))
    service = release.service(namespace, "digits")
    service.wait_until_serving()
    measured = lines(release, service)
    assert measured

    def told_anew() -> list[Object]:
        found = lines(release, service)
        return [] if any(each in measured for each in found) else found

    with Load(service.target(), X, {"right": answer(FILE, X)}) as load:
        as_on_a_faster_machine(release, namespace)
        told = release.wait("all nodes are told of the other measurement", told_anew)
        found = release.wait("drift", lambda: drifts(release, namespace), LASTING_S)
        load.go_on_for(5)
    zero_failures(load.result)
    assert all(ratio > SHORTER / 2 for ratio in found)
    assert lines(release, service) == told
    conditions = [
        (each["type"], each["status"], each["reason"])
        for profile in profiles(release, namespace)
        for each in profile["status"]["conditions"]
    ]
    assert ("Drifted", "True", "BatchesTakeLonger") in conditions
    assert ("Complete", "True", "Measured") in conditions
