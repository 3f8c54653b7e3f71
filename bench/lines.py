"""Rows of figures with what they have to reach: what the benches have in common that print one table for many cases.

A figure has one name, one unit and one format wherever it stands in a bench. ``Reach`` is a bound on a line's median;
a line that misses one says so in the table and in the JSON.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from bench.harness import Figures, Row

CASE, WHO = "case", "who"
_ROUNDING = 1e-9

Says = Callable[[str], None]
"""Where progress goes."""

Columns = Mapping[str, tuple[str, str]]
"""Name of a figure: its column and its format."""


@dataclass(frozen=True, slots=True)
class Reach:
    """What the median of a figure has to be."""

    figure: str
    at_least: float | None = None
    at_most: float | None = None

    def met(self, value: float) -> bool:
        """Up to rounding."""
        slack = _ROUNDING * abs(value)
        return (self.at_least is None or value >= self.at_least - slack) and (
            self.at_most is None or value <= self.at_most + slack
        )

    def said(self, title: str) -> str:
        """``title``: of the figure's column."""
        least = "" if self.at_least is None else f" ≥ {self.at_least:.3g}"
        most = "" if self.at_most is None else f" ≤ {self.at_most:g}"
        return f"{title}{least}{most}"


@dataclass(frozen=True, slots=True)
class Line(Row):
    """A row of the table with what it has to reach and remarks that are no figures."""

    reach: tuple[Reach, ...] = ()
    titles: dict[str, str] = field(default_factory=dict)
    """Columns of the figures that have something to reach."""
    detail: dict[str, Any] = field(default_factory=dict)

    @property
    def missed(self) -> tuple[Reach, ...]:
        medians = self.medians
        return tuple(each for each in self.reach if not each.met(medians[each.figure]))

    def said(self, bounds: Iterable[Reach]) -> list[str]:
        return [each.said(self.titles[each.figure]) for each in bounds]

    @property
    def verdict(self) -> str:
        """Empty where there is nothing to reach."""
        if not self.reach:
            return ""
        missed = self.missed
        return "MISSED " + ", ".join(self.said(missed)) if missed else "reached"

    def as_dict(self) -> dict[str, Any]:
        return {
            # Not super(): slots=True makes the class anew, which the argumentless form cannot see.
            **Row.as_dict(self),
            "reach": self.said(self.reach),
            "missed": self.said(self.missed),
            **({"detail": self.detail} if self.detail else {}),
        }


def line(
    columns: Columns,
    case: str,
    who: str,
    repeats: Figures | Sequence[Figures],
    *reach: Reach,
    **detail: Any,
) -> Line:
    """A line of one measurement or of several."""
    several = (repeats,) if isinstance(repeats, dict) else tuple(repeats)
    titles = {each.figure: columns[each.figure][0] for each in reach}
    return Line({CASE: case, WHO: who}, several, reach, titles, detail)


def misses(lines: Iterable[Line]) -> list[str]:
    """What each line did not reach."""
    return [
        f"{each.labels[CASE]}, {each.labels[WHO]}: {bound}"
        for each in lines
        for bound in each.said(each.missed)
    ]
