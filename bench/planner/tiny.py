"""Seeded random clusters small enough for brute force, and their brute-force form.

A case has one to three boards of one or two kinds and one to four members. Every node has one board and every
kind its own pool with its own price, so that boards are paid for one by one as brute force does. Kinds are
seven-slice and four-slice MIG boards, boards used whole and sets of processor cores. Batch times are affine
and free of noise; a slice's follow its share of the board. All numbers are synthetic.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from bench.planner import brute
from bench.planner.facts import digest, model_service

from tessera_core.gpu.classes import full_class, slice_class
from tessera_core.gpu.devices import FULL, DeviceClass, cpu_class
from tessera_core.gpu.geometry import maximal_multisets
from tessera_core.gpu.mig import GpuModel, find_profile
from tessera_core.gpu.tables import A30, A100_80
from tessera_core.perf import LatencyProfile, ProfileRow
from tessera_core.plan.demand import Demand, demands_of
from tessera_core.plan.state import (
    ClusterState,
    DeviceState,
    Measured,
    NodeState,
    Policy,
    PoolRules,
)

MOST_BOARDS = 3
MOST_MEMBERS = 4
_BATCHES = (1, 4, 16, 64)
_PRICES = (0.5, 1.0, 2.0, 3.0, 5.0)
_CORES = (4, 8)
_CORE_MEMORY_MIB = 16384

RateOf = Callable[[Demand, DeviceClass], float]
"""Rows per second that one part of a class carries of a member, alone on it; 0 where it cannot run."""


@dataclass(frozen=True, slots=True)
class _Kind:
    """A sort of board: its classes, their speeds, and all it may be cut into."""

    name: str
    product: str
    memory_mib: int
    model: GpuModel | None
    cores: int
    speeds: tuple[tuple[DeviceClass, float], ...]
    """Classes with their speed; 1 is a whole A100."""

    @property
    def slices(self) -> tuple[str, ...]:
        """MIG profiles that boards may be cut into."""
        return tuple(sorted(place.slice for place, _ in self.speeds if place.is_mig))


def tiny_case(seed: int) -> ClusterState:
    """The case of ``seed``; about one in five cannot be served whole."""
    rng = np.random.default_rng(seed)
    sorts = rng.choice(len(_KINDS), size=int(rng.integers(1, 3)), replace=False)
    kinds = [_KINDS[index](rng) for index in sorted(int(each) for each in sorts)]
    boards = int(rng.integers(len(kinds), MOST_BOARDS + 1))
    counts = [1] * len(kinds)
    for _ in range(boards - len(kinds)):
        counts[int(rng.integers(len(kinds)))] += 1
    models = [f"model-{index}" for index in range(int(rng.integers(1, MOST_MEMBERS + 1)))]
    measured: list[Measured] = []
    least_ms: list[float] = []
    for model in models:
        alpha = float(np.exp(rng.uniform(np.log(0.05), np.log(2.0))))
        tau0 = float(rng.uniform(0.2, 4.0))
        here = [
            _measure(model, place, alpha / speed, tau0 / speed**0.5)
            for kind in kinds
            for place, speed in kind.speeds
        ]
        least_ms.append(min(each.profile.rows[0].p50_ms for each in here))
        measured += here
    return ClusterState(
        nodes=tuple(
            _node(kind, index)
            for kind, count in zip(kinds, counts, strict=True)
            for index in range(count)
        ),
        services=tuple(
            model_service(
                f"service-{index}",
                [models[each] for each in group],
                rate_per_s=_rounded(np.exp(rng.uniform(np.log(2), np.log(400)))),
                target_ms=_rounded(max(least_ms[each] for each in group) * rng.uniform(4, 40)),
                batch_max=_BATCHES[-1],
            )
            for index, group in enumerate(_groups(len(models), rng))
        ),
        measured=tuple(measured),
        pools=tuple(
            PoolRules(
                kind.name,
                partition=kind.model is not None,
                allowed_profiles=kind.slices or None,
                shared_between_namespaces=True,
                cost_per_node_hour=float(rng.choice(_PRICES)),
            )
            for kind in kinds
        ),
        policy=Policy(overhead_ms=1.0),
    )


def brute_case(
    state: ClusterState, rate_of: RateOf
) -> tuple[tuple[brute.Kind, ...], tuple[brute.Member, ...]]:
    """``state``, made by :func:`tiny_case`, in the words of :mod:`bench.planner.brute`."""
    places = sorted({each.place for each in state.measured})
    index = {(place.product, place.slice): number for number, place in enumerate(places)}
    kinds = []
    for pool in state.pools:
        boards = [node.devices[0] for node in state.nodes if node.pool == pool.name]
        assert pool.cost_per_node_hour is not None
        kinds.append(
            brute.Kind(
                cost=pool.cost_per_node_hour,
                count=len(boards),
                packings=tuple(
                    tuple(index[boards[0].product, name] for name in packing)
                    for packing in _packings_of(boards[0], pool, places)
                ),
            )
        )
    members = tuple(
        brute.Member(demand.rate, tuple(rate_of(demand, place) for place in places))
        for service in state.services
        for demand in demands_of(service, {}, state.policy)
    )
    return tuple(kinds), members


def _packings_of(
    board: DeviceState, pool: PoolRules, places: list[DeviceClass]
) -> tuple[tuple[str, ...], ...]:
    if board.is_cpu:
        sizes = tuple(place.sm_count for place in places if place.is_cpu)
        return tuple(tuple(f"cpu-{n}" for n in sets) for sets in _core_sets(board.cores, sizes))
    if board.model is None:
        return ((FULL,),)
    return ((FULL,), *maximal_multisets(board.model, pool.allowed_profiles))


def _seven_slices(rng: np.random.Generator) -> _Kind:
    names = ("1g.10gb", "2g.20gb", "3g.40gb", "4g.40gb", "7g.80gb")
    return _mig_kind("a100", A100_80, "NVIDIA-A100-SXM4-80GB", _some(names, rng), 108)


def _four_slices(rng: np.random.Generator) -> _Kind:
    return _mig_kind("a30", A30, "NVIDIA-A30", _some(("1g.6gb", "2g.12gb", "4g.24gb"), rng), 130)


def _mig_kind(
    name: str, model: GpuModel, product: str, slices: tuple[str, ...], unit_sms: int
) -> _Kind:
    """``unit_sms``: SMs of this board that are as fast as a whole A100."""
    profiles = [find_profile(model, each) for each in slices]
    places = [full_class(model, product)]
    places += [slice_class(model, each, product) for each in profiles if each is not None]
    return _Kind(
        name,
        product,
        model.memory_mib,
        model,
        0,
        tuple((place, place.sm_count / unit_sms) for place in places),
    )


def _whole_board(rng: np.random.Generator) -> _Kind:
    place = DeviceClass("NVIDIA-L4", FULL, sm_count=0, memory_mib=23034)
    speeds = ((place, float(rng.uniform(0.3, 0.5))),)
    return _Kind("l4", place.product, place.memory_mib, None, 0, speeds)


def _cores(rng: np.random.Generator) -> _Kind:
    cores = int(rng.choice(_CORES))
    sizes = (2, 4) if rng.random() < 0.5 else (4,)
    speeds = tuple((cpu_class(n, _CORE_MEMORY_MIB), 0.01 * n) for n in sizes)
    return _Kind("cpu", "cpu", _CORE_MEMORY_MIB, None, cores, speeds)


_KINDS: tuple[Callable[[np.random.Generator], _Kind], ...] = (
    _seven_slices,
    _four_slices,
    _whole_board,
    _cores,
)


def _some(names: tuple[str, ...], rng: np.random.Generator) -> tuple[str, ...]:
    """At least two of ``names``, in order."""
    count = int(rng.integers(2, len(names) + 1))
    chosen = sorted(rng.choice(len(names), size=count, replace=False).tolist())
    return tuple(names[index] for index in chosen)


def _core_sets(cores: int, sizes: tuple[int, ...]) -> Iterator[tuple[int, ...]]:
    """Multisets of ``sizes``, ascending, that fit ``cores`` and to which none can be added."""

    def grow(chosen: tuple[int, ...], left: int) -> Iterator[tuple[int, ...]]:
        if left < min(sizes):
            yield chosen
        for size in sizes:
            if size <= left and (not chosen or size >= chosen[-1]):
                yield from grow((*chosen, size), left - size)

    return grow((), cores)


def _groups(members: int, rng: np.random.Generator) -> list[list[int]]:
    """Members dealt out to services: mostly one each, sometimes an ensemble."""
    groups: list[list[int]] = []
    for member in range(members):
        if groups and rng.random() < 0.25:
            groups[-1].append(member)
        else:
            groups.append([member])
    return groups


def _rounded(number: float) -> float:
    return float(f"{number:.3g}")


def _measure(model: str, place: DeviceClass, alpha_ms: float, tau0_ms: float) -> Measured:
    rows = []
    for batch in _BATCHES:
        ms = alpha_ms * batch + tau0_ms
        rows.append(ProfileRow(batch, 1, ms, ms, 1e3 * batch / ms, 500.0))
    return Measured(digest(model), place, LatencyProfile(tuple(rows)))


def _node(kind: _Kind, index: int) -> NodeState:
    board = DeviceState(
        uuid=f"{kind.name}-{index}",
        product=kind.product,
        memory_mib=kind.memory_mib,
        model=kind.model,
        cuttable=kind.model is not None,
        cores=kind.cores,
    )
    return NodeState(f"{kind.name}-{index}", kind.name, (board,))
