"""``tessera simulate --cluster``: a fleet over a year, one policy for capacity beside another."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table
from rich.text import Text

from tessera_cli.files import FileInvalid, read_documents
from tessera_cli.fleet_svg import svg
from tessera_cli.output import emit, fail, stderr
from tessera_cli.simulate_load import whole
from tessera_cli.tables import table
from tessera_core.api import SpecInvalid
from tessera_core.simulate.fleet import (
    POLICIES,
    Fleet,
    PolicyKind,
    Year,
    fleet_from_dict,
    simulate_years,
)
from tessera_core.simulate.fleet.sample import Agreement, agreement, within_by_events

_REQUESTS = 20_000
"""Of each slot that is checked."""


def add_cluster_arguments(parser: argparse.ArgumentParser) -> None:
    fleet = parser.add_argument_group("a fleet over a year")
    fleet.add_argument(
        "--cluster",
        metavar="FLEET",
        help="file with pools, groups of services, control and failures",
    )
    fleet.add_argument(
        "--policy",
        action="append",
        choices=[kind.value for kind in POLICIES],
        help="for capacity; may be repeated; default: all",
    )
    fleet.add_argument(
        "--check",
        type=whole(0, 10_000),
        default=20,
        metavar="N",
        help="slots of a service that are simulated request by request as well; default: 20",
    )


def run_cluster(arguments: argparse.Namespace) -> int:
    if arguments.plot and not arguments.plot.endswith(".svg"):
        return fail("simulate", f"--plot: found {arguments.plot}, allowed with --cluster: a .svg")
    kinds = [PolicyKind(each) for each in arguments.policy or POLICIES]
    try:
        fleet = read_fleet(arguments.cluster)
        with stderr.status("simulating") as status:
            years = simulate_years(
                fleet, kinds, arguments.check, lambda text: status.update(f"simulating: {text}")
            )
            checked = _checked(years[0], fleet) if arguments.check else {}
    except (FileInvalid, ValueError) as error:
        return fail("simulate", str(error))
    if arguments.plot:
        try:
            Path(arguments.plot).write_text(svg(years), encoding="utf-8")
        except OSError as error:
            return fail("simulate", f"--plot {arguments.plot}: {error}")
    emit(arguments.output, _document(fleet, years, checked), lambda: _table(fleet, years))
    if checked and arguments.output == "table":
        emit("table", None, lambda: _agreement_table(checked))
    kept = years[0].services_below == 0 and years[0].short_slots == 0
    return 0 if kept else 1


def read_fleet(path: str) -> Fleet:
    """The fleet in a file of one document. Raises FileInvalid naming each field that is wrong."""
    documents = read_documents(path)
    name = documents[0].file if documents else path
    if len(documents) != 1:
        raise FileInvalid(f"{name}: found {len(documents)} documents, allowed: one fleet")
    try:
        return fleet_from_dict(documents[0].content)
    except SpecInvalid as error:
        lines = str(error).replace("\n", "\n  ")
        raise FileInvalid(f"{name} is not a valid fleet:\n  {lines}") from error


def _checked(year: Year, fleet: Fleet) -> dict[str, Agreement]:
    """By why a slot was picked."""
    found = {}
    for why in dict.fromkeys(cell.why for cell in year.cells):
        cells = [cell for cell in year.cells if cell.why == why]
        events = [
            within_by_events(cell, _REQUESTS, np.random.default_rng([fleet.seed, 6, index]))
            for index, cell in enumerate(cells)
        ]
        found[why] = agreement(cells, events)
    return found


def _document(fleet: Fleet, years: Sequence[Year], checked: dict[str, Agreement]) -> dict[str, Any]:
    return {
        "gpus": sum(pool.gpus for pool in fleet.pools),
        "services": fleet.count,
        "slots": fleet.slots,
        "slotSeconds": fleet.slot_s,
        "seed": fleet.seed,
        "policies": [
            {
                "policy": year.policy,
                "gpuHours": round(float(year.gpu_hours.sum()), 1),
                "gpuHoursByPool": {
                    pool.name: round(hours, 1)
                    for pool, hours in zip(fleet.pools, year.gpu_hours.tolist(), strict=True)
                },
                "cost": round(year.cost, 1),
                "requests": round(float(year.requests.sum())),
                "inTime": round(float(year.in_time.sum())),
                "late": round(float(year.late.sum())),
                "lost": round(float(year.lost.sum())),
                "attainment": round(year.attainment, 6),
                "servicesBelowSLO": year.services_below,
                "launches": round(year.launches),
                "gpusCut": round(year.recuts),
                "instancesFailed": year.failed,
                "mostGpus": round(float(year.most_gpus.sum()), 1),
                "slotsShort": year.short_slots,
            }
            for year in years
        ],
        "checked": [
            {
                "slots": why,
                "of": years[0].policy,
                "count": each.cells,
                "byTables": round(each.by_tables, 6),
                "byEvents": round(each.by_events, 6),
                "typicalDifference": round(each.typical, 6),
                "largestDifference": round(each.most, 6),
            }
            for why, each in checked.items()
        ],
    }


def _table(fleet: Fleet, years: Sequence[Year]) -> Table:
    title = (
        f"{sum(pool.gpus for pool in fleet.pools):,} GPUs, {fleet.count:,} services, "
        f"{fleet.horizon_s / 86_400:g} days in slots of {fleet.slot_s:g} s"
    )
    numbers = (
        "GPU hours",
        "cost",
        "in SLO",
        "below",
        "late",
        "lost",
        "launches",
        "GPUs cut",
        "most",
    )
    shown = table(title, ("policy",), numbers)
    for year in years:
        requests = max(float(year.requests.sum()), 1e-300)
        short = f" short in {year.short_slots} slots" if year.short_slots else ""
        shown.add_row(
            year.policy,
            f"{year.gpu_hours.sum():,.0f}",
            f"{year.cost:,.0f}",
            f"{year.attainment:.3%}",
            Text(f"{year.services_below}", "red" if year.services_below else "green"),
            f"{year.late.sum() / requests:.3%}",
            f"{year.lost.sum() / requests:.5%}",
            f"{year.launches:,.0f}",
            f"{year.recuts:,.0f}",
            f"{year.most_gpus.sum():,.0f}{short}",
        )
    return shown


def _agreement_table(checked: dict[str, Agreement]) -> Table:
    shown = table(
        "Request by request",
        ("slots",),
        ("count", "in SLO by tables", "by events", "median apart", "most apart"),
    )
    for why, each in checked.items():
        shown.add_row(
            why,
            f"{each.cells}",
            f"{each.by_tables:.3%}",
            f"{each.by_events:.3%}",
            f"{each.typical:.3%}",
            f"{each.most:.2%}",
        )
    return shown
