"""A ModelService from its object to answers: names, readiness per model, and what is said of what cannot be served."""

from __future__ import annotations

import urllib.error
import urllib.request
from functools import partial

import numpy as np
import tritonclient.grpc as grpc_client
import tritonclient.http as http_client
from e2e.system.installation import RUNTIME, Installation
from e2e.system.load import Load, zero_failures
from e2e.system.models import CLASSES, FEATURES, INPUT, OUTPUT, answer, classifier, example
from e2e.system.services import Service, model_service

X = example(rows=2)


def test_clients_get_through_by_name_and_by_full_name(
    installed: Installation, namespace: str
) -> None:
    file = classifier(11)
    service = serve(installed, namespace, "digits", file)
    for short in (True, False):
        with Load(service.target(short=short), X, {"right": answer(file, X)}) as load:
            load.go_on_for(2)
        zero_failures(load.result)


def test_clients_of_the_protocol_see_the_model(installed: Installation, namespace: str) -> None:
    file = classifier(12)
    service = serve(installed, namespace, "digits", file)
    target, name = service.target(), service.served_name
    right = answer(file, X)
    with grpc_client.InferenceServerClient(f"{target.address}:{target.grpc}") as client:
        assert client.is_server_ready()
        assert client.is_model_ready(name)
        metadata = client.get_model_metadata(name, as_json=True)
        found = client.infer(name, [given(grpc_client)])
        np.testing.assert_allclose(found.as_numpy(OUTPUT), right, atol=1e-5)
    shapes = {each["name"]: each["shape"] for each in metadata["inputs"] + metadata["outputs"]}
    assert shapes == {INPUT: ["-1", str(FEATURES)], OUTPUT: ["-1", str(CLASSES)]}
    with http_client.InferenceServerClient(f"{target.address}:{target.http}") as client:
        assert client.is_model_ready(name)
        found = client.infer(name, [given(http_client)])
        np.testing.assert_allclose(found.as_numpy(OUTPUT), right, atol=1e-5)


def test_clients_are_sent_only_to_pods_that_answer_for_the_model(
    installed: Installation, namespace: str
) -> None:
    both = {"placement": {"spread": {"minNodes": 2}}, "scaling": {"minReplicas": 2}}
    services = [
        serve(installed, namespace, "one", classifier(13), scaling={"maxReplicas": 1}),
        serve(installed, namespace, "two", classifier(14), **both),
    ]
    missing = model_service(namespace, "none", {"only": f"{installed.store.prefix}none.onnx"})
    installed.apply(missing)
    services.append(installed.service(namespace, "none"))
    services[-1].wait_for("Profiled", "False", "MeasuringFailed")
    pods = {pod["status"]["podIP"] for pod in installed.pods(RUNTIME)}
    assert [len(service.addresses()) for service in services] == [1, 2, 0]
    for service in services:
        # While a pod is told of its peers it may be ahead of the object that says so.
        installed.wait(
            f"the pods that answer for {service.served_name} are those that clients are sent to",
            partial(_agrees, service, pods),
        )


def _agrees(service: Service, pods: set[str]) -> bool:
    return {pod for pod in pods if _is_ready(pod, service.served_name)} == service.addresses()


def _is_ready(pod: str, model: str) -> bool:
    try:
        with urllib.request.urlopen(f"http://{pod}:8000/v2/models/{model}/ready", timeout=5):
            return True
    except urllib.error.HTTPError as error:
        error.close()
        return False


def test_a_model_that_is_missing_is_named_and_served_when_it_comes(
    installed: Installation, namespace: str
) -> None:
    file = classifier(15)
    uri = installed.store.put(f"{namespace}/late.onnx", file)
    installed.store.remove(f"{namespace}/late.onnx")
    installed.apply(model_service(namespace, "late", {"only": uri}))
    service = installed.service(namespace, "late")
    service.wait_for("Profiled", "False", "MeasuringFailed")
    said = service.condition("Profiled")["message"]
    assert "only" in said, said
    assert f"{uri}: no such file" in said, said
    assert service.says("Ready", "False"), service.condition("Ready")
    installed.store.put(f"{namespace}/late.onnx", file)
    service.wait_until_serving()


def test_a_source_that_the_namespace_may_not_use_is_refused_by_its_field(
    installed: Installation, namespace: str
) -> None:
    uri = "http://elsewhere.example/model.onnx"
    installed.apply(model_service(namespace, "foreign", {"only": uri}))
    service = installed.service(namespace, "foreign")
    service.wait_for("Accepted", "False", "InvalidSpec")
    said = service.condition("Accepted")["message"]
    assert "spec.members[0].model.uri" in said, said
    assert installed.store.prefix in said, said


def test_kubectl_shows_what_there_is(installed: Installation, namespace: str) -> None:
    serve(installed, namespace, "digits", classifier(16))
    tables = installed.tables()
    print(tables)
    for kind in ("modelservice", "runtimepool", "runtimenode", "modelprofile", "placementplan"):
        assert f"{kind}.tessera.dev/" in tables
    row = next(line for line in tables.splitlines() if line.startswith(f"{namespace} "))
    assert "modelservice.tessera.dev/digits" in row
    assert "True" in row.split()
    assert f"http://digits.{namespace}.svc" in row.split()


def serve(system: Installation, namespace: str, name: str, file: bytes, **spec: object) -> Service:
    uri = system.store.put(f"{namespace}/{name}.onnx", file)
    system.apply(model_service(namespace, name, {"only": uri}, **spec))
    service = system.service(namespace, name)
    service.wait_until_serving()
    return service


def given(client: object) -> object:
    tensor = client.InferInput(INPUT, X.shape, "FP32")  # type: ignore[attr-defined]
    tensor.set_data_from_numpy(X)
    return tensor
