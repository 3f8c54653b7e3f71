"""Whatever is changed while clients ask, every request is answered, and by a version that was asked for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from zlib import crc32

import pytest
from e2e.chart import NAMESPACE as SYSTEM
from e2e.system.installation import RUNTIME, Installation
from e2e.system.load import Load, zero_failures
from e2e.system.models import Array, answer, classifier, example
from e2e.system.services import Service, model_service

X = example()
ON_BOTH_NODES = {"spread": {"minNodes": 2}}
CALM_S = 3.0
"""How long it is watched after a change: connections of before, and what is taken away late."""
ROLLING_S = 180.0

pytestmark = pytest.mark.timeout(240, func_only=True)


@dataclass(frozen=True)
class Versions:
    """Two models of one test: nobody else has measured them."""

    namespace: str
    layers: int = 0

    @property
    def old(self) -> bytes:
        return classifier(crc32(self.namespace.encode()), self.layers)

    @property
    def new(self) -> bytes:
        return classifier(crc32(self.namespace.encode()) + 1, self.layers)

    @property
    def answers(self) -> dict[str, Array]:
        return {"old": answer(self.old, X), "new": answer(self.new, X)}


def serve(system: Installation, files: Versions, **spec: object) -> Service:
    uri = system.store.put(f"{files.namespace}/old.onnx", files.old)
    spec.setdefault("scaling", {"maxReplicas": 2})
    system.apply(model_service(files.namespace, "digits", {"only": uri}, **spec))
    service = system.service(files.namespace, "digits")
    service.wait_until_serving()
    return service


def serve_on_both(system: Installation, files: Versions) -> Service:
    scaling = {"minReplicas": 2, "maxReplicas": 2}
    service = serve(system, files, scaling=scaling, placement=ON_BOTH_NODES)
    assert service.nodes() == set(system.cluster.nodes), service.homes()
    assert len(service.addresses()) == 2
    return service


def load_on(service: Service, files: Versions) -> Load:
    return Load(service.target(), X, files.answers, longest_s=ROLLING_S)


def change_version(system: Installation, service: Service, files: Versions) -> None:
    service.change_model(system.store.put(f"{files.namespace}/new.onnx", files.new))
    service.wait_until_settled()


def test_a_new_version_replaces_the_old_one(installed: Installation, namespace: str) -> None:
    files = Versions(namespace)
    service = serve(installed, files)
    with load_on(service, files) as load:
        load.go_on_for(1)
        change_version(installed, service, files)
        settled_s = load.now_s
        load.go_on_for(CALM_S)
    zero_failures(load.result)
    assert load.result.answers() == {"old", "new"}
    assert load.result.answers(settled_s + 1) == {"new"}


def test_a_new_version_that_cannot_be_had_leaves_the_old_one_serving(
    installed: Installation, namespace: str
) -> None:
    files = Versions(namespace)
    service = serve(installed, files)
    with load_on(service, files) as load:
        service.change_model(f"{installed.store.prefix}{namespace}/nowhere.onnx")
        service.wait_for("Profiled", "False", "MeasuringFailed")
        assert service.says("Progressing", "True", "NewVersion"), service.condition("Progressing")
        assert service.says("Ready"), service.condition("Ready")
        change_version(installed, service, files)
        settled_s = load.now_s
        load.go_on_for(CALM_S)
    zero_failures(load.result)
    assert load.result.answers(settled_s + 1) == {"new"}


def test_a_deleted_measurement_is_made_again_and_what_runs_goes_on(
    installed: Installation, namespace: str
) -> None:
    files = Versions(namespace)
    service = serve(installed, files)
    (profile,) = installed.objects("ModelProfile", namespace)
    with load_on(service, files) as load:
        installed.kubectl("delete", "mprof", "--all", f"--namespace={namespace}")

        def is_measured_again() -> bool:
            found = installed.objects("ModelProfile", namespace)
            uid = profile["metadata"]["uid"]
            return any(each["metadata"]["uid"] != uid and each.get("status") for each in found)

        installed.wait("the model is measured again", is_measured_again)
        load.go_on_for(CALM_S)
    zero_failures(load.result)


def test_another_service_that_wants_a_device_alone_moves_instances(
    installed: Installation, namespace: str
) -> None:
    files = Versions(namespace)
    service = serve(installed, files)
    uri = installed.store.put(f"{namespace}/new.onnx", files.new)
    installed.apply(model_service(namespace, "other", {"only": uri}, scaling={"maxReplicas": 2}))
    other = installed.service(namespace, "other")
    other.wait_until_serving()
    with load_on(service, files) as load, load_on(other, files) as beside:
        assert service.nodes() == other.nodes(), "they do not share a core before"
        other.change(placement={"isolation": "Exclusive"})
        installed.wait("they are on different nodes", lambda: not service.nodes() & other.nodes())
        service.wait_until_settled()
        other.wait_until_settled()
        load.go_on_for(CALM_S)
    zero_failures(load.result)
    zero_failures(beside.result)
    assert load.result.answers() == {"old"}
    assert beside.result.answers() == {"new"}


def test_kubectl_scale_adds_and_takes_away_a_node(installed: Installation, namespace: str) -> None:
    files = Versions(namespace)
    scaling = {"mode": "External", "minReplicas": 1, "maxReplicas": 2}
    service = serve(installed, files, scaling=scaling)
    with load_on(service, files) as load:
        for replicas in (2, 1):
            number = f"--replicas={replicas}"
            installed.kubectl("scale", "msvc", "digits", f"--namespace={namespace}", number)
            wait_for_nodes(service, replicas)
            service.wait_until_settled()
            load.go_on_for(CALM_S)
    zero_failures(load.result)


def test_a_higher_expected_rate_adds_a_node_and_a_lower_one_takes_it_away(
    installed: Installation, namespace: str
) -> None:
    files = Versions(namespace, layers=40)
    service = serve(installed, files)
    wait_for_nodes(service, 1)
    with load_on(service, files) as load:
        for rate, nodes in ((int(1.3 * service.most_per_second()), 2), (20, 1)):
            service.change(traffic={"requestsPerSecond": rate})
            wait_for_nodes(service, nodes)
            load.go_on_for(CALM_S)
    zero_failures(load.result)


def wait_for_nodes(service: Service, count: int) -> None:
    service.system.wait(
        f"{service.served_name} answers on {count} nodes",
        lambda: len(service.nodes()) == len(service.addresses()) == count,
    )


def test_the_operator_is_restarted(installed: Installation, namespace: str) -> None:
    files = Versions(namespace)
    service = serve(installed, files)
    with load_on(service, files) as load:
        roll(installed, "tessera-operator")
        change_version(installed, service, files)
        settled_s = load.now_s
        load.go_on_for(CALM_S)
    zero_failures(load.result)
    assert load.result.answers(settled_s + 1) == {"new"}


def test_an_agent_is_killed(installed: Installation, namespace: str) -> None:
    files = Versions(namespace)
    service = serve(installed, files)
    (node,) = service.nodes()
    with load_on(service, files) as load:
        installed.restart(installed.runtime_pod(node), "agent")
        change_version(installed, service, files)
        settled_s = load.now_s
        load.go_on_for(CALM_S)
    zero_failures(load.result)
    assert load.result.answers(settled_s + 1) == {"new"}


def test_a_server_of_two_is_restarted(installed: Installation, namespace: str) -> None:
    files = Versions(namespace)
    service = serve_on_both(installed, files)
    pod = installed.runtime_pod(installed.cluster.nodes[0])
    with load_on(service, files) as load:
        installed.restart(pod, "server", "SIGTERM")
        wait_for_nodes(service, 2)
        load.go_on_for(CALM_S)
    zero_failures(load.result)


@pytest.mark.parametrize("place", [serve_on_both, serve], ids=["two-nodes", "one-node"])
def test_the_runtime_pods_are_replaced(
    installed: Installation, namespace: str, place: Callable[[Installation, Versions], Service]
) -> None:
    files = Versions(namespace)
    service = place(installed, files)
    before = {pod["metadata"]["name"] for pod in installed.pods(RUNTIME)}
    with load_on(service, files) as load:
        roll(installed, "tessera-runtime-cpu")
        service.wait_until_settled()
        load.go_on_for(CALM_S)
    zero_failures(load.result)
    assert not before & {pod["metadata"]["name"] for pod in installed.pods(RUNTIME)}


def roll(system: Installation, deployment: str) -> None:
    target = (f"deployment/{deployment}", f"--namespace={SYSTEM}")
    system.kubectl("rollout", "restart", *target)
    system.kubectl("rollout", "status", *target, f"--timeout={ROLLING_S:.0f}s")
