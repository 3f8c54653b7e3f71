"""``kubectl tessera top``: what nodes have and give, and what services use and get."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rich.table import Table

from tessera_cli.kubectl.objects import decoded, milliseconds, shown, verdict
from tessera_cli.output import add_output_argument, emit
from tessera_cli.tables import table
from tessera_core.api import ModelService, RuntimeNode
from tessera_core.api.runtimenode import DeviceStatus, Health, MigMode
from tessera_core.gpu.classes import slice_class
from tessera_core.gpu.mig import find_profile, label
from tessera_core.gpu.tables import model_of
from tessera_core.plan import Budget, ClusterState, Policy, parse_slice
from tessera_core.plan.build import Memory, fleet_of
from tessera_core.plan.state import CPU
from tessera_core.plan.state_in import CPU_UUID, POOL_LABEL
from tessera_operator.world import World

if TYPE_CHECKING:
    from tessera_cli.kubectl.cluster import Cluster

_MICRO = 1e-6


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "what", nargs="?", choices=("nodes", "services"), default="nodes", help="default: nodes"
    )
    parser.add_argument(
        "-A", "--all-namespaces", action="store_true", help="services of every namespace"
    )
    add_output_argument(parser)


def run(arguments: argparse.Namespace, cluster: Cluster) -> int:
    nodes = decoded(cluster.objects("RuntimeNode"), RuntimeNode)
    if arguments.what == "nodes":
        prices = prices_of(_devices(cluster))
        used = [node_use(each, prices) for each in nodes]
        emit(arguments.output, [node_data(each) for each in used], lambda: nodes_table(used))
        return 0
    namespace = "" if arguments.all_namespaces else cluster.namespace
    services = decoded(cluster.objects("ModelService", namespace), ModelService)
    shares = shares_of(nodes)
    gets = [service_use(each, shares.get(each.served_name, 0.0)) for each in services]
    emit(arguments.output, [service_data(each) for each in gets], lambda: services_table(gets))
    return 0


@dataclass(frozen=True, slots=True)
class Used:
    """So many of so many."""

    used: int = 0
    total: int = 0

    def __str__(self) -> str:
        return f"{self.used}/{self.total}" if self.total else "-"


@dataclass(frozen=True, slots=True)
class NodeUse:
    """What one node has, and what of it is in use."""

    name: str
    pool: str | None
    ready: str | None
    gpus: Used
    slices: Used
    """Of GPUs; one that is not cut is one slice."""
    cores: Used
    instances: Used
    """Ready ones, of those that exist."""
    memory_mib: Used
    """Of all devices; used: by instances."""
    cost: float | None
    """Price per hour of the devices that the plan uses; None where the price of one is not known."""
    problems: tuple[str, ...] = ()
    """What is wrong with devices, in words; those that must not be used first."""


def _devices(cluster: Cluster) -> ClusterState:
    """Nodes and pools as plans see them, which is what prices follow from."""
    world = World()
    for kind in ("RuntimePool", "RuntimeNode"):
        for document in cluster.objects(kind):
            world.put(document)
    return world.observe(Policy(), Budget()).state


def prices_of(state: ClusterState) -> dict[tuple[str, str], float]:
    """By (node, device): what using it costs per hour, as plans count it."""
    fleet = fleet_of(state, Memory())
    return {
        (fleet.nodes[board.node], board.uuid): board.kind.cost * _MICRO for board in fleet.boards
    }


def node_use(node: RuntimeNode, prices: dict[tuple[str, str], float]) -> NodeUse:
    """What ``node`` reports; ``prices`` as of ``prices_of``."""
    name, status = node.metadata.name, node.status
    gpus = [device for device in status.devices if not _is_cpu(device)]
    cpus = [device for device in status.devices if _is_cpu(device)]
    instances = [each for device in status.devices for each in device.instances]
    planned = [(name, device.uuid) for device in node.spec.devices if device.instances]
    known = all(key in prices for key in planned)
    return NodeUse(
        name=name,
        pool=dict(node.metadata.labels).get(POOL_LABEL),
        ready=verdict(status.conditions, "Ready"),
        gpus=Used(sum(bool(device.instances) for device in gpus), len(gpus)),
        slices=Used(
            sum(len({each.slice for each in device.instances}) for device in gpus),
            sum(map(_slices, gpus)),
        ),
        cores=Used(
            len(
                {
                    core
                    for device in cpus
                    for each in device.instances
                    for core in _cores(each.slice)
                }
            ),
            status.cpu.cores if status.cpu else 0,
        ),
        instances=Used(
            sum(each.ready for each in instances), sum(each.count for each in instances)
        ),
        memory_mib=Used(
            sum(each.memory_mib for each in instances),
            sum(device.memory_mib for device in status.devices),
        ),
        cost=sum(prices[key] for key in planned) if known else None,
        problems=_problems(status.devices),
    )


def _problems(devices: Iterable[DeviceStatus]) -> tuple[str, ...]:
    ailing = [each for each in devices if each.problem or each.health is Health.UNHEALTHY]
    ailing.sort(key=lambda each: each.health is not Health.UNHEALTHY)
    return tuple(
        f"{each.uuid} {each.health.value}{': ' if each.problem else ''}{each.problem}"
        for each in ailing
    )


def _is_cpu(device: DeviceStatus) -> bool:
    return label(device.product) == CPU or device.uuid == CPU_UUID


def _slices(device: DeviceStatus) -> int:
    return len(device.slices) if device.mig_mode is MigMode.ENABLED else 1


def _cores(piece: str) -> tuple[int, ...]:
    return parse_slice(piece).cores


def shares_of(nodes: Iterable[RuntimeNode]) -> dict[str, float]:
    """By served name: whole devices that its instances have, a slice counting as its share of SMs or cores.

    Members that take turns on one slice have equal parts of it.
    """
    found: dict[str, float] = {}
    for node in nodes:
        cores = node.status.cpu.cores if node.status.cpu else 0
        for device in node.status.devices:
            tenants: dict[str, list[str]] = {}
            for each in device.instances:
                tenants.setdefault(each.slice, []).append(each.service)
            for piece, services in tenants.items():
                part = _share(device, piece, cores) / len(services)
                for service in services:
                    found[service] = found.get(service, 0.0) + part
    return found


def _share(device: DeviceStatus, piece: str, cores: int) -> float:
    """Of the whole device, 0 to 1; as a whole one where the board's table is not known."""
    found = parse_slice(piece)
    if found.cores:
        return min(1.0, len(found.cores) / max(1, cores))
    model = model_of(label(device.product))
    profile = find_profile(model, found.name) if model else None
    if model is None or profile is None:
        return 1.0
    return min(1.0, max(1, slice_class(model, profile).sm_count) / max(1, model.sm_count))


