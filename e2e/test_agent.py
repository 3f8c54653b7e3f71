"""The agent of a runtime pod against a real API server and a real server, in the operator's place."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml
from e2e.api import Api, Object, Refused
from e2e.native.control_plane import ControlPlane
from e2e.native.processes import Process, free_ports, run

from tessera_runtime.control import ControlClient
from tessera_runtime.target import ServerReport

CRDS = Path(__file__).parents[1] / "crds"
CONFLICT = 409
WAIT_S = 60.0
POLL_S = 0.05
AGENT = "agent"
RIGHTS = """
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata: {name: agent}
rules:
- {apiGroups: [tessera.dev], resources: [runtimenodes], verbs: [get, watch]}
- {apiGroups: [tessera.dev], resources: [runtimenodes/status], verbs: [patch]}
- {apiGroups: [coordination.k8s.io], resources: [leases], verbs: [create, patch]}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {name: agent}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: agent}
subjects: [{apiGroup: rbac.authorization.k8s.io, kind: User, name: agent}]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata: {name: tessera-model-credentials}
rules: [{apiGroups: [""], resources: [secrets], verbs: [get]}]
---
{apiVersion: v1, kind: Namespace, metadata: {name: vision}}
"""
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
IDENTITY = """
import numpy as np
class Model:
    inputs = {"x": ("FP32", (4,))}
    outputs = {"y": ("FP32", (4,))}
    def __call__(self, batch):
        return {"y": batch["x"] * np.float32(FACTOR)}
def load(device, options):
    return Model()
