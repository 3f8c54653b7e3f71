"""Rates of cells: against a simulation of the rule that the model states, and in their special cases."""

from __future__ import annotations

import numpy as np
import pytest

from support.clusters import digest, gpu_place, measured
from tessera_core.perf import ServiceModel, latency_percentile, max_rate
from tessera_core.plan.capacity import MILLI, Predictor, per_request
from tessera_core.plan.demand import Demand
from tessera_core.plan.matrix import Cell, Part

FULL = gpu_place()


def demand(member: str, **changes: object) -> Demand:
    values: dict[str, object] = {
        "service": "vision.s",
        "namespace": "vision",
        "member": member,
        "digest": digest(member),
        "load": 100.0,
        "rate": 100.0,
        "rows_per_request": 1,
        "percentile": 99.0,
        "budget_ms": 50.0,
        "burstiness": 1.0,
        "batch_max": 64,
    }
    return Demand(**(values | changes))  # type: ignore[arg-type]


def predictor(*demands: Demand, **profile: float) -> Predictor:
    found = [measured(each.member, FULL, **profile) for each in demands]  # type: ignore[arg-type]
    return Predictor(demands, {each.key: each.profile for each in found}, 1.08)


def turns(
    services: list[ServiceModel], rates_per_s: list[float], rows: int, seed: int
) -> list[np.ndarray]:
    """Latencies, ms, of members that take turns on one server, each turn one batch of what waits."""
    rng = np.random.default_rng(seed)
    arrivals = [np.cumsum(rng.exponential(1000 / rate, rows)) for rate in rates_per_s]
    latencies: list[list[float]] = [[] for _ in services]
    heads, now, turn = [0] * len(services), 0.0, 0
    while max(heads) < rows:
        for step in range(len(services)):
            member = (turn + step) % len(services)
            waiting = int(np.searchsorted(arrivals[member], now, side="right")) - heads[member]
            if waiting:
                break
        else:
            now = min(times[head] for times, head in zip(arrivals, heads, strict=True))
            continue
        cap = services[member].cap
        batch = waiting if cap is None else min(waiting, cap)
        now += services[member].batch_ms(batch)
        first = heads[member]
        latencies[member] += list(now - arrivals[member][first : first + batch])
        heads[member] += batch
        turn = member + 1
    return [np.array(each) for each in latencies]


def test_members_that_take_turns_keep_their_budgets_at_their_predicted_rates() -> None:
    fast, slow = demand("a"), demand("b", percentile=95.0, budget_ms=80.0)
    model = predictor(fast, slow)
    part = Part(FULL, (Cell(0, 16, 1), Cell(1, 64, 1)))
    rates = [rate / MILLI for rate in model.rates(part)]
    services = [model.service(cell, FULL) for cell in part.cells]
    first, second = turns(services, rates, rows=40_000, seed=1)
    assert np.percentile(first, 99) <= 50.0
    assert np.percentile(second, 95) <= 80.0


def test_a_part_is_never_promised_twice() -> None:
    members = [demand(name, budget_ms=5000.0) for name in "abc"]
    model = predictor(*members)
    part = Part(FULL, tuple(Cell(index, 64, 1) for index in range(3)))
    busy = [
        rate / MILLI / model.service(cell, FULL).capacity_per_s
        for cell, rate in zip(part.cells, model.rates(part), strict=True)
    ]
    assert sum(busy) <= 1


def test_a_neighbour_costs_rate_and_a_larger_one_costs_more() -> None:
    model = predictor(demand("a"), demand("b"))
    alone, small, large = (
        model.rates(Part(FULL, (Cell(0, 16, 1), *others)))[0]
        for others in ((), (Cell(1, 1, 1),), (Cell(1, 64, 1),))
    )
    assert alone > small > large > 0


def test_the_best_cell_carries_most_and_is_the_smallest_of_equals() -> None:
    model = predictor(demand("a"))
    best = model.best(0, FULL)
    assert best is not None
    rates = {cell: model.rates(Part(FULL, (cell,)))[0] for cell in model.cells(0, FULL)}
    assert rates[best] >= 0.99 * max(rates.values())
    assert best.cap == min(
        cell.cap for cell, rate in rates.items() if rate >= 0.99 * max(rates.values())
    )


def test_caps_stop_at_the_members_bound() -> None:
    model = predictor(demand("a", batch_max=10))
    assert [cell.cap for cell in model.cells(0, FULL)] == [1, 4, 10]


def test_a_cell_that_does_not_fit_the_memory_is_never_best() -> None:
    model = predictor(demand("a"), memory_mib=1e6)
    assert model.best(0, FULL) is None


def test_requests_of_several_rows_stay_together() -> None:
    service = ServiceModel(alpha_ms=0.5, tau0_ms=2.0, cap=16)
    grouped = per_request(service, 4)
    assert grouped.cap == 4
    assert grouped.batch_ms(4) == service.batch_ms(16)
    assert max_rate(grouped, 50, 99) * 4 < max_rate(service, 50, 99)


def test_requests_larger_than_the_cap_take_several_batches() -> None:
    service = ServiceModel(alpha_ms=0.5, tau0_ms=2.0, cap=16)
    grouped = per_request(service, 40)
    assert grouped.cap == 1
    assert grouped.batch_ms(1) == 3 * service.batch_ms(16)


def test_slices_measured_beside_idle_neighbours_are_derated() -> None:
    place = gpu_place("1g.10gb")
    found = measured("a", place, 1.0, 2.0)
    cell = Cell(0, 16, 1)
    services = [
        Predictor((demand("a"),), {found.key: found.profile}, derate).service(cell, place)
        for derate in (1.0, 1.25)
    ]
    assert services[1].batch_ms(16) == pytest.approx(1.25 * services[0].batch_ms(16))
    assert latency_percentile(services[1], 50, 99) > latency_percentile(services[0], 50, 99)


def test_a_budget_that_the_overhead_uses_up_leaves_no_rate() -> None:
    model = predictor(demand("a", budget_ms=-1.0))
    assert model.best(0, FULL) is None