@dataclass(frozen=True, slots=True)
class ServiceUse:
    """What one service gets and uses."""

    namespace: str
    name: str
    requests_per_second: float
    p50_ms: float | None
    p99_ms: float | None
    attainment: float | None
    """Share of the requests within the target; None: no request."""
    instances: Used
    devices: float
    """Whole devices, as of ``shares_of``."""


def service_use(service: ModelService, devices: float) -> ServiceUse:
    """What was measured of ``service``, which has ``devices`` whole devices."""
    slo, members = service.status.slo, service.status.members
    measured = slo if slo is not None and slo.total else None
    return ServiceUse(
        namespace=service.metadata.namespace,
        name=service.metadata.name,
        requests_per_second=slo.requests_per_second if slo else 0.0,
        p50_ms=1e3 * measured.p50_s if measured and measured.p50_s is not None else None,
        p99_ms=1e3 * measured.p99_s if measured and measured.p99_s is not None else None,
        attainment=measured.good / measured.total if measured else None,
        instances=Used(
            sum(each.ready for each in members), sum(each.instances for each in members)
        ),
        devices=devices,
    )


def node_data(use: NodeUse) -> dict[str, Any]:
    return {
        "name": use.name,
        "pool": use.pool,
        "ready": use.ready,
        "gpus": _used(use.gpus),
        "slices": _used(use.slices),
        "cores": _used(use.cores),
        "instances": {"ready": use.instances.used, "present": use.instances.total},
        "memoryMiB": _used(use.memory_mib),
        "costPerHour": use.cost,
        "problems": list(use.problems),
    }


def _used(use: Used) -> dict[str, int]:
    return {"used": use.used, "free": use.total - use.used, "total": use.total}


def service_data(use: ServiceUse) -> dict[str, Any]:
    return {
        "namespace": use.namespace,
        "name": use.name,
        "requestsPerSecond": use.requests_per_second,
        "p50Ms": use.p50_ms,
        "p99Ms": use.p99_ms,
        "attainment": use.attainment,
        "instances": {"ready": use.instances.used, "placed": use.instances.total},
        "devices": float(f"{use.devices:.4g}"),
    }


def nodes_table(nodes: Iterable[NodeUse]) -> Table:
    """One row per node, used/total."""
    numbers = ("GPUS", "SLICES", "CORES", "INSTANCES", "MEMORY MiB", "COST/h")
    rows = table("", ("NAME", "POOL", "READY"), numbers, ("PROBLEMS",))
    for each in nodes:
        used = (each.gpus, each.slices, each.cores, each.instances, each.memory_mib)
        cost = "-" if each.cost is None else f"{each.cost:.4g}"
        problems = "\n".join(each.problems) or "-"
        rows.add_row(
            each.name, each.pool or "-", shown(each.ready), *map(str, used), cost, problems
        )
    return rows


def services_table(services: Iterable[ServiceUse]) -> Table:
    """One row per service, the busiest first."""
    rows = table("", ("NAMESPACE", "NAME"), ("RPS", "P50", "P99", "IN SLO", "INSTANCES", "DEVICES"))
    for each in sorted(services, key=lambda use: -use.requests_per_second):
        rows.add_row(*_service_cells(each))
    return rows


def _service_cells(use: ServiceUse) -> Iterator[str]:
    yield from (use.namespace, use.name, f"{use.requests_per_second:.4g}")
    yield from (milliseconds(use.p50_ms), milliseconds(use.p99_ms))
    yield "-" if use.attainment is None else f"{use.attainment:.2%}"
    yield from (str(use.instances), f"{use.devices:.3g}")
