"""The figures of this bench, and one table for cases that measure different things: every line has what it has."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial

from bench.lines import CASE, WHO, Line
from rich.table import Table

from bench import lines

# Name of a figure: its column and its format.
COLUMNS: lines.Columns = {
    "gpus": ("GPUs", "{:.0f}"),
    "gpcs": ("GPCs", "{:.0f}"),
    "cost": ("cost", "{:,.1f}"),
    "bound": ("bound", "{:,.1f}"),
    "gap_percent": ("gap %", "{:.2f}"),
    "seconds": ("s", "{:.3f}"),
    "misses": ("p99 missed", "{:.0f}"),
    "worst": ("worst p99/SLO", "{:.2f}"),
}
# Figures without a column of their own.
OTHERS: lines.Columns = {
    "lp_bound": ("LP bound", "{:,.3f}"),
    "lp_gap_percent": ("above LP %", "{:.2f}"),
    "peak_mib": ("peak MiB", "{:,.0f}"),
    "facts_mib": ("facts MiB", "{:,.0f}"),
    "refused": ("members refused", "{:.0f}"),
    "short": ("services short", "{:.0f}"),
    "used": ("boards used", "{:,.0f}"),
    "changes": ("changes", "{:.0f}"),
    "median_ms": ("median ms", "{:,.1f}"),
    "p95_ms": ("p95 ms", "{:,.1f}"),
    "worst_ms": ("worst ms", "{:,.1f}"),
    "median_touched": ("median GPUs touched", "{:g}"),
    "most_touched": ("most GPUs touched", "{:.0f}"),
    "most_unserved": ("most not served", "{:.0f}"),
    "read_one_ms": ("read one service ms", "{:,.2f}"),
    "read_all_ms": ("read everything ms", "{:,.0f}"),
    "hash_ms": ("hash ms", "{:,.1f}"),
    "write_ms": ("write all nodes ms", "{:,.1f}"),
    "report_ms": ("write the report ms", "{:,.1f}"),
    "cases": ("cases", "{:,.0f}"),
    "infeasible": ("infeasible for both", "{:,.0f}"),
    "missed_feasible": ("feasible but refused", "{:.0f}"),
    "beats_brute": ("below brute force", "{:.0f}"),
    "too_large": ("too large for brute force", "{:.0f}"),
    "optimal": ("at the optimum", "{:,.0f}"),
    "mean_ratio": ("mean ratio", "{:.4f}"),
    "worst_ratio": ("worst ratio", "{:.3f}"),
    "least_over_batch": ("least / best-batch-only", "{:.3f}"),
    "most_over_batch": ("most / best-batch-only", "{:.2f}"),
    "least_over_greedy": ("least / WFD+greedy", "{:.3f}"),
    "most_over_greedy": ("most / WFD+greedy", "{:.2f}"),
    "only_ours": ("settings that only Tessera fits", "{:.0f}"),
    "services": ("services", "{:,.0f}"),
    "members": ("members", "{:,.0f}"),
    "boards": ("boards", "{:,.0f}"),
}


_SAID_WHEN_ANY = {"refused", "short", "too_large", "only_ours"}


@dataclass(frozen=True, slots=True)
class Skipped:
    """A case that could not be measured, and why."""

    case: str
    reason: str


line = partial(lines.line, {**COLUMNS, **OTHERS})
"""A line of this bench: case, who, figures, what they have to reach."""


def table(found: Sequence[Line], skipped: Iterable[Skipped] = ()) -> Table:
    """Medians; figures without a column of their own are named in the last but one."""
    present = {name for each in found for name in each.medians}
    columns = {name: of for name, of in COLUMNS.items() if name in present}
    drawn = Table(title="Planner: medians")
    drawn.add_column("case")
    drawn.add_column("who")
    for title, _ in columns.values():
        drawn.add_column(title, justify="right", no_wrap=True)
    drawn.add_column("also", ratio=3)
    drawn.add_column("to reach", ratio=1)
    last = None
    for each in found:
        case = each.labels[CASE]
        if last is not None and case != last:
            drawn.add_section()
        medians = each.medians
        drawn.add_row(
            "" if case == last else case,
            each.labels[WHO],
            *(
                form.format(medians[name]) if name in medians else ""
                for name, (_, form) in columns.items()
            ),
            ", ".join(
                f"{title} {form.format(medians[name])}"
                for name, (title, form) in OTHERS.items()
                if medians.get(name, 0) or (name in medians and name not in _SAID_WHEN_ANY)
            ),
            each.verdict,
        )
        last = case
    for gone in skipped:
        drawn.add_section()
        drawn.add_row(gone.case, f"skipped: {gone.reason}")
    return drawn
