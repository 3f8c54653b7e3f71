"""From the facts to the problem that the search works on.

Devices become boards: which classes of parts each has or can be given, what may run there, what it costs.
Sorting happens here and nowhere else, so the order of the facts cannot reach a decision. What only depends
on facts that rarely change is kept in ``Memory`` from one plan to the next.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import chain

from tessera_core.api import Isolation, ModelService
from tessera_core.gpu.classes import full_class, slice_class
from tessera_core.gpu.devices import FULL, DeviceClass, cpu_class
from tessera_core.gpu.geometry import maximal_multisets
from tessera_core.gpu.mig import GpuModel, find_profile
from tessera_core.gpu.mps import is_one_of
from tessera_core.plan.behaviour import Behaviour
from tessera_core.plan.capacity import Predictor
from tessera_core.plan.curves import Curves, Profiles
from tessera_core.plan.demand import Demand, demands_of, priority_values, stage_share
from tessera_core.plan.problem import Board, Fleet, Kind, Problem
from tessera_core.plan.shapes import Shape, shape_of, shape_of_cores
from tessera_core.plan.state import CPU, ClusterState, DeviceState, Measured, NodeState, PoolRules
from tessera_core.plan.taints import Admission, admission_of

MICRO = 1_000_000
GPU_COST = MICRO
CORE_COST = MICRO // 64
"""Weights where a pool states no price: what clouds charge for a core is about that share of a GPU."""

Packing = tuple[DeviceClass, ...]
"""Parts that exist side by side on one board, sorted."""


CurvesFactory = Callable[[Sequence[DeviceClass], Profiles, float], Curves]


@dataclass(slots=True)
class Memory:
    """What one plan leaves behind for the next: everything in it follows from the facts it is keyed by."""

    make: CurvesFactory = Curves
    """The capacity model."""
    measured: tuple[Measured, ...] = ()
    curves: Curves | None = None
    demands: dict[str, tuple[ModelService, tuple[object, ...], tuple[Demand, ...]]] = field(
        default_factory=dict
    )
    nodes: tuple[NodeState, ...] = ()
    pools: tuple[PoolRules, ...] = ()
    fleet: Fleet | None = None
    homes: dict[tuple[Behaviour, tuple[int, ...]], int] = field(default_factory=dict)
    """``Problem.homes`` on the present fleet, by behaviour and eligible kinds."""


def profiles_of(state: ClusterState) -> Profiles:
    """What batches are expected to take, by (digest, product, slice)."""
    return {each.key: each.expected for each in state.measured}


def demands_in(state: ClusterState, memory: Memory | None = None) -> tuple[Demand, ...]:
    """The demands of all services, sorted by service and member."""
    memory = memory or Memory()
    known: dict[str, dict[str, str]] = {}
    for name, member, digest in state.digests:
        known.setdefault(name, {})[member] = digest
    priorities = priority_values(state)
    alone_ms = _alone_ms(state) if any(each.spec.preprocess for each in state.services) else {}
    demands: list[Demand] = []
    for service in state.services:
        name = service.served_name
        digests = known.get(name, {})
        share = stage_share(service, digests, alone_ms)
        basis = (state.policy, tuple(digests.items()), priorities, share)
        kept = memory.demands.get(name)
        if kept is None or kept[0] is not service or kept[1] != basis:
            kept = (service, basis, demands_of(service, digests, state.policy, priorities, share))
            memory.demands[name] = kept
        demands += kept[2]
    return tuple(sorted(demands, key=lambda demand: demand.key))


def _alone_ms(state: ClusterState) -> dict[str, float]:
    """By digest, how long one row takes where it takes least, ms."""
    found: dict[str, float] = {}
    for each in state.measured:
        least = each.expected.cells(min(each.expected.instance_counts))[0].p50_ms
        found[each.digest] = min(found.get(each.digest, least), least)
    return found


def problem_of(
    state: ClusterState, demands: tuple[Demand, ...], memory: Memory | None = None
) -> Problem:
    """The problem of placing ``demands`` (sorted) on the healthy devices of ``state``."""
    memory = memory or Memory()
    fleet = fleet_of(state, memory)
    if memory.curves is None or memory.curves.places != fleet.places:
        derate = state.policy.neighbour_derate
        memory.curves = memory.make(fleet.places, profiles_of(state), derate)
        memory.homes.clear()
    services: dict[str, list[int]] = {}
    for member, demand in enumerate(demands):
        services.setdefault(demand.service, []).append(member)
    fewest = {  # whatever members are missing, preprocessing is not
        each.served_name: each.spec.ensemble.min_members
        + len(each.spec.placed)
        - len(each.spec.members)
        for each in state.services
    }
    numbers = {name: index for index, name in enumerate(services)}
    rules = {pool.name: pool for pool in state.pools}
    asked: dict[tuple[object, ...], tuple[int, ...]] = {}
    eligible = []
    for demand in demands:
        wish = (demand.pool_selector, demand.products, demand.code)
        if wish not in asked:
            asked[wish] = tuple(
                kind.index
                for kind in fleet.kinds
                if selected(demand, rules[kind.pool], kind.product)
                and trusted(demand, rules[kind.pool])
            )
        eligible.append(asked[wish])
    return Problem(
        demands=demands,
        places=fleet.places,
        kinds=fleet.kinds,
        boards=fleet.boards,
        devices=fleet.devices,
        nodes=fleet.nodes,
        siblings=fleet.siblings,
        holders=fleet.holders,
        most_boards=fleet.most_boards,
        predictor=Predictor(demands, memory.curves),
        demanding=any(demand.isolation is not Isolation.ANY for demand in demands),
        eligible=tuple(eligible),
        services=tuple(map(tuple, services.values())),
        home=tuple(numbers[demand.service] for demand in demands),
        fewest=tuple(fewest[name] for name in services),
        policy=state.policy,
        quotas={quota.namespace: quota for quota in state.quotas},
    )


def selected(demand: Demand, pool: PoolRules, product: str) -> bool:
    """Whether pool selector and product list of ``demand`` take the pool's devices of ``product``."""
    labels = dict(pool.labels)
    return all(labels.get(key) == value for key, value in demand.pool_selector) and (
        not demand.products or is_one_of(product, demand.products)
    )


