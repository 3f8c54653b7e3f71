"""A small SVG for each table: rows downwards, one dot for each figure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from xml.sax.saxutils import escape

from bench.control import capacities, loads, models
from bench.control.lines import FIGURES, NEVER_S
from bench.lines import CASE, WHO, Line

_COLOURS = ("#1f6f8b", "#c05621", "#6b8e23", "#222222")
_ROW, _LABEL, _WIDE, _TOP, _MARGIN = 15, 210, 230, 40, 24


@dataclass(frozen=True, slots=True)
class Picture:
    """One file: a panel for each case whose name begins so."""

    name: str
    case: str
    figures: tuple[str, ...]
    of: str = ""
    """A figure to divide by."""


SHARES = ("tessera_share", "dnnscaler_share", "clipper_share", "oracle_share")
PICTURES = (
    Picture("loads", loads.CASE, SHARES),
    Picture(
        "capacity",
        capacities.CASE,
        ("tessera_per_s", "dnnscaler_per_s", "clipper_per_s"),
        "oracle_per_s",
    ),
    Picture("ablation", capacities.ABLATION, ("batching", "instances", "policy_joint")),
    Picture("slo", "SLO", ("back_s", "oracle_back_s")),
    Picture("rate", "rate", ("back_s", "oracle_back_s")),
    Picture("bursts", "bursts", ("share",)),
    Picture("queue", models.QUEUE, ("predicted", "known")),
    Picture("energy", models.ENERGY, ("spread_j", "consolidated_j")),
)


def draw(lines: Sequence[Line], written: Path) -> None:
    """Beside the JSON at ``written``; a picture whose cases were not measured is left out."""
    for picture in PICTURES:
        cases: dict[str, list[Line]] = {}
        for each in lines:
            if each.labels[CASE].startswith(picture.case):
                cases.setdefault(each.labels[CASE], []).append(each)
        if cases:
            path = written.with_name(f"{written.stem}-{picture.name}.svg")
            path.write_text(_svg(picture, cases))


def _svg(picture: Picture, cases: dict[str, list[Line]]) -> str:
    rows = max(len(mine) for mine in cases.values())
    side = _LABEL + _WIDE + _MARGIN
    width, height = len(cases) * side, _TOP + rows * _ROW + 2 * _MARGIN
    panels = []
    for place, (case, mine) in enumerate(cases.items()):
        inside = "\n".join(_panel(picture, case, mine))
        panels.append(f'<g transform="translate({place * side},0)">{inside}</g>')
    legend = "".join(
        f'<text x="{8 + 200 * place}" y="{height - 8}" fill="{colour}">● {escape(_title(picture, figure))}</text>'
        for place, (figure, colour) in enumerate(zip(picture.figures, _COLOURS, strict=False))
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {max(width, 850)} {height}" '
        f'font-family="sans-serif" font-size="10">\n'
        f'<rect width="{max(width, 850)}" height="{height}" fill="white"/>\n'
        + "\n".join(panels)
        + f"\n{legend}\n</svg>\n"
    )


def _title(picture: Picture, figure: str) -> str:
    names = {"oracle_back_s": "best static setting", "oracle_share": "best static setting"}
    title = names.get(figure, FIGURES[figure][0])
    return f"{title} over {FIGURES[picture.of][0]}" if picture.of else title


def _panel(picture: Picture, case: str, lines: Sequence[Line]) -> Iterator[str]:
    medians = [each.medians for each in lines]
    scaled = [
        [each[figure] / (each[picture.of] if picture.of else 1.0) for figure in picture.figures]
        for each in medians
    ]
    most = max((value for row in scaled for value in row if value != NEVER_S), default=1.0) or 1.0
    yield f'<text x="{_LABEL}" y="16" font-weight="bold">{escape(case)}</text>'
    bottom = _TOP + len(lines) * _ROW
    for share in (0.0, 0.5, 1.0):
        x = _LABEL + share * _WIDE
        yield f'<path d="M{x},{_TOP - 8} V{bottom}" stroke="#ccc"/>'
        yield f'<text x="{x}" y="{_TOP - 12}" text-anchor="middle">{share * most:.3g}</text>'
    for place, (each, values) in enumerate(zip(lines, scaled, strict=True)):
        y = _TOP + place * _ROW + 4
        yield f'<text x="{_LABEL - 8}" y="{y + 3}" text-anchor="end">{escape(each.labels[WHO])}</text>'
        for value, colour in zip(values, _COLOURS, strict=False):
            if value == NEVER_S:
                yield f'<text x="{_LABEL + _WIDE + 4}" y="{y + 3}" fill="{colour}">never</text>'
            else:
                x = _LABEL + value / most * _WIDE
                yield f'<circle cx="{x:.1f}" cy="{y}" r="3.2" fill="{colour}" fill-opacity="0.8"/>'