"""


@pytest.fixture(scope="module")
def plane(binaries: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControlPlane]:
    folder = tmp_path_factory.mktemp("agent-cluster")
    found = ControlPlane(binaries, folder, users={AGENT: ()})
    with found.running():
        yield found


class Kubectl:
    """The administrator."""

    def __init__(self, program: Path, config: Path) -> None:
        self._command = (program, "--kubeconfig", config)

    def apply(self, text: str) -> None:
        run(*self._command, "apply", "-f", "-", stdin=text)

    def get(self, kind: str, name: str) -> Object:
        found: Object = json.loads(run(*self._command, "get", kind, name, "-o", "json"))
        return found


@pytest.fixture(scope="module")
def kubectl(binaries: Path, api: Api, tmp_path_factory: pytest.TempPathFactory) -> Kubectl:
    config = api.access.kubeconfig(tmp_path_factory.mktemp("admin") / "kubeconfig")
    found = Kubectl(binaries / "kubectl", config)
    found.apply(RIGHTS)
    return found


@pytest.fixture(scope="module")
def api(plane: ControlPlane) -> Iterator[Api]:
    found = Api(plane.access())
    crd = yaml.safe_load((CRDS / "tessera.dev_runtimenodes.yaml").read_text())
    found.create(crd)
    until(lambda: "Established" in str(found.read(crd).get("status")), "the CRD")
    yield found
    found.close()


@dataclass
class Store:
    """A model store on loopback."""

    url: str
    files: dict[str, str] = field(default_factory=dict)
    requests: list[tuple[str, str]] = field(default_factory=list)
    """Method and path."""
    authorization: str | None = None
    """What a request must carry."""


@pytest.fixture
def store() -> Iterator[Store]:
    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_: object) -> None: ...

        def do_GET(self) -> None:
            found.requests.append((self.command, self.path))
            if found.authorization not in (None, self.headers.get("Authorization")):
                self.send_response(403)
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            if self.path.startswith("/redirect/"):
                self.send_response(302)
                self.send_header("Location", f"http://{self.path.removeprefix('/redirect/')}/m.py")
                self.end_headers()
                return
            data = found.files.get(self.path, "").encode()
            self.send_response(200 if data else 404)
            self.send_header("Content-Length", str(len(data)))
            self.send_header("ETag", f'"{hash(data):x}"')
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(data)

        do_HEAD = do_GET

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    found = Store(f"http://127.0.0.1:{server.server_address[1]}")
    found.files["/m.py"] = IDENTITY.replace("FACTOR", "2")
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield found
    server.shutdown()
    thread.join()
    server.server_close()


class Agent(Process):
    def returncode(self) -> int | None:
        """None while it runs."""
        return self._popen.poll()


class Pod:
    """A runtime pod without a kubelet: the server and the agent as processes."""

    def __init__(self, api: Api, kubectl: Kubectl, token: str, folder: Path, name: str) -> None:
        self.api, self.folder, self.name = api, folder, name
        self.kubectl = kubectl
        self.http, self.grpc, self.metrics = free_ports(3)
        self._servers, self._agents = ExitStack(), ExitStack()
        self._document: Object = {}
        self.options = ["--allow-code", "--allow-loopback-stores"]
        (folder / "token").write_text(token)

    def start_server(self) -> Process:
        ports = (f"--http={self.http}", f"--grpc={self.grpc}", f"--metrics={self.metrics}")
        command = [sys.executable, "-m", "tessera_runtime.supervisor"]
        options = [f"--run-dir={self.folder / 'run'}", "--preload=", "--arena-mib=16", *ports]
        server = Process("server", [*command, *options], self.folder / "server.log")
        self._servers.push(server)
        return server

    def start_agent(self, *options: str) -> Agent:
        paths = [f"--{name}={self.folder / name}" for name in ("models", "state")]
        access = [f"--api-server={self.api.access.url}", f"--ca-file={self.api.access.ca}"]
        agent = Agent(
            "agent",
            [
                sys.executable,
                "-m",
                "tessera_runtime.agent.main",
                f"--run-dir={self.folder / 'run'}",
                *paths,
                *access,
                f"--token-file={self.folder / 'token'}",
                *self.options,
                *options,
            ],
            self.folder / "agent.log",
            env={
                "NODE_NAME": self.name,
                "POD_NAME": f"pod-{self.name}",
                "POD_IP": "10.244.0.9",
                "POD_NAMESPACE": "default",
                "TESSERA_CORES": "2",
            },
        )
        self._agents.push(agent)
        return agent

    # What the operator does

    def order(self, **spec: Any) -> int:
        """Write the RuntimeNode's spec; its generation."""
        self._document = {
            "apiVersion": "tessera.dev/v1alpha1",
            "kind": "RuntimeNode",
            "metadata": {"name": self.name},
            "spec": {"epoch": 1, **spec},
        }
        for call in (self.api.create, *[self.api.replace] * 10):
            try:
                return int(call(self._document)["metadata"]["generation"])
            except Refused as refused:
                if (
                    refused.code != CONFLICT
                ):  # it exists, or the agent has written its status meanwhile
                    raise
        raise AssertionError("conflicts without end")

    def delete_node(self) -> None:
        self.api.delete(self._document)

    # What is seen

    def node(self) -> Object:
        return self.api.read(self._document)

    def status(self) -> Object:
        return self.node().get("status") or {}

    def condition(self, kind: str) -> tuple[str, str]:
        for each in self.status().get("conditions") or ():
            if each["type"] == kind:
                return each["status"], each["reason"]
        return "", ""

    def service(self, name: str = "vision.scaled") -> Object:
        found = (each for each in self.status().get("services") or () if each["name"] == name)
        return next(found, {})

    def instances(self) -> list[Object]:
        devices = self.status().get("devices") or [{}]
        found: list[Object] = devices[0].get("instances") or []
        return found

    def answer(self, model: str = "vision.scaled", key: str = "") -> list[float] | None:
        """What the server says to a row of ones; None where it does not serve, or not for ``key``."""
        tensor = {"name": "x", "datatype": "FP32", "shape": [1, 4], "data": [1.0] * 4}
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.http}/v2/models/{model}/infer",
            json.dumps({"inputs": [tensor]}).encode(),
            {"Authorization": f"Bearer {key}"} if key else {},
        )
        try:
            with urllib.request.urlopen(request, timeout=10) as reply:
                found: list[float] = json.load(reply)["outputs"][0]["data"]
                return found
        except OSError:
            return None

    def lease(self) -> Object:
        spec: Object = self.kubectl.get("lease", f"tessera-node-{self.name}")["spec"]
        return spec

    def until(self, condition: Callable[[], object], what: str) -> None:
        until(condition, lambda: f"{what}; status {self.status()}\n{self.logs()}")

    def log(self, process: str) -> list[Object]:
        text = (self.folder / f"{process}.log").read_text()
        return [json.loads(line) for line in text.splitlines() if line.startswith("{")]

    def workers(self) -> set[int]:
        """Process ids of the server's workers."""

        async def ask() -> ServerReport:
            control = ControlClient(str(self.folder / "run" / "control.sock"))
            try:
                return await control.report()
            finally:
                await control.close()

        return {worker.pid for worker in asyncio.run(ask()).workers}

    def logs(self) -> str:
        files = (self.folder / f"{name}.log" for name in ("agent", "server"))
        return "\n".join(file.read_text()[-4000:] for file in files if file.exists())

    def close(self) -> None:
        self._servers.close()  # an agent stays until its server has ended
        self._agents.close()
        if self._document:
            self.delete_node()


