"""One table for cases that measure different things: every line has the figures that it has, and what to reach.

A figure has one name, one unit and one format wherever it stands. ``Reach`` is a bound on a line's median;
a line that misses one says so in the table and in the JSON.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from bench.harness import Figures, Row
from rich.table import Table

CASE, WHO = "case", "who"
_ROUNDING = 1e-9

Says = Callable[[str], None]
"""Where progress goes."""

# Name of a figure: its column and its format.
COLUMNS: dict[str, tuple[str, str]] = {
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
OTHERS: dict[str, tuple[str, str]] = {
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
class Reach:
    """What the median of a figure has to be."""

    figure: str
    at_most: float | None = None
    at_least: float | None = None

    def met(self, value: float) -> bool:
        """Up to rounding."""
        slack = _ROUNDING * abs(value)
        return (self.at_most is None or value <= self.at_most + slack) and (
            self.at_least is None or value >= self.at_least - slack
        )

    def __str__(self) -> str:
        name, _ = (COLUMNS | OTHERS)[self.figure]
        least = "" if self.at_least is None else f" ≥ {self.at_least:g}"
        most = "" if self.at_most is None else f" ≤ {self.at_most:g}"
        return f"{name}{least}{most}"


@dataclass(frozen=True, slots=True)
class Line(Row):
    """A row of the table with what it has to reach and remarks that are no figures."""

    reach: tuple[Reach, ...] = ()
    detail: dict[str, Any] = field(default_factory=dict)
    """Kept in the JSON only."""

    @property
    def missed(self) -> tuple[Reach, ...]:
        medians = self.medians
        return tuple(each for each in self.reach if not each.met(medians[each.figure]))

    def as_dict(self) -> dict[str, Any]:
        return {
            # Not super(): slots=True makes the class anew, which the argumentless form cannot see.
            **Row.as_dict(self),
            "reach": [str(each) for each in self.reach],
            "missed": [str(each) for each in self.missed],
            **({"detail": self.detail} if self.detail else {}),
        }


@dataclass(frozen=True, slots=True)
class Skipped:
    """A case that could not be measured, and why."""

    case: str
    reason: str


def line(
    case: str,
    who: str,
    repeats: Figures | Sequence[Figures],
    *reach: Reach,
    **detail: Any,
) -> Line:
    """A line of one measurement or of several."""
    several = (repeats,) if isinstance(repeats, dict) else tuple(repeats)
    return Line({CASE: case, WHO: who}, several, reach, detail)


def table(lines: Sequence[Line], skipped: Iterable[Skipped] = ()) -> Table:
    """Medians; figures without a column of their own are named in the last but one."""
    present = {name for each in lines for name in each.medians}
    columns = {name: of for name, of in COLUMNS.items() if name in present}
    drawn = Table(title="Planner: medians")
    drawn.add_column("case")
    drawn.add_column("who")
    for title, _ in columns.values():
        drawn.add_column(title, justify="right", no_wrap=True)
    drawn.add_column("also", ratio=3)
    drawn.add_column("to reach", ratio=1)
    last = None
    for each in lines:
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
            _verdict(each),
        )
        last = case
    for gone in skipped:
        drawn.add_section()
        drawn.add_row(gone.case, f"skipped: {gone.reason}")
    return drawn


def _verdict(each: Line) -> str:
    if not each.reach:
        return ""
    missed = each.missed
    return "reached" if not missed else "MISSED " + ", ".join(map(str, missed))
