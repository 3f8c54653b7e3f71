"""A service that somebody else scales, and whether it follows."""

from __future__ import annotations

import json
from collections.abc import Callable
from zlib import crc32

from e2e.chart import Object
from e2e.system.installation import Installation
from e2e.system.load import Load, zero_failures
from e2e.system.models import Array, answer, classifier, example
from e2e.system.services import Service, model_service

QUIET, BUSY = "30", "95"
"""Of the metric; the examples want 50 for each replica."""
AT_ONCE = {"scaleDown": {"stabilizationWindowSeconds": 0}}
"""Of an autoscaler: it takes a replica away without waiting for whether it stays so."""
_SCALED_S = 45.0
_CALM_S = 3.0
_X = example()


def scaled_by_others(system: Installation, namespace: str) -> tuple[Service, dict[str, Array]]:
    """A service ``digits`` that serves and leaves its replicas to others, and what it is to answer."""
    file = classifier(crc32(namespace.encode()))
    uri = system.store.put(f"{namespace}/digits.onnx", file)
    system.apply(model_service(namespace, "digits", {"only": uri}, scaling={"mode": "External"}))
    service = system.service(namespace, "digits")
    service.wait_until_serving()
    return service, {"right": answer(file, _X)}


def assert_scaled(
    service: Service, expected: dict[str, Array], autoscaler: str, measure: Callable[[str], None]
) -> None:
    """That the service follows what is measured. ``autoscaler``: the name of the HorizontalPodAutoscaler."""
    service.system.wait(
        "the autoscaler reads", lambda: says(autoscaled(service, autoscaler), "ScalingActive")
    )
    assert replicas(service) == (1, 1)
    with Load(service.target(), _X, expected, longest_s=180) as load:
        load.go_on_for(_CALM_S)
        for value, wanted in ((BUSY, 2), (QUIET, 1)):
            measure(value)
            wait_for_replicas(service, autoscaler, wanted)
            load.go_on_for(_CALM_S)
    zero_failures(load.result)


def wait_for_replicas(service: Service, autoscaler: str, wanted: int) -> None:
    """The autoscaler has asked for them, they serve, and it sees that."""
    service.system.wait(
        f"the autoscaler has {wanted} replicas, which serve",
        lambda: (
            replicas(service) == (wanted, wanted)
            and len(service.nodes()) == len(service.addresses()) == wanted
            and _status(autoscaled(service, autoscaler)).get("currentReplicas") == wanted
        ),
        _SCALED_S,
    )
    service.wait_until_settled()
    found = autoscaled(service, autoscaler)
    assert says(found, "AbleToScale"), found
    assert says(found, "ScalingActive"), found
    scale = service.system.kubectl(
        "get",
        "--raw",
        f"/apis/tessera.dev/v1alpha1/namespaces/{service.namespace}/modelservices/digits/scale",
    )
    assert json.loads(scale)["status"] == {
        "replicas": wanted,
        "selector": f"tessera.dev/namespace={service.namespace},tessera.dev/service=digits",
    }


def replicas(service: Service) -> tuple[int, int]:
    """Wanted and placed."""
    document = service.document()
    return document["spec"].get("replicas", 0), _status(document).get("replicas", 0)


def autoscaled(service: Service, autoscaler: str) -> Object:
    """The HorizontalPodAutoscaler; empty while there is none."""
    return service.system.read("HorizontalPodAutoscaler", autoscaler, service.namespace) or {}


def says(found: Object, kind: str) -> bool:
    """Whether a condition of ``found`` is true."""
    conditions = _status(found).get("conditions") or ()
    return any(each["type"] == kind and each["status"] == "True" for each in conditions)


def _status(found: Object) -> Object:
    return found.get("status") or {}
