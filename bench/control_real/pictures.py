"""An SVG for each table: rows downwards, a dot for each figure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import cycle
from math import isnan
from pathlib import Path
from xml.sax.saxutils import escape

from bench.control_real.comparing import COMPARISON, SWEEP
from bench.control_real.judged import ABLATION
from bench.control_real.stepping import RATE, SLO
from bench.harness import Row

_COLOURS = ("#1f6f8b", "#c05621", "#6b8e23", "#222222", "#8a5fa8", "#b0304f", "#c9a227")
_ROW, _LABEL, _WIDE, _TOP, _MARGIN, _LEGEND = 16, 190, 420, 46, 24, 170


@dataclass(frozen=True, slots=True)
class Chart:
    """Values by row and series; NaN is drawn as none that came."""

    title: str
    rows: dict[str, dict[str, float]]

    @property
    def series(self) -> list[str]:
        return list(dict.fromkeys(name for row in self.rows.values() for name in row))


def draw(rows: Sequence[Row], written: Path) -> None:
    """Beside the JSON at ``written``; a chart of what was not measured is left out."""
    for name, chart in charts(rows).items():
        if chart.rows:
            written.with_name(f"{written.stem}-{name}.svg").write_text(svg(chart))


def charts(rows: Sequence[Row]) -> dict[str, Chart]:
    """By the name of the file."""
    found = {
        "goodput": Chart("Share of requests within the SLO", {}),
        "ablation": Chart("Goodput with one knob over that with both", {}),
        "steps": Chart("Seconds until requests are in time again", {}),
        "sweep": Chart("Share within the SLO of static settings, by rows and instances", {}),
    }
    for row in rows:
        of, medians = row.labels, row.medians
        case, where = of["case"], f"{of['network']} at {of.get('load', '')}"
        if case == COMPARISON:
            found["goodput"].rows.setdefault(where, {})[of["policy"]] = medians["share"]
        elif case == ABLATION:
            found["ablation"].rows[where] = medians
        elif case in (RATE, SLO):
            line = found["steps"].rows.setdefault(f"{of['network']}, {case}", {})
            line[of["policy"]] = medians["back_s"]
        elif case == SWEEP:
            cap, _, count = of["setting"].partition(" x ")
            line = found["sweep"].rows.setdefault(f"{where}, {count} instances", {})
            line[f"{cap} rows"] = medians["share"]
    return found


def svg(chart: Chart) -> str:
    height = _TOP + max(len(chart.rows) * _ROW, len(chart.series) * _ROW) + _MARGIN
    width = _LABEL + _WIDE + _MARGIN + _LEGEND
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
        f'font-family="sans-serif" font-size="10">\n'
        f'<rect width="{width}" height="{height}" fill="white"/>\n'
        + "\n".join(_panel(chart))
        + "\n</svg>\n"
    )


def _panel(chart: Chart) -> Iterator[str]:
    colours = dict(zip(chart.series, cycle(_COLOURS)))
    values = [value for row in chart.rows.values() for value in row.values() if not isnan(value)]
    most = max(1.0, *values) if values else 1.0
    yield f'<text x="{_LABEL}" y="16" font-weight="bold">{escape(chart.title)}</text>'
    for share in (0.0, 0.5, 1.0):
        x = _LABEL + share * _WIDE
        yield f'<path d="M{x},{_TOP - 8} V{_TOP + len(chart.rows) * _ROW}" stroke="#ccc"/>'
        yield f'<text x="{x}" y="{_TOP - 12}" text-anchor="middle">{share * most:.3g}</text>'
    for place, (label, row) in enumerate(chart.rows.items()):
        y = _TOP + place * _ROW + 4
        yield f'<text x="{_LABEL - 8}" y="{y + 3}" text-anchor="end">{escape(label)}</text>'
        for name, value in row.items():
            if isnan(value):
                yield f'<text x="{_LABEL + _WIDE + 4}" y="{y + 3}" fill="{colours[name]} ">never</text>'
            else:
                x = _LABEL + value / most * _WIDE
                dot = f'cx="{x:.1f}" cy="{y}" r="3.4" fill="{colours[name]}" fill-opacity="0.75"'
                yield f"<circle {dot}><title>{escape(name)}: {value:.3f}</title></circle>"
    for place, (name, colour) in enumerate(colours.items()):
        y = _TOP + place * _ROW + 7
        x = _LABEL + _WIDE + _MARGIN
        yield f'<text x="{x}" y="{y}" fill="{colour}">● {escape(name)}</text>'
