"""The agents of all fake nodes in one process, as far as the API server can tell.

A node whose runtime pod runs says that it has the GPUs that the pod asks for, takes every spec over at once, has its instances ready a little
later, and renews its Lease. After SIGUSR1 requests come to all services, at a share of the rate that they state: then
every node writes its counters every 30 s.
"""

from __future__ import annotations

import asyncio
import json
import random
import signal
import ssl
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import aiohttp
from e2e.scale.fleet import API, MEMORY_MIB, PRODUCT

from tessera_core.perf.histogram import BOUNDS_S

NAMESPACE = "tessera-system"
HEARTBEAT_S, COUNTERS_S = 10.0, 30.0
LOAD_S = (0.5, 2.0)
"""From an order to an instance that answers."""
_LOAD_SHARE = 0.5
"""Of the rate that a service states: more would have it planned anew."""
_CONNECTIONS = 16
_NODES = f"/apis/{API}/runtimenodes"
_PODS = f"/api/v1/namespaces/{NAMESPACE}/pods"
_LEASES = f"/apis/coordination.k8s.io/v1/namespaces/{NAMESPACE}/leases"
_MANAGER = {"fieldManager": "tessera-agent", "force": "true"}
_APPLY = {"Content-Type": "application/apply-patch+yaml"}
_PAUSE_S = 0.5

Document = dict[str, Any]


class Server:
    """The API server, by few connections."""

    def __init__(self, url: str, ca: Path, token: str) -> None:
        self._url = url
        self._session = aiohttp.ClientSession(
            headers={"Authorization": f"Bearer {token}"},
            connector=aiohttp.TCPConnector(
                limit=_CONNECTIONS, ssl=ssl.create_default_context(cafile=str(ca))
            ),
        )

    async def apply(self, path: str, document: Document) -> None:
        """Raises aiohttp.ClientError."""
        async with self._session.patch(
            f"{self._url}{path}?{urlencode(_MANAGER)}", data=json.dumps(document), headers=_APPLY
        ) as answer:
            await answer.read()
            answer.raise_for_status()

    async def follow(self, path: str, selector: str = "") -> AsyncIterator[tuple[str, Document]]:
        """Objects as they are, then as they change, as (event type, object); ends when the server ends it."""
        query = {"labelSelector": selector}
        async with self._session.get(f"{self._url}{path}?{urlencode(query)}") as answer:
            answer.raise_for_status()
            listed = await answer.json()
        for item in listed["items"]:
            yield "ADDED", item
        query |= {"watch": "1", "resourceVersion": listed["metadata"]["resourceVersion"]}
        async with self._session.get(
            f"{self._url}{path}?{urlencode(query)}",
            timeout=aiohttp.ClientTimeout(total=None),
            read_bufsize=1 << 22,
        ) as answer:
            answer.raise_for_status()
            rest = b""
            async for chunk in answer.content.iter_any():
                *lines, rest = (rest + chunk).split(b"\n")
                for line in lines:
                    event = json.loads(line)
                    yield event["type"], event["object"]


@dataclass(slots=True)
class Counts:
    """Of one service since the server started."""

    good: int = 0
    total: int = 0
    buckets: list[int] = field(default_factory=lambda: [0] * (len(BOUNDS_S) + 1))

    def add(self, requests: int) -> None:
        self.total += requests
        self.good += requests - requests // 200
        middle = len(self.buckets) // 2
        self.buckets[middle] += requests - requests // 100
        self.buckets[middle + 10] += requests // 100


