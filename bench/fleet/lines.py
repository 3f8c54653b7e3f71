"""The figures of this bench, and one printed table for each case: a row for each figure, as policies are few."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from bench.lines import CASE, WHO, Line
from rich.table import Table

from bench import lines

# Name of a figure: its title and its format.
FIGURES: lines.Columns = {
    "gpu_hours": ("GPU hours", "{:,.0f}"),
    "times_tessera": ("GPU hours over tessera's", "{:.2f}"),
    "cost": ("cost", "{:,.0f}"),
    "cost_times_tessera": ("cost over tessera's", "{:.2f}"),
    "attainment": ("requests in SLO", "{:.5f}"),
    "below": ("services below their SLO", "{:,.0f}"),
    "late_ppm": ("late, per million", "{:,.1f}"),
    "lost_ppm": ("lost, per million", "{:,.2f}"),
    "launches": ("instances launched", "{:,.0f}"),
    "recuts": ("GPUs cut anew", "{:,.0f}"),
    "failed": ("instances that failed", "{:,.0f}"),
    "most_gpus": ("most GPUs at a time", "{:,.0f}"),
    "short_slots": ("slots short of GPUs", "{:,.0f}"),
    "cells": ("slots of a service", "{:,.0f}"),
    "by_tables": ("in SLO by the tables", "{:.5f}"),
    "by_events": ("in SLO by events", "{:.5f}"),
    "apart": ("means apart", "{:.5f}"),
    "typical": ("median difference", "{:.5f}"),
    "most": ("largest difference", "{:.4f}"),
    "too_high": ("share promised 0.01 too much", "{:.3f}"),
    "gpu_hours_ratio": ("GPUs, planner over arithmetic", "{:.3f}"),
    "launches_ratio": ("launches, planner over arithmetic", "{:.2f}"),
    "recuts_ratio": ("GPUs cut, planner over arithmetic", "{:.2f}"),
    "refused": ("members refused", "{:,.0f}"),
    "seconds_per_plan": ("seconds a plan", "{:.2f}"),
    "seconds": ("seconds", "{:,.0f}"),
    "cpu_seconds": ("seconds of a core", "{:,.0f}"),
    "peak_mib": ("most MiB of a process", "{:,.0f}"),
}

line = partial(lines.line, FIGURES)
"""A line of this bench: case, who, figures, what they have to reach."""


def tables(found: Sequence[Line]) -> list[Table]:
    """One for each case."""
    return [
        _table(case, [each for each in found if each.labels[CASE] == case])
        for case in dict.fromkeys(each.labels[CASE] for each in found)
    ]


def _table(case: str, of_case: Sequence[Line]) -> Table:
    drawn = Table(title=case)
    drawn.add_column("")
    for each in of_case:
        drawn.add_column(each.labels[WHO], justify="right")
    for name, (title, form) in FIGURES.items():
        values = [each.medians.get(name) for each in of_case]
        if any(value is not None for value in values):
            shown = ("" if value is None else form.format(value) for value in values)
            drawn.add_row(title, *shown)
    drawn.add_row("to reach", *(each.verdict for each in of_case))
    return drawn
