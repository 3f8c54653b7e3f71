"""The cluster that other tests stand on: pods on two nodes, Services, names, and the failures that tests ask for."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
import yaml
from e2e.environment import Cluster
from e2e.native.static_image import static_image

IMAGE = "localhost/whoami:1"
# kind keeps Kubernetes' own grace period of a node that is not heard of: 50 s.
WITHIN_S = 90.0
POLL_S = 0.2
DEPLOYMENT = f"""
apiVersion: apps/v1
kind: Deployment
metadata: {{name: web, namespace: smoke}}
spec:
  replicas: 2
  selector: {{matchLabels: {{app: web}}}}
  template:
    metadata: {{labels: {{app: web}}}}
    spec:
      terminationGracePeriodSeconds: 1
      affinity:
        podAntiAffinity:
          requiredDuringSchedulingIgnoredDuringExecution:
            - topologyKey: kubernetes.io/hostname
              labelSelector: {{matchLabels: {{app: web}}}}
      containers:
        - name: web
          image: {IMAGE}
          imagePullPolicy: Never
          readinessProbe: {{httpGet: {{path: /, port: 8080}}, periodSeconds: 1}}
---
apiVersion: v1
kind: Service
metadata: {{name: web, namespace: smoke}}
spec: {{selector: {{app: web}}, ports: [{{port: 80, targetPort: 8080}}]}}
"""
NAMESPACES = ("smoke", "smoke-other")

Pods = dict[str, dict[str, Any]]


def got(cluster: Cluster, *arguments: str) -> Any:
    return json.loads(cluster.kubectl("get", *arguments, "--output=json"))


def pods(cluster: Cluster) -> Pods:
    """The running pods of the Deployment by the node they are on."""
    found = got(cluster, "pods", "--namespace=smoke", "--selector=app=web")["items"]
    return {pod["spec"]["nodeName"]: pod for pod in found if pod["status"]["phase"] == "Running"}


def is_ready(cluster: Cluster, node: str) -> bool:
    conditions = got(cluster, "node", node)["status"]["conditions"]
    return any(each["type"] == "Ready" and each["status"] == "True" for each in conditions)


def eventually(happened: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + WITHIN_S
    while not happened():
        assert time.monotonic() < deadline, f"{what}: not within {WITHIN_S} s"
        time.sleep(POLL_S)


def answer(cluster: Cluster, url: str) -> str | None:
    try:
        return cluster.fetch(url)
    except (OSError, RuntimeError):
        return None


def reached(cluster: Cluster, url: str, names: set[str]) -> None:
    """Every one of ``names`` answers at ``url``, and nobody else does."""
    seen: set[str] = set()

    def all_seen() -> bool:
        name = answer(cluster, url)
        if name is not None:
            seen.add(name)
        return seen >= names

    eventually(all_seen, f"{sorted(names)} answer at {url}")
    assert seen == names


def url_of(pod: dict[str, Any], path: str = "") -> str:
    return f"http://{pod['status']['podIP']}:8080/{path}"


def service_url(cluster: Cluster, name: str, namespace: str) -> str:
    service = got(cluster, "service", name, f"--namespace={namespace}")
    return f"http://{service['spec']['clusterIP']}/"


@pytest.fixture(scope="module")
def web(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pods]:
    archive = tmp_path_factory.mktemp("image") / "whoami.tar"
    cluster.load_image(static_image("whoami", IMAGE, archive))
    for namespace in NAMESPACES:
        cluster.kubectl("create", "namespace", namespace)
    cluster.kubectl("apply", "--filename=-", stdin=DEPLOYMENT)
    rollout = ("rollout", "status", "deployment/web", "--namespace=smoke")
    cluster.kubectl(*rollout, f"--timeout={WITHIN_S:.0f}s")
    yield pods(cluster)
    cluster.kubectl("delete", "namespace", *NAMESPACES)


def test_every_node_is_ready_and_has_an_address(cluster: Cluster) -> None:
    assert len(cluster.nodes) == 2
    for name in cluster.nodes:
        assert is_ready(cluster, name)
        addresses = got(cluster, "node", name)["status"]["addresses"]
        assert "InternalIP" in {each["type"] for each in addresses}


def test_pods_that_avoid_each_other_are_on_both_nodes(cluster: Cluster, web: Pods) -> None:
    assert set(web) == set(cluster.nodes)
    for pod in web.values():
        assert cluster.fetch(url_of(pod)) == pod["metadata"]["name"]


def test_a_service_reaches_the_pods_of_both_nodes(cluster: Cluster, web: Pods) -> None:
    names = {pod["metadata"]["name"] for pod in web.values()}
    reached(cluster, service_url(cluster, "web", "smoke"), names)


def test_pods_call_services_by_name(cluster: Cluster, web: Pods) -> None:
    names = {pod["metadata"]["name"] for pod in web.values()}
    for pod in web.values():
        for host in ("web", "web.smoke", "web.smoke.svc", "web.smoke.svc.cluster.local"):
            reached(cluster, url_of(pod, f"get?url=http://{host}/"), names)


def test_slices_of_another_namespace_are_served(cluster: Cluster, web: Pods) -> None:
    """As Tessera's Services are: without a selector, with the addresses of pods in its own namespace."""
    service = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": "digits", "namespace": "smoke-other"},
        "spec": {"ports": [{"name": "http", "port": 80, "targetPort": 8080}]},
    }
    endpoints = {
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {
            "name": "digits-1",
            "namespace": "smoke-other",
            "labels": {"kubernetes.io/service-name": "digits"},
        },
        "addressType": "IPv4",
        "ports": [{"name": "http", "port": 8080}],
        "endpoints": [{"addresses": [pod["status"]["podIP"]]} for pod in web.values()],
    }
    cluster.kubectl("apply", "--filename=-", stdin=yaml.safe_dump_all([service, endpoints]))
    names = {pod["metadata"]["name"] for pod in web.values()}
    reached(cluster, service_url(cluster, "digits", "smoke-other"), names)


