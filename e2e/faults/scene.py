"""A cluster without nodes: an API server, runtime pods that nobody runs, agents that are emulated, users' services.

Nothing schedules, nothing collects garbage, and nobody but the operator and the test writes: whatever appears or
changes is one of theirs.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from e2e.chart import Object, Refused
from e2e.faults.agents import POOL, address_of, runtime_pod, spots
from e2e.faults.kube import API, NAMESPACE, Kube, until
from e2e.native.control_plane import ControlPlane

from tessera_operator.reporting import FINALIZER

CRDS = Path(__file__).parents[2] / "crds"
NODES = ("node-1", "node-2", "node-3")
USERS = "vision"
_CLEARED = (
    *("ModelService", "RuntimePool", "Pod", "RuntimeNode", "PlacementPlan", "ModelProfile"),
    *("Service", "EndpointSlice", "Deployment", "PodDisruptionBudget", "Event", "Lease"),
)
Picture = dict[str, list[tuple[str, str, str, int, int]]]
"""By node, what it is told to run: (service, member, slice, batch, count)."""


class Scene:
    """What tests do to the cluster, and what they ask of it."""

    def __init__(self, plane: ControlPlane) -> None:
        self.plane, self.kube = plane, Kube(plane.access())

    def prepare(self) -> None:
        """Make what every test needs, once."""
        for path in sorted(CRDS.glob("*.yaml")):
            self.install(yaml.safe_load(path.read_text()))
        for name in (NAMESPACE, USERS):
            self.kube.create({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}})
        account = {"name": "default", "namespace": NAMESPACE}
        self.kube.create({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": account})

    def install(self, crd: Object) -> None:
        """Have the server know a kind."""
        self.kube.create(crd)
        name = crd["spec"]["names"]["kind"]
        until(lambda: self._serves(name), f"{name} to be served")

    def _serves(self, kind: str) -> bool:
        try:
            self.kube.all(kind)
        except Refused:
            return False
        return True

    def clear(self) -> None:
        """Remove what tests and operators have made."""
        for kind in _CLEARED:
            self.kube.clear(kind)

    def populate(self, nodes: Sequence[str] = NODES) -> None:
        """A pool with its runtime pods."""
        self.kube.apply(pool(len(nodes)))
        for node in nodes:
            self.kube.create(runtime_pod(node))

    def serve(self, *services: Object) -> None:
        for each in services:
            self.kube.apply(each)

    def service(self, name: str) -> Object:
        found = self.kube.get("ModelService", name, USERS)
        assert found is not None, f"there is no service {name}"
        return found

    def condition(self, name: str, kind: str) -> tuple[str, str, str]:
        """(status, reason, message) that a service has of its present spec; empty words where it has none."""
        return conditions(self.service(name)).get(kind, ("", "", ""))

    def homes(self, name: str) -> set[str]:
        """Nodes that are told to run something of a service."""
        served = f"{USERS}.{name}"
        picture = self.picture()
        return {node for node, told in picture.items() if any(each[0] == served for each in told)}

    def addresses(self, name: str) -> set[str]:
        """Where clients of a service are sent."""
        found = self.kube.get("EndpointSlice", f"{name}-tessera", USERS) or {}
        return {address for each in found.get("endpoints") or () for address in each["addresses"]}

    def picture(self) -> Picture:
        """What runs, as far as nodes were told."""
        return {
            each["metadata"]["name"]: sorted(
                (one["service"], one["member"], one["slice"], one["batch"], one.get("count", 1))
                for device in each["spec"].get("devices", ())
                for one in device.get("instances", ())
            )
            for each in self.kube.all("RuntimeNode")
        }

    def settled(self, *names: str) -> Picture:
        """Wait until exactly these services are there, served, and nothing is under way any more; what then runs."""
        until(lambda: not self.complaints(*names), lambda: self.complaints(*names))
        return self.picture()

    def complaints(self, *names: str) -> list[str]:
        """What is not as it is to be once everything has settled."""
        services = {each["metadata"]["name"]: each for each in self.kube.all("ModelService")}
        nodes = self.kube.all("RuntimeNode")
        found = [f"{name} is there" for name in services.keys() - set(names)]
        for name in names:
            if name not in services:
                found.append(f"{name} is not there")
                continue
            found += [f"{name}: {each}" for each in _unfinished(services[name])]
            homes = {address_of(node) for node in self.homes(name)}
            if not homes or homes != self.addresses(name):
                found.append(f"{name}: clients go to {self.addresses(name)}, it runs at {homes}")
            if self.kube.get("Service", name, USERS) is None:
                found.append(f"{name} has no Service")
        for node in nodes:
            name, spec = node["metadata"]["name"], node["spec"]
            if node.get("status", {}).get("observedGeneration") != node["metadata"]["generation"]:
                found.append(f"{name} is behind")
            if spec.get("profiling"):
                found.append(f"{name} measures")
            told = spots(name, spec)
            if len(told) != len(set(told)):
                found.append(f"{name} is told something twice: {told}")
        for plan in self.kube.all("PlacementPlan"):
            if is_open(plan):
                found.append(f"plan {plan['metadata']['name']} is open")
        return found


def pool(nodes: int) -> Object:
    size = {"min": nodes, "max": nodes}
    spec = {"node": {"resources": {"cpu": "4", "memory": "8Gi"}}, "size": size}
    return {"apiVersion": API, "kind": "RuntimePool", "metadata": {"name": POOL}, "spec": spec}


def model_service(
    name: str, *uris: str, target: str = "500ms", rate: int = 20, **spec: Any
) -> Object:
    """A service of one member per URI, the mean of their answers."""
    members = [
        {"name": f"m{index}", "model": {"uri": uri, "format": "ONNX"}, "batch": {"max": 8}}
        for index, uri in enumerate(uris or (f"https://models/{name}.onnx",))
    ]
    return {
        "apiVersion": API,
        "kind": "ModelService",
        "metadata": {"name": name, "namespace": USERS},
        "spec": {
            "members": members,
            **({"ensemble": {"combine": "Mean"}} if len(members) > 1 else {}),
            "slo": {"objectives": [{"target": target, "percent": "99"}]},
            "traffic": {"requestsPerSecond": rate},
            **spec,
        },
    }


def conditions(document: Object) -> dict[str, tuple[str, str, str]]:
    """By type, (status, reason, message) of those that are about the object's present spec."""
    return {
        each["type"]: (each["status"], each["reason"], each.get("message", ""))
        for each in document.get("status", {}).get("conditions", ())
        if each.get("observedGeneration") in (None, document["metadata"]["generation"])
    }


def is_open(plan: Object) -> bool:
    """Whether nobody has said that the plan is done or replaced."""
    found = conditions(plan)
    return not any(found.get(each, ("",))[0] == "True" for each in ("Applied", "Superseded"))


def _unfinished(service: Object) -> list[str]:
    if FINALIZER not in service["metadata"].get("finalizers", ()):
        return ["no finalizer"]
    found = conditions(service)
    wanted = {"Accepted": "True", "Planned": "True", "Placed": "True", "Ready": "True"}
    wanted |= {"Progressing": "False", "CapacityShortfall": "False"}
    return [
        f"{kind} is {found.get(kind)}"
        for kind, status in wanted.items()
        if found.get(kind, ("",))[0] != status
    ]
