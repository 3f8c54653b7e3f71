"""A year of 10,000 GPUs and 2,000 services under one policy for capacity after another: ``make bench-fleet``.

Every policy sees the same rates and the same failures. Two samples say how far the figures can be trusted: slots of a
service that are simulated request by request, and plans of the real planner.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from time import perf_counter, process_time

sys.path.insert(0, str(Path(__file__).parents[2]))  # `python bench/fleet/main.py` as well as -m

import numpy as np
from bench.fleet.lines import line, tables
from bench.fleet.planned import QUICK as QUICK_PLANS
from bench.fleet.planned import Size as Plans
from bench.fleet.planned import planned_lines, smaller
from bench.harness import arguments, versions, write_results
from bench.lines import Line, Reach, Says, misses
from bench.planner.alone import peak_mib
from rich.console import Console

from tessera_cli.fleet_svg import svg
from tessera_cli.simulate_fleet import read_fleet
from tessera_core.simulate.fleet import Fleet, PolicyKind, Year, simulate_years
from tessera_core.simulate.fleet.sample import Cell, agreement, within_by_events

FLEET = Path(__file__).with_name("fleet.yaml")
QUICK_TIMES, QUICK_SLOTS = 50, 288
TABLE_WIDTH = 170
BUDGETS, BUDGET_DAYS = (64, 16, 8, 4, 2), 28
TOGETHER = ((PolicyKind.TESSERA, PolicyKind.WHOLE, PolicyKind.STATIC), (PolicyKind.HPA,))
"""Policies that share a process, so that two processes take about as long."""


@dataclass(frozen=True, slots=True)
class Size:
    cells: int = 200
    """Slots of a service that are simulated request by request, and as many that have not yet grown."""
    requests: int = 40_000
    """Of each."""
    plans: Plans = field(default_factory=Plans)


QUICK = Size(cells=10, requests=2_000, plans=QUICK_PLANS)


@dataclass(frozen=True, slots=True)
class Passed:
    """The years of one process."""

    years: list[Year]
    cpu_seconds: float
    peak_mib: float


def pass_years(fleet: Fleet, cells: int, kinds: tuple[PolicyKind, ...]) -> Passed:
    """In this process."""
    began = process_time()
    years = simulate_years(fleet, kinds, cells)
    return Passed(years, process_time() - began, peak_mib())


def measure(fleet: Fleet, size: Size, workers: int, says: Says) -> tuple[list[Line], list[Year]]:
    """All lines, and the years, Tessera's first."""
    began = perf_counter()
    with ProcessPoolExecutor(workers) as pool:
        says("years")
        passed = list(pool.map(partial(pass_years, fleet, size.cells), TOGETHER))
        took = perf_counter() - began
        years = [year for each in passed for year in each.years]
        lines = year_lines(fleet, years)
        lines.append(
            line(
                "The years themselves",
                f"{workers} processes",
                {
                    "seconds": took,
                    "cpu_seconds": sum(each.cpu_seconds for each in passed),
                    "peak_mib": max(each.peak_mib for each in passed),
                },
                Reach("seconds", at_most=900),
            )
        )
        says("budgets")
        lines += budget_lines(fleet, pool)
        says("slots request by request")
        lines += checked_lines(fleet, years, size, pool)
    lines += planned_lines(fleet, size.plans, says)
    return lines, years


