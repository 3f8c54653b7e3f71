"""The bench of a fleet's year: its fleet, its real plans, and a quick run of all of it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from bench.fleet import main
from bench.fleet.planned import Size, planned_lines, smaller
from bench.harness import RESULTS

from tessera_cli.simulate_fleet import read_fleet


@pytest.fixture(scope="module")
def fleet():
    return read_fleet(str(main.FLEET))


def test_the_fleet_is_as_large_as_it_is_said_to_be(fleet) -> None:
    assert sum(pool.gpus for pool in fleet.pools) == 10_000
    assert fleet.count == 2_000
    assert fleet.slots == 365 * 288


def test_a_smaller_fleet_has_whole_nodes(fleet) -> None:
    small = smaller(fleet, 50, 12)
    assert [pool.gpus for pool in small.pools] == [144, 56]
    assert small.count == 40
    assert small.slots == 12


def test_real_plans_take_about_as_many_gpus(fleet) -> None:
    (found,) = planned_lines(smaller(fleet, 4, 6), Size(slots=4, whole=()), lambda _: None)
    assert 0.8 < found.medians["gpu_hours_ratio"] < 1.15


def test_the_document_has_the_figures_of_the_record() -> None:
    recorded = json.loads((RESULTS / "fleet.json").read_text())
    lines = (RESULTS.parents[1] / "docs" / "fleet.md").read_text().splitlines()
    years = [row for row in recorded["rows"] if row["case"].startswith("365 days")]
    assert len(years) == 6
    for row in years:
        (line,) = [line for line in lines if line.startswith(f"| {row['who']} | ")]
        found = row["medians"]
        for figure in (
            f"{found['gpu_hours']:,.0f}",
            f"{found['times_tessera']:.2f}",
            f"{100 * found['attainment']:.3f} %",
            f"{found['launches']:,.0f}",
        ):
            assert f" {figure} |" in line


@pytest.mark.timeout(300)
def test_a_quick_run_measures_every_policy(tmp_path: Path) -> None:
    path = tmp_path / "fleet.json"
    assert main.main(["--quick", "--workers", "1", "--write", str(path)]) == 0
    written = json.loads(path.read_text())
    year = [row for row in written["rows"] if row["case"].startswith("1 days")]
    assert [row["who"] for row in year] == [
        "tessera",
        "one model per GPU",
        "static peak",
        "HPA at 60%",
        "HPA at 70%",
        "HPA at 80%",
    ]
    assert all(row["medians"]["short_slots"] == 0 for row in year)
    cases = {row["case"].partition(":")[0] for row in written["rows"]}
    assert {"Slots request by request", "Real plans", "The years themselves"} <= cases
    assert path.with_suffix(".svg").read_text().startswith("<svg")
