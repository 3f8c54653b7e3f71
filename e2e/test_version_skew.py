"""Operator and agents one version apart: fields that the other side does not know, and no longer says.

There is no released version to run beside this one. What can be shown of the next one is what the API allows it to
do: CRDs with more fields, and writers that fill them in. Both sides have to leave such fields alone, and to do what
the fields that they know say.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack

import pytest
import yaml
from e2e.chart import APPLY, Client, Object
from e2e.chart import NAMESPACE as SYSTEM
from e2e.faults.agents import Agents
from e2e.faults.fixtures import Operators
from e2e.faults.kube import API, until
from e2e.faults.scene import CRDS, NODES, USERS, Scene, model_service
from e2e.system.installation import Installation
from e2e.system.load import Load, zero_failures
from e2e.system.models import answer, classifier, example
from e2e.system.services import model_service as real_service

OPERATOR = f"system:serviceaccount:{SYSTEM}:tessera-operator"
FILE = classifier(95)
X = example()
OPEN = "x-kubernetes-preserve-unknown-fields"


def next_version(crd: Object) -> Object:
    """The kind with room for any field of a later version, at every level but in lists."""

    def open_up(schema: Object) -> Object:
        if schema.get("type") != "object" or "properties" not in schema:
            if schema.get("type") == "array":
                return {**schema, "items": open_up(schema["items"])}
            return schema
        properties = {name: open_up(each) for name, each in schema["properties"].items()}
        return {**schema, "properties": properties, OPEN: True}

    (version,) = crd["spec"]["versions"]
    schema = version["schema"]["openAPIV3Schema"]
    parts = {
        name: open_up(schema["properties"][name])
        for name in ("spec", "status")
        if name in schema["properties"]
    }
    opened = {**schema, "properties": {**schema["properties"], **parts}}
    return {
        **crd,
        "spec": {
            **crd["spec"],
            "versions": [{**version, "schema": {"openAPIV3Schema": opened}}],
        },
    }


def install(client: Client, change: bool) -> None:
    """Have the server know the next version's kinds, or this one's."""
    for path in sorted(CRDS.glob("*.yaml")):
        crd = yaml.safe_load(path.read_text())
        client.apply(next_version(crd) if change else crd)


@pytest.fixture
def tomorrow(scene: Scene) -> Iterator[Scene]:
    install(scene.kube, True)
    yield scene
    install(scene.kube, False)


def patched(client: Client, document: Object, manager: str, subresource: str = "") -> Object:
    """Server-side apply of fields of the next version beside those of this one."""
    metadata = document["metadata"]
    path = f"/apis/{API}/runtimenodes/{metadata['name']}{subresource}"
    return client.call("PATCH", f"{path}?fieldManager={manager}&force=true", document, APPLY)


def node_document(name: str, **parts: Object) -> Object:
    return {"apiVersion": API, "kind": "RuntimeNode", "metadata": {"name": name}, **parts}


def test_an_operator_goes_by_what_it_knows_of_a_later_agent_and_service(
    tomorrow: Scene, agents: Agents, operators: Operators
) -> None:
    operator = operators()
    later = model_service("digits")
    later["spec"]["members"][0]["futureHint"] = {"deep": [1, 2]}
    later["spec"]["futurePolicy"] = "Best"
    path = f"/apis/{API}/namespaces/{USERS}/modelservices/digits?fieldManager=e2e&force=true"
    tomorrow.kube.call("PATCH", path, later, APPLY)
    until(lambda: tomorrow.kube.get("RuntimeNode", NODES[-1]), "nodes")
    for node in NODES:
        status = {
            "futureFacts": {"kernel": "7.1"},
            "conditions": [{"type": "FutureKind", "status": "True", "reason": "FutureReason"}],
        }
        patched(tomorrow.kube, node_document(node, status=status), "next-version", "/status")
    tomorrow.settled("digits")
    tomorrow.serve(model_service("more"))
    tomorrow.settled("digits", "more")

    service = tomorrow.service("digits")
    assert service["spec"]["futurePolicy"] == "Best"
    assert service["spec"]["members"][0]["futureHint"] == {"deep": [1, 2]}
    for each in tomorrow.kube.all("RuntimeNode"):
        assert each["status"]["futureFacts"] == {"kernel": "7.1"}
    assert operator.exit_code is None


def test_an_operator_changes_nothing_that_the_one_after_it_has_added(
    tomorrow: Scene, agents: Agents, operators: Operators
) -> None:
    """As when an upgrade is taken back."""
    operators()
    tomorrow.serve(model_service("digits"))
    tomorrow.settled("digits")
    for node in NODES:
        epoch = tomorrow.kube.get("RuntimeNode", node) or {}
        spec = {"epoch": epoch["spec"]["epoch"], "futureOrders": ["dance"]}
        patched(tomorrow.kube, node_document(node, spec=spec), "next-version")
    tomorrow.serve(model_service("more"))
    tomorrow.settled("digits", "more")
    for each in tomorrow.kube.all("RuntimeNode"):
        assert each["spec"]["futureOrders"] == ["dance"]
    assert set(agents.launches().values()) == {1}


@pytest.fixture
def upgraded(installed: Installation) -> Iterator[Installation]:
    """A cluster whose kinds and operator are of the next version already, and whose agents are not."""
    install(installed.client, True)
    yield installed
    install(installed.client, False)


@pytest.mark.timeout(240, func_only=True)
def test_an_agent_carries_out_what_it_knows_of_a_later_operators_orders(
    upgraded: Installation, namespace: str
) -> None:
    uri = upgraded.store.put(f"{namespace}.onnx", FILE)
    upgraded.apply(real_service(namespace, "digits", {"only": uri}))
    service = upgraded.service(namespace, "digits")
    service.wait_until_serving()
    (home,) = service.nodes()
    operator = upgraded.client.acting_for(
        OPERATOR, "system:serviceaccounts", "system:authenticated"
    )
    with ExitStack() as stack:
        load = stack.enter_context(Load(service.target(), X, {"right": answer(FILE, X)}))
        node = upgraded.read("RuntimeNode", home)
        assert node is not None
        generation = order(operator, node, service.served_name)
        stack.callback(patched, operator, node_document(home), "next-version")  # takes all back
        assert generation > node["metadata"]["generation"]

        def has_taken() -> bool:
            found = upgraded.read("RuntimeNode", home) or {}
            return bool(found["status"]["observedGeneration"] >= generation)

        upgraded.wait("the agent has taken the orders over", has_taken)
        service.change(traffic={"requestsPerSecond": 22})
        service.wait_until_settled()
        load.go_on_for(3)
        found = upgraded.read("RuntimeNode", home)
    zero_failures(load.result)
    assert found is not None
    assert found["spec"]["futureOrders"] == ["dance"]
    accepted = {each["type"]: each["status"] for each in found["status"]["conditions"]}
    assert accepted["SpecAccepted"] == "True", json.dumps(found["status"])
    operator.close()


def order(operator: Client, node: Object, service: str) -> int:
    """Add fields of the next version wherever a spec has objects; the generation that this makes."""
    spec = {
        "epoch": node["spec"]["epoch"],
        "futureOrders": ["dance"],
        "devices": [{"uuid": node["spec"]["devices"][0]["uuid"], "futureClock": "1980MHz"}],
        "services": [
            {
                "name": service,
                "generation": 1,
                "futureShare": "0.5",
                "spec": {"futurePolicy": {"deep": True}},
            }
        ],
    }
    document = node_document(node["metadata"]["name"], spec=spec)
    return int(patched(operator, document, "next-version")["metadata"]["generation"])
