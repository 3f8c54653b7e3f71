"""The same fleet planned by the planner itself: how far the year's arithmetic is from real plans.

The year packs slices into GPUs by their number. The planner knows where each one lies, leaves what runs where it is, lets
models share slices, and tidies up no more than its policy allows. A small fleet is planned anew in every slot of a
few hours, each plan from the one before as it was carried out; the large one a few times from nothing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from time import perf_counter

import numpy as np
from bench.fleet.lines import line
from bench.harness import Figures
from bench.lines import Line, Reach, Says
from bench.planner.facts import digest, model_service
from bench.planner.fleet_cases import applied
from numpy.typing import NDArray

from tessera_core.api import ModelService
from tessera_core.gpu.classes import full_class, slice_class
from tessera_core.perf import LatencyProfile, Neighbours, ProfileRow
from tessera_core.plan.decision import Plan
from tessera_core.plan.planner import Planner
from tessera_core.plan.state import ClusterState, DeviceState, Measured, NodeState, PoolRules
from tessera_core.plan.state import Policy as PlanPolicy
from tessera_core.simulate.fleet import Fleet, PolicyKind, simulate_years
from tessera_core.simulate.fleet.covers import STEP, Covers
from tessera_core.simulate.fleet.packing import packing_of
from tessera_core.simulate.fleet.rates import Rates
from tessera_core.simulate.fleet.services import A100_SMS, Services, batch_line, draw_services
from tessera_core.simulate.fleet.tables import CAPS, DERATE, PROCESSES, tables_of

SMALLER = 20
"""The small fleet has so many times fewer GPUs and services."""


@dataclass(frozen=True, slots=True)
class Size:
    """How much is planned."""

    slots: int = 72
    """Of the small fleet, one after another."""
    whole: tuple[int, ...] = (150, 60_000)
    """Slots of the large fleet, each from nothing."""


QUICK = Size(slots=6, whole=())


def smaller(fleet: Fleet, times: int, slots: int) -> Fleet:
    """The fleet with a part of its GPUs and services, for so many slots from its start."""
    return replace(
        fleet,
        pools=tuple(
            replace(pool, gpus=-(-pool.gpus // times // pool.gpus_per_node) * pool.gpus_per_node)
            for pool in fleet.pools
        ),
        services=tuple(
            replace(group, count=max(1, group.count // times)) for group in fleet.services
        ),
        horizon_s=slots * fleet.slot_s,
    )


def planned_lines(fleet: Fleet, size: Size, says: Says) -> Iterator[Line]:
    small = smaller(fleet, SMALLER, size.slots)
    quiet = replace(
        small,
        failures=replace(small.failures, gpu_per_thousand_days=0.0, node_per_thousand_days=0.0),
    )
    case = f"Real plans: {small.count} services, {size.slots} slots one after another"
    (model,) = simulate_years(quiet, (PolicyKind.TESSERA,))
    began = perf_counter()
    hours, launches, recuts = _one_after_another(quiet, says)
    yield line(
        case,
        "the planner over the year's arithmetic",
        {
            "gpu_hours_ratio": hours / float(model.gpu_hours.sum()),
            "launches_ratio": launches / max(model.launches, 1.0),
            "recuts_ratio": recuts / max(model.recuts, 1.0),
            "seconds_per_plan": (perf_counter() - began) / size.slots,
        },
        Reach("gpu_hours_ratio", at_most=1.1),
    )
    for slot in size.whole:
        says(f"planning the whole fleet in slot {slot}")
        yield line(
            f"Real plans: {fleet.count:,} services from nothing",
            f"slot {slot}: the planner over the arithmetic",
            _whole(fleet, slot),
            Reach("gpu_hours_ratio", at_most=1.1),
        )


def _one_after_another(fleet: Fleet, says: Says) -> tuple[float, float, float]:
    """GPU hours, parts that were launched, GPUs that were cut anew."""
    services = draw_services(fleet)
    rates = Rates.of(fleet, services).stretch(0)
    covers = Covers.of(tables_of(fleet, services), services.rate_per_s, fleet.control.headroom)
    levels = covers.levels(rates)
    window = max(1, round(fleet.control.peak_s / fleet.slot_s))
    planner, state = Planner(), _empty(fleet, services)
    hours = launches = recuts = 0.0
    running: Counter[tuple[object, ...]] | None = None
    for slot in range(fleet.slots):
        peak = levels[max(0, slot - window) : slot + 1].max(axis=0)
        wanted = covers.base * STEP ** peak.astype(np.float64)
        state = replace(state, services=_asked(services, wanted))
        plan = planner.plan(state)
        state = applied(plan, state)
        now = _parts(plan)
        hours += _used(plan) * fleet.slot_s / 3600
        if running is not None:
            launches += sum((now - running).values())
            recuts += sum(device.recut for device in plan.devices)
        running = now
        if slot % 12 == 0:
            says(f"real plans: slot {slot}/{fleet.slots}, {_used(plan)} GPUs")
    return hours, launches, recuts


def _whole(fleet: Fleet, slot: int) -> Figures:
    services = draw_services(fleet)
    first = slot // 2016 * 2016
    rates = Rates.of(fleet, services).stretch(first)[slot - first]
    covers = Covers.of(tables_of(fleet, services), services.rate_per_s, fleet.control.headroom)
    levels = covers.levels(rates[None])[0]
    state = replace(
        _empty(fleet, services),
        services=_asked(services, covers.base * STEP ** levels.astype(np.float64)),
    )
    began = perf_counter()
    plan = Planner().plan(state)
    seconds = perf_counter() - began
    counts = covers.counts[np.arange(len(levels)), levels].astype(np.float64)
    expected = 0.0
    for place, pool in enumerate(fleet.pools):
        parts = counts[services.pool == place].sum(axis=0)
        packing = packing_of(pool.model)
        expected += parts[0] + float(packing.gpus(parts[1 : 1 + len(packing.profiles)]))
    return {
        "gpu_hours_ratio": _used(plan) / expected,
        "refused": float(len(plan.refused)),
        "seconds_per_plan": seconds,
    }


def _used(plan: Plan) -> int:
    return sum(bool(device.assignments) for device in plan.devices)


def _parts(plan: Plan) -> Counter[tuple[object, ...]]:
    """What runs where."""
    return Counter(
        (device.node, device.uuid, each.slice, each.service)
        for device in plan.devices
        for each in device.assignments
    )


def _empty(fleet: Fleet, services: Services) -> ClusterState:
    """Nodes, rules and measurements; no services yet."""
    return ClusterState(
        nodes=tuple(
            NodeState(
                f"{pool.name}-{node:04d}",
                pool.name,
                tuple(
                    DeviceState(
                        uuid=f"GPU-{pool.name}-{node:04d}-{gpu}",
                        product=pool.product,
                        memory_mib=pool.model.memory_mib,
                        model=pool.model,
                        cuttable=True,
                    )
                    for gpu in range(pool.gpus_per_node)
                ),
            )
            for pool in fleet.pools
            for node in range(pool.gpus // pool.gpus_per_node)
        ),
        measured=tuple(
            each
            for index in range(len(services.names))
            for each in _measured(fleet, services, index)
        ),
        pools=tuple(
            PoolRules(
                pool.name,
                partition=True,
                allowed_profiles=tuple(each.name for each in packing_of(pool.model).profiles),
                shared_between_namespaces=True,
                cost_per_node_hour=pool.cost_per_gpu_hour * pool.gpus_per_node,
            )
            for pool in fleet.pools
        ),
        policy=PlanPolicy(headroom=fleet.control.headroom, slack=fleet.control.slack),
    )


def _measured(fleet: Fleet, services: Services, index: int) -> Iterator[Measured]:
    """The lines of one service's model, as cells. Only its own pool's: elsewhere it cannot run."""
    pool = fleet.pools[int(services.pool[index])]
    alpha, tau0 = float(services.alpha_ms[index]), float(services.tau0_ms[index])
    classes = [full_class(pool.model, pool.product)]
    classes += [
        slice_class(pool.model, profile, pool.product)
        for profile in packing_of(pool.model).profiles
    ]
    for place in classes:
        power = place.sm_count * pool.speed_per_sm / A100_SMS
        derate = DERATE if place.is_mig else 1.0
        rows = tuple(
            ProfileRow(cap, count, ms, ms, 1e3 * count * cap / ms, 1.0, Neighbours.BUSY)
            for count in PROCESSES
            for slope, constant in [batch_line(alpha, tau0, power, count)]
            for cap in CAPS
            for ms in [derate * (slope * cap + constant)]
        )
        yield Measured(digest(services.names[index]), place, LatencyProfile(rows))


def _asked(services: Services, wanted: NDArray[np.float64]) -> tuple[ModelService, ...]:
    return tuple(
        model_service(
            name,
            (name,),
            rate_per_s=float(f"{wanted[index]:.6g}"),
            target_ms=float(f"{services.target_ms[index]:.4g}"),
            percent=float(services.percent[index]),
            batch_max=CAPS[-1],
            traffic={
                "requestsPerSecond": f"{wanted[index]:.6g}",
                "burstiness": f"{services.burstiness[index]:.4g}",
            },
        )
        for index, name in enumerate(services.names)
    )
