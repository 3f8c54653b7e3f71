"""Emulated agents of processor nodes: they do what RuntimeNodes say at once, and tests hold them up where they like.

A model is known by its URI: its digest is a hash of it, ``…/slow…`` takes seconds, ``…/broken…`` cannot be fetched.
What nodes were told is kept, so that tests can ask how often something was launched.
"""

from __future__ import annotations

import hashlib
import threading
from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from e2e.chart import Object, Refused
from e2e.faults.kube import API, NAMESPACE, Gap, Kube

CORES = 4
MEMORY_MIB = 8192
DEVICE = "cpu"
POOL = "cpu"
_ENGINE = "onnxruntime 1.20.0"
_MANAGER = "tessera-agent"
_BATCHES, _COUNTS = (1, 2, 4, 8), (1, 2)
Spot = tuple[str, str, str, str]
"""(node, service, member, slice)."""


def digest(uri: str) -> str:
    return f"sha256:{hashlib.sha256(uri.encode()).hexdigest()}"


class Agents:
    """The agents of ``nodes``, which have their runtime pods already."""

    def __init__(self, kube: Kube, nodes: Sequence[str]) -> None:
        self._kube, self._nodes = Kube(kube.access), tuple(nodes)
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)
        self._stopped = threading.Event()
        self._documents: dict[str, Object] = {}
        self._stale: set[str] = set()
        self._written: dict[str, Object] = {}
        self._held: set[str] = set()
        self._silent: set[str] = set()
        self._since = _now()
        self._failure: BaseException | None = None
        self.told: dict[str, list[Object]] = {name: [] for name in nodes}
        """The specs of each node, as they came."""
        self._threads = [
            threading.Thread(target=self._guarded, args=(work,), name=f"agents-{work.__name__}")
            for work in (self._follow, self._serve)
        ]

    def __enter__(self) -> Agents:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        with self._changed:
            self._changed.notify_all()
        for thread in self._threads:
            thread.join()
        self._kube.close()
        if self._failure is not None:
            raise self._failure

    def hold(self, *services: str) -> None:
        """Let nothing that comes from now on of these services become ready; none named: let everything go on."""
        with self._changed:
            self._held = set(services)
            self._stale.update(self._documents)
            self._changed.notify_all()

    def silence(self, *nodes: str) -> None:
        """Let these nodes say nothing more; none named: let all go on."""
        with self._changed:
            self._silent = set(nodes)
            self._stale.update(self._documents)
            self._changed.notify_all()

    def launches(self) -> Counter[Spot]:
        """How often each spot was given its instances."""
        found: Counter[Spot] = Counter()
        for node, specs in self.told.items():
            before: set[Spot] = set()
            for spec in specs:
                present = set(spots(node, spec))
                found.update(present - before)
                before = present
        return found

    def _guarded(self, work: Any) -> None:
        try:
            work()
        except BaseException as failure:
            self._failure = failure
            self._stopped.set()

    def _follow(self) -> None:
        while not self._stopped.is_set():
            try:
                self._see_nodes()
            except Gap:
                continue  # from what there is now

    def _see_nodes(self) -> None:
        for event in self._kube.watch("RuntimeNode", "0", self._stopped):
            document = event["object"]
            name = document["metadata"]["name"]
            if name not in self._nodes:
                continue
            with self._changed:
                before = self._documents.pop(name, None)
                if event["type"] == "DELETED":
                    self._written.pop(name, None)
                    continue
                self._documents[name] = document
                if before is None or before["spec"] != document["spec"]:
                    self.told[name].append(document["spec"])
                self._stale.add(name)
                self._changed.notify_all()

    def _serve(self) -> None:
        while not self._stopped.is_set():
            with self._changed:
                self._changed.wait_for(lambda: self._stale - self._silent or self._stopped.is_set())
                names = sorted(self._stale - self._silent)
                self._stale.difference_update(names)
                wanted = {
                    name: self._status(document)
                    for name in names
                    if (document := self._documents.get(name)) is not None
                }
            for name, status in wanted.items():
                if status != self._written.get(name):
                    self._write(name, status)

    def _write(self, name: str, status: Object) -> None:
        head = {"apiVersion": API, "kind": "RuntimeNode", "metadata": {"name": name}}
        try:
            self._kube.put_status({**head, "status": status}, _MANAGER)
            self._written[name] = status
        except Refused as refused:
            if refused.code not in (404, 409):
                raise
        except ConnectionError:
            self._stopped.wait(0.2)
            with self._changed:
                self._stale.add(name)

    def _status(self, document: Object) -> Object:
        spec, name = document["spec"], document["metadata"]["name"]
        before = self._written.get(name, {})
        known = {
            _spot(each): each["ready"]
            for device in before.get("devices", ())
            for each in device["instances"]
        }
        instances = []
        for device in spec.get("devices", ()):
            for each in device.get("instances", ()):
                count = each.get("count", 1)
                held = each["service"] in self._held
                ready = min(count, known.get(_spot(each), 0)) if held else count
                instances.append({**each, "count": count, "ready": ready, "memoryMiB": 100})
        ready_here = {each["service"] for each in instances if each["ready"]}
        generation = document["metadata"]["generation"]
        return {
            "conditions": [
                {
                    "type": kind,
                    "status": "True",
                    "reason": reason,
                    "lastTransitionTime": self._since,
                }
                for kind, reason in (("Ready", "Serving"), ("SpecAccepted", "Accepted"))
            ],
            "agentVersion": "emulated",
            "observedGeneration": generation,
            "pod": pod_of(name),
            "address": address_of(name),
            "devices": [
                {
                    "uuid": DEVICE,
                    "product": "cpu",
                    "memoryMiB": MEMORY_MIB,
                    "health": "Healthy",
                    "instances": instances,
                }
            ],
            "cpu": {"cores": CORES},
            "services": [_served(each, ready_here) for each in spec.get("services", ())],
            "profiles": [_profile(task, spec) for task in spec.get("profiling", ())],
        }