def until(condition: Callable[[], object], what: Callable[[], str] | str) -> None:
    give_up = time.monotonic() + WAIT_S
    while not condition():
        if time.monotonic() > give_up:
            raise AssertionError(f"waited for: {what if isinstance(what, str) else what()}")
        time.sleep(POLL_S)


@pytest.fixture
def pod(
    plane: ControlPlane,
    api: Api,
    kubectl: Kubectl,
    tmp_path: Path,
    request: pytest.FixtureRequest,
) -> Iterator[Pod]:
    name = request.node.name.replace("_", "-").removeprefix("test-")[:40].strip("-[]")
    found = Pod(api, kubectl, plane.access(AGENT).token, tmp_path, name)
    yield found
    found.close()


def served(uri: str, generation: int = 1, name: str = "vision.scaled", **more: Any) -> Object:
    member = {"name": "m", "model": {"uri": uri, "format": "Python"}, "batch": {"max": 8}}
    objective = {"target": "10s", "percent": "99"}
    spec = {"members": [member], "slo": {"objectives": [objective]}}
    return {"name": name, "generation": generation, "spec": spec, **more}


def placed(batch: int = 4, count: int = 1, name: str = "vision.scaled") -> Object:
    return {"service": name, "member": "m", "slice": "cpu-1@1", "batch": batch, "count": count}


def on_cpu(*instances: Object) -> list[Object]:
    return [{"uuid": "cpu", "instances": list(instances)}]


def test_an_order_is_carried_out_changed_and_taken_back(pod: Pod, store: Store) -> None:
    pod.start_agent()
    pod.start_server()
    pod.order()
    pod.until(lambda: pod.condition("Ready") == ("True", "Serving"), "an idle node to be ready")
    status = pod.status()
    assert status["cpu"] == {"cores": 2}
    assert status["devices"][0]["uuid"] == "cpu"
    assert status["devices"][0]["health"] == "Healthy"
    assert (status["pod"], status["address"]) == (f"pod-{pod.name}", "10.244.0.9")
    assert pod.lease()["holderIdentity"] == f"pod-{pod.name}"

    services = [served(f"{store.url}/m.py")]
    generation = pod.order(devices=on_cpu(placed(count=2)), services=services)
    pod.until(lambda: [each["ready"] for each in pod.instances()] == [2], "two instances")
    assert pod.status()["observedGeneration"] == generation
    assert pod.service()["ready"]
    assert pod.service()["generation"] == 1
    assert pod.answer() == [2.0] * 4

    pod.order(devices=on_cpu(placed(batch=8, count=1)), services=services)
    pod.until(lambda: [(e["batch"], e["count"]) for e in pod.instances()] == [(8, 1)], "a change")

    store.files["/v2.py"] = IDENTITY.replace("FACTOR", "3")
    services = [served(f"{store.url}/v2.py", generation=2)]
    pod.order(devices=on_cpu(placed(batch=8)), services=services)
    pod.until(lambda: pod.service().get("generation") == 2, "the new version")
    assert pod.answer() == [3.0] * 4

    pod.order()
    pod.until(lambda: not pod.instances() and not pod.service(), "everything to be gone")
    assert pod.answer() is None


