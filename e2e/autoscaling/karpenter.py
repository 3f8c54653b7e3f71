"""Karpenter as it is, with its provider of kwok nodes: objects of the API that kwok keeps Ready."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import yaml
from e2e.chart import Client
from e2e.native.build import TOOLS, module, tool
from e2e.native.processes import Process, free_ports, wait_until

LABEL = "example.com/shape"
"""Of nodes: what runtime pools select."""
_READY_S = 60.0
_CLASS = {"group": "karpenter.kwok.sh", "kind": "KWOKNodeClass", "name": "default"}


@dataclass(frozen=True, slots=True)
class Shape:
    """Machines of one kind."""

    name: str
    gpus: int
    per_hour: float

    @property
    def resources(self) -> Mapping[str, str]:
        """What a runtime pod asks for; the machine has somewhat more."""
        return {
            "cpu": str(12 * self.gpus),
            "memory": f"{100 * self.gpus}Gi",
            "nvidia.com/gpu": str(self.gpus),
        }


def install(api: Client, shapes: tuple[Shape, ...]) -> None:
    """Karpenter's CRDs, and one NodePool per shape."""
    package, version = TOOLS["karpenter"]
    sources = module(package.removesuffix("/kwok"), version)
    crds = [
        yaml.safe_load(path.read_text())
        for folder in ("pkg/apis/crds", "kwok/apis/crds")
        for path in sorted((sources / folder).glob("*.yaml"))
    ]
    for crd in crds:
        api.create(crd)
    wait_until(lambda: all(map(partial(_is_established, api), crds)), _READY_S, "CRDs are served")
    api.create(
        {
            "apiVersion": "karpenter.kwok.sh/v1alpha1",
            "kind": _CLASS["kind"],
            "metadata": {"name": _CLASS["name"]},
        }
    )
    for shape in shapes:
        api.create(_node_pool(shape))


@contextmanager
def karpenter(
    kubeconfig: Path, folder: Path, shapes: tuple[Shape, ...], *, buffers: bool
) -> Iterator[Process]:
    """The controller, which acts on CapacityBuffers or does not."""
    types = folder / "instance-types.json"
    types.write_text(json.dumps([_instance_type(shape) for shape in shapes]))
    metrics, health = free_ports(2)
    command = [
        *(tool("karpenter"), "-instance-types-file-path", types),
        *("-metrics-port", str(metrics), "-health-probe-port", str(health)),
        *("-feature-gates", f"CapacityBuffer={str(buffers).lower()}"),
    ]
    environment = {
        "KUBECONFIG": str(kubeconfig),
        "SYSTEM_NAMESPACE": "kube-system",
        "DISABLE_LEADER_ELECTION": "true",
    }
    name = f"karpenter-{'with' if buffers else 'without'}-buffers"
    with Process(name, command, folder / f"{name}.log", env=environment) as process:
        yield process


def _node_pool(shape: Shape) -> dict[str, Any]:
    return {
        "apiVersion": "karpenter.sh/v1",
        "kind": "NodePool",
        "metadata": {"name": shape.name},
        "spec": {
            "template": {
                "metadata": {"labels": {LABEL: shape.name}},
                "spec": {
                    "nodeClassRef": _CLASS,
                    "requirements": [
                        {
                            "key": "node.kubernetes.io/instance-type",
                            "operator": "In",
                            "values": [shape.name],
                        }
                    ],
                },
            },
            "disruption": {
                "consolidationPolicy": "WhenEmptyOrUnderutilized",
                "consolidateAfter": "5s",
                "budgets": [{"nodes": "100%"}],
            },
        },
    }


def _instance_type(shape: Shape) -> dict[str, Any]:
    return {
        "name": shape.name,
        "architecture": "amd64",
        "operatingSystems": ["linux"],
        "offerings": [
            {
                "Price": shape.per_hour,
                "Available": True,
                "Requirements": [
                    {"key": key, "operator": "In", "values": [value]}
                    for key, value in (
                        ("karpenter.sh/capacity-type", "on-demand"),
                        ("topology.kubernetes.io/zone", "zone-a"),
                    )
                ],
            }
        ],
        "resources": {
            "cpu": str(14 * shape.gpus),
            "memory": f"{120 * shape.gpus}Gi",
            "pods": "110",
            "ephemeral-storage": "1000Gi",
            "nvidia.com/gpu": str(shape.gpus),
        },
    }


def _is_established(api: Client, crd: dict[str, Any]) -> bool:
    conditions = api.read(crd).get("status", {}).get("conditions") or ()
    return any(each["type"] == "Established" and each["status"] == "True" for each in conditions)
