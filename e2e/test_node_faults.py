"""Nodes, pods and the API server fail under load: who keeps serving, who takes over, and what clients notice."""

from __future__ import annotations

import time
from collections.abc import Iterator
from threading import Event, Thread

import pytest
import tritonclient.grpc as grpc_client
from e2e.chart import NAMESPACE as SYSTEM
from e2e.chart import Object
from e2e.system.installation import Installation
from e2e.system.load import Load, zero_failures
from e2e.system.models import INPUT, answer, classifier, example
from e2e.system.services import Service, model_service

LOST_AFTER_S, POLL_S, LOADING_S = 40.0, 10.0, 40.0
"""The chart's lostAfter and heartbeatPoll, and what a busy machine may take to load a model."""
SECOND_HOME_S = LOST_AFTER_S + POLL_S + LOADING_S
TAKES_OVER_S = 30.0
"""The operator may be on the lost node too."""
BACK_S = 120.0
CALM_S = 3.0
FILE = classifier(81)
X = example()
RIGHT = {"right": answer(FILE, X)}


def serve(system: Installation, namespace: str, nodes: int = 1) -> Service:
    uri = system.store.put(f"{namespace}.onnx", FILE)
    spread = {"spread": {"minNodes": nodes}}
    system.apply(
        model_service(
            namespace, "digits", {"only": uri}, placement=spread, scaling={"minReplicas": nodes}
        )
    )
    service = system.service(namespace, "digits")
    service.wait_until_serving()
    system.wait(f"{nodes} homes", lambda: len(service.nodes()) == len(service.addresses()) == nodes)
    return service


def address_of(system: Installation, node: str) -> str:
    return str(system.runtime_pod(node)["status"]["podIP"])


def told(service: Service) -> list[str]:
    """Nodes that are told to run it, once for each instance."""
    return [
        node["metadata"]["name"]
        for node in service.system.objects("RuntimeNode")
        for device in node["spec"].get("devices") or ()
        for each in device.get("instances") or ()
        if each["service"] == service.served_name
    ]


@pytest.fixture
def healed(installed: Installation) -> Iterator[None]:
    """When the test ends, both nodes serve again: other tests need them."""
    yield
    installed.wait("both runtime pods serve", lambda: all_serve(installed), BACK_S)
    installed.wait("two operators", lambda: len(ready_operators(installed)) == 2, BACK_S)


def all_serve(system: Installation) -> bool:
    nodes = system.objects("RuntimeNode")
    running = {
        pod["metadata"]["name"]
        for pod in system.pods("app.kubernetes.io/name=tessera-runtime")
        if ready(pod)
    }
    return len(running) == len(system.cluster.nodes) and all(
        any((each["type"], each["status"]) == ("Ready", "True") for each in conditions(node))
        and node["status"].get("pod") in running
        for node in nodes
        if node["metadata"]["name"] in system.cluster.nodes
    )


def conditions(document: Object) -> list[Object]:
    found: list[Object] = (document.get("status") or {}).get("conditions") or []
    return found


def ready(pod: Object) -> bool:
    return any((each["type"], each["status"]) == ("Ready", "True") for each in conditions(pod))


def ready_operators(system: Installation) -> list[Object]:
    return [pod for pod in system.pods("app.kubernetes.io/name=tessera-operator") if ready(pod)]


@pytest.mark.timeout(400, func_only=True)
def test_a_node_that_loses_power_has_its_service_taken_over(
    installed: Installation, namespace: str, healed: None
) -> None:
    service = serve(installed, namespace)
    (lost,) = service.nodes()
    node = installed.cluster.node(lost)
    (other,) = set(installed.cluster.nodes) - {lost}
    node.kill()
    killed_s = time.monotonic()
    try:
        elsewhere = {address_of(installed, other)}
        installed.wait(
            "clients are sent to the other node",
            lambda: service.addresses() == elsewhere and service.is_reached(),
            SECOND_HOME_S + TAKES_OVER_S,
        )
        print(f"served again {time.monotonic() - killed_s:.0f} s after the power failure")
    finally:
        node.revive()
    with Load(service.target(), X, RIGHT) as load:
        installed.wait("the node is back", lambda: all_serve(installed), BACK_S)
        installed.wait("one home is left", lambda: len(told(service)) == len(service.nodes()) == 1)
        load.go_on_for(CALM_S)
    zero_failures(load.result)


