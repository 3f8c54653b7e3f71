"""The figures of this bench, and one printed table for each case."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from bench.lines import CASE, WHO, Line
from rich.table import Table

from bench import lines

# Name of a figure: its column and its format.
FIGURES: lines.Columns = {
    "rate_per_s": ("rate/s", "{:,.1f}"),
    "tessera_share": ("tessera in SLO", "{:.3f}"),
    "dnnscaler_share": ("dnnscaler", "{:.3f}"),
    "clipper_share": ("clipper", "{:.3f}"),
    "oracle_share": ("best static", "{:.3f}"),
    "over_oracle": ("tessera / static", "{:.3f}"),
    "over_dnnscaler": ("- dnnscaler", "{:+.3f}"),
    "over_clipper": ("- clipper", "{:+.3f}"),
    "from_start": ("tessera / static from 0 s", "{:.3f}"),
    "below_from_start": ("below best other from 0 s", "{:.3f}"),
    "oracle_per_s": ("static/s", "{:,.1f}"),
    "tessera_per_s": ("tessera/s", "{:,.1f}"),
    "dnnscaler_per_s": ("dnnscaler/s", "{:,.1f}"),
    "clipper_per_s": ("clipper/s", "{:,.1f}"),
    "times_dnnscaler": ("x dnnscaler", "{:.2f}"),
    "times_clipper": ("x clipper", "{:.2f}"),
    "closed_times_dnnscaler": ("closed loop: x dnnscaler", "{:.2f}"),
    "closed_times_clipper": ("x clipper", "{:.2f}"),
    "closed_dnnscaler_times_clipper": ("dnnscaler x clipper", "{:.2f}"),
    "unequal_paths": ("on unequal paths", "{:.2f}"),
    "batching": ("batching only", "{:.2f}"),
    "instances": ("multi-tenancy only", "{:.2f}"),
    "joint_gain": ("joint / better one", "{:.2f}"),
    "policy_batching": ("policy: batching", "{:.2f}"),
    "policy_instances": ("multi-tenancy", "{:.2f}"),
    "policy_joint": ("joint", "{:.2f}"),
    "back_s": ("back in SLO after s", "{:.0f}"),
    "oracle_back_s": ("best static", "{:.0f}"),
    "violations": ("violations", "{:,.0f}"),
    "least_violations": ("best static's", "{:,.0f}"),
    "share": ("in SLO", "{:.4f}"),
    "most_instances": ("instances, most", "{:.0f}"),
    "mean_count": ("mean", "{:.1f}"),
    "memory_mib": ("memory MiB", "{:,.0f}"),
    "predicted": ("predicted /ms", "{:.3f}"),
    "known": ("known /ms", "{:.3f}"),
    "off_percent": ("off %", "{:.2f}"),
    "spread_j": ("spread J", "{:.4f}"),
    "consolidated_j": ("consolidated J", "{:.4f}"),
    "devices": ("devices", "{:.0f}"),
    "saved_percent": ("saved %", "{:.1f}"),
    # Of all jobs.
    "least_over_oracle": ("tessera / static: least", "{:.3f}"),
    "median_over_oracle": ("median", "{:.3f}"),
    "least_over_dnnscaler": ("- dnnscaler: least", "{:+.3f}"),
    "median_over_dnnscaler": ("median", "{:+.3f}"),
    "least_over_clipper": ("- clipper: least", "{:+.3f}"),
    "median_over_clipper": ("median", "{:+.3f}"),
    "least_from_start": ("/ static from 0 s: least", "{:.3f}"),
    "most_below_from_start": ("below best other from 0 s: most", "{:.3f}"),
    "missing": ("jobs that miss", "{:.0f}"),
    "least_times_dnnscaler": ("x dnnscaler: least", "{:.2f}"),
    "mean_times_dnnscaler": ("geometric mean", "{:.2f}"),
    "least_times_clipper": ("x clipper: least", "{:.2f}"),
    "mean_times_clipper": ("geometric mean", "{:.2f}"),
    "average_closed_dnnscaler_times_clipper": ("closed loop: dnnscaler x clipper, mean", "{:.2f}"),
    "most_closed_dnnscaler_times_clipper": ("most", "{:.2f}"),
    "average_unequal_paths": ("on unequal paths, mean", "{:.2f}"),
    "most_unequal_paths": ("most", "{:.2f}"),
    "mean_batching": ("batching only: median", "{:.2f}"),
    "mean_instances": ("multi-tenancy only: median", "{:.2f}"),
    "mean_policy_batching": ("policy, batching: median", "{:.2f}"),
    "mean_policy_instances": ("multi-tenancy: median", "{:.2f}"),
    "mean_policy_joint": ("joint: median", "{:.2f}"),
    "mean_joint_gain": ("joint / better one: geometric mean", "{:.2f}"),
    "most_joint_gain": ("most", "{:.2f}"),
}

NEVER_S = 1e3
"""In place of a time that did not come."""


line = partial(lines.line, FIGURES)
"""A line of this bench: case, who, figures, what they have to reach."""


def tables(found: Sequence[Line]) -> list[Table]:
    """One for each case, with the figures that it has; medians."""
    cases = dict.fromkeys(each.labels[CASE] for each in found)
    return [_table(case, [each for each in found if each.labels[CASE] == case]) for case in cases]


def _table(case: str, of_case: Sequence[Line]) -> Table:
    present = {name for each in of_case for name in each.medians}
    columns = {name: of for name, of in FIGURES.items() if name in present}
    drawn = Table(title=case)
    drawn.add_column("")
    for title, _ in columns.values():
        drawn.add_column(title, justify="right")
    remarks = list(dict.fromkeys(name for each in of_case for name in each.detail))
    for name in remarks:
        drawn.add_column(name)
    drawn.add_column("to reach")
    for each in of_case:
        medians = each.medians
        drawn.add_row(
            each.labels[WHO],
            *(_cell(form, medians.get(name)) for name, (_, form) in columns.items()),
            *(str(each.detail.get(name, "")) for name in remarks),
            each.verdict,
        )
    return drawn


def _cell(form: str, value: float | None) -> str:
    if value is None:
        return ""
    return "never" if value == NEVER_S else form.format(value)