def test_logs_come_from_the_kubelets(cluster: Cluster, web: Pods) -> None:
    for pod in web.values():
        arguments = ("logs", pod["metadata"]["name"], "--namespace=smoke")
        assert cluster.kubectl(*arguments) == ""


@pytest.mark.timeout(4 * WITHIN_S, func_only=True)
def test_a_node_that_is_cut_off_goes_on_serving(cluster: Cluster, web: Pods) -> None:
    name = cluster.nodes[0]
    cluster.node(name).cut_off_from_api()
    try:
        eventually(lambda: not is_ready(cluster, name), f"{name} is not Ready")
        assert is_ready(cluster, cluster.nodes[1])
        assert cluster.fetch(url_of(web[name])) == web[name]["metadata"]["name"]
        beside = web[cluster.nodes[1]]
        between = url_of(web[name], f"get?url={url_of(beside)}")
        assert cluster.fetch(between) == beside["metadata"]["name"]
    finally:
        cluster.node(name).reconnect()
    eventually(lambda: is_ready(cluster, name), f"{name} is Ready")


@pytest.mark.timeout(4 * WITHIN_S, func_only=True)
def test_pods_outlive_their_kubelet(cluster: Cluster, web: Pods) -> None:
    name = cluster.nodes[1]
    cluster.node(name).stop_kubelet()
    try:
        eventually(lambda: not is_ready(cluster, name), f"{name} is not Ready")
        assert cluster.fetch(url_of(web[name])) == web[name]["metadata"]["name"]
    finally:
        cluster.node(name).start_kubelet()
    eventually(lambda: is_ready(cluster, name), f"{name} is Ready")


@pytest.mark.timeout(4 * WITHIN_S, func_only=True)
def test_a_killed_node_comes_back(cluster: Cluster, web: Pods) -> None:
    name, other = cluster.nodes
    cluster.node(name).kill()
    try:
        eventually(lambda: not is_ready(cluster, name), f"{name} is not Ready")
        assert answer(cluster, url_of(web[name])) is None
        reached(cluster, service_url(cluster, "web", "smoke"), {web[other]["metadata"]["name"]})
    finally:
        cluster.node(name).revive()
    eventually(lambda: is_ready(cluster, name), f"{name} is Ready")
    names = {pod["metadata"]["name"] for pod in web.values()}
    reached(cluster, service_url(cluster, "web", "smoke"), names)


@pytest.mark.timeout(4 * WITHIN_S, func_only=True)
def test_the_api_server_comes_back_with_its_data(cluster: Cluster, web: Pods) -> None:
    url = service_url(cluster, "web", "smoke")
    names = {pod["metadata"]["name"] for pod in web.values()}
    cluster.stop_api_server()
    try:
        with pytest.raises(RuntimeError):
            cluster.kubectl("get", "nodes")
        reached(cluster, url, names)
    finally:
        cluster.start_api_server()
    assert set(pods(cluster)) == set(cluster.nodes)
    for name in cluster.nodes:
        eventually(partial(is_ready, cluster, name), f"{name} is Ready")
