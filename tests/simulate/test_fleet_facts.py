"""The description of a fleet: what is refused, and by which name; what the seed decides."""

from __future__ import annotations

import numpy as np
import pytest

from support.fleets import fleet_document, small_fleet
from tessera_core.api import SpecInvalid
from tessera_core.simulate.fleet import fleet_from_dict
from tessera_core.simulate.fleet.rates import STRETCH, Rates
from tessera_core.simulate.fleet.services import draw_services


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"group": {"pool": "h100"}}, "services[0].pool"),
        ({"group": {"count": 0}}, "services[0].count"),
        ({"group": {"requestsPerSecond": {"from": "5", "to": "1"}}}, "requestsPerSecond"),
        ({"group": {"target": {"from": "0ms", "to": "5ms"}}}, "services[0].target"),
        ({"group": {"swing": {"from": "0.5", "to": "1.5"}}}, "services[0].swing.to"),
        ({"group": {"burstiness": {"from": "0.5", "to": "1"}}}, "services[0].burstiness.from"),
        ({"group": {"percent": "99.99"}}, "services[0].percent"),
        ({"pool": {"product": "NVIDIA-T4"}}, "pools[0].product"),
        ({"pool": {"gpu": 3}}, "did you mean gpus?"),
        ({"pools": []}, "pools"),
        ({"horizon": "9000h"}, "horizon"),
        ({"slot": "1m"}, "at most a slot, 60 s"),
        ({"control": {"hpaTargets": []}}, "control.hpaTargets"),
        ({"control": {"peakWindow": "48h"}}, "windows of at most 24h"),
        ({"failures": {"repair": "x"}}, "failures.repair"),
    ],
)
def test_what_is_wrong_is_named(changed: dict, said: str) -> None:
    with pytest.raises(SpecInvalid) as refused:
        fleet_from_dict(fleet_document(**changed))
    assert said in str(refused.value)


def test_a_fleet_that_is_no_mapping_is_refused() -> None:
    with pytest.raises(SpecInvalid):
        fleet_from_dict(["pools"])


def test_one_more_group_changes_no_other_services() -> None:
    document = fleet_document()
    one = draw_services(fleet_from_dict(document))
    document["services"].append({**document["services"][0], "name": "more"})
    two = draw_services(fleet_from_dict(document))
    assert two.names[:12] == one.names
    assert np.array_equal(two.rate_per_s[:12], one.rate_per_s)
    assert not np.array_equal(two.rate_per_s[12:], one.rate_per_s)


def test_a_stretch_of_rates_needs_none_before_it() -> None:
    rates = [Rates.of(fleet, draw_services(fleet)) for fleet in [small_fleet(horizon="400h")] * 2]
    (_, first), (_, second), *_ = rates[0].stretches()
    assert first.shape == second.shape == (STRETCH, 12)
    assert np.array_equal(rates[1].stretch(STRETCH), second)
    with pytest.raises(ValueError, match="first"):
        rates[0].stretch(1)


def test_rates_have_days_weekends_and_growth() -> None:
    calm = {
        "bursts": {"perWeek": "0"},
        "swing": {"from": "0.5", "to": "0.5"},
        "weekend": {"from": "0.5", "to": "0.5"},
        "growth": {"from": "2", "to": "2"},
        "peakHour": "20",
        "peakSpread": "3",
    }
    fleet = small_fleet(horizon="336h", group=calm)
    services = draw_services(fleet)
    rates = np.concatenate([grid for _, grid in Rates.of(fleet, services).stretches()])
    daily = (rates / services.rate_per_s).reshape(14, 288, 12).mean(axis=1)
    growth = 1 + (np.arange(14) + 0.5) / 14
    weekend = np.where(np.arange(14) % 7 >= 5, 0.5, 1.0)
    assert daily == pytest.approx(np.outer(growth * weekend, np.ones(12)), rel=0.03)
    hours = (rates[:288] / services.rate_per_s).reshape(24, 12, 12).mean(axis=1)
    assert np.abs((hours.argmax(axis=0) + 0.5 - services.peak_hour + 12) % 24 - 12).max() < 3
    assert (np.abs(services.peak_hour - 20) <= 3).all()
    assert hours.max(axis=0) / hours.min(axis=0) == pytest.approx(np.full(12, 3.0), rel=0.15)


def test_bursts_come_as_often_as_they_are_said_to() -> None:
    burst = {
        "perWeek": "7",
        "height": {"from": "3", "to": "3"},
        "minutes": {"from": "60", "to": "60"},
    }
    flat = {"swing": {"from": "0.01", "to": "0.01"}, "weekend": {"from": "1", "to": "1"}}
    fleet = small_fleet(horizon="1344h", group={"count": 40, "bursts": burst, **flat})
    services = draw_services(fleet)
    rates = np.concatenate([grid for _, grid in Rates.of(fleet, services).stretches()])
    bursting = rates / services.rate_per_s > 2
    # An hour each, rounded up to slots, 56 to a service; the few that fall together count once.
    assert bursting.mean() == pytest.approx(1 / 24, rel=0.15)
