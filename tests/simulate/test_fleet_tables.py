"""The tables: what parts carry, what is in time at which load, which parts a rate gets, how an HPA reads a busy GPU."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import numpy as np
import pytest

from support.fleets import small_fleet
from tessera_core.perf import ServiceModel, max_rate
from tessera_core.perf.batch_queue import BatchQueue
from tessera_core.simulate.fleet.covers import STEP, STEPS, Covers
from tessera_core.simulate.fleet.policies import TOLERANCE, _busy_rates
from tessera_core.simulate.fleet.services import draw_services
from tessera_core.simulate.fleet.tables import LOADS, OVERHEAD_MS, tables_of


@pytest.fixture(scope="module")
def fleet():
    return small_fleet()


@pytest.fixture(scope="module")
def services(fleet):
    return draw_services(fleet)


@pytest.fixture(scope="module")
def tables(fleet, services):
    return tables_of(fleet, services)


def test_a_part_carries_what_the_queue_model_says() -> None:
    fleet = small_fleet(group={"burstiness": {"from": "1", "to": "1"}})
    services = draw_services(fleet)
    tables = tables_of(fleet, services)
    for index, kind in ((0, 0), (3, 3), (7, 5)):
        model = ServiceModel(
            float(tables.alpha_ms[index, kind]),
            float(tables.tau0_ms[index, kind]),
            int(tables.cap[index, kind]),
        )
        budget = float(services.target_ms[index]) - OVERHEAD_MS
        exact = max_rate(model, budget, 99.0)
        each = tables.rate[index, kind] / tables.processes[index, kind]
        assert 0.9 * exact <= each <= 1.02 * exact


def test_at_the_rate_of_the_slo_the_slo_holds(services, tables) -> None:
    at_one = int(np.flatnonzero(LOADS == 1)[0])
    usable = tables.rate > 0
    held = tables.within[usable][:, at_one]
    assert (held >= 0.99 - 1e-6).all()
    # Exactly, but where a server is full before anything is late.
    assert np.mean(np.abs(held - 0.99) < 1e-6) > 0.8
    assert not tables.within[~usable].any()


def test_more_load_is_never_more_in_time_and_never_fewer_answers(tables) -> None:
    within = tables.within[tables.rate > 0]
    assert (np.diff(within, axis=1) <= 1e-6).all()
    answered = within * LOADS.astype(np.float32)
    assert (np.diff(answered, axis=1) >= -1e-5).all()


def test_more_of_a_gpu_carries_more(tables) -> None:
    kinds = [
        tables.parts.names[0].index(name) for name in ("full", "4g.40gb", "2g.20gb", "1g.10gb")
    ]
    assert (np.diff(tables.rate[:, kinds], axis=1) <= 0).all()


def test_a_target_that_no_part_keeps_is_refused_by_name(fleet, services) -> None:
    with pytest.raises(ValueError, match="pages-0000"):
        tables_of(fleet, replace(services, target_ms=np.full(12, 1.5)))


def test_a_cover_carries_what_it_is_for(services, tables) -> None:
    covers = Covers.of(tables, services.rate_per_s, 1.2)
    needs = 1.2 * covers.base[:, None] * STEP ** np.arange(STEPS)
    assert (covers.capacity >= needs * (1 - 1e-6)).all()
    assert (covers.counts.sum(axis=-1) >= 1).all()


def test_a_cover_costs_little_more_than_the_cheapest_of_all(services, tables) -> None:
    covers = Covers.of(tables, services.rate_per_s, 1.2)
    needs = 1.2 * covers.base[:, None] * STEP ** np.arange(STEPS)
    counts = np.array(list(product(range(4), repeat=tables.rate.shape[1])))
    prices = counts @ tables.parts.price[0]
    for index in range(0, 12, 3):
        carried = counts @ tables.rate[index]
        for step in range(0, STEPS, 7):
            enough = (carried >= needs[index, step]) & (prices < 3)
            if enough.any():
                assert covers.price[index, step] <= prices[enough].min() * 1.25 + 1e-6


def test_rates_are_rounded_up_to_steps(services, tables) -> None:
    covers = Covers.of(tables, services.rate_per_s, 1.0)
    rates = np.stack((0 * covers.base, covers.base * STEP**3, covers.base * STEP**3.2)).astype(
        np.float32
    )
    levels = covers.levels(rates)
    assert (levels[0] == 0).all()
    assert (levels[1] == 3).all()
    assert (levels[2] == 4).all()


def test_an_hpa_reads_the_busy_share_of_the_exact_queue(fleet, services) -> None:
    whole = tables_of(fleet, services, most_processes=1, whole=True)
    low, at, high = _busy_rates(whole, 0.7)
    for index in range(12):
        model = ServiceModel(
            float(whole.alpha_ms[index, 0]),
            float(whole.tau0_ms[index, 0]),
            int(whole.cap[index, 0]),
        )
        busy = [BatchQueue.solve(model, rate[index] / 1e3).busy for rate in (low, at, high)]
        assert busy == pytest.approx([0.7 * (1 - TOLERANCE), 0.7, 0.7 * (1 + TOLERANCE)], abs=0.02)