def trusted(demand: Demand, pool: PoolRules) -> bool:
    """Whether the pool lets the model's format run."""
    return pool.allow_code or not demand.code


def fleet_of(state: ClusterState, memory: Memory) -> Fleet:
    """The healthy devices, by node and uuid; nodes whose taints let nothing run are left out."""
    if (
        memory.fleet is not None
        and memory.nodes is state.nodes
        and memory.pools == state.pools
        and memory.measured is state.measured
    ):
        return memory.fleet
    if memory.measured is not state.measured:
        memory.curves = None
    memory.nodes, memory.pools, memory.measured = state.nodes, state.pools, state.measured
    memory.fleet = _fleet(state)
    memory.homes.clear()
    return memory.fleet


def _fleet(state: ClusterState) -> Fleet:
    rules = {pool.name: pool for pool in state.pools}
    slices = {(each.place.product, each.place.slice) for each in state.measured}
    found: list[tuple[NodeState, DeviceState, _Cut, Admission]] = []
    cuts: dict[tuple[object, ...], _Cut] = {}
    for node in sorted(state.nodes, key=lambda node: node.name):
        pool = rules[node.pool]
        admission = admission_of(node, pool)
        if admission is Admission.CLOSED:
            continue
        gpus = sum(not each.is_cpu for each in node.devices)
        for device in sorted(node.devices, key=lambda device: device.uuid):
            if not device.healthy:
                continue
            shape = (pool.name, gpus, *_form(device, pool), admission is Admission.AVOID)
            if shape not in cuts:
                cuts[shape] = _cut(device, pool, gpus, slices, state, admission)
            found.append((node, device, cuts[shape], admission))
    used = sorted(set(cuts.values()), key=lambda cut: cut.key)
    places = tuple(sorted({place for cut in used for place in cut.places}))
    kinds = {cut: _kind(index, cut, places) for index, cut in enumerate(used)}
    nodes = tuple(dict.fromkeys(node.name for node, *_ in found))
    numbers = {name: index for index, name in enumerate(nodes)}
    siblings: list[list[int]] = [[] for _ in nodes]
    boards = []
    for index, (node, device, cut, admission) in enumerate(found):
        number = numbers[node.name]
        siblings[number].append(index)
        boards.append(Board(device.uuid, number, kinds[cut], admission is Admission.KEEP))
    return Fleet(
        places,
        tuple(kinds[cut] for cut in used),
        tuple(boards),
        tuple(device for _, device, *_ in found),
        nodes,
        tuple(map(tuple, siblings)),
        tuple(
            frozenset(board.node for board in boards if board.kind.index == index)
            for index in range(len(used))
        ),
        tuple(
            max(Counter(board.node for board in boards if board.kind.index == index).values())
            for index in range(len(used))
        ),
    )


