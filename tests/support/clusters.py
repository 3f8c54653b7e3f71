"""Small cluster states for planner tests, in Python objects."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

from tessera_core.api import ModelService
from tessera_core.gpu.classes import full_class, slice_class
from tessera_core.gpu.devices import DeviceClass, cpu_class
from tessera_core.gpu.mig import find_profile
from tessera_core.gpu.tables import model_of
from tessera_core.perf import LatencyProfile, ProfileRow
from tessera_core.plan import (
    ClusterState,
    DeviceState,
    Measured,
    NodeState,
    Plan,
    PoolRules,
    Running,
)

A100 = "NVIDIA-A100-SXM4-80GB"


def digest(model: str) -> str:
    """A well-formed digest that is the model's own."""
    return "sha256:" + model.encode().hex().ljust(64, "0")[:64]


def service(
    name: str,
    members: Iterable[str] = ("m",),
    *,
    rps: float = 100.0,
    target: str = "50ms",
    percent: str = "99",
    namespace: str = "vision",
    batch_max: int = 64,
    optional: Iterable[str] = (),
    formats: Mapping[str, str] | None = None,
    **spec: object,
) -> ModelService:
    """A service whose members' digests are those of their names."""
    members, optional, formats = list(members), set(optional), formats or {}
    document = {
        "apiVersion": "tessera.dev/v1alpha1",
        "kind": "ModelService",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {
            "members": [
                {
                    "name": member,
                    "model": {
                        "uri": f"s3://models/{member}",
                        "format": formats.get(member, "TorchExport"),
                        "digest": digest(member),
                    },
                    "required": member not in optional,
                    "batch": {"max": batch_max},
                }
                for member in members
            ],
            "slo": {"objectives": [{"target": target, "percent": percent}]},
            "traffic": {"requestsPerSecond": str(rps)},
            **spec,
        },
    }
    if len(members) > 1:
        document["spec"].setdefault("ensemble", {"combine": "Mean"})  # type: ignore[attr-defined]
    return ModelService.from_dict(document)


def gpu_place(slice_name: str = "full", product: str = A100) -> DeviceClass:
    model = model_of(product)
    assert model is not None
    if slice_name == "full":
        return full_class(model, product)
    profile = find_profile(model, slice_name)
    assert profile is not None
    return slice_class(model, profile, product)


def measured(
    model: str,
    place: DeviceClass | int,
    alpha_ms: float = 0.2,
    tau0_ms: float = 2.0,
    memory_mib: float = 1000.0,
    batches: Iterable[int] = (1, 4, 16, 64),
) -> Measured:
    """A noiseless measurement on ``place``; a number stands for that many cores."""
    if isinstance(place, int):
        place = cpu_class(place, 65536)
    rows = []
    for batch in batches:
        ms = alpha_ms * batch + tau0_ms
        rows.append(ProfileRow(batch, 1, ms, ms, 1000 * batch / ms, float(memory_mib)))
    return Measured(digest(model), place, LatencyProfile(tuple(rows)))


def cpu_node(name: str, cores: int = 4, memory_mib: int = 16384, pool: str = "p") -> NodeState:
    return NodeState(name, pool, (DeviceState("cpu", "cpu", memory_mib, cores=cores),))


def gpu_node(
    name: str, gpus: int = 1, pool: str = "p", product: str = A100, **device: object
) -> NodeState:
    model = model_of(product)
    assert model is not None
    return NodeState(
        name,
        pool,
        tuple(
            DeviceState(
                f"GPU-{name}-{index}",
                product,
                model.memory_mib,
                model=model,
                cuttable=True,
                **device,  # type: ignore[arg-type]
            )
            for index in range(gpus)
        ),
    )


def cluster(
    nodes: Iterable[NodeState],
    services: Iterable[ModelService],
    measurements: Iterable[Measured],
    pool: PoolRules | None = None,
    **rest: object,
) -> ClusterState:
    """A state of one pool ``p``, whose tenants share nodes unless ``pool`` says otherwise."""
    return ClusterState(
        nodes=tuple(nodes),
        services=tuple(services),
        measured=tuple(measurements),
        pools=(pool or PoolRules("p", shared_between_namespaces=True),),
        **rest,  # type: ignore[arg-type]
    )


def applied(plan: Plan, state: ClusterState) -> ClusterState:
    """``state`` after ``plan`` has been carried out exactly."""
    wanted = {(device.node, device.uuid): device for device in plan.devices}
    nodes = []
    for node in state.nodes:
        devices = []
        for device in node.devices:
            planned = wanted.get((node.name, device.uuid))
            if planned is not None:
                running = tuple(
                    Running(each.service, each.member, each.slice, each.batch, each.instances)
                    for each in planned.assignments
                )
                geometry = device.geometry
                if planned.recut:
                    geometry = planned.geometry or None
                device = replace(device, running=running, geometry=geometry)
            devices.append(device)
        nodes.append(replace(node, devices=tuple(devices)))
    return replace(state, nodes=tuple(nodes))
