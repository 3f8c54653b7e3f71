"""Batches that take longer where a model runs than when it was measured: it is recorded, and plans count with it."""

from __future__ import annotations

import json
from zlib import crc32

import pytest
from e2e.chart import Object
from e2e.system.installation import Installation
from e2e.system.load import Load, zero_failures
from e2e.system.models import answer, classifier, example
from e2e.system.services import Service, model_service

X = example()
LASTING_S = 240.0
"""Two minutes for which it has to last, and what agents and the operator take to see and say so."""
SHORTER = 3.0
"""The measurement is made to say this much less than batches take."""

pytestmark = pytest.mark.timeout(400, func_only=True)


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
    installed: Installation, namespace: str
) -> None:
    model = classifier(crc32(namespace.encode()), layers=4)
    uri = installed.store.put(f"{namespace}/digits.onnx", model)
    installed.apply(model_service(namespace, "digits", {"only": uri}))
    service = installed.service(namespace, "digits")
    service.wait_until_serving()
    measured = lines(installed, service)
    assert measured
    as_on_a_faster_machine(installed, namespace)
    told = installed.wait(
        "nodes are told of the other measurement",
        lambda: (found := lines(installed, service)) != measured and found,
    )
    with Load(service.target(), X, {"right": answer(model, X)}, longest_s=LASTING_S) as load:
        found = installed.wait("drift", lambda: drifts(installed, namespace), LASTING_S)
        load.go_on_for(5)
    zero_failures(load.result)
    assert all(ratio > SHORTER / 2 for ratio in found)
    assert lines(installed, service) == told
    conditions = [
        (each["type"], each["status"], each["reason"])
        for profile in profiles(installed, namespace)
        for each in profile["status"]["conditions"]
    ]
    assert ("Drifted", "True", "BatchesTakeLonger") in conditions
    assert ("Complete", "True", "Measured") in conditions
