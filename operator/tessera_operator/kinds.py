"""The kinds of objects that the operator reads or writes, and where the API server has them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

Document = Mapping[str, Any]
"""An object as the API server writes it."""

Key = tuple[str, str, str]
"""(kind, namespace, name); the namespace of a cluster-scoped object is empty."""


@dataclass(frozen=True, slots=True)
class Kind:
    """One resource of the API."""

    name: str
    api_version: str
    plural: str
    namespaced: bool = True

    @property
    def is_own(self) -> bool:
        """Whether it is one of Tessera's."""
        return self.api_version == _TESSERA

    def folder(self, namespace: str = "") -> str:
        """The path of the list; all namespaces where none is named."""
        root = "api" if "/" not in self.api_version else "apis"
        place = f"namespaces/{quote(namespace)}/" if self.namespaced and namespace else ""
        return f"/{root}/{self.api_version}/{place}{self.plural}"

    def path(self, namespace: str, name: str) -> str:
        """The path of one object."""
        return f"{self.folder(namespace)}/{quote(name)}"


_TESSERA = "tessera.dev/v1alpha1"
MODEL_PROFILE = Kind("ModelProfile", _TESSERA, "modelprofiles")
MODEL_SERVICE = Kind("ModelService", _TESSERA, "modelservices")
PLACEMENT_PLAN = Kind("PlacementPlan", _TESSERA, "placementplans", namespaced=False)
RUNTIME_NODE = Kind("RuntimeNode", _TESSERA, "runtimenodes", namespaced=False)
RUNTIME_POOL = Kind("RuntimePool", _TESSERA, "runtimepools", namespaced=False)
CONFIG_MAP = Kind("ConfigMap", "v1", "configmaps")
CAPACITY_BUFFER = Kind("CapacityBuffer", "autoscaling.x-k8s.io/v1beta1", "capacitybuffers")
DAEMON_SET = Kind("DaemonSet", "apps/v1", "daemonsets")
DEPLOYMENT = Kind("Deployment", "apps/v1", "deployments")
DISRUPTION_BUDGET = Kind("PodDisruptionBudget", "policy/v1", "poddisruptionbudgets")
ENDPOINT_SLICE = Kind("EndpointSlice", "discovery.k8s.io/v1", "endpointslices")
EVENT = Kind("Event", "v1", "events")
LEASE = Kind("Lease", "coordination.k8s.io/v1", "leases")
GRPC_ROUTE = Kind("GRPCRoute", "gateway.networking.k8s.io/v1", "grpcroutes")
HTTP_ROUTE = Kind("HTTPRoute", "gateway.networking.k8s.io/v1", "httproutes")
NODE = Kind("Node", "v1", "nodes", namespaced=False)
POD = Kind("Pod", "v1", "pods")
PRIORITY_CLASS = Kind("PriorityClass", "scheduling.k8s.io/v1", "priorityclasses", namespaced=False)
RESOURCE_QUOTA = Kind("ResourceQuota", "v1", "resourcequotas")
SERVICE = Kind("Service", "v1", "services")

KINDS: Mapping[str, Kind] = {
    each.name: each
    for each in (
        *(MODEL_PROFILE, MODEL_SERVICE, PLACEMENT_PLAN, RUNTIME_NODE, RUNTIME_POOL),
        *(CAPACITY_BUFFER, DAEMON_SET, DEPLOYMENT, DISRUPTION_BUDGET, ENDPOINT_SLICE),
        *(CONFIG_MAP, EVENT, LEASE, NODE, POD),
        *(GRPC_ROUTE, HTTP_ROUTE),
        *(PRIORITY_CLASS, RESOURCE_QUOTA, SERVICE),
    )
}


def key_of(document: Document) -> Key:
    """How a document is known. Raises KeyError when it is no object."""
    metadata = document["metadata"]
    return document["kind"], metadata.get("namespace", ""), metadata["name"]


def head(key: Key) -> dict[str, Any]:
    """The document of an object that says nothing but which one it is."""
    kind, namespace, name = key
    metadata = {"name": name, **({"namespace": namespace} if namespace else {})}
    return {"apiVersion": KINDS[kind].api_version, "kind": kind, "metadata": metadata}


def covers(present: object, wanted: object) -> bool:
    """Whether ``present`` has all that ``wanted`` says; the API server adds defaults and other writers fields.

    Lists are compared item by item: an item more or less is a difference. An empty value that is left out says the
    same.
    """
    if present is None:
        return not wanted
    if isinstance(wanted, Mapping):
        return isinstance(present, Mapping) and all(
            covers(present.get(name), value) for name, value in wanted.items()
        )
    if isinstance(wanted, list | tuple):
        return (
            isinstance(present, list)
            and len(present) == len(wanted)
            and all(map(covers, present, wanted))
        )
    return present == wanted


def forget_fields(document: dict[str, Any]) -> None:
    """Of ``managedFields``, a third of an object, keep who they are: and that only of RuntimeNodes, which several write."""
    fields = document["metadata"].pop("managedFields", ())
    if fields and document["kind"] == RUNTIME_NODE.name:
        names = sorted({each["manager"] for each in fields if "manager" in each})
        document["metadata"]["managedFields"] = [{"manager": name} for name in names]


def managers(document: Document) -> frozenset[str]:
    """Who has applied fields of a RuntimeNode that are still theirs."""
    return frozenset(each["manager"] for each in document["metadata"].get("managedFields", ()))
