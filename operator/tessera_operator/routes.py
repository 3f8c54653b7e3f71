"""Who answers a service's requests, and how they get there. Pure.

Requests enter through a Service without selector, whose EndpointSlice the operator writes: runtime pods are in
another namespace than their tenants, and a pod is ready per model rather than as a whole. Behind it dispatchers
pass work on to each other. What is best is taken, rather than nothing: a node that is about to leave, or that nobody
hears of, keeps its place until another one can answer.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tessera_core.api import Device, ModelService, RuntimeNode
from tessera_core.api.meta import ConditionStatus
from tessera_core.api.runtimenode import Route, ServedStatus
from tessera_operator.config import Gateway

MANAGED_BY = {"app.kubernetes.io/managed-by": "tessera"}
MOST_PEERS = 16
"""Other nodes that a node passes the work of one member on to: enough to level queues, and it keeps what nodes are
told from growing with the square of their number."""
MOST_ENDPOINTS = 1000
"""Of one EndpointSlice, by the API."""
HTTP_PORT, GRPC_PORT = 8000, 8001

DRAINING = "Draining"

Member = tuple[str, str]
"""(service, member)."""
Orders = Mapping[str, tuple[Device, ...]]
"""What nodes are told to run, by node."""


@dataclass(frozen=True, slots=True)
class Home:
    """A node where copies of a member answer."""

    node: str
    address: str
    """Host and port of gRPC."""
    rows_per_second: int


def is_leaving(node: RuntimeNode) -> bool:
    """Whether its pod is about to end."""
    return any(
        each.type == "Ready" and each.status is not ConditionStatus.TRUE and each.reason == DRAINING
        for each in node.status.conditions
    )


def homes_of(
    nodes: Sequence[RuntimeNode],
    orders: Orders,
    unsure: Collection[str],
    capacity: Mapping[tuple[str, str, str], float],
) -> dict[Member, tuple[Home, ...]]:
    """Where each member has copies that answer and are to stay.

    ``unsure``: nodes that leave or that nobody hears of; they count where a member has no other. ``capacity``: rows
    per second by (node, service, member), where it is known.
    """
    sure: dict[Member, dict[str, Home]] = defaultdict(dict)
    rest: dict[Member, dict[str, Home]] = defaultdict(dict)
    for node in nodes:
        name, address = node.metadata.name, node.status.address
        if not address:
            continue
        wanted = {
            (device.uuid, each.slice, each.service, each.member)
            for device in orders.get(name, ())
            for each in device.instances
        }
        found = rest if name in unsure else sure
        for device in node.status.devices:
            for each in device.instances:
                spot = device.uuid, each.slice, each.service, each.member
                if each.ready and spot in wanted:
                    member = each.service, each.member
                    rate = int(capacity.get((name, *member), 0.0))
                    found[member][name] = Home(name, _join(address, GRPC_PORT), rate)
    return {
        member: tuple(home for _, home in sorted((sure.get(member) or rest[member]).items()))
        for member in sorted({*sure, *rest})
    }


def peers(homes: Sequence[Home], node: str) -> tuple[Route, ...]:
    """The other homes that ``node`` is told of: those that follow it in a ring, so that all get their share."""
    others = [home for home in homes if home.node != node]
    after = [home for home in others if home.node > node]
    ring = (after + others[: len(others) - len(after)])[:MOST_PEERS]
    return tuple(
        Route(home.node, home.address, home.rows_per_second)
        for home in sorted(ring, key=lambda home: home.node)
    )


def endpoints(
    service: str, nodes: Sequence[RuntimeNode], orders: Orders, unsure: Collection[str]
) -> tuple[str, ...]:
    """Addresses of the pods that clients are sent to."""
    tiers: tuple[list[str], ...] = ([], [], [])
    for node in nodes:
        status = served_status(node, service)
        if status is None or not status.ready or not node.status.address:
            continue
        runs = any(
            each.service == service
            for device in orders.get(node.metadata.name, ())
            for each in device.instances
        )
        tier = 0 if runs and node.metadata.name not in unsure else 1
        if tier and node.metadata.name in unsure:
            tier = 2
        tiers[tier].append(node.status.address)
    best = next((tier for tier in tiers if tier), [])
    return tuple(sorted(best))[:MOST_ENDPOINTS]


def served_status(node: RuntimeNode, service: str) -> ServedStatus | None:
    """What ``node`` says of ``service``; None: nothing."""
    return next((each for each in node.status.services if each.name == service), None)


def service_port(tls: bool) -> int:
    """Of the Service, for HTTP: what clients take for granted."""
    return 443 if tls else 80


def service_document(service: ModelService, *, tls: bool = False) -> dict[str, Any]:
    """The Service that clients use, with TLS or in clear. It goes with its ModelService."""
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": _owned(service, service.metadata.name, {}),
        "spec": {
            "type": "ClusterIP",
            "ports": [
                _port("http", service_port(tls), HTTP_PORT, "https" if tls else "http"),
                _port("grpc", GRPC_PORT, GRPC_PORT, "https" if tls else "kubernetes.io/h2c"),
            ],
        },
    }


def slice_document(service: ModelService, addresses: Sequence[str]) -> dict[str, Any]:
    """The EndpointSlice of the Service; without addresses, clients are refused at once."""
    name = service.metadata.name
    labels = {
        "kubernetes.io/service-name": name,
        "endpointslice.kubernetes.io/managed-by": "tessera",
    }
    return {
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": _owned(service, f"{name}-tessera", labels),
        "addressType": "IPv6" if addresses and ":" in addresses[0] else "IPv4",
        "endpoints": [
            {"addresses": [address], "conditions": {"ready": True}} for address in addresses
        ],
        "ports": [
            {"name": "http", "port": HTTP_PORT, "protocol": "TCP"},
            {"name": "grpc", "port": GRPC_PORT, "protocol": "TCP"},
        ],
    }


def gateway_documents(
    service: ModelService, gateway: Gateway, *, tls: bool = False
) -> tuple[dict[str, Any], ...]:
    """An HTTPRoute and a GRPCRoute that lead from ``gateway`` to the Service."""
    name = service.metadata.name
    host = f"{name}.{service.metadata.namespace}.{gateway.domain}"
    return tuple(
        {
            "apiVersion": "gateway.networking.k8s.io/v1",
            "kind": kind,
            "metadata": _owned(service, name, {}),
            "spec": {
                "parentRefs": [{"name": gateway.name, "namespace": gateway.namespace}],
                "hostnames": [host],
                "rules": [{"backendRefs": [{"name": name, "port": port}]}],
            },
        }
        for kind, port in (("HTTPRoute", service_port(tls)), ("GRPCRoute", GRPC_PORT))
    )


def url_of(service: ModelService, *, tls: bool = False) -> str:
    """Where clients find it."""
    return f"http{'s' * tls}://{service.metadata.name}.{service.metadata.namespace}.svc"


def _owned(service: ModelService, name: str, labels: Mapping[str, str]) -> dict[str, Any]:
    owner = {
        "apiVersion": "tessera.dev/v1alpha1",
        "kind": "ModelService",
        "name": service.metadata.name,
        "uid": service.metadata.uid,
        "controller": True,
        "blockOwnerDeletion": True,
    }
    return {
        "name": name,
        "namespace": service.metadata.namespace,
        "labels": {**MANAGED_BY, **labels},
        "ownerReferences": [owner],
    }


def _port(name: str, port: int, target: int, protocol: str) -> dict[str, Any]:
    return {
        "name": name,
        "port": port,
        "targetPort": target,
        "protocol": "TCP",
        "appProtocol": protocol,
    }


def _join(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
