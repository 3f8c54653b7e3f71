"""The planner's benchmark: a quick run of all cases, and the parts that decide what its figures mean."""

from __future__ import annotations

import json
from itertools import product
from pathlib import Path
from xml.etree import ElementTree

import pytest
from bench.lines import Reach
from bench.planner.covers import choices, minimal
from bench.planner.fleet import mixed_fleet
from bench.planner.fleet_cases import QUIET, applied, touched
from bench.planner.lines import Skipped, line, table
from bench.planner.main import main
from bench.planner.parvagpu import VARIABLE, ParvaData, cluster
from bench.planner.rules import AloneCurves, by, filled, twice
from bench.planner.slice_cases import QUICK, RULES, copies_lines, deployment_of, scenario_lines
from bench.planner.tables import PROFILE_NAMES, Load, Point
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from tessera_core.plan.planner import Planner


def points(alpha_ms: float, tau0_ms: float) -> tuple[Point, ...]:
    """An affine model on every slice, faster with its size; one and two processes."""
    return tuple(
        Point(gpcs, batch, processes, 1e3 * batch * processes / ms, ms)
        for gpcs in PROFILE_NAMES
        for batch in (1, 2, 4, 8, 16, 32)
        for processes in (1, 2)
        for ms in [alpha_ms * batch * processes / gpcs + tau0_ms]
    )


PROFILES = {"large": points(4.0, 2.0), "small": points(0.5, 1.0)}
LOADS = (Load("large", "large", 700.0, 150.0), Load("small", "small", 900.0, 60.0))
DATA = ParvaData(PROFILES, {"S1": LOADS, "S4": LOADS})


def drawn(*arguments: object) -> str:
    console = Console(width=300)
    with console.capture() as captured:
        console.print(table(*arguments))  # type: ignore[arg-type]
    return captured.get()


def test_a_quick_run_measures_every_case_and_says_what_it_skips(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    written = tmp_path / "planner.json"
    assert main(["--quick", "--write", str(written)]) == 0
    document = json.loads(written.read_text())
    assert document["machine"]["cores"] >= 1
    assert set(document["skipped"]) == {"scenarios", "copies"}
    assert all("no data" in reason for reason in document["skipped"].values())
    said = capsys.readouterr()
    assert said.out.count("skipped: no data") == 2
    assert "from nothing, round 1/1" in said.err
    measured = {row["case"] for row in document["rows"]}
    assert len(measured) == 8
    (fleet,) = (row for row in document["rows"] if row["who"] == "Tessera, from nothing")
    assert fleet["medians"]["peak_mib"] >= fleet["medians"]["facts_mib"] > 10
    (tiny,) = (row for row in document["rows"] if row["who"] == "Tessera, exact")
    assert tiny["medians"]["beats_brute"] == 0
    picture = ElementTree.parse(tmp_path / "planner-growth.svg").getroot()
    assert len(picture.findall(".//{*}polyline")) == 4


def test_a_case_that_does_not_exist_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--only", "nothing"])
    assert "nothing is none of scenarios" in capsys.readouterr().err


def test_scenarios_have_every_method_with_its_simulated_tail() -> None:
    found = list(scenario_lines(DATA, QUICK, lambda _: None))
    by_who = {each.labels["who"]: each.medians for each in found}
    methods = [who for who in by_who if not who.startswith("proven optimum")]
    assert len(methods) == 4 + 2 * len(RULES)
    assert all({"gpus", "gpcs", "seconds", "misses", "worst"} <= set(by_who[m]) for m in methods)
    for rule in RULES:
        least = by_who[f"proven optimum, {rule.name}"]
        assert by_who[f"Tessera, {rule.name}, exact"]["gpus"] >= least["gpus"] >= least["bound"]
    assert by_who["Tessera, p99-safe"]["misses"] == 0
    assert by_who["one model per GPU"]["gpcs"] == 7 * by_who["one model per GPU"]["gpus"]


def test_copies_stand_beside_their_linear_program() -> None:
    found = list(copies_lines(DATA, QUICK, lambda _: None))
    ours = [each.medians for each in found if each.labels["who"].startswith("Tessera")]
    assert len(ours) == 2
    assert all(0 < each["lp_bound"] <= each["gpus"] for each in ours)


@pytest.mark.parametrize("rule", [twice, filled])
def test_a_rule_lets_only_points_run_that_it_allows(rule: object) -> None:
    state = cluster(PROFILES, LOADS, nodes=1)
    plan = Planner(by(rule)).plan(state)  # type: ignore[arg-type]
    assert not plan.refused
    placed = deployment_of(plan, LOADS)
    for load in LOADS:
        segments = placed.segments(load.name)
        assert sum(each.point.rate_per_s for each in segments) >= load.rate_per_s
        for each in segments:
            (measured,) = (
                point
                for point in PROFILES[load.model]
                if (point.gpcs, point.batch, point.processes)
                == (each.gpcs, each.point.batch, each.point.processes)
            )
            wait = measured.latency_ms if rule is twice else 1e3 * measured.batch / load.rate_per_s
            assert measured.latency_ms + wait <= 0.9 * load.slo_ms


def test_parts_that_are_shared_carry_nothing_where_rates_add_up() -> None:
    # Two services that one whole board could hold together: with additive rates it takes two.
    state = mixed_fleet(20, 2, seed=3)
    plan = Planner(AloneCurves).plan(state)
    assert not plan.refused
    assert all(not each.shares_with for each in plan.assignments)


@given(st.lists(st.integers(1, 9), min_size=1, max_size=3), st.integers(1, 30), st.integers(1, 12))
def test_minimal_sets_are_all_that_carry_and_can_spare_nothing(
    rates: list[int], need: int, most: int
) -> None:
    expected = {
        counts
        for counts in product(range(most + 1), repeat=len(rates))
        if sum(counts) <= most
        for carried in [sum(n * rate for n, rate in zip(counts, rates, strict=True))]
        if carried >= need
        and all(carried - rate < need for n, rate in zip(counts, rates, strict=True) if n)
    }
    found = list(minimal(rates, need, most))
    assert set(found) == expected
    assert len(found) == len(expected)


def test_the_optimum_over_all_covers_is_no_dearer_than_a_plan() -> None:
    state = cluster(PROFILES, LOADS, nodes=1)
    offered = choices(state, by(twice))
    optimum = offered.optimum(max_nodes=1000)
    assert optimum is not None
    assert optimum.proven
    assert offered.lp_bound() <= optimum.cost <= Planner(by(twice)).plan(state).cost


def test_an_applied_plan_touches_nothing_and_another_service_little() -> None:
    planner = Planner()
    empty = mixed_fleet(3, 6, seed=1)
    plan = planner.plan(empty)
    state = applied(plan, empty)
    assert touched(plan, planner.decide(state, QUIET)) == 0
    nothing = Planner().plan(mixed_fleet(3, 1, seed=1))
    assert touched(nothing, plan) > 0


def test_a_line_says_what_it_missed() -> None:
    near = line("a case", "somebody", {"gpus": 2.0 + 1e-12}, Reach("gpus", at_most=2))
    far = line("a case", "else", [{"gpus": 2.0}, {"gpus": 4.0}], Reach("gpus", at_most=2))
    assert near.missed == ()
    assert far.as_dict()["missed"] == ["GPUs ≤ 2"]
    text = drawn([near, far], [Skipped("another", "no data")])
    assert "reached" in text
    assert "MISSED GPUs ≤ 2" in text
    assert "skipped: no data" in text
    assert "p99" not in text