class Agent:
    """One node."""

    def __init__(self, name: str, server: Server, spread: Counter[str]) -> None:
        """``spread``: on how many nodes each service is, which all agents keep."""
        self.name, self._server, self._spread = name, server, spread
        self._random = random.Random(name)
        self._changed = asyncio.Event()
        self._ready_at: dict[tuple[str, ...], float] = {}
        self._counters: dict[str, Counts] = {}
        self._spec: Document = {}
        self._generation = 0
        self._pod, self._address, self._gpus = "", "", 0
        self._since = _now()

    def see_node(self, document: Document) -> None:
        if document["metadata"]["generation"] != self._generation:
            self._spread.subtract(each["name"] for each in self._spec.get("services", ()))
            self._generation, self._spec = document["metadata"]["generation"], document["spec"]
            self._spread.update(each["name"] for each in self._spec.get("services", ()))
            self._changed.set()

    def see_pod(self, name: str, address: str, gpus: int) -> None:
        if (name, address) != (self._pod, self._address):
            self._pod, self._address, self._gpus = name, address, gpus
            self._changed.set()

    def lose_pod(self, name: str) -> None:
        if name == self._pod:
            self._pod = ""

    async def serve(self) -> None:
        """Write the status when it changes."""
        written: Document | None = None
        wait_s: float | None = None
        while True:
            try:
                await asyncio.wait_for(self._changed.wait(), wait_s)
            except TimeoutError:
                pass
            self._changed.clear()
            if not (self._pod and self._generation):
                continue
            now_s = time.monotonic()
            status = self._status(now_s)
            if status != written:
                document = {
                    "apiVersion": API,
                    "kind": "RuntimeNode",
                    "metadata": {"name": self.name},
                    "status": status,
                }
                try:
                    await self._server.apply(f"{_NODES}/{self.name}/status", document)
                except aiohttp.ClientError as failed:
                    print(f"{self.name}: {failed}", flush=True)
                    self._changed.set()
                    await asyncio.sleep(_PAUSE_S)
                    continue
                written = status
            later = [at - now_s for at in self._ready_at.values() if at > now_s]
            wait_s = min(later, default=None)

    async def live(self) -> None:
        """Renew the Lease."""
        await asyncio.sleep(self._random.uniform(0, HEARTBEAT_S))
        name = f"tessera-node-{self.name}"
        while True:
            if self._pod:
                lease = {
                    "apiVersion": "coordination.k8s.io/v1",
                    "kind": "Lease",
                    "metadata": {"name": name},
                    "spec": {
                        "holderIdentity": self._pod,
                        "leaseDurationSeconds": 40,
                        "renewTime": _now(),
                    },
                }
                try:
                    await self._server.apply(f"{_LEASES}/{name}", lease)
                except aiohttp.ClientError as failed:
                    print(f"{self.name}: lease: {failed}", flush=True)
            await asyncio.sleep(HEARTBEAT_S)

    async def count(self, traffic: asyncio.Event) -> None:
        """Let requests come from ``traffic`` on."""
        await traffic.wait()
        await asyncio.sleep(self._random.uniform(0, COUNTERS_S))
        while True:
            for served in self._spec.get("services", ()):
                rate = float(served["spec"]["traffic"]["requestsPerSecond"])
                rate /= self._spread[served["name"]]
                counters = self._counters.setdefault(served["name"], Counts())
                counters.add(round(_LOAD_SHARE * rate * COUNTERS_S))
            self._changed.set()
            await asyncio.sleep(COUNTERS_S)

    def _status(self, now_s: float) -> Document:
        devices = self._devices(now_s)
        ready = {
            each["service"]
            for device in devices
            for each in device["instances"]
            if each["ready"] == each["count"]
        }
        return {
            "conditions": [
                self._condition("Ready", "Serving"),
                self._condition("SpecAccepted", "Accepted"),
            ],
            "agentVersion": "emulated",
            "observedGeneration": self._generation,
            "pod": self._pod,
            "address": self._address,
            "devices": devices,
            "cpu": {"cores": 96},
            "services": [self._served(each, ready) for each in self._spec.get("services", ())],
        }

    def _devices(self, now_s: float) -> list[Document]:
        ordered = {each["uuid"]: each for each in self._spec.get("devices", ())}
        before, self._ready_at = self._ready_at, {}
        found = []
        for gpu in range(self._gpus):
            uuid = f"GPU-{self.name}-{gpu}"
            instances = []
            for each in ordered.get(uuid, {}).get("instances", ()):
                spot = uuid, each["slice"], each["service"], each["member"], str(each["batch"])
                ready_at = before.get(spot)
                if ready_at is None:
                    ready_at = now_s + self._random.uniform(*LOAD_S)
                self._ready_at[spot] = ready_at
                count = each.get("count", 1)
                ready = count if ready_at <= now_s else 0
                instances.append({**each, "count": count, "ready": ready, "memoryMiB": 2048})
            found.append(
                {
                    "uuid": uuid,
                    "product": PRODUCT,
                    "memoryMiB": MEMORY_MIB,
                    "migCapable": True,
                    "migMode": "Disabled",
                    "health": "Healthy",
                    "instances": instances,
                }
            )
        return found

    def _served(self, served: Document, ready: set[str]) -> Document:
        name = served["name"]
        answers = name in ready or any(each.get("routes") for each in served["members"])
        counters = self._counters.get(name, Counts())
        return {
            "name": name,
            "generation": served["generation"] if answers else 0,
            "ready": answers,
            "held": 0,
            "good": counters.good,
            "total": counters.total,
            "latencyBuckets": list(counters.buckets),
            "problem": "" if answers else "starting",
        }

    def _condition(self, kind: str, reason: str) -> Document:
        return {
            "type": kind,
            "status": "True",
            "reason": reason,
            "lastTransitionTime": self._since,
        }


class Fleet:
    """All agents; one is there for every RuntimeNode or pod that was seen."""

    def __init__(self, server: Server, traffic: asyncio.Event) -> None:
        self._server, self._traffic = server, traffic
        self._agents: dict[str, Agent] = {}
        self._spread: Counter[str] = Counter()
        self._tasks: list[asyncio.Task[None]] = []

    async def run(self) -> None:
        await asyncio.gather(self._follow_nodes(), self._follow_pods())

    async def _follow_nodes(self) -> None:
        async for what, document in self._follow(_NODES):
            if what != "DELETED":
                self._agent(document["metadata"]["name"]).see_node(document)

    async def _follow_pods(self) -> None:
        async for what, document in self._follow(_PODS, "tessera.dev/pool"):
            node, status = document["spec"].get("nodeName"), document.get("status", {})
            name = document["metadata"]["name"]
            if node and what == "DELETED":
                self._agent(node).lose_pod(name)
            elif node and status.get("podIP"):
                resources = document["spec"]["containers"][0]["resources"]["requests"]
                self._agent(node).see_pod(name, status["podIP"], int(resources["nvidia.com/gpu"]))

    async def _follow(self, path: str, selector: str = "") -> AsyncIterator[tuple[str, Document]]:
        """Objects that are there, change or go, for ever."""
        while True:
            try:
                async for what, document in self._server.follow(path, selector):
                    if what in ("ADDED", "MODIFIED", "DELETED"):
                        yield what, document
            except aiohttp.ClientError as failed:
                print(f"{path}: {failed}", flush=True)
            await asyncio.sleep(_PAUSE_S)

    def _agent(self, name: str) -> Agent:
        agent = self._agents.get(name)
        if agent is None:
            agent = self._agents[name] = Agent(name, self._server, self._spread)
            works = (agent.serve(), agent.live(), agent.count(self._traffic))
            self._tasks += [asyncio.create_task(each) for each in works]
        return agent


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


async def _main(url: str, ca: Path, token: str) -> None:
    traffic = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, traffic.set)
    await Fleet(Server(url, ca, token), traffic).run()


if __name__ == "__main__":
    asyncio.run(_main(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]).read_text()))