def serve(pod: Pod, store: Store) -> None:
    """One instance of the store's model, ready."""
    pod.order(devices=on_cpu(placed()), services=[served(f"{store.url}/m.py")])
    pod.until(lambda: [each["ready"] for each in pod.instances()] == [1], "an instance")


def task() -> Object:
    return {"service": "vision.scaled", "member": "m", "device": "cpu", "slice": "cpu-1@0"}


def profiles(pod: Pod) -> list[Object]:
    found: list[Object] = pod.status().get("profiles") or []
    return found


def test_a_profile_is_measured_once_and_reported_until_its_task_is_taken_back(
    pod: Pod, store: Store
) -> None:
    pod.start_server()
    agent = pod.start_agent()
    services = [served(f"{store.url}/m.py")]
    pod.order(profiling=[task()], candidates=services)
    pod.until(lambda: any(each.get("rows") for each in profiles(pod)), "rows")
    [profile] = profiles(pod)
    assert {row["batch"] for row in profile["rows"]} == {1, 2, 4, 8}
    assert profile["deviceClass"]["slice"] == "cpu-1"
    assert profile["engine"].startswith("python-")
    assert pod.service() == {}, "it is measured, not served"

    agent.stop(0.1)
    pod.start_agent()
    pinned = {"name": "m", "digest": profile["modelDigest"]}
    pod.order(
        profiling=[task()],
        candidates=[served(f"{store.url}/m.py", members=[pinned])],
        services=[served(f"{store.url}/m.py", members=[pinned])],
        devices=on_cpu(placed()),
    )
    pod.until(lambda: [each["ready"] for each in pod.instances()] == [1], "an instance")
    assert profiles(pod) == [profile]
    pod.order(services=services, devices=on_cpu(placed()))
    pod.until(lambda: not profiles(pod), "the result to go with its task")
    measured = [line for line in pod.log("agent") if line["message"].startswith("measuring")]
    assert len(measured) == 1


def test_a_model_that_cannot_be_measured_is_said(pod: Pod, store: Store) -> None:
    store.files["/m.py"] = "def load(device, options):\n    raise ValueError('not a model')\n"
    pod.start_server()
    pod.start_agent()
    pod.order(profiling=[task()], candidates=[served(f"{store.url}/m.py")])
    pod.until(lambda: any(each.get("problem") for each in profiles(pod)), "a problem")
    assert "not a model" in profiles(pod)[0]["problem"]


def test_without_an_api_server_a_restarted_agent_tells_a_restarted_server_what_was_wanted(
    pod: Pod, store: Store, plane: ControlPlane
) -> None:
    server = pod.start_server()
    agent = pod.start_agent()
    serve(pod, store)
    plane.stop_api_server()
    try:
        os.kill(agent.pid, signal.SIGKILL)
        agent.stop()
        assert pod.answer() == [2.0] * 4, "the server does not need its agent"
        agent = pod.start_agent()
        server.stop()
        assert pod.answer() is None
        pod.start_server()
        until(lambda: pod.answer() == [2.0] * 4, pod.logs)
    finally:
        plane.start_api_server()
        pod.api.close()
    store.files["/v2.py"] = IDENTITY.replace("FACTOR", "3")
    services = [served(f"{store.url}/v2.py", generation=2)]
    pod.order(devices=on_cpu(placed()), services=services)
    pod.until(lambda: pod.answer() == [3.0] * 4, "what is wanted since the API server is back")
    pod.until(lambda: pod.service().get("generation") == 2, "the status since it is back")


def test_a_restarted_agent_changes_nothing(pod: Pod, store: Store) -> None:
    pod.start_server()
    agent = pod.start_agent()
    serve(pod, store)
    version, workers = pod.node()["metadata"]["resourceVersion"], pod.workers()
    os.kill(agent.pid, signal.SIGKILL)
    agent.stop()
    renewed = pod.lease()["renewTime"]
    pod.start_agent()
    pod.until(lambda: pod.lease()["renewTime"] > renewed, "the new agent's first renewal")
    renewed = pod.lease()["renewTime"]
    pod.until(lambda: pod.lease()["renewTime"] > renewed, "its second one")
    assert pod.node()["metadata"]["resourceVersion"] == version, "nothing new was written"
    assert pod.workers() == workers, "nothing was started again"
    assert pod.answer() == [2.0] * 4


