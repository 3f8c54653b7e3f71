"""Rates of parts: against simulations of the rules that the model states, and in their special cases."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from support.clusters import digest, gpu_place, measured
from tessera_core.perf import ServiceModel, max_rate
from tessera_core.plan.behaviour import MILLI, Running
from tessera_core.plan.capacity import Predictor
from tessera_core.plan.curves import Curves
from tessera_core.plan.demand import Demand
from tessera_core.plan.matrix import Cell, Part
from tessera_core.plan.points import per_request
from tessera_core.plan.state import Measured

FULL = 0
"""Index of the only place of these tests."""


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


def curves(*found: Measured, derate: float = 1.08) -> Curves:
    places = sorted({each.place for each in found})
    return Curves(places, {each.key: each.profile for each in found}, derate)


def predictor(*demands: Demand, **profile: float) -> Predictor:
    found = [measured(each.member, gpu_place(), **profile) for each in demands]  # type: ignore[arg-type]
    return Predictor(demands, curves(*found))


def several(one: Measured, counts: dict[int, float]) -> Measured:
    """``one`` with rows for more instances, whose batches take ``counts[instances]`` times as long."""
    rows = [
        replace(row, instances=count, p50_ms=slower * row.p50_ms, p99_ms=slower * row.p99_ms)
        for count, slower in {1: 1.0, **counts}.items()
        for row in one.profile.rows
    ]
    return replace(one, profile=replace(one.profile, rows=tuple(rows)))


def queue_of(model: Predictor, cell: Cell) -> ServiceModel:
    return model.behaviours[cell.member].point(Running(FULL, cell.cap, cell.instances)).queue


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


def shared(services: list[ServiceModel], rate_per_s: float, rows: int, seed: int) -> np.ndarray:
    """Latencies, ms, of rows that wait in one line for whichever server is free, fastest of them first."""
    rng = np.random.default_rng(seed)
    arrivals = np.cumsum(rng.exponential(1000 / rate_per_s, rows))
    free = [0.0] * len(services)
    latencies = np.zeros(rows)
    head = 0
    while head < rows:
        now = max(arrivals[head], min(free))
        waiting = int(np.searchsorted(arrivals, now, side="right")) - head
        idle = [index for index, since in enumerate(free) if since <= now]
        best = min(idle, key=lambda index: services[index].batch_ms(1))
        batch = min(waiting, services[best].cap or waiting)
        free[best] = now + services[best].batch_ms(batch)
        latencies[head : head + batch] = free[best] - arrivals[head : head + batch]
        head += batch
    return latencies


def test_members_that_take_turns_keep_their_budgets_at_their_predicted_rates() -> None:
    fast, slow = demand("a"), demand("b", percentile=95.0, budget_ms=80.0)
    model = predictor(fast, slow)
    part = Part(FULL, (Cell(0, 16, 1), Cell(1, 64, 1)))
    rates = [model.rate(member, (part,)) / MILLI for member in (0, 1)]
    services = [queue_of(model, cell) for cell in part.cells]
    first, second = turns(services, rates, rows=40_000, seed=1)
    assert np.percentile(first, 99) <= 50.0
    assert np.percentile(second, 95) <= 80.0


@pytest.mark.parametrize("caps", [(64, 64), (64, 16), (40, 40, 40), (16, 32, 48, 64)])
def test_parts_of_one_node_share_a_queue_that_keeps_the_budget(caps: tuple[int, ...]) -> None:
    model = predictor(demand("a"))
    parts = [Part(FULL, (Cell(0, cap, 1),)) for cap in caps]
    rate = model.rate(0, parts) / MILLI
    services = [queue_of(model, part.cells[0]) for part in parts]
    assert np.percentile(shared(services, rate, rows=60_000, seed=1), 99) <= 50.0


def test_a_part_is_never_promised_twice() -> None:
    members = [demand(name, budget_ms=5000.0) for name in "abc"]
    model = predictor(*members)
    part = Part(FULL, tuple(Cell(index, 64, 1) for index in range(3)))
    busy = [
        model.rate(cell.member, (part,)) / MILLI / queue_of(model, cell).capacity_per_s
        for cell in part.cells
    ]
    assert 0 < sum(busy) <= 1


def test_a_neighbour_costs_rate_and_a_larger_one_costs_more() -> None:
    model = predictor(demand("a"), demand("b"))
    alone, small, large = (
        model.rate(0, [Part(FULL, (Cell(0, 16, 1), *others))])
        for others in ((), (Cell(1, 1, 1),), (Cell(1, 64, 1),))
    )
    assert alone > small > large > 0


def test_a_second_equal_part_never_carries_less_than_the_first_alone() -> None:
    model = predictor(demand("a", budget_ms=8.0))
    one = Part(FULL, (Cell(0, 16, 1),))
    assert model.rate(0, [one, one]) >= model.rate(0, [one]) > 0


@given(alpha_ms=st.floats(0.02, 3), tau0_ms=st.floats(0, 8), budget_ms=st.floats(5, 200))
def test_the_best_cell_carries_most_of_what_any_cap_carries(
    alpha_ms: float, tau0_ms: float, budget_ms: float
) -> None:
    model = predictor(demand("a", budget_ms=budget_ms), alpha_ms=alpha_ms, tau0_ms=tau0_ms)
    best = model.behaviours[0].best(FULL)
    rates = [
        model.rate(0, [Part(FULL, (Cell(0, point.cap, 1),))])
        for column in model.behaviours[0].columns(FULL)
        for point in column.points
    ]
    if best is None:
        assert max(rates) == 0
    else:
        assert best.rate == model.rate(0, [Part(FULL, (Cell(0, best.cap, 1),))])
        assert best.rate >= 0.9 * max(rates)


def test_instances_are_taken_where_they_help() -> None:
    helped = several(measured("a", gpu_place()), {2: 1.2})
    hurt = several(measured("a", gpu_place()), {2: 2.5})
    assert [
        best.instances
        for found in (helped, hurt)
        if (best := Predictor((demand("a"),), curves(found)).behaviours[0].best(FULL))
    ] == [2, 1]


def test_caps_stop_at_the_members_bound() -> None:
    model = predictor(demand("a", batch_max=10))
    (column,) = model.behaviours[0].columns(FULL)
    assert [point.cap for point in column.points] == [1, 2, 3, 4, 5, 6, 7, 8, 9, 10]


def test_a_cap_between_two_measured_ones_takes_the_time_between_them() -> None:
    model = predictor(demand("a"))
    between = model.batch_ms(FULL, Cell(0, 10, 1))
    assert model.batch_ms(FULL, Cell(0, 4, 1)) < between < model.batch_ms(FULL, Cell(0, 16, 1))


def test_a_cell_that_does_not_fit_the_memory_is_never_best() -> None:
    model = predictor(demand("a"), memory_mib=1e6)
    assert model.behaviours[0].best(FULL) is None


def test_memory_of_a_part_is_the_sum_of_its_members_largest_buffers() -> None:
    rising = measured("a", gpu_place())
    rows = tuple(replace(row, memory_mib=100.0 * row.batch) for row in rising.profile.rows)
    found = replace(rising, profile=replace(rising.profile, rows=rows))
    model = Predictor((demand("a"), demand("b")), curves(found, measured("b", gpu_place())))
    part = Part(FULL, (Cell(0, 10, 1), Cell(1, 4, 1)))
    assert model.memory_mib(part) == 1600 + 1000


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
    found = measured("a", gpu_place("1g.10gb"), 1.0, 2.0)
    quiet, derated = (
        Predictor((demand("a"),), curves(found, derate=derate)) for derate in (1.0, 1.25)
    )
    cell = Cell(0, 16, 1)
    assert derated.batch_ms(0, cell) == pytest.approx(1.25 * quiet.batch_ms(0, cell))
    part = Part(0, (cell,))
    assert derated.rate(0, [part]) < quiet.rate(0, [part])


def test_a_budget_that_the_overhead_uses_up_leaves_no_rate() -> None:
    model = predictor(demand("a", budget_ms=-1.0))
    assert model.behaviours[0].best(FULL) is None
