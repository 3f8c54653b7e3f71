"""A service that nobody asks sleeps; the request that wakes it waits and is answered."""

from __future__ import annotations

from zlib import crc32

import pytest
from e2e.system.installation import ACTIVATOR, RUNTIME, Installation
from e2e.system.load import KEPT_GRPC, KEPT_HTTP, NEW_GRPC, NEW_HTTP, Load, zero_failures
from e2e.system.models import Array, answer, classifier, example
from e2e.system.services import Service, model_service

IDLE_S = 6
ASLEEP_WITHIN_S = 60.0
X = example()


@pytest.mark.timeout(240, func_only=True)
def test_a_service_falls_asleep_and_is_woken_by_requests_that_wait_for_it(
    installed: Installation, namespace: str
) -> None:
    service, expected = sleeper(installed, namespace)
    for way in (NEW_HTTP, NEW_GRPC):
        wait_until_asleep(installed, service)
        with Load(service.target(), X, expected, rate=1, longest_s=1, ways=(way,)) as first:
            wait_until_awake(installed, service)
        zero_failures(first.result)
        assert len(first.result.outcomes) == 1, "one request is enough to wake it"


@pytest.mark.timeout(240, func_only=True)
def test_a_service_that_is_asked_stays_awake_on_connections_from_before_it_woke(
    installed: Installation, namespace: str
) -> None:
    service, expected = sleeper(installed, namespace)
    wait_until_asleep(installed, service)
    with Load(service.target(), X, expected, rate=20, ways=(KEPT_HTTP, KEPT_GRPC)) as kept:
        wait_until_awake(installed, service)
        before = versions(installed)
        kept.go_on_for(3 * IDLE_S)
    zero_failures(kept.result)
    ready = service.condition("Ready")
    assert ready["reason"] == "Serving", ready
    after = versions(installed)
    actions = [
        step["action"]
        for plan in installed.objects("PlacementPlan")
        for step in plan["spec"]["steps"]
        if after.get(plan["metadata"]["name"]) != before.get(plan["metadata"]["name"])
    ]
    assert "Unload" not in actions, "it was put to sleep while it was asked"


def versions(system: Installation) -> dict[str, str]:
    """Of all plans: one that is carried out again, as its name is that of its content, is another version."""
    plans = system.objects("PlacementPlan")
    return {plan["metadata"]["name"]: plan["metadata"]["resourceVersion"] for plan in plans}


def sleeper(system: Installation, namespace: str) -> tuple[Service, dict[str, Array]]:
    file = classifier(crc32(namespace.encode()))
    uri = system.store.put(f"{namespace}/sleeper.onnx", file)
    scaling = {"minReplicas": 0, "maxReplicas": 1, "idleTimeout": f"{IDLE_S}s"}
    system.apply(model_service(namespace, "sleeper", {"only": uri}, scaling=scaling))
    return system.service(namespace, "sleeper"), {"right": answer(file, X)}


def wait_until_asleep(system: Installation, service: Service) -> None:
    """Nothing of it runs, and clients are sent to the activators."""

    def is_asleep() -> bool:
        activators = {pod["status"]["podIP"] for pod in system.pods(ACTIVATOR)}
        return (
            service.says("Ready", "True", "ScaledToZero")
            and not service.nodes()
            and bool(service.addresses())
            and service.addresses() <= activators
        )

    system.wait(f"{service.served_name} sleeps", is_asleep, ASLEEP_WITHIN_S)


def wait_until_awake(system: Installation, service: Service) -> None:
    def is_awake() -> bool:
        pods = {pod["status"]["podIP"] for pod in system.pods(RUNTIME)}
        return bool(service.addresses()) and service.addresses() <= pods

    system.wait(f"{service.served_name} is awake", is_awake)