def year_lines(fleet: Fleet, years: Sequence[Year]) -> list[Line]:
    """One for each policy, the first being Tessera's."""
    days = fleet.horizon_s / 86_400
    gpus = sum(pool.gpus for pool in fleet.pools)
    case = f"{days:g} days, {gpus:,} GPUs, {fleet.count:,} services"
    own = years[0]
    found = []
    for year in years:
        requests = float(year.requests.sum())
        figures = {
            "gpu_hours": float(year.gpu_hours.sum()),
            "times_tessera": float(year.gpu_hours.sum() / own.gpu_hours.sum()),
            "cost": year.cost,
            "cost_times_tessera": year.cost / own.cost,
            "attainment": year.attainment,
            "below": float(year.services_below),
            "late_ppm": 1e6 * float(year.late.sum()) / requests,
            "lost_ppm": 1e6 * float(year.lost.sum()) / requests,
            "launches": year.launches,
            "recuts": year.recuts,
            "failed": float(year.failed),
            "most_gpus": float(year.most_gpus.sum()),
            "short_slots": float(year.short_slots),
        }
        reach = (
            (Reach("below", at_most=0), Reach("attainment", at_least=0.99))
            if year is own
            else (Reach("times_tessera", at_least=1.25),)
        )
        found.append(line(case, year.policy, figures, *reach, Reach("short_slots", at_most=0)))
    return found


def budget_lines(fleet: Fleet, pool: ProcessPoolExecutor) -> list[Line]:
    """Tessera where fewer GPUs of a pool may be cut at a time."""
    short = replace(fleet, horizon_s=min(fleet.horizon_s, BUDGET_DAYS * 86_400))
    fleets = [
        replace(short, pools=tuple(replace(each, recut_at_once=most) for each in fleet.pools))
        for most in BUDGETS
    ]
    passed = pool.map(partial(pass_years, cells=0, kinds=(PolicyKind.TESSERA,)), fleets)
    return [
        line(
            f"Tessera over {short.horizon_s / 86_400:g} days, GPUs of a pool that are cut at a time",
            f"{most} at most",
            {
                "attainment": year.attainment,
                "below": float(year.services_below),
                "recuts": year.recuts,
            },
        )
        for most, each in zip(BUDGETS, passed, strict=True)
        for year in each.years
    ]


def checked_lines(
    fleet: Fleet, years: Sequence[Year], size: Size, pool: ProcessPoolExecutor
) -> list[Line]:
    """The sample of every policy, request by request."""
    found = []
    for year in years:
        for why in dict.fromkeys(cell.why for cell in year.cells):
            cells = [cell for cell in year.cells if cell.why == why]
            numbered = list(enumerate(cells))
            events = list(pool.map(partial(_events, fleet.seed, size.requests), numbered))
            said = agreement(cells, events)
            figures = {
                "cells": float(said.cells),
                "by_tables": said.by_tables,
                "by_events": said.by_events,
                "apart": abs(said.by_tables - said.by_events),
                "typical": said.typical,
                "most": said.most,
                "too_high": said.too_high,
            }
            case = f"Slots request by request: {why}"
            found.append(line(case, year.policy, figures, Reach("apart", at_most=0.01)))
    order = list(dict.fromkeys(each.labels["case"] for each in found))
    return sorted(found, key=lambda each: order.index(each.labels["case"]))


def _events(seed: int, requests: int, numbered: tuple[int, Cell]) -> float:
    index, cell = numbered
    return within_by_events(cell, requests, np.random.default_rng([seed, 6, index]))


def main(options: Sequence[str] | None = None) -> int:
    parser = arguments("A fleet over a year, one policy for capacity beside another.")
    parser.add_argument(
        "--workers", type=int, help="processes (default: one for each core, two at most)"
    )
    chosen = parser.parse_args(options)
    fleet, size = read_fleet(str(FLEET)), Size()
    if chosen.quick:
        fleet, size = smaller(fleet, QUICK_TIMES, QUICK_SLOTS), QUICK
    workers = chosen.workers or min(2, len(os.sched_getaffinity(0)))
    lines, years = measure(fleet, size, workers, Console(stderr=True).print)
    console = Console(width=TABLE_WIDTH)
    for drawn in tables(lines):
        console.print(drawn)
    facts = {"versions": versions(("numpy",)), "missed": misses(lines)}
    for missed in facts["missed"]:
        console.print(f"missed: {missed}")
    written = write_results("fleet", chosen, facts, lines)
    if written is not None:
        console.print(f"written: {written}")
        written.with_suffix(".svg").write_text(svg(years))
    return 0


if __name__ == "__main__":
    sys.exit(main())