@pytest.mark.timeout(400, func_only=True)
def test_a_node_cut_off_from_the_api_server_goes_on_serving_and_ends_without_a_duplicate(
    installed: Installation, namespace: str, healed: None
) -> None:
    service = serve(installed, namespace)
    (lonely,) = service.nodes()
    node = installed.cluster.node(lonely)
    (other,) = set(installed.cluster.nodes) - {lonely}
    straight = service.target(address_of(installed, lonely))
    elsewhere = {address_of(installed, other)}
    with (
        Load(straight, X, RIGHT, rate=8) as direct,
        Load(service.target(), X, RIGHT, rate=8) as load,
    ):
        node.cut_off_from_api()
        cut_s = time.monotonic()
        try:
            installed.wait(
                "it has a second home",
                lambda: service.addresses() == elsewhere,
                SECOND_HOME_S + TAKES_OVER_S,
            )
            print(f"second home {time.monotonic() - cut_s:.0f} s after the cut")
            load.go_on_for(CALM_S)
        finally:
            node.reconnect()
        installed.wait("the node is back", lambda: all_serve(installed), BACK_S)
        installed.wait("one home is left", lambda: len(told(service)) == len(service.nodes()) == 1)
        load.go_on_for(CALM_S)
    zero_failures(load.result)
    zero_failures(direct.result)


class Persistent:
    """A client that opens a new connection and asks again, a few times, when it is not answered."""

    TRIES, PAUSE_S = 20, 0.1

    def __init__(self, service: Service) -> None:
        self._target, self._stop = service.target(), Event()
        self._thread = Thread(target=self._run, name="persistent")
        self.tries: list[int] = []
        """Of each request, how often it was sent; more than TRIES: it was given up."""

    def __enter__(self) -> Persistent:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stop.wait(0.05):
            tries = 1
            while not self._is_answered() and tries <= self.TRIES:
                tries += 1
                time.sleep(self.PAUSE_S)
            self.tries.append(tries)

    def _is_answered(self) -> bool:
        channel = grpc_client.InferenceServerClient(
            f"{self._target.address}:{self._target.grpc}",
            channel_args=[("grpc.use_local_subchannel_pool", 1)],
        )
        given = grpc_client.InferInput(INPUT, X.shape, "FP32")
        given.set_data_from_numpy(X)
        try:
            channel.infer(self._target.served_name, [given], client_timeout=3.0)
        except grpc_client.InferenceServerException:
            return False
        finally:
            channel.close()
        return True


@pytest.mark.timeout(240, func_only=True)
def test_one_of_two_runtime_pods_is_killed(
    installed: Installation, namespace: str, healed: None
) -> None:
    """Connections to it break, as they must; what is sent again gets through, and the other one fails nobody."""
    service = serve(installed, namespace, nodes=2)
    victim, survivor = installed.cluster.nodes
    pod = installed.runtime_pod(victim)
    straight = service.target(address_of(installed, survivor))
    with Persistent(service) as client, Load(straight, X, RIGHT) as load:
        load.go_on_for(CALM_S)
        for status in pod["status"]["containerStatuses"]:
            installed.cluster.node(victim).signal_container(status["containerID"], "SIGKILL")
        name = pod["metadata"]["name"]
        now = ("--grace-period=0", "--force")
        installed.kubectl("delete", "pod", name, f"--namespace={SYSTEM}", *now)
        installed.wait("its clients are sent elsewhere", lambda: len(service.addresses()) == 1)
        installed.wait("both serve again", lambda: len(service.addresses()) == 2, BACK_S)
        load.go_on_for(CALM_S)
    zero_failures(load.result)
    retried = [tries for tries in client.tries if tries > 1]
    print(
        f"{len(client.tries)} requests, {len(retried)} sent again, most {max(client.tries)} times"
    )
    assert max(client.tries) <= Persistent.TRIES


@pytest.mark.timeout(240, func_only=True)
def test_the_api_server_restarts_and_no_client_notices(
    installed: Installation, namespace: str, healed: None
) -> None:
    service = serve(installed, namespace)
    with Load(service.target(), X, RIGHT) as load:
        installed.cluster.stop_api_server()
        try:
            load.go_on_for(CALM_S)
        finally:
            installed.cluster.start_api_server()
        service.change(traffic={"requestsPerSecond": 25})
        service.wait_until_settled()
        load.go_on_for(CALM_S)
    zero_failures(load.result)
