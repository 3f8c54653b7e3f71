"""From the facts to the problem that the search works on.

Devices become boards: which classes of parts each has or can be given, what may run there, what it costs.
Sorting happens here and nowhere else, so the order of the facts cannot reach a decision.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import chain

from tessera_core.gpu.classes import full_class, slice_class
from tessera_core.gpu.devices import FULL, DeviceClass, cpu_class
from tessera_core.gpu.geometry import maximal_multisets
from tessera_core.gpu.mig import GpuModel, find_profile
from tessera_core.perf import LatencyProfile
from tessera_core.plan.capacity import Predictor
from tessera_core.plan.demand import Demand, demands_of
from tessera_core.plan.problem import Board, Kind, Packing, Problem
from tessera_core.plan.state import CPU, ClusterState, DeviceState, PoolRules

_MICRO = 1_000_000
_GPU_COST = _MICRO
_CORE_COST = _MICRO // 64
"""Weights where a pool states no price: what clouds charge for a core is about that share of a GPU."""

Profiles = Mapping[tuple[str, str, str], LatencyProfile]


def profiles_of(state: ClusterState) -> Profiles:
    """Measurements by (digest, product, slice)."""
    return {each.key: each.profile for each in state.measured}


def demands_in(state: ClusterState) -> tuple[Demand, ...]:
    """The demands of all services, sorted by service and member."""
    known: dict[str, dict[str, str]] = {}
    for name, member, digest in state.digests:
        known.setdefault(name, {})[member] = digest
    demands = chain.from_iterable(
        demands_of(service, known.get(service.served_name, {}), state.policy)
        for service in state.services
    )
    return tuple(sorted(demands, key=lambda demand: demand.key))


def problem_of(state: ClusterState, demands: tuple[Demand, ...]) -> Problem:
    """The problem of placing ``demands`` (sorted) on the healthy devices of ``state``."""
    profiles = profiles_of(state)
    boards = boards_of(state)
    siblings: dict[str, list[int]] = {}
    for index, board in enumerate(boards):
        siblings.setdefault(board.node, []).append(index)
    services: dict[str, list[int]] = {}
    for member, demand in enumerate(demands):
        services.setdefault(demand.service, []).append(member)
    rules = {pool.name: pool for pool in state.pools}
    pairs = sorted({(board.kind.pool, board.kind.product) for board in boards})
    return Problem(
        demands=demands,
        boards=boards,
        predictor=Predictor(demands, profiles, state.policy.neighbour_derate),
        eligible=tuple(
            frozenset(
                (pool, product)
                for pool, product in pairs
                if selected(demand, rules[pool], product) and trusted(demand, rules[pool])
            )
            for demand in demands
        ),
        goal=state.policy.objective,
        siblings={node: tuple(indices) for node, indices in siblings.items()},
        services=tuple(tuple(members) for _, members in sorted(services.items())),
    )


def selected(demand: Demand, pool: PoolRules, product: str) -> bool:
    """Whether pool selector and product list of ``demand`` take the pool's devices of ``product``."""
    labels = dict(pool.labels)
    return all(labels.get(key) == value for key, value in demand.pool_selector) and (
        not demand.products or product in demand.products
    )


def trusted(demand: Demand, pool: PoolRules) -> bool:
    """Whether the pool lets the model's format run."""
    return pool.allow_code or not demand.code


def boards_of(state: ClusterState) -> tuple[Board, ...]:
    """The healthy devices, by node and uuid."""
    rules = {pool.name: pool for pool in state.pools}
    slices = {(each.place.product, each.place.slice) for each in state.measured}
    return tuple(
        Board(device.uuid, node.name, _kind(device, rules[node.pool], gpus, slices, state))
        for node in sorted(state.nodes, key=lambda node: node.name)
        for gpus in [sum(not each.is_cpu for each in node.devices)]
        for device in sorted(node.devices, key=lambda device: device.uuid)
        if device.healthy
    )


def _kind(
    device: DeviceState,
    pool: PoolRules,
    gpus: int,
    measured: set[tuple[str, str]],
    state: ClusterState,
) -> Kind:
    packings: tuple[Packing, ...] = ()
    usable = max(0, device.cores - state.policy.reserved_cores)
    if device.is_cpu:
        sizes = sorted(
            int(name.removeprefix("cpu-")) for product, name in measured if product == CPU
        )
        places = [cpu_class(n, max(1, device.memory_mib)) for n in sizes if n <= usable]
    else:
        packings = _packings(device, pool, measured)
        places = sorted(set(chain.from_iterable(packings)))
    return Kind(
        pool=pool.name,
        product=device.product,
        memory_mib=device.memory_mib,
        cost=_cost(device, pool, gpus),
        places=tuple(sorted(places, key=lambda place: (-place.sm_count, place))),
        packings=packings,
        cores=usable,
        private_node=not pool.shared_between_namespaces,
    )


def _cost(device: DeviceState, pool: PoolRules, gpus: int) -> int:
    if pool.cost_per_node_hour is None:
        return _CORE_COST * device.cores if device.is_cpu else _GPU_COST
    if device.is_cpu:
        # The cores of a GPU node come with its GPUs.
        return 0 if gpus else round(pool.cost_per_node_hour * _MICRO)
    return round(pool.cost_per_node_hour * _MICRO / gpus)


def _packings(
    device: DeviceState, pool: PoolRules, measured: set[tuple[str, str]]
) -> tuple[Packing, ...]:
    """What the GPU is cut into, or could be; classes that nobody was measured on are left out."""
    model, product = device.model, device.product
    if model is None:
        whole = DeviceClass(product, FULL, sm_count=0, memory_mib=device.memory_mib)
        return ((whole,),)
    whole = full_class(model, product)
    if not (pool.partition and device.cuttable):
        if device.geometry is None:
            return ((whole,),)
        return (_classes(model, product, (each.profile for each in device.geometry)),)
    allowed = {profile.name for profile in model.profiles}
    if pool.allowed_profiles is not None:
        named = (find_profile(model, name) for name in pool.allowed_profiles)
        allowed &= {profile.name for profile in named if profile is not None}
    useful = tuple(sorted(name for name in allowed if (product, name) in measured))
    cut = maximal_multisets(model, useful) if useful else ()
    return ((whole,), *sorted(_classes(model, product, names) for names in cut))


def _classes(model: GpuModel, product: str, names: Iterable[str]) -> Packing:
    by_name = {profile.name: profile for profile in model.profiles}
    return tuple(sorted(slice_class(model, by_name[name], product) for name in names))
