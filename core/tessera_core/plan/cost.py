"""What devices cost, who holds how much of them, and what nobody holds.

Problem: one device serves many services, and a node is paid for whether it is full or empty. Approach: a service pays
for what is held for it, busy or not.

- A node's price is split evenly over its GPUs, or over its cores where it has none, as plans count it.
- A GPU's price is half for its compute and half for its memory slices. A slice has its share of both, so what is held
  of one GPU is never more than the whole: 3g and 4g are 13/28 and 15/28, 3g, 2g and 2g fill it. Cores cost alike.
- Services in one part take turns: each pays for the time of one full batch of each of its members, which is what the
  planner reckons with (``capacity.py``). Where a tenant was not measured there, all have equal parts.
- The rest is idle, and apart by what it would take to use it: parts of devices that are used, devices of nodes that
  are used, whole nodes. It is also spread over the services of its pool in proportion to what they hold.

Amounts are whole billionths of the price's unit per hour, and every split is exact: they add up to the price of the
nodes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache

from tessera_core.gpu.devices import FULL
from tessera_core.gpu.mig import GpuModel, find_profile
from tessera_core.perf import Neighbours
from tessera_core.plan.build import CORE_COST, GPU_COST, MICRO
from tessera_core.plan.nodes import Located
from tessera_core.plan.site import known_digests
from tessera_core.plan.state import (
    ClusterState,
    DeviceState,
    NodeState,
    PoolRules,
    Running,
    Slice,
)

UNIT = 1_000_000_000
"""Amounts of one unit of the price."""
CORES = "cores"
"""The kind of part of every set of processor cores."""
_PER_MS = 1_000_000


@dataclass(frozen=True, slots=True)
class Amount:
    """What somebody holds, and what it costs per hour in ``1/UNIT``."""

    gpu_slices: float = 0.0
    """Compute slices: sevenths of an A100, quarters of an A30; a board that cannot be cut is one."""
    gpus: float = 0.0
    """The same in whole GPUs."""
    cores: float = 0.0
    cost: int = 0
    """Of what is held."""
    idle: int = 0
    """The part of the pool's idle capacity."""

    @property
    def loaded(self) -> int:
        """Both."""
        return self.cost + self.idle

    def __add__(self, other: Amount) -> Amount:
        return Amount(
            self.gpu_slices + other.gpu_slices,
            self.gpus + other.gpus,
            self.cores + other.cores,
            self.cost + other.cost,
            self.idle + other.idle,
        )


@dataclass(frozen=True, slots=True, order=True)
class Line:
    """What one service holds of one kind of part in one pool."""

    service: str
    pool: str
    part: str
    """``full``, a MIG profile, or ``cores``."""
    amount: Amount = field(compare=False)


@dataclass(frozen=True, slots=True)
class PoolCost:
    """What the nodes of one pool cost per hour, in ``1/UNIT``, and what of it nobody holds."""

    pool: str
    nodes: int
    price: int
    idle_parts: int
    """Of devices that are used."""
    idle_devices: int
    """Of nodes that are used; a device that is out of order is one of them."""
    idle_nodes: int
    """Headroom, and what is about to go."""
    spread: bool
    """Whether services bear what is idle; otherwise none of them holds anything that costs."""

    @property
    def idle(self) -> int:
        return self.idle_parts + self.idle_devices + self.idle_nodes


@dataclass(frozen=True, slots=True)
class Bill:
    """What a cluster costs per hour, and for whom. Sorted."""

    lines: tuple[Line, ...]
    pools: tuple[PoolCost, ...]

    @property
    def price(self) -> int:
        return sum(each.price for each in self.pools)

    @property
    def unspread(self) -> int:
        """Idle cost that no service bears."""
        return sum(each.idle for each in self.pools if not each.spread)

    def by(self, key: Callable[[Line], str]) -> dict[str, Amount]:
        """Totals by ``key`` of the lines, sorted."""
        found: dict[str, Amount] = {}
        for line in sorted(self.lines, key=key):
            found[key(line)] = found.get(key(line), Amount()) + line.amount
        return found

    def by_service(self) -> dict[str, Amount]:
        return self.by(lambda line: line.service)

    def by_namespace(self) -> dict[str, Amount]:
        return self.by(lambda line: namespace_of(line.service))


