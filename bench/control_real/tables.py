"""One printed table for each case: medians."""

from __future__ import annotations

from collections.abc import Sequence
from math import isnan

from bench.harness import Row
from rich.table import Table

# Name of a figure: its column and its format.
FIGURES = {
    "capacity_per_s": ("in time/s", "{:,.0f}"),
    "offered_per_s": ("offered/s", "{:,.0f}"),
    "good_per_s": ("in time/s", "{:,.0f}"),
    "share": ("share", "{:.3f}"),
    "p99_ms": ("p99 ms", "{:.1f}"),
    "sent_late": ("sent late", "{:.2%}"),
    "cap": ("rows", "{:.0f}"),
    "instances": ("instances", "{:.0f}"),
    "best static": ("over best static", "{:.3f}"),
    "dnnscaler": ("over dnnscaler", "{:.3f}"),
    "clipper": ("over clipper", "{:.3f}"),
    "static_batching": ("best static: batching only", "{:.2f}"),
    "static_instances": ("multi-tenancy only", "{:.2f}"),
    "policy_batching": ("policy: batching only", "{:.2f}"),
    "policy_instances": ("multi-tenancy only", "{:.2f}"),
    "back_s": ("back after s", "{:.0f}"),
}
LEFT_OUT = ("profile", "static settings")
"""Cases of many rows; they are in the file."""


def tables(rows: Sequence[Row]) -> list[Table]:
    cases = dict.fromkeys(row.labels["case"] for row in rows)
    return [
        _table(case, [row for row in rows if row.labels["case"] == case])
        for case in cases
        if case not in LEFT_OUT
    ]


def _table(case: str, rows: Sequence[Row]) -> Table:
    drawn = Table(title=case)
    labels = [name for name in rows[0].labels if name != "case"]
    present = {name for row in rows for name in row.medians}
    figures = {name: of for name, of in FIGURES.items() if name in present}
    for name in labels:
        drawn.add_column(name)
    for title, _ in figures.values():
        drawn.add_column(title, justify="right")
    for row in rows:
        medians = row.medians
        cells = [_cell(form, medians.get(name)) for name, (_, form) in figures.items()]
        drawn.add_row(*(row.labels[name] for name in labels), *cells)
    return drawn


def _cell(form: str, value: float | None) -> str:
    if value is None:
        return ""
    return "never" if isnan(value) else form.format(value)
