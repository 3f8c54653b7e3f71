"""A large mixed fleet, seeded: A100, H100, H200, A30 and L4 nodes and ensembles of forty model families.

SYNTHETIC. A family is an affine batch time on a whole A100, alpha per row and tau0 per batch; on another
class both grow as SMs times speed shrink, tau0 only in the part that is work and not launching kernels. Speeds
per SM follow the FP16 tensor throughput of the data sheets, damped, as small networks never see the peak.
Prices are weights per node hour of the size of public on-demand prices in 2025, not anybody's quotation.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil
from typing import Any

import numpy as np
from bench.planner.facts import digest, model_service

from tessera_core.api import ModelService
from tessera_core.gpu.classes import full_class, slice_class
from tessera_core.gpu.devices import FULL, DeviceClass
from tessera_core.gpu.mig import MEDIA
from tessera_core.gpu.tables import model_of
from tessera_core.perf import LatencyProfile, ProfileRow
from tessera_core.plan.state import (
    Budget,
    ClusterState,
    DeviceState,
    Measured,
    NodeState,
    Policy,
    PoolRules,
)

GPUS_PER_NODE = 8
FAMILIES = 40
NAMESPACES = 12
PRIORITIES = (("gold", 1000), ("silver", 100))
_BATCHES = (1, 2, 4, 8, 16, 32, 64, 128)
_INSTANCES = (1, 2, 4)
"""Processes that share a class; measured where their memory fits."""
_A100_SMS = 108
_LAUNCH_SHARE = 0.5
"""Part of tau0 that no faster board shortens."""
_OVERLAP = 0.6
"""Of each further process's tau0, what the others cannot hide."""
_CONTEXT_MIB = 450.0
_LEAST_RATE, _MOST_RATE = 1.0, 2000.0
_LEAST_TARGET_MS, _MOST_TARGET_MS = 20.0, 400.0
_SLACK = 3.0
"""A target is at least this multiple of a lone row's time on the fastest class: wait, service, neighbours."""


@dataclass(frozen=True, slots=True)
class Product:
    """One sort of node."""

    pool: str
    name: str
    share: float
    """Of all nodes."""
    per_node_hour: float
    """Price weight."""
    idle_watts: float
    """Of one board."""
    speed: float
    """Per SM; an A100's is 1."""
    sms: int
    memory_mib: int


PRODUCTS = (
    Product("a100", "NVIDIA-A100-SXM4-80GB", 0.30, 24.0, 55.0, 1.0, 108, 81920),
    Product("h100", "NVIDIA-H100-80GB-HBM3", 0.25, 40.0, 70.0, 1.6, 132, 81559),
    Product("h200", "NVIDIA-H200", 0.10, 50.0, 75.0, 1.7, 132, 143771),
    Product("a30", "NVIDIA-A30", 0.15, 8.0, 30.0, 0.95, 56, 24576),
    Product("l4", "NVIDIA-L4", 0.20, 6.5, 16.0, 0.75, 58, 23034),
)
"""The L4 has no MIG and is used whole; 58 SMs: NVIDIA Ada GPU architecture whitepaper."""


@dataclass(frozen=True, slots=True)
class Family:
    """One model, on a whole A100."""

    name: str
    alpha_ms: float
    tau0_ms: float
    weights_mib: float
    row_mib: float

    def batch_ms(self, batch: int, processes: int, power: float) -> float:
        """Time of a batch of every one of ``processes`` on a class of ``power``; a whole A100 has 1."""
        alpha = self.alpha_ms * processes / power
        tau0 = self.tau0_ms * (_LAUNCH_SHARE + (1 - _LAUNCH_SHARE) / power)
        return alpha * batch + tau0 * (1 + _OVERLAP * (processes - 1))

    def memory_mib(self, batch: int, processes: int) -> float:
        return processes * (_CONTEXT_MIB + self.weights_mib + batch * self.row_mib)


def families(rng: np.random.Generator) -> tuple[Family, ...]:
    """Forty models, a third of them small (below 0.1 ms per row), by name."""
    found = []
    for index in range(FAMILIES):
        low, high = (0.02, 0.1) if index % 3 == 0 else (0.1, 2.5)
        alpha = _log_uniform(rng, low, high)
        found.append(
            Family(
                name=f"family-{index:02d}",
                alpha_ms=alpha,
                tau0_ms=_log_uniform(rng, 0.5, 3.0) + alpha,
                weights_mib=_log_uniform(rng, 20, 200) * (1 + 4 * alpha),
                row_mib=_log_uniform(rng, 2, 12),
            )
        )
    return tuple(found)


