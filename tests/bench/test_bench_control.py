"""The comparison of policies: its data, its oracle, its clocks, and a quick run of all of it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from bench.control import capacities, main, models, steps
from bench.control.jobs import (
    BATCHES,
    COUNTS,
    Decoding,
    Source,
    batch_path_ms,
    jobs,
    measured_before,
)
from bench.control.lines import NEVER_S, line
from bench.control.oracle import capacity, goodput, settings
from bench.control.policies import share_within
from bench.lines import Reach

from tessera_core.control.dnnscaler import Knob
from tessera_core.control.setpoint import Goal, Setpoint
from tessera_core.control.static import Static
from tessera_core.perf import max_rate
from tessera_core.simulate.arrivals import poisson
from tessera_core.simulate.controlled import control


def job(number: int, path: Decoding = Decoding.TIMED):
    return next(each for each in jobs(path) if each.number == number)


def test_the_jobs_are_those_that_are_known() -> None:
    assert [each.number for each in jobs()] == [*range(1, 26), 29, 30]
    assert sum(each.paper is Knob.MULTI_TENANCY for each in jobs()) == 15
    sources = [each.source for each in jobs()]
    assert (sources.count(Source.MATRIX), sources.count(Source.SAME_NETWORK)) == (15, 3)


def test_single_rows_take_what_was_measured() -> None:
    law = job(5).law
    found = [law(1, n) for n in (1, 2, 4, 6, 8, 10)]
    assert found == pytest.approx([9.75, 8.91, 6.64, 4.90, 5.82, 7.27])
    assert law(1, 5) == pytest.approx((6.64 + 4.90) / 2)


@pytest.mark.parametrize("path", Decoding)
def test_larger_batches_take_longer_and_less_for_each_row(path: Decoding) -> None:
    for each in jobs(path):
        for n in COUNTS:
            times = [each.law(rows, n) for rows in BATCHES]
            assert times == sorted(times)
            assert times[0] > 0
        alone = [each.law(rows, 1) / rows for rows in BATCHES]
        assert alone == sorted(alone, reverse=True)


def test_decoding_before_is_never_slower() -> None:
    for timed, before in zip(jobs(), jobs(Decoding.BEFORE), strict=True):
        assert all(
            before.law(rows, n) <= timed.law(rows, n) + 1e-9 for rows in BATCHES for n in COUNTS
        )


def test_a_model_is_not_among_those_that_were_measured_before_it() -> None:
    assert measured_before(job(1)).shape == (14, 10)
    assert measured_before(job(3)).shape == (15, 10)


def test_the_paths_of_the_paper_differ_by_its_largest_claim() -> None:
    """Ten instances on the one path over Clipper's batches on the other: 14 times, for one network on one GPU."""
    small = job(5)
    clipper = 1e3 * 127 / (batch_path_ms(small, 127) or 0.0)
    shared = capacities.closed_per_s("instances", small)
    assert 13.5 < shared / clipper < 16
    assert batch_path_ms(job(29), 1) is None


def test_the_oracle_of_one_instance_agrees_with_the_queue_model() -> None:
    each = job(3)
    gaps = np.random.default_rng(1).exponential(1.0, 20_000)
    found = capacity(each.law, each.slo_ms, gaps, Setpoint(128, 1))
    assert found is not None
    service = each.profile().service(found.setpoint.cap)
    # What comes too late is dropped in the simulation, which carries a little more.
    assert 0.97 < found.per_s / max_rate(service, each.slo_ms, 99.0) < 1.1


def test_the_oracle_carries_nothing_where_a_lone_row_takes_too_long() -> None:
    assert capacity(job(3).law, 1.0, np.ones(100)) is None
    assert settings(job(3).law, 1.0) == []


def test_goodput_is_that_of_the_same_setting_under_control() -> None:
    each = job(1)
    arrivals = poisson(250.0, 20.0, np.random.default_rng(2))
    (found,) = goodput(each.law, each.slo_ms, arrivals, [Setpoint(3, 3)])
    run = control(
        Static(Setpoint(3, 3)),
        [(0.0, Goal(each.slo_ms, Setpoint(128, 10)))],
        each.law,
        arrivals,
        30.0,
    )
    span_s = float(arrivals[-1]) / 1e3
    assert found.per_s == pytest.approx(run.good / span_s)
    assert share_within(run, 0.0, 20.0) == pytest.approx(run.good / len(arrivals))


def test_nothing_is_tried_after_a_setting_that_answers_all() -> None:
    each = job(1)
    few = np.arange(1.0, 11.0) * 1e3
    lone, many = Setpoint(1, 1), Setpoint(8, 4)
    assert [best.setpoint for best in goodput(each.law, each.slo_ms, few, [many, lone])] == [many]
    hopeless = np.zeros(50)
    found = goodput(each.law, each.slo_ms, hopeless + 1e3, [many, lone])
    assert [best.setpoint for best in found] == [many, lone]


def test_the_highest_rate_is_found_between_two_coarse_ones() -> None:
    assert capacities.highest(lambda rate: rate <= 70.0, 100.0, 1.0) == pytest.approx(
        70.0, rel=0.02
    )
    assert capacities.highest(lambda rate: True, 100.0, 1.0) == 100.0
    assert capacities.highest(lambda rate: False, 100.0, 1.0) == 0.0


@pytest.mark.parametrize(
    ("late", "back_s"),
    [
        ([0] * 30, 0.0),
        ([100, 50, *[0] * 30], 2.0),
        ([0, 0, 50, *[0] * 30], 3.0),  # two good seconds before a bad one are not enough
        ([2, 0, 2, *[0] * 30], 1.0),  # but two late ones in a hundred are no bad second
        ([1] * 30, 0.0),
        ([5] * 40, NEVER_S),
    ],
)
def test_being_back_means_to_stay(late: list[int], back_s: float) -> None:
    came = np.full(len(late), 100)
    assert steps.back_s(came, np.array(late), 0.99) == back_s


def test_the_queue_model_has_the_rates_of_the_known_table() -> None:
    for each in models.queue_lines():
        assert not each.missed


def test_few_devices_never_take_more_energy_than_many() -> None:
    for each in models.energy_lines():
        assert each.medians["saved_percent"] >= 0


def test_a_line_says_what_it_misses() -> None:
    reach = Reach("over_oracle", at_least=0.95), Reach("back_s", at_most=2.0)
    found = line("a", "b", {"over_oracle": 0.94, "back_s": 2.0}, *reach)
    assert found.missed == (reach[0],)


@pytest.mark.timeout(600)
def test_a_quick_run_measures_every_case(tmp_path: Path) -> None:
    path = tmp_path / "control.json"
    assert main.main(["--quick", "--workers", "2", "--write", str(path)]) == 0
    written = json.loads(path.read_text())
    assert written["cases"] == list(main.CASES)
    said = {row["case"].partition(",")[0] for row in written["rows"]}
    assert {"Goodput over load", "Capacity within the SLO", "rate x 4", "SLO halved"} <= said
    goodputs = [row for row in written["rows"] if row["case"].startswith("Goodput")]
    assert all(row["medians"]["over_oracle"] > 0.9 for row in goodputs)
    assert len(list(tmp_path.glob("control-*.svg"))) == 8
