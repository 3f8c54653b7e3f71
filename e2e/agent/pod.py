"""The agent and the server of one runtime pod as processes, with the operator's orders and what is seen of it."""

from __future__ import annotations

import asyncio
import json
import sys
import time
import urllib.request
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from e2e.agent.store import Store
from e2e.api import Api, Object, Refused
from e2e.native.processes import Process, free_ports, run

from tessera_runtime.control import ControlClient
from tessera_runtime.target import ServerReport

CONFLICT = 409
WAIT_S = 60.0
POLL_S = 0.05


class Kubectl:
    """The administrator."""

    def __init__(self, program: Path, config: Path) -> None:
        self._command = (program, "--kubeconfig", config)

    def apply(self, text: str) -> None:
        run(*self._command, "apply", "-f", "-", stdin=text)

    def get(self, kind: str, name: str) -> Object:
        found: Object = json.loads(run(*self._command, "get", kind, name, "-o", "json"))
        return found


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


def served(uri: str, generation: int = 1, name: str = "vision.scaled", **more: Any) -> Object:
    member = {"name": "m", "model": {"uri": uri, "format": "Python"}, "batch": {"max": 8}}
    objective = {"target": "10s", "percent": "99"}
    spec = {"members": [member], "slo": {"objectives": [objective]}}
    return {"name": name, "generation": generation, "spec": spec, **more}


def placed(batch: int = 4, count: int = 1, name: str = "vision.scaled") -> Object:
    return {"service": name, "member": "m", "slice": "cpu-1@1", "batch": batch, "count": count}


def on_cpu(*instances: Object) -> list[Object]:
    return [{"uuid": "cpu", "instances": list(instances)}]


def serve(pod: Pod, store: Store) -> None:
    """One instance of the store's model, ready."""
    pod.order(devices=on_cpu(placed()), services=[served(f"{store.url}/m.py")])
    pod.until(lambda: [each["ready"] for each in pod.instances()] == [1], "an instance")