def mixed_fleet(
    nodes: int, services: int, seed: int, policy: Policy | None = None, budget: Budget | None = None
) -> ClusterState:
    """``nodes`` empty nodes of eight boards and ``services`` ensembles of one to four members.

    Rates are log-uniform from 1 to 2,000 requests/s, targets log-uniform from 20 to 400 ms and raised where
    not even an idle board of the fastest sort would keep them. Same arguments, same state.
    """
    for name, number in (("nodes", nodes), ("services", services)):
        if number < 1:
            raise ValueError(f"{name}: must be >= 1, found {number}")
    rng = np.random.default_rng(seed)
    models = families(rng)
    classes = [(place, power) for product in PRODUCTS for place, power in _classes(product)]
    fastest = {
        model.name: min(model.batch_ms(1, 1, power) for _, power in classes) for model in models
    }
    return ClusterState(
        nodes=_nodes(nodes),
        services=tuple(_service(index, models, fastest, rng) for index in range(services)),
        measured=tuple(
            measured
            for model in models
            for place, power in classes
            for measured in _measured(model, place, power)
        ),
        pools=tuple(
            PoolRules(
                product.pool,
                partition=model_of(product.name) is not None,
                shared_between_namespaces=True,
                cost_per_node_hour=product.per_node_hour,
                idle_watts=product.idle_watts,
            )
            for product in PRODUCTS
        ),
        policy=policy or Policy(),
        budget=budget or Budget(),
        priorities=PRIORITIES,
    )


def new_service(name: str, seed: int, fleet_seed: int) -> ModelService:
    """One more service for the fleet of ``fleet_seed``: what is added in replanning cases."""
    models = families(np.random.default_rng(fleet_seed))
    powers = [power for product in PRODUCTS for _, power in _classes(product)]
    fastest = {model.name: min(model.batch_ms(1, 1, power) for power in powers) for model in models}
    return _service(name, models, fastest, np.random.default_rng(seed))


def _classes(product: Product) -> tuple[tuple[DeviceClass, float], ...]:
    """A board's classes, whole and cut, each with its power; slices with media extensions are left out."""
    per_sm = product.speed / _A100_SMS
    model = model_of(product.name)
    if model is None:
        place = DeviceClass(product.name, FULL, sm_count=0, memory_mib=product.memory_mib)
        return ((place, per_sm * product.sms),)
    places = [full_class(model, product.name)]
    places += [
        slice_class(model, profile, product.name)
        for profile in model.profiles
        if MEDIA not in profile.attributes
    ]
    return tuple((place, per_sm * place.sm_count) for place in places)


def _nodes(count: int) -> tuple[NodeState, ...]:
    """Sorts by their share, the largest remainders first, so that the shares hold for any count."""
    exact = [product.share * count for product in PRODUCTS]
    counts = [int(number) for number in exact]
    by_remainder = sorted(range(len(exact)), key=lambda i: (counts[i] - exact[i], i))
    for index in by_remainder[: count - sum(counts)]:
        counts[index] += 1
    return tuple(
        _node(product, index)
        for product, number in zip(PRODUCTS, counts, strict=True)
        for index in range(number)
    )


def _node(product: Product, index: int) -> NodeState:
    model = model_of(product.name)
    name = f"{product.pool}-{index:04d}"
    boards = tuple(
        DeviceState(
            uuid=f"GPU-{name}-{gpu}",
            product=product.name,
            memory_mib=product.memory_mib,
            model=model,
            cuttable=model is not None,
        )
        for gpu in range(GPUS_PER_NODE)
    )
    return NodeState(name, product.pool, boards)


def _measured(family: Family, place: DeviceClass, power: float) -> Sequence[Measured]:
    """Of what fits its memory; empty where not even one process with a batch of one does."""
    rows = tuple(
        ProfileRow(batch, processes, ms, 1.05 * ms, 1e3 * processes * batch / ms, memory)
        for processes in _INSTANCES
        for batch in _BATCHES
        for memory in [family.memory_mib(batch, processes)]
        if memory <= place.memory_mib
        for ms in [family.batch_ms(batch, processes, power)]
    )
    return (Measured(digest(family.name), place, LatencyProfile(rows)),) if rows else ()


def _service(
    identity: int | str,
    models: tuple[Family, ...],
    fastest: dict[str, float],
    rng: np.random.Generator,
) -> ModelService:
    count = int(rng.choice(4, p=(0.5, 0.25, 0.15, 0.1))) + 1
    chosen = [models[index] for index in rng.choice(len(models), size=count, replace=False)]
    least = _SLACK * max(fastest[model.name] for model in chosen) + 1
    target = max(_log_uniform(rng, _LEAST_TARGET_MS, _MOST_TARGET_MS), least)
    spec: dict[str, Any] = {}
    priority, isolation, spread = rng.random(3)
    if priority < 0.4:
        spec["priorityClassName"] = PRIORITIES[0 if priority < 0.1 else 1][0]
    placement: dict[str, Any] = {}
    if isolation < 0.1:
        placement["isolation"] = "Exclusive" if isolation < 0.02 else "Partition"
    if spread < 0.05:
        placement["spread"] = {"minNodes": 2}
    if placement:
        spec["placement"] = placement
    return model_service(
        f"service-{identity:05d}" if isinstance(identity, int) else identity,
        [model.name for model in chosen],
        rate_per_s=float(f"{_log_uniform(rng, _LEAST_RATE, _MOST_RATE):.4g}"),
        target_ms=float(ceil(target)),
        namespace=f"team-{int(rng.integers(NAMESPACES)):02d}",
        batch_max=_BATCHES[-1],
        **spec,
    )


def _log_uniform(rng: np.random.Generator, low: float, high: float) -> float:
    return float(np.exp(rng.uniform(np.log(low), np.log(high))))
