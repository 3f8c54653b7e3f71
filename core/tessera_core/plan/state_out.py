"""A ClusterState as documents: what ``state_from_dict`` reads back as an equal state."""

from __future__ import annotations

from typing import Any

from tessera_core.api import (
    ClusterMeta,
    ModelProfile,
    ModelProfileSpec,
    ModelProfileStatus,
    ObjectMeta,
    Quantity,
    RuntimeNode,
    RuntimeNodeSpec,
    RuntimeNodeStatus,
    RuntimePool,
    RuntimePoolSpec,
    TaintStatus,
)
from tessera_core.api.modelprofile import Drift
from tessera_core.api.records import record
from tessera_core.api.runtimenode import (
    CpuStatus,
    DeviceStatus,
    Health,
    InstanceStatus,
    MigMode,
    SliceStatus,
)
from tessera_core.api.runtimepool import (
    NodeShape,
    Partition,
    PartitionBackend,
    PoolCost,
    PoolSize,
    Trust,
)
from tessera_core.gpu.devices import FULL
from tessera_core.plan.nodes import slice_name
from tessera_core.plan.state import ClusterState, DeviceState, Measured, NodeState, PoolRules
from tessera_core.plan.state_in import ONLY_POOL, POOL_LABEL
from tessera_core.plan.tenants_in import PriorityClass


def state_to_dict(state: ClusterState) -> dict[str, Any]:
    """The documents of ``state``.

    What the planner does not read (node shapes, engines' drivers, rollout status) is not in the state and
    comes out as defaults. Digests are written into the services' specs.
    """
    digests = {(service, member): digest for service, member, digest in state.digests}
    services = [service.to_dict() for service in state.services]
    for service, document in zip(state.services, services, strict=True):
        for member in document["spec"]["members"]:
            digest = digests.get((service.served_name, member["name"]))
            if digest is not None:
                member["model"]["digest"] = digest
    pools = () if state.pools == (ONLY_POOL,) else state.pools
    return {
        "nodes": [_node(node, bool(pools)).to_dict() for node in state.nodes],
        "pools": [_pool(pool).to_dict() for pool in pools],
        "services": services,
        "profiles": [
            _profile(f"profile-{index}", each).to_dict()
            for index, each in enumerate(state.measured)
        ],
        "priorityClasses": [
            record(PriorityClass).encode(
                PriorityClass(name, value, name == state.default_priority_class)
            )
            for name, value in state.priorities
        ],
        "quotas": [record(type(quota)).encode(quota) for quota in state.quotas],
        "policy": record(type(state.policy)).encode(state.policy),
        "budget": record(type(state.budget)).encode(state.budget),
    }


def _pool(pool: PoolRules) -> RuntimePool:
    backend = PartitionBackend.MIG_MANAGER if pool.whole_nodes else PartitionBackend.NVML
    partition = Partition(backend, pool.allowed_profiles or ()) if pool.partition else None
    return RuntimePool(
        metadata=ClusterMeta(name=pool.name, labels=pool.labels),
        spec=RuntimePoolSpec(
            # The shape of the nodes is not part of the state; a GPU is what makes cutting legal.
            node=NodeShape(
                resources=(("nvidia.com/gpu", Quantity("1")),), tolerations=pool.tolerations
            ),
            size=PoolSize(max=0),
            cost=PoolCost(pool.cost_per_node_hour or 0.0, pool.idle_watts),
            trust=Trust(pool.shared_between_namespaces, pool.allow_code),
            partition=partition,
        ),
    )


def _node(node: NodeState, pooled: bool) -> RuntimeNode:
    labels = {**dict(node.labels), POOL_LABEL: node.pool} if pooled else dict(node.labels)
    cores = next((device.cores for device in node.devices if device.is_cpu), 0)
    return RuntimeNode(
        metadata=ClusterMeta(name=node.name, labels=tuple(sorted(labels.items()))),
        spec=RuntimeNodeSpec(epoch=0),
        status=RuntimeNodeStatus(
            devices=tuple(_device(device) for device in node.devices),
            cpu=CpuStatus(cores) if cores else None,
            taints=tuple(TaintStatus(each.key, each.effect, each.value) for each in node.taints),
        ),
    )


def _device(device: DeviceState) -> DeviceStatus:
    return DeviceStatus(
        uuid=device.uuid,
        product=device.product,
        memory_mib=device.memory_mib,
        mig_capable=device.cuttable,
        mig_mode=MigMode.DISABLED if device.geometry is None else MigMode.ENABLED,
        slices=tuple(
            SliceStatus(
                f"{device.uuid}/{placement.start}",
                placement.profile,
                placement.start,
                dict(device.jpeg_engines).get(placement.profile),
            )
            for placement in device.geometry or ()
        ),
        instances=tuple(
            InstanceStatus(
                each.service,
                each.member,
                slice_name(each.slice),
                each.batch,
                count=each.instances,
                ready=each.instances,
            )
            for each in device.running
        ),
        health=Health.HEALTHY if device.healthy else Health.UNHEALTHY,
        jpeg_engines=dict(device.jpeg_engines).get(FULL),
    )


def _profile(name: str, measured: Measured) -> ModelProfile:
    return ModelProfile(
        metadata=ObjectMeta(name=name),
        spec=ModelProfileSpec(measured.digest, measured.place, engine=measured.engine),
        status=ModelProfileStatus(
            rows=measured.profile.rows,
            drift=Drift(measured.drift) if measured.drift != 1 else None,
        ),
    )