def test_a_server_that_was_killed_is_said_and_told_again(pod: Pod, store: Store) -> None:
    server = pod.start_server()
    pod.start_agent()
    serve(pod, store)
    os.killpg(server.pid, signal.SIGKILL)
    server.stop()
    pod.until(
        lambda: pod.condition("Ready") == ("False", "ServerUnreachable"), "the loss to be said"
    )
    assert not pod.service()["ready"]
    assert [each["ready"] for each in pod.instances()] == [0]
    pod.start_server()
    pod.until(lambda: pod.service()["ready"], "the server to serve again")
    assert pod.condition("Ready") == ("True", "Serving")
    assert pod.answer() == [2.0] * 4


def test_a_pod_that_is_stopped_says_so_at_once_and_ends_after_its_server(
    pod: Pod, store: Store
) -> None:
    server = pod.start_server()
    agent = pod.start_agent()
    serve(pod, store)
    os.kill(agent.pid, signal.SIGTERM)
    pod.until(lambda: pod.condition("Ready") == ("False", "Draining"), "the drain to be said")
    assert agent.returncode() is None
    assert pod.answer() == [2.0] * 4
    services = [served(f"{store.url}/m.py")]
    pod.order(devices=on_cpu(placed(batch=2)), services=services)
    pod.until(lambda: [each["batch"] for each in pod.instances()] == [2], "a change in the drain")
    server.stop()
    until(lambda: agent.returncode() is not None, pod.logs)
    assert agent.returncode() == 0, pod.logs()


def test_an_order_of_a_deposed_leader_is_refused_and_what_runs_stays(
    pod: Pod, store: Store
) -> None:
    pod.start_server()
    pod.start_agent()
    pod.order(epoch=5, devices=on_cpu(placed()), services=[served(f"{store.url}/m.py")])
    pod.until(lambda: [each["ready"] for each in pod.instances()] == [1], "an instance")
    pod.delete_node()
    pod.order(epoch=4)
    pod.until(
        lambda: pod.condition("SpecAccepted") == ("False", "EpochTooSmall"), "it to be refused"
    )
    assert pod.answer() == [2.0] * 4
    pod.order(epoch=5)
    pod.until(lambda: pod.condition("SpecAccepted") == ("True", "Accepted"), "it to be accepted")
    pod.until(lambda: pod.answer() is None, "it to be carried out")


def test_a_model_that_cannot_be_fetched_is_said_and_holds_up_nothing_else(
    pod: Pod, store: Store
) -> None:
    pod.start_server()
    pod.start_agent()
    uris = {
        "missing": f"{store.url}/none.py",
        "file": "file:///etc/passwd",
        "redirect": f"{store.url}/redirect/169.254.169.254",
    }
    services = [served(uri, name=f"vision.{name}") for name, uri in uris.items()]
    names = [f"vision.{name}" for name in uris]
    pod.order(
        devices=on_cpu(placed(), *(placed(name=name) for name in names)),
        services=[*services, served(f"{store.url}/m.py")],
    )
    pod.until(lambda: pod.answer() == [2.0] * 4, "the service whose model is there")
    said = {
        "missing": "no such file",
        "file": "'file' is not allowed here",
        "redirect": "169.254.169.254, a link-local address",
    }
    for name, words in said.items():
        pod.until(
            lambda: words in pod.service(f"vision.{name}").get("problem", ""),  # noqa: B023
            f"why {name} is not served",
        )
    store.files["/none.py"] = IDENTITY.replace("FACTOR", "7")
    pod.until(lambda: pod.answer("vision.missing") == [7.0] * 4, "another try")


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


def test_an_activator_has_no_devices_and_is_told_what_to_hold(pod: Pod, store: Store) -> None:
    pod.start_server()
    pod.start_agent("--activator")
    pod.name = f"pod-{pod.name}"
    pod.order(services=[served(f"{store.url}/m.py", hold=3)])
    pod.until(lambda: pod.service().get("generation") == 1, "the service to be told")
    assert "devices" not in pod.status()
    assert not pod.service()["ready"]
    assert store.requests == [], "it fetches nothing"


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