def namespace_of(service: str) -> str:
    """Of a served name: the name of a ModelService has no dot."""
    return service.rpartition(".")[0]


def bill(state: ClusterState, held: Iterable[Located]) -> Bill:
    """What the nodes of ``state`` cost, and who bears it. ``held``: ``nodes.running`` or ``nodes.placed``."""
    rules = {pool.name: pool for pool in state.pools}
    parts: dict[tuple[str, str], dict[Slice, list[Running]]] = {}
    for each in held:
        device = parts.setdefault((each.node, each.device), {})
        device.setdefault(each.running.slice, []).append(each.running)
    times = _Times(state)
    accounts = {name: _Account(name) for name in sorted(rules)}
    for node in state.nodes:
        accounts[node.pool].add(node, rules[node.pool], parts, times)
    return Bill(
        tuple(sorted(line for each in accounts.values() for line in each.lines())),
        tuple(each.total() for each in accounts.values()),
    )


def node_prices(node: NodeState, pool: PoolRules) -> tuple[int, ...]:
    """By device, per hour, in ``1/UNIT``; they add up to the price of the node where there is a device."""
    if pool.cost_per_node_hour is None:
        scale = UNIT // MICRO
        return tuple(
            scale * (CORE_COST * each.cores if each.is_cpu else GPU_COST) for each in node.devices
        )
    # The cores of a GPU node come with its GPUs.
    gpus = any(not each.is_cpu for each in node.devices)
    weights = [int(each.is_cpu != gpus) for each in node.devices]
    return split(round(pool.cost_per_node_hour * UNIT), weights)


def split(total: int, weights: Sequence[int]) -> tuple[int, ...]:
    """``total`` in proportion to ``weights``, at least 0 each: whole numbers that add up to it, each within 1 of its
    part. Nothing where there is no weight.
    """
    whole = sum(weights)
    if not whole:
        return (0,) * len(weights)
    found, weight, given = [], 0, 0
    for each in weights:
        weight += each
        upto = total * weight // whole
        found.append(upto - given)
        given = upto
    return tuple(found)


@dataclass(slots=True)
class _Held:
    """An ``Amount`` that is being added up."""

    gpu_slices: float = 0.0
    gpus: float = 0.0
    cores: float = 0.0
    cost: int = 0


@dataclass(slots=True)
class _Account:
    """What was seen of one pool."""

    pool: str
    nodes: int = 0
    price: int = 0
    idle_parts: int = 0
    idle_devices: int = 0
    idle_nodes: int = 0
    held: dict[tuple[str, str], _Held] = field(default_factory=dict)
    """By (service, part)."""

    def add(
        self,
        node: NodeState,
        pool: PoolRules,
        parts: Mapping[tuple[str, str], Mapping[Slice, Sequence[Running]]],
        times: _Times,
    ) -> None:
        self.nodes += 1
        used = any((node.name, device.uuid) in parts for device in node.devices)
        if not node.devices:
            price = round((pool.cost_per_node_hour or 0.0) * UNIT)  # it has yet to say what it has
            self.price += price
            self.idle_nodes += price
        for device, price in zip(node.devices, node_prices(node, pool), strict=True):
            self.price += price
            held = parts.get((node.name, device.uuid), {})
            if held:
                self._add_device(device, price, held, times)
            elif used:
                self.idle_devices += price
            else:
                self.idle_nodes += price

    def _add_device(
        self,
        device: DeviceState,
        price: int,
        held: Mapping[Slice, Sequence[Running]],
        times: _Times,
    ) -> None:
        pieces = sorted(held, key=lambda piece: (piece.start, piece.name))
        extents = [_extent(device, piece) for piece in pieces]
        weights = [each.weight for each in extents]
        whole = max(1, _extent(device, Slice()).weight)
        # Of a device that is being cut anew more may be held for a moment than there is.
        *prices, idle = split(price, [*weights, max(0, whole - sum(weights))])
        self.idle_parts += idle
        for piece, extent, part in zip(pieces, extents, prices, strict=True):
            kind = CORES if device.is_cpu else piece.name
            turns = times.turns(device, held[piece])
            together = sum(turns.values())
            for service, cost in zip(turns, split(part, list(turns.values())), strict=True):
                self._hold(service, kind, extent, turns[service] / together, cost)

    def _hold(self, service: str, kind: str, extent: _Extent, share: float, cost: int) -> None:
        held = self.held.setdefault((service, kind), _Held())
        held.gpu_slices += share * extent.gpu_slices
        held.gpus += share * extent.gpus
        held.cores += share * extent.cores
        held.cost += cost

    def lines(self) -> tuple[Line, ...]:
        found = sorted(self.held.items(), key=lambda each: each[0])
        idle = split(self._idle, [held.cost for _, held in found])
        return tuple(
            Line(
                service,
                self.pool,
                part,
                Amount(held.gpu_slices, held.gpus, held.cores, held.cost, borne),
            )
            for ((service, part), held), borne in zip(found, idle, strict=True)
        )

    def total(self) -> PoolCost:
        return PoolCost(
            self.pool,
            self.nodes,
            self.price,
            self.idle_parts,
            self.idle_devices,
            self.idle_nodes,
            spread=any(each.cost for each in self.held.values()),
        )

    @property
    def _idle(self) -> int:
        return self.idle_parts + self.idle_devices + self.idle_nodes


