"""How time and memory grow: with GPUs for the same services, and with services on the same GPUs.

Every point is a plan from nothing in a process of its own. The picture is a small SVG, both axes logarithmic.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import ceil, floor, log10
from pathlib import Path
from xml.sax.saxutils import escape

from bench.lines import Line, Says
from bench.planner.alone import planned_alone
from bench.planner.fleet import GPUS_PER_NODE
from bench.planner.lines import line

SEED = 0
BY_NODES, BY_SERVICES = "growth with GPUs", "growth with services"


@dataclass(frozen=True, slots=True)
class Size:
    """(nodes, services) of both series."""

    by_nodes: tuple[tuple[int, int], ...] = ((160, 250), (320, 250), (640, 250), (1280, 250))
    by_services: tuple[tuple[int, int], ...] = ((640, 125), (640, 250), (640, 500), (640, 1000))


QUICK = Size(((2, 3), (4, 3)), ((4, 2), (4, 4)))


def growth_lines(size: Size, says: Says) -> Iterator[Line]:
    """One line per point."""
    for case, points in ((BY_NODES, size.by_nodes), (BY_SERVICES, size.by_services)):
        for nodes, services in points:
            who = f"{nodes * GPUS_PER_NODE:,} GPUs, {services:,} services"
            says(f"{case}: {who}")
            yield line(case, who, planned_alone(nodes, services, SEED))


_WIDTH, _HEIGHT, _MARGIN = 320, 220, 48
_SERIES = (("seconds", "seconds", "#1f6f8b"), ("peak_mib", "peak MiB", "#c05621"))


def picture(lines: Sequence[Line], path: Path) -> None:
    """Draw the lines of :func:`growth_lines`: one panel per series and figure."""
    panels = []
    for column, (case, axis) in enumerate(((BY_NODES, "boards"), (BY_SERVICES, "services"))):
        mine = [each.medians for each in lines if each.labels["case"] == case]
        for row, (figure, unit, colour) in enumerate(_SERIES):
            points = [(each[axis], each[figure]) for each in mine]
            name = "GPUs" if axis == "boards" else axis
            title = f"{unit} over {name}"
            panel = "".join(_panel(points, title, colour))
            panels.append(
                f'<g transform="translate({column * _WIDTH},{row * _HEIGHT})">{panel}</g>'
            )
    path.parent.mkdir(parents=True, exist_ok=True)
    width, height = 2 * _WIDTH, len(_SERIES) * _HEIGHT
    path.write_text(
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
        f'font-family="sans-serif" font-size="11">\n'
        f'<rect width="{width}" height="{height}" fill="white"/>\n'
        + "\n".join(panels)
        + "\n</svg>\n"
    )


def _panel(points: Sequence[tuple[float, float]], title: str, colour: str) -> Iterator[str]:
    xs, ys = ([log10(value) for value in each] for each in zip(*points, strict=True))
    inner_x, inner_y = _WIDTH - 2 * _MARGIN, _HEIGHT - 2 * _MARGIN

    def at(value: float, low: float, high: float) -> float:
        return (value - low) / (high - low) if high > low else 0.5

    # Whole decades upwards, so that what hardly grows looks as if it hardly grew.
    bottom, top = floor(min(ys)), max(ceil(max(ys)), floor(min(ys)) + 1)
    places = [
        (
            _MARGIN + inner_x * at(x, min(xs), max(xs)),
            _HEIGHT - _MARGIN - inner_y * at(y, bottom, top),
        )
        for x, y in zip(xs, ys, strict=True)
    ]
    yield f'<text x="{_WIDTH / 2}" y="20" text-anchor="middle">{escape(title)}</text>'
    yield (
        f'<path d="M{_MARGIN},{_MARGIN - 12} V{_HEIGHT - _MARGIN + 8} H{_WIDTH - _MARGIN + 12}" '
        'fill="none" stroke="#888"/>'
    )
    route = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
    yield f'<polyline points="{route}" fill="none" stroke="{colour}" stroke-width="2"/>'
    for (x, y), (size, value) in zip(places, points, strict=True):
        yield f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{colour}"/>'
        yield f'<text x="{x:.1f}" y="{y - 8:.1f}" text-anchor="middle">{value:,.3g}</text>'
        yield (
            f'<text x="{x:.1f}" y="{_HEIGHT - _MARGIN + 22}" text-anchor="middle">{size:,.0f}</text>'
        )
