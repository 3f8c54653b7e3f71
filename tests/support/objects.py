"""Decoded objects of the cluster for tests of the operator: nodes, pools and services with what they run."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from support import clusters
from tessera_core.api import (
    ClusterMeta,
    Condition,
    Device,
    Instance,
    ModelService,
    NameRef,
    RuntimeNode,
    RuntimeNodeSpec,
    RuntimeNodeStatus,
    RuntimePool,
)
from tessera_core.api.measurements import ProfilingTask
from tessera_core.api.meta import ConditionStatus
from tessera_core.api.modelservice import MemberStatus
from tessera_core.api.runtimenode import (
    CpuStatus,
    DeviceStatus,
    InstanceStatus,
    ServedMember,
    ServedService,
    ServedStatus,
)
from tessera_core.plan.state_in import POOL_LABEL

NOW = "2026-01-31T12:00:00Z"


def service(
    name: str,
    members: Iterable[str] = ("m",),
    *,
    generation: int = 1,
    digests: bool = True,
    **rest: Any,
) -> ModelService:
    """``clusters.service`` as the API server has it; without ``digests``, nobody knows the models' content."""
    made = clusters.service(name, members, **rest)
    spec = made.spec
    if not digests:
        spec = replace(
            spec,
            members=tuple(
                replace(each, model=replace(each.model, digest=None)) for each in spec.members
            ),
        )
    metadata = replace(
        made.metadata, generation=generation, uid=f"uid-{name}", resource_version="1"
    )
    return replace(made, metadata=metadata, spec=spec)


def fetched(of: ModelService, **digests: str) -> ModelService:
    """``of`` with digests in its status, of the URIs that it has now."""
    members = tuple(
        MemberStatus(member.name, digests[member.name], member.model.uri)
        for member in of.spec.members
        if member.name in digests
    )
    return replace(of, status=replace(of.status, members=members))


def instance(
    service: str = "vision.s",
    member: str = "m",
    piece: str = "full",
    batch: int = 4,
    count: int = 1,
) -> Instance:
    return Instance(service, member, piece, batch, count=count)


def seen(of: Instance, ready: int | None = None) -> InstanceStatus:
    """``of`` as an agent reports it; all of it ready unless ``ready`` says how many."""
    return InstanceStatus(
        of.service,
        of.member,
        of.slice,
        of.batch,
        of.state,
        of.count,
        ready=of.count if ready is None else ready,
    )


def gpu(uuid: str, *instances: InstanceStatus, **rest: Any) -> DeviceStatus:
    return DeviceStatus(uuid, clusters.A100, 81_920, instances=tuple(instances), **rest)


def cpu(*instances: InstanceStatus) -> DeviceStatus:
    return DeviceStatus("cpu", "cpu", 16_384, instances=tuple(instances))


def served(
    of: ModelService, *, hold: int = 0, routes: Mapping[str, Any] | None = None
) -> ServedService:
    """``of`` as it is pinned in the spec of a node."""
    members = tuple(
        ServedMember(member.name, member.model.digest, routes=(routes or {}).get(member.name, ()))
        for member in of.spec.members
    )
    return ServedService(of.served_name, of.metadata.generation or 0, of.spec, members, hold)


def counters(
    name: str = "vision.s",
    total: int = 0,
    good: int | None = None,
    buckets: tuple[int, ...] = (),
    **rest: Any,
) -> ServedStatus:
    """What a server has counted for a service."""
    return ServedStatus(
        name,
        good=total if good is None else good,
        total=total,
        latency_buckets=buckets,
        **rest,
    )


def node(
    name: str = "n0",
    *devices: DeviceStatus,
    told: Mapping[str, Sequence[Instance]] | None = None,
    services: Sequence[ServedService] = (),
    profiling: Sequence[ProfilingTask] = (),
    candidates: Sequence[ServedService] = (),
    labels: Mapping[str, str] | None = None,
    cores: int = 0,
    epoch: int = 1,
    plan: str | None = None,
    generation: int = 1,
    **status: Any,
) -> RuntimeNode:
    """A node that has ``devices``; told to run what runs there unless ``told`` says otherwise."""
    if told is None:
        told = {
            device.uuid: [
                Instance(each.service, each.member, each.slice, each.batch, each.state, each.count)
                for each in device.instances
            ]
            for device in devices
            if device.instances
        }
    labels = {POOL_LABEL: "p"} if labels is None else labels
    return RuntimeNode(
        metadata=ClusterMeta(
            name=name,
            labels=tuple(sorted(labels.items())),
            generation=generation,
            resource_version="1",
        ),
        spec=RuntimeNodeSpec(
            epoch=epoch,
            plan_ref=NameRef(plan) if plan else None,
            devices=tuple(
                Device(uuid, instances=tuple(found)) for uuid, found in sorted(told.items())
            ),
            services=tuple(services),
            candidates=tuple(candidates),
            profiling=tuple(profiling),
        ),
        status=RuntimeNodeStatus(
            devices=devices,
            cpu=CpuStatus(cores) if cores else None,
            **{
                "address": f"10.0.0.{name[1:]}",
                "pod": f"pod-{name}",
                "observed_generation": generation,
                **status,
            },
        ),
    )


def ready(status: ConditionStatus, reason: str) -> Condition:
    """The condition by which an agent says how it is."""
    return Condition("Ready", status, reason, last_transition_time=NOW)


def pool(
    name: str = "p", *, gpus: int = 1, labels: Mapping[str, str] | None = None, **spec: Any
) -> RuntimePool:
    """A pool of nodes with ``gpus`` A100s; 0: of processors."""
    resources = {"cpu": "8", "memory": "16Gi"}
    if gpus:
        resources["nvidia.com/gpu"] = str(gpus)
    shape = {"resources": resources, **spec.pop("node", {})}
    return RuntimePool.from_dict(
        {
            "apiVersion": "tessera.dev/v1alpha1",
            "kind": "RuntimePool",
            "metadata": {
                "name": name,
                "labels": labels or {},
                "uid": f"uid-{name}",
                "generation": 1,
            },
            "spec": {
                "node": shape,
                "size": {"max": 4},
                "trust": {"sharedBetweenNamespaces": True},
                **spec,
            },
        }
    )


def pod(
    name: str, node: str | None, *, pool: str = "p", phase: str = "Running", **metadata: Any
) -> dict[str, Any]:
    """A runtime pod as the API server has it."""
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": name,
            "namespace": "tessera-system",
            "resourceVersion": "1",
            "labels": {"app.kubernetes.io/name": "tessera-runtime", POOL_LABEL: pool},
            **metadata,
        },
        "spec": {"nodeName": node} if node else {},
        "status": {"phase": phase},
    }


def kubernetes_node(
    name: str, *, labels: Mapping[str, str] | None = None, **spec: Any
) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": name, "resourceVersion": "1", "labels": dict(labels or {})},
        "spec": spec,
        "status": {},
    }
