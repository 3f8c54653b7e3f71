"""A service that asks for a key: who has one is answered at every pod, who has none nowhere."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from collections.abc import Mapping

import numpy as np
import pytest
import tritonclient.grpc as grpc_client
from e2e.chart import NAMESPACE as SYSTEM
from e2e.chart import Object
from e2e.system.installation import RUNTIME, Installation
from e2e.system.load import Target
from e2e.system.models import INPUT, OUTPUT, Array, classifier, example, mean
from e2e.system.services import Service, model_service

MEMBERS = {"first": classifier(91, layers=30), "second": classifier(92, layers=30)}
X = example(2, seed=9)
RIGHT = mean(tuple(MEMBERS.values()), X)
ACCESS = {"keysSecretRef": {"name": "keys"}}
OLD, NEW, WRONG = "hunter2-the-old", "hunter2-the-new", "hunter2-nobodys"
READ_S = 40.0
"""Agents of the installation look at a Secret every few seconds, and a minute is what they would take without its option."""
ANSWERED, REFUSED = {"http": "", "grpc": ""}, {"http": "401 Bearer", "grpc": "UNAUTHENTICATED"}


def secret(namespace: str, keys: Mapping[str, str]) -> Object:
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": "keys", "namespace": namespace},
        "stringData": dict(keys),
    }


def opt_in(namespace: str) -> tuple[Object, Object]:
    """Agents may read this one Secret: what docs/rbac.md tells a namespace to do."""
    group = "rbac.authorization.k8s.io"
    head = {"apiVersion": f"{group}/v1", "metadata": {"name": "keys", "namespace": namespace}}
    rule = {"apiGroups": [""], "resources": ["secrets"], "resourceNames": ["keys"]}
    agents = {"kind": "ServiceAccount", "name": "tessera-agent", "namespace": SYSTEM}
    return (
        {**head, "kind": "Role", "rules": [{**rule, "verbs": ["get"]}]},
        {
            **head,
            "kind": "RoleBinding",
            "roleRef": {"apiGroup": group, "kind": "Role", "name": "keys"},
            "subjects": [agents],
        },
    )


def over_http(target: Target, key: str) -> str:
    """The status that refused an inference; empty for the right answer."""
    tensor = {"name": INPUT, "shape": list(X.shape), "datatype": "FP32", "data": X.ravel().tolist()}
    headers = {"Host": target.host, **({"Authorization": f"Bearer {key}"} if key else {})}
    asked = urllib.request.Request(
        f"http://{target.address}:{target.http}/v2/models/{target.model}/infer",
        json.dumps({"inputs": [tensor]}).encode(),
        headers,
    )
    try:
        with urllib.request.urlopen(asked, timeout=10) as reply:
            outputs = {each["name"]: each["data"] for each in json.load(reply)["outputs"]}
    except urllib.error.HTTPError as error:
        return " ".join(filter(None, (str(error.code), error.headers["WWW-Authenticate"])))
    check(np.array(outputs[OUTPUT], np.float32).reshape(RIGHT.shape))
    return ""


def over_grpc(target: Target, key: str) -> str:
    given = grpc_client.InferInput(INPUT, list(X.shape), "FP32")
    given.set_data_from_numpy(X)
    headers = {"authorization": f"Bearer {key}"} if key else {}
    with grpc_client.InferenceServerClient(f"{target.address}:{target.grpc}") as client:
        try:
            found = client.infer(target.served_name, [given], headers=headers, client_timeout=10)
        except grpc_client.InferenceServerException as error:
            return str(error.status()).removeprefix("StatusCode.")
    check(found.as_numpy(OUTPUT))
    return ""


def check(found: Array) -> None:
    np.testing.assert_allclose(found, RIGHT, atol=1e-4)


def ask(target: Target, key: str) -> dict[str, str]:
    return {"http": over_http(target, key), "grpc": over_grpc(target, key)}


def serve(installed: Installation, namespace: str) -> Service:
    uris = {
        name: installed.store.put(f"{namespace}/{name}.onnx", file)
        for name, file in MEMBERS.items()
    }
    document = model_service(namespace, "pair", uris, scaling={"maxReplicas": 1}, access=ACCESS)
    installed.apply(document)
    return installed.service(namespace, "pair")


def is_apart(service: Service) -> bool:
    homes = service.homes()
    return len(homes) == len(MEMBERS) and len(service.nodes()) == 2


@pytest.mark.timeout(400, func_only=True)
def test_who_has_a_key_is_answered_over_two_nodes_and_a_rotation_fails_no_request(
    installed: Installation, namespace: str
) -> None:
    installed.apply(*opt_in(namespace), secret(namespace, {"a": OLD}))
    service = serve(installed, namespace)
    service.wait_until_settled()
    # One member on each node, so that every answer needs a call between servers.
    service.change(traffic={"requestsPerSecond": int(1.3 * service.most_per_second())})
    installed.wait("each member is on a node of its own", lambda: is_apart(service))
    service.wait_until_settled()
    pods = [service.target(pod["status"]["podIP"]) for pod in installed.pods(RUNTIME)]
    everywhere = [service.target(), *pods]
    installed.wait("all pods answer", lambda: all(ask(at, OLD) == ANSWERED for at in everywhere))
    for at in everywhere:
        for key in ("", WRONG, NEW):
            assert ask(at, key) == REFUSED

    def answers_to(key: str, meanwhile: str) -> bool:
        """Whether all pods do; all the time they answer to the other key."""
        assert [ask(at, meanwhile) for at in everywhere] == [ANSWERED] * len(everywhere)
        return all(ask(at, key) == ANSWERED for at in everywhere)

    installed.apply(secret(namespace, {"a": OLD, "b": NEW}))
    installed.wait("the new key works", lambda: answers_to(NEW, meanwhile=OLD), READ_S)
    installed.kubectl(
        *("patch", "secret", "keys", f"--namespace={namespace}", "--type=merge"),
        '--patch={"data": {"a": null}}',
    )

    def refuses_the_old_one() -> bool:
        assert [ask(at, NEW) for at in everywhere] == [ANSWERED] * len(everywhere)
        return all(ask(at, OLD) == REFUSED for at in everywhere)

    installed.wait("the removed key stops working", refuses_the_old_one, READ_S)
    said = installed.kubectl(
        "get", "msvc,rnode,mprof,pplan,events", "--all-namespaces", "--output=yaml"
    )
    assert "hunter2" not in said + installed.report()


@pytest.mark.timeout(240, func_only=True)
def test_a_namespace_that_has_not_opted_in_has_a_closed_service_that_says_why(
    installed: Installation, namespace: str
) -> None:
    installed.apply(secret(namespace, {"a": OLD}))
    service = serve(installed, namespace)
    installed.wait(
        "its condition says what to do",
        lambda: "has not opted in" in service.condition("Ready").get("message", ""),
    )
    assert service.says("Ready", "False")
    assert service.addresses() == set()
    for pod in installed.pods(RUNTIME):
        target = service.target(pod["status"]["podIP"])
        for key in ("", OLD):
            assert ask(target, key)["http"] in ("401 Bearer", "404")  # 404: nothing of it is there

    installed.apply(*opt_in(namespace))
    service.wait_for("Ready", timeout_s=READ_S)
    installed.wait("it answers", lambda: ask(service.target(), OLD) == ANSWERED)
    assert ask(service.target(), "") == REFUSED

    installed.kubectl("delete", "secret", "keys", f"--namespace={namespace}")
    service.wait_for("Ready", "False", "NoInstanceReady", timeout_s=READ_S)
    assert "there is none, create it" in service.condition("Ready")["message"]
