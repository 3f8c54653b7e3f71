"""What an agent fetches, runs and reads only where it was allowed."""

from __future__ import annotations

import json

from e2e.agent.pod import Kubectl, Pod, on_cpu, placed, served
from e2e.agent.store import Store
from e2e.native.control_plane import ControlPlane

OPT_IN = """
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata: {name: models, namespace: vision}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: tessera-model-credentials}
subjects: [{apiGroup: rbac.authorization.k8s.io, kind: User, name: agent}]
---
apiVersion: v1
kind: Secret
metadata: {name: store, namespace: vision}
stringData: {authorization: Bearer hunter2}
"""
KEYS = """
{apiVersion: v1, kind: Namespace, metadata: {name: locked}}
---
apiVersion: v1
kind: Secret
metadata: {name: keys, namespace: locked}
stringData: {a: hunter2-keys}
"""
KEYS_OPT_IN = OPT_IN.partition("---")[0].replace("vision", "locked")


def test_loopback_is_no_store_unless_it_is_allowed(pod: Pod, store: Store) -> None:
    pod.options.remove("--allow-loopback-stores")
    pod.start_server()
    pod.start_agent()
    pod.order(devices=on_cpu(placed()), services=[served(f"{store.url}/m.py")])
    pod.until(lambda: "a loopback address" in pod.service().get("problem", ""), "a refusal")
    assert store.requests == []


def test_code_is_not_run_unless_it_is_allowed(pod: Pod, store: Store) -> None:
    pod.options.remove("--allow-code")
    pod.start_server()
    pod.start_agent()
    pod.order(devices=on_cpu(placed()), services=[served(f"{store.url}/m.py")])
    pod.until(lambda: "code" in pod.service().get("problem", ""), "a refusal")
    assert pod.answer() is None


def test_credentials_are_read_where_the_namespace_has_opted_in_and_reach_no_server(
    pod: Pod, store: Store, kubectl: Kubectl
) -> None:
    store.authorization = "Bearer hunter2"
    pod.start_server()
    pod.start_agent("--log-level=debug")
    services = [served(f"{store.url}/m.py")]
    services[0]["spec"]["members"][0]["model"]["secretRef"] = {"name": "store"}
    pod.order(devices=on_cpu(placed()), services=services)
    pod.until(
        lambda: "ClusterRole tessera-model-credentials" in pod.service().get("problem", ""),
        "what the namespace has to do",
    )
    kubectl.apply(OPT_IN)
    pod.until(lambda: pod.answer() == [2.0] * 4, "the model")
    written = [path for path in pod.folder.rglob("*") if path.is_file() and path.name != "token"]
    assert any(path.name == "agent.json" for path in written)
    assert not any(b"hunter2" in path.read_bytes() for path in written)
    assert "hunter2" not in json.dumps(pod.node())


def test_keys_open_a_service_only_where_agents_may_read_them_and_outlive_agents(
    pod: Pod, store: Store, kubectl: Kubectl, plane: ControlPlane
) -> None:
    name, key = "locked.scaled", "hunter2-keys"
    kubectl.apply(KEYS)
    pod.start_server()
    agent = pod.start_agent("--log-level=debug")
    services = [served(f"{store.url}/m.py", name=name)]
    services[0]["spec"]["access"] = {"keysSecretRef": {"name": "keys"}}
    pod.order(devices=on_cpu(placed(name=name)), services=services)
    pod.until(lambda: [each["ready"] for each in pod.instances()] == [1], "an instance")
    pod.until(lambda: "has not opted in" in pod.service(name).get("problem", ""), "what to do")
    assert not pod.service(name)["ready"]
    assert pod.answer(name) is pod.answer(name, key) is None

    kubectl.apply(KEYS_OPT_IN)
    pod.until(lambda: pod.answer(name, key) == [2.0] * 4, "the key to work")
    pod.until(lambda: pod.service(name)["ready"], "the service to be ready")
    assert pod.answer(name) is pod.answer(name, key + "x") is None

    plane.stop_api_server()
    try:
        agent.stop(0.1)
        pod.start_agent("--log-level=debug")
        assert pod.answer(name, key) == [2.0] * 4, "the server knows it still"
    finally:
        plane.start_api_server()
        pod.api.close()
    pod.until(lambda: pod.answer(name, key) == [2.0] * 4, "the key to work on")
    written = [path for path in pod.folder.rglob("*") if path.is_file() and path.name != "token"]
    assert not [path for path in written if b"hunter2" in path.read_bytes()]
    assert "hunter2" not in json.dumps(pod.node())