def _form(device: DeviceState, pool: PoolRules) -> tuple[object, ...]:
    """What devices of one kind have in common."""
    fixed = None if pool.partition and device.cuttable else _names(device)
    return (device.product, device.memory_mib, device.cuttable, device.cores, fixed)


def _names(device: DeviceState) -> tuple[str, ...]:
    if device.geometry is None:
        return (FULL,)
    return tuple(sorted(each.profile for each in device.geometry))


@dataclass(frozen=True, slots=True)
class _Cut:
    """A kind before its classes have numbers."""

    pool: str
    product: str
    memory_mib: int
    cost: int
    watts: int
    sms: int
    cores: int
    packings: tuple[Packing, ...]
    sizes: tuple[DeviceClass, ...]
    private_node: bool
    avoided: bool

    @property
    def places(self) -> tuple[DeviceClass, ...]:
        """Classes, widest first."""
        found = {*chain.from_iterable(self.packings), *self.sizes}
        return tuple(sorted(found, key=lambda place: (-place.sm_count, place)))

    @property
    def key(self) -> tuple[object, ...]:
        """Sorts kinds."""
        return (self.pool, self.product, self.memory_mib, self.cores, self.avoided, self.packings)


def _cut(
    device: DeviceState,
    pool: PoolRules,
    gpus: int,
    measured: set[tuple[str, str]],
    state: ClusterState,
    admission: Admission,
) -> _Cut:
    packings: tuple[Packing, ...] = ()
    sizes: tuple[DeviceClass, ...] = ()
    usable = max(0, device.cores - state.policy.reserved_cores)
    if device.is_cpu:
        counts = sorted(
            int(name.removeprefix("cpu-")) for product, name in measured if product == CPU
        )
        sizes = tuple(cpu_class(n, max(1, device.memory_mib)) for n in counts if n <= usable)
    else:
        packings = _packings(device, pool, measured)
    return _Cut(
        pool=pool.name,
        product=device.product,
        memory_mib=device.memory_mib,
        cost=_cost(device, pool, gpus),
        watts=0 if device.is_cpu else round(pool.idle_watts),
        sms=device.model.sm_count if device.model else 0,
        cores=usable,
        packings=packings,
        sizes=sizes,
        private_node=not pool.shared_between_namespaces,
        avoided=admission is Admission.AVOID,
    )


def _kind(index: int, cut: _Cut, places: tuple[DeviceClass, ...]) -> Kind:
    numbers = {place: number for number, place in enumerate(places)}
    classes = tuple(numbers[place] for place in cut.places)
    return Kind(
        index=index,
        pool=cut.pool,
        product=cut.product,
        memory_mib=cut.memory_mib,
        cost=cut.cost,
        watts=cut.watts,
        width=max(1, cut.cores or cut.sms),
        classes=classes,
        shape=_shape(cut),
        position={place: position for position, place in enumerate(classes)},
        memory_shared=bool(cut.sizes),
        private_node=cut.private_node,
        avoided=cut.avoided,
    )


def _shape(cut: _Cut) -> Shape:
    if cut.sizes:
        return shape_of_cores(tuple(place.sm_count for place in cut.places), cut.cores)
    return shape_of(
        tuple(tuple(packing.count(place) for place in cut.places) for packing in cut.packings)
    )


def _cost(device: DeviceState, pool: PoolRules, gpus: int) -> int:
    if pool.cost_per_node_hour is None:
        return CORE_COST * device.cores if device.is_cpu else GPU_COST
    if device.is_cpu:
        # The cores of a GPU node come with its GPUs.
        return 0 if gpus else round(pool.cost_per_node_hour * MICRO)
    return round(pool.cost_per_node_hour * MICRO / gpus)


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