def spots(node: str, spec: Object) -> list[Spot]:
    """What a node is told to run."""
    return [
        (node, each["service"], each["member"], each["slice"])
        for device in spec.get("devices", ())
        for each in device.get("instances", ())
    ]


def pod_of(node: str) -> str:
    return f"runtime-{node}"


def address_of(node: str) -> str:
    return f"10.244.0.{int(node.rpartition('-')[2])}"


def runtime_pod(node: str) -> Object:
    """The pod of a node as the Deployment's controller and the scheduler would have made it."""
    labels = {"app.kubernetes.io/name": "tessera-runtime", "tessera.dev/pool": POOL}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": pod_of(node), "namespace": NAMESPACE, "labels": labels},
        "spec": {"nodeName": node, "containers": [{"name": "server", "image": "none"}]},
    }


def rows(uri: str) -> list[Object]:
    """What measuring the model of ``uri`` finds: 1 ms a batch and 1 ms a row, a thousand times that for slow ones."""
    unit_ms = 1000 if "/slow" in uri else 1
    return [
        {
            "batch": batch,
            "instances": count,
            "p50": f"{unit_ms * (1 + batch)}ms",
            "p99": f"{unit_ms * (1 + batch) * 1.05:.2f}ms",
            "throughput": f"{1000 * batch / (unit_ms * (1 + batch)):.3f}",
            "memoryMiB": str(100 * count),
        }
        for count in _COUNTS
        for batch in _BATCHES
    ]


def _profile(task: Object, spec: Object) -> Object:
    head = {"service": task["service"], "member": task["member"]}
    candidate = next(each for each in spec["candidates"] if each["name"] == task["service"])
    members = candidate["spec"]["members"]
    uri = next(each for each in members if each["name"] == task["member"])["model"]["uri"]
    if "/broken" in uri:
        return {**head, "problem": f"{uri}: 404 Not Found"}
    kind = task["slice"].partition("@")[0]
    cores = int(kind.removeprefix("cpu-"))
    place = {"product": "cpu", "slice": kind, "smCount": cores, "memoryMiB": MEMORY_MIB}
    measured = {"engine": _ENGINE, "rows": rows(uri)}
    return {**head, "modelDigest": digest(uri), "deviceClass": place, **measured}


def _served(served: Object, ready_here: set[str]) -> Object:
    routed = any(each.get("routes") for each in served.get("members", ()))
    answers = served["name"] in ready_here or routed
    return {
        "name": served["name"],
        "generation": served["generation"] if answers else 0,
        "ready": answers,
        "problem": "" if answers else "starting",
    }


def _spot(instance: Object) -> tuple[str, str, str]:
    return instance["service"], instance["member"], instance["slice"]


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
