"""A real HorizontalPodAutoscaler scales a service by a metric of somebody else's, and no request notices."""

from __future__ import annotations

import json
from pathlib import Path
from zlib import crc32

import pytest
import yaml
from e2e.chart import Object
from e2e.system.external_metrics import Metrics, external_metrics
from e2e.system.installation import EXAMPLES, Installation
from e2e.system.load import Load, zero_failures
from e2e.system.models import answer, classifier, example
from e2e.system.services import Service, model_service

METRIC = "tessera_requests_per_second"
QUIET, BUSY = "30", "95"
"""Of the metric; the example wants 50 for each replica."""
SCALED_S = 45.0
CALM_S = 3.0
X = example()


@pytest.mark.timeout(240, func_only=True)
def test_an_autoscaler_adds_a_replica_and_takes_it_away(
    installed: Installation, namespace: str, tmp_path: Path
) -> None:
    file = classifier(crc32(namespace.encode()))
    uri = installed.store.put(f"{namespace}/digits.onnx", file)
    installed.apply(model_service(namespace, "digits", {"only": uri}, scaling={"mode": "External"}))
    service = installed.service(namespace, "digits")
    service.wait_until_serving()
    metrics = Metrics({METRIC: QUIET})
    with external_metrics(installed, tmp_path, metrics):
        installed.apply(autoscaler(namespace))
        try:
            installed.wait(
                "the autoscaler reads", lambda: says(autoscaled(service), "ScalingActive")
            )
            assert replicas(service) == (1, 1)
            with Load(service.target(), X, {"right": answer(file, X)}, longest_s=180) as load:
                load.go_on_for(CALM_S)
                for value, wanted in ((BUSY, 2), (QUIET, 1)):
                    metrics.values[METRIC] = value
                    wait_for_replicas(service, wanted)
                    load.go_on_for(CALM_S)
            zero_failures(load.result)
        finally:
            installed.kubectl("delete", "hpa", "digits", f"--namespace={namespace}")
    assert metrics.asked == {(namespace, METRIC)}


def autoscaler(namespace: str) -> Object:
    """The example, in a hurry: it takes a replica away at once."""
    document: Object = yaml.safe_load((EXAMPLES / "hpa.yaml").read_text())
    document["metadata"]["namespace"] = namespace
    document["spec"]["behavior"] = {"scaleDown": {"stabilizationWindowSeconds": 0}}
    return document


def wait_for_replicas(service: Service, wanted: int) -> None:
    """The autoscaler has asked for them, they serve, and it sees that."""
    service.system.wait(
        f"the autoscaler has {wanted} replicas, which serve",
        lambda: (
            replicas(service) == (wanted, wanted)
            and len(service.nodes()) == len(service.addresses()) == wanted
            and autoscaled(service)["status"].get("currentReplicas") == wanted
        ),
        SCALED_S,
    )
    service.wait_until_settled()
    found = autoscaled(service)
    assert says(found, "AbleToScale"), found["status"]
    assert says(found, "ScalingActive"), found["status"]
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
    return document["spec"].get("replicas", 0), (document.get("status") or {}).get("replicas", 0)


def autoscaled(service: Service) -> Object:
    found = service.system.read("HorizontalPodAutoscaler", service.name, service.namespace)
    assert found is not None, f"no autoscaler of {service.served_name}"
    return found


def says(found: Object, kind: str) -> bool:
    conditions = (found.get("status") or {}).get("conditions") or ()
    return any(each["type"] == kind and each["status"] == "True" for each in conditions)
