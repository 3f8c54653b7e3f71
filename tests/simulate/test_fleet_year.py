"""A fleet's year: nothing is lost from the books, more is never worse, the seed decides, events agree."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from support.fleets import small_fleet
from tessera_core.simulate.fleet import Fleet, PolicyKind, Year, simulate_years
from tessera_core.simulate.fleet.covers import STEP, Covers
from tessera_core.simulate.fleet.policies import Autoscaler, Following
from tessera_core.simulate.fleet.rates import Rates
from tessera_core.simulate.fleet.sample import agreement, within_by_events
from tessera_core.simulate.fleet.services import draw_services
from tessera_core.simulate.fleet.tables import tables_of

NOTHING_FAILS = {"gpuPerThousandDays": "0", "nodePerThousandDays": "0"}
EVERYTHING_FAILS = {"gpuPerThousandDays": "900", "nodePerThousandDays": "300"}


def _tessera(fleet: Fleet, cells: int = 0) -> Year:
    (year,) = simulate_years(fleet, (PolicyKind.TESSERA,), cells)
    return year


def _figures(year: Year) -> tuple:
    return (
        year.policy,
        year.gpu_hours.tolist(),
        year.requests.tolist(),
        year.in_time.tolist(),
        year.lost.tolist(),
        year.launches,
        year.recuts,
        year.failed,
        year.cells,
    )


@settings(max_examples=12, deadline=None)
@given(st.integers(0, 2**31 - 1), st.integers(1, 40), st.booleans())
def test_every_request_is_in_time_late_or_lost(seed: int, gpus: int, breaks: bool) -> None:
    fleet = small_fleet(seed=seed, pool={"gpus": gpus}, failures=EVERYTHING_FAILS if breaks else {})
    services = draw_services(fleet)
    came = sum(
        grid.sum(axis=0, dtype=np.float64) for _, grid in Rates.of(fleet, services).stretches()
    )
    for year in simulate_years(fleet):
        assert year.requests == pytest.approx(came * fleet.slot_s, rel=1e-6)
        slack = 1e-6 * year.requests
        assert (year.in_time >= 0).all()
        assert (year.lost >= 0).all()
        assert (year.late >= -slack).all()
        assert year.shares.max() <= 1 + 1e-6
        hours = year.gpus.sum()
        assert hours == pytest.approx(year.gpu_hours.sum(), rel=1e-6)
        assert hours <= 6 * gpus + 1e-6


def test_the_same_fleet_has_the_same_year() -> None:
    fleet = small_fleet(failures=EVERYTHING_FAILS)
    one, two = simulate_years(fleet, cells=5), simulate_years(fleet, cells=5)
    assert list(map(_figures, one)) == list(map(_figures, two))
    other = simulate_years(replace(fleet, seed=4), cells=5)
    assert list(map(_figures, one)) != list(map(_figures, other))


def test_a_policy_comes_to_the_same_whatever_else_is_simulated() -> None:
    fleet = small_fleet()
    assert _figures(_tessera(fleet)) == _figures(simulate_years(fleet)[0])


def test_services_without_traffic_have_one_part_each_and_miss_nothing() -> None:
    fleet = small_fleet(group={"requestsPerSecond": {"from": "0.000001", "to": "0.000001"}})
    for year in simulate_years(fleet):
        assert year.attainment == pytest.approx(1, abs=1e-4)
        assert year.services_below == 0
        assert year.most_gpus.sum() <= 12
    own, whole, *_ = simulate_years(fleet)
    assert own.gpu_hours.sum() < whole.gpu_hours.sum() == pytest.approx(12 * 6)


def test_more_headroom_costs_more_and_serves_no_less() -> None:
    found = [
        _tessera(small_fleet(control={"headroom": headroom})) for headroom in ("1", "1.2", "2")
    ]
    hours = [year.gpu_hours.sum() for year in found]
    assert hours == sorted(hours)
    shares = [year.attainment for year in found]
    assert shares == sorted(shares)


def test_more_gpus_serve_no_less() -> None:
    found = [_tessera(small_fleet(pool={"gpus": gpus})) for gpus in (1, 2, 4, 64)]
    shares = [year.attainment for year in found]
    assert shares == sorted(shares)
    assert found[0].short_slots == 72
    assert shares[0] < 0.9
    assert found[-1].short_slots == 0


def test_slower_loading_serves_no_more() -> None:
    slow, quick = (_tessera(small_fleet(control={"load": load})) for load in ("200s", "5s"))
    assert slow.attainment < quick.attainment


def test_fewer_gpus_cut_at_a_time_serve_no_more() -> None:
    slow = {"control": {"recut": "900s"}, "group": {"count": 60}}
    found = [_tessera(small_fleet(pool={"recutAtOnce": most}, **slow)) for most in (1, 2, 8, 64)]
    shares = [year.attainment for year in found]
    assert shares == sorted(shares)
    assert shares[0] < shares[-1]


def test_failures_cost_requests_and_launches() -> None:
    days = {"horizon": "72h", "pool": {"gpus": 16}}
    still = _tessera(small_fleet(**days, failures=NOTHING_FAILS))
    broken = _tessera(small_fleet(**days, failures={**EVERYTHING_FAILS, "repair": "1h"}))
    assert still.failed == 0
    assert broken.failed > 10
    assert broken.launches > still.launches
    assert broken.in_time.sum() < still.in_time.sum()
    assert broken.lost.sum() > 0


def test_static_parts_change_only_where_something_fails() -> None:
    fleet = small_fleet(failures=NOTHING_FAILS)
    (year,) = simulate_years(fleet, (PolicyKind.STATIC,))
    assert year.launches == year.recuts == 0
    assert year.gpus == pytest.approx(np.full(6, year.gpus[0]))


def test_more_is_there_at_once_and_goes_when_its_peak_is_past() -> None:
    fleet = small_fleet()
    services = draw_services(fleet)
    covers = Covers.of(tables_of(fleet, services), services.rate_per_s, 1.2)
    rates = np.outer([1, 1, 3, 1, 1, 1, 1], services.rate_per_s).astype(np.float32)
    following = Following(covers, 0.1, window=2)
    following.begin(rates)
    states = [following.first()]
    for row in range(len(rates)):
        states.append(following.step(row, states[-1]))
    levels = np.stack(states)[1:] - states[0]
    assert (levels[1] == 0).all()
    assert (levels[2:5] == levels[2]).all()
    assert (levels[2] > 0).all()
    assert (levels[5] < levels[2]).all()


def test_parts_go_only_when_a_lower_rate_leaves_the_slack_unused() -> None:
    fleet = small_fleet(horizon="200h")
    rates = Rates.of(fleet, draw_services(fleet))
    covers = Covers.of(tables_of(fleet, rates.services), rates.services.rate_per_s, 1.2)
    following, each, falls = Following(covers, 0.1, window=2), np.arange(12), 0
    stretch = rates.stretch(0)
    following.begin(stretch)
    now = following.first()
    for row in range(len(stretch)):
        after = following.step(row, now)
        need = 1.2 * covers.base * STEP**after
        assert (covers.capacity[each, after] >= 1.2 * stretch[row] * (1 - 1e-4)).all()
        lower = after < now
        falls += int(lower.sum())
        assert (need[lower] <= 0.9 * covers.capacity[each, now][lower] * (1 + 1e-9)).all()
        now = after
    assert falls > 50


def test_an_hpa_has_its_tolerance_and_its_stabilisation() -> None:
    at_busy = np.array([[90.0], [100.0], [110.0]])
    scaler = Autoscaler(at_busy, stabilisation=1)
    rates = np.array([[1000], [1080], [1200], [300], [300], [300]], dtype=np.float32)
    scaler.begin(rates)
    found = [scaler.first()]
    for row in range(len(rates)):
        found.append(scaler.step(row, found[-1]))
    # 10; within a tenth; 12; the most of the last slot but one; then what is needed.
    assert [int(each[0]) for each in found[1:]] == [10, 10, 12, 12, 3, 3]


def test_the_tables_agree_with_every_request_of_a_small_fleet() -> None:
    fleet = small_fleet(
        horizon="1h", group={"count": 4, "requestsPerSecond": {"from": "20", "to": "300"}}
    )
    year = _tessera(fleet, cells=60)
    cells = [cell for cell in year.cells if cell.why == "as planned"]
    events = [
        within_by_events(cell, 8_000, np.random.default_rng([1, index]))
        for index, cell in enumerate(cells)
    ]
    said = agreement(cells, events)
    assert said.cells == 60
    assert abs(said.by_tables - said.by_events) < 0.003
    assert said.most < 0.03


def test_the_tables_agree_with_events_under_overload() -> None:
    fleet = small_fleet(pool={"gpus": 1}, group={"count": 4})
    services = draw_services(fleet)
    tables = tables_of(fleet, services)
    assert (tables.within[:, 0, -1] < 0.7).all()
    year = _tessera(fleet, cells=20)
    for index, cell in enumerate(year.cells[:10]):
        rate = 2 * sum(part.rate for part in cell.parts)
        doubled = replace(cell, rate_per_s=rate)
        events = within_by_events(doubled, 8_000, np.random.default_rng([2, index]))
        service = services.names.index(cell.service)
        kinds = np.flatnonzero(tables.rate[service] > 0)
        found = tables.within[service, kinds, 128]
        assert found.min() - 0.12 < events < found.max() + 0.12