@dataclass(frozen=True, slots=True)
class _Extent:
    """How much of a device a part is."""

    weight: int
    """In the device's price: cores, or the shares of compute and memory slices in equal halves."""
    gpu_slices: float = 0.0
    gpus: float = 0.0
    cores: float = 0.0


def _extent(device: DeviceState, piece: Slice) -> _Extent:
    if device.is_cpu:
        cores = device.cores if piece.name == FULL else len(piece.cores)
        return _Extent(cores, cores=cores)
    return _extent_of_gpu(device.model, piece.name)


@lru_cache(maxsize=1024)  # of few boards and profiles, asked for each slice of a cluster
def _extent_of_gpu(model: GpuModel | None, name: str) -> _Extent:
    if model is None:
        return _Extent(1, gpu_slices=1.0, gpus=1.0)
    compute, memory = model.compute_slices, model.memory_slices
    profile = find_profile(model, name)
    if profile is None:
        return _Extent(2 * compute * memory, gpu_slices=compute, gpus=1.0)
    return _Extent(
        profile.compute_slices * memory + profile.memory_slices * compute,
        gpu_slices=profile.compute_slices,
        gpus=profile.compute_slices / compute,
    )


class _Times:
    """How long the tenants of a part keep it."""

    def __init__(self, state: ClusterState) -> None:
        self._measured = {each.key: each for each in state.measured}
        self._digests = known_digests(state)

    def turns(self, device: DeviceState, tenants: Sequence[Running]) -> dict[str, int]:
        """By service, the time of one full batch of each of its members, in millionths of a ms; of each member 1 where one
        of them was not measured.
        """
        if len(tenants) == 1:
            return {tenants[0].service: 1}
        found = [self._turn(device, each) for each in tenants]
        known = [each for each in found if each is not None]
        turns = known if len(known) == len(tenants) else [1] * len(tenants)
        by_service: dict[str, int] = {}
        for tenant, turn in zip(tenants, turns, strict=True):
            by_service[tenant.service] = by_service.get(tenant.service, 0) + turn
        return by_service

    def _turn(self, device: DeviceState, tenant: Running) -> int | None:
        digest = self._digests.get((tenant.service, tenant.member))
        measured = self._measured.get((digest or "", device.product, tenant.slice.name))
        if measured is None or tenant.instances not in measured.profile.instance_counts:
            return None
        is_mig = not device.is_cpu and tenant.slice.name != FULL
        around = Neighbours.BUSY if is_mig else Neighbours.IDLE
        ms = measured.expected.service_ms(tenant.batch, tenant.instances, neighbours=around)
        return max(1, round(ms * _PER_MS))
