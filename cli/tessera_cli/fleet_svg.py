"""The picture of a fleet's year as SVG: GPUs in use and requests out of time, by policy."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from html import escape

import numpy as np
from numpy.typing import NDArray

from tessera_core.simulate.fleet import Year

Vector = NDArray[np.float64]

_WIDTH, _PANEL = 900, 230
_LEFT, _RIGHT, _TOP, _BOTTOM = 70, 190, 28, 34
_COLOURS = ("#1f6f8b", "#c05621", "#222222", "#8fb339", "#6b8e23", "#44611a", "#7d4fb3", "#8a5a44")
_DAY, _WEEK = 24, 168
_LEAST = 1e-6
"""Shares below are drawn as this."""


def svg(years: Sequence[Year]) -> str:
    """GPUs by day and for one week by hour, and the share of the requests that were late or lost, by day."""
    hours = len(years[0].gpus)
    begin = max(0, min(hours // 2 // _WEEK * _WEEK, hours - _WEEK))
    panels = [
        ("GPUs in use, mean of each day", "day", [_daily(year.gpus) for year in years], False),
        (
            f"GPUs in use, hours of the week from day {begin // _DAY}",
            "hour",
            [year.gpus[begin : begin + _WEEK] for year in years],
            False,
        ),
        (
            "Requests late or lost, share of each day's",
            "day",
            [_daily(1 - year.shares) for year in years],
            True,
        ),
    ]
    height = len(panels) * _PANEL
    drawn = "\n".join(
        f'<g transform="translate(0,{place * _PANEL})">{"".join(_panel(*panel, years))}</g>'
        for place, panel in enumerate(panels)
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{_WIDTH}" height="{height}" '
        f'viewBox="0 0 {_WIDTH} {height}" font-family="sans-serif" font-size="11">\n'
        f'<rect width="{_WIDTH}" height="{height}" fill="white"/>\n{drawn}\n</svg>\n'
    )


def _daily(hourly: Vector) -> Vector:
    """Means; the last day may be a part of one."""
    starts = np.arange(0, len(hourly), _DAY)
    lengths = np.diff(np.append(starts, len(hourly)))
    daily: Vector = np.add.reduceat(hourly, starts) / lengths
    return daily


def _panel(
    title: str, unit: str, series: Sequence[Vector], logarithmic: bool, years: Sequence[Year]
) -> Iterator[str]:
    right, bottom = _WIDTH - _RIGHT, _PANEL - _BOTTOM
    if logarithmic:
        series = [np.log10(np.maximum(each, _LEAST)) for each in series]
    low = np.log10(_LEAST) if logarithmic else 0.0
    top = max(float(each.max()) for each in series)
    high = np.ceil(top + 1e-9) if logarithmic else max(top, 1.0)
    yield f'<text x="{_LEFT}" y="16" font-weight="bold">{escape(title)}</text>'
    for share in np.linspace(0, 1, int(high - low) + 1 if logarithmic else 5):
        value, y = low + share * (high - low), bottom - share * (bottom - _TOP)
        label = f"{10.0**value:.0e}" if logarithmic else f"{value:,.0f}"
        yield f'<path d="M{_LEFT},{y:.1f} H{right}" stroke="#ddd"/>'
        yield f'<text x="{_LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{label}</text>'
    count = len(series[0])
    yield f'<text x="{_LEFT}" y="{bottom + 16}">{unit} 0</text>'
    yield f'<text x="{right}" y="{bottom + 16}" text-anchor="end">{count}</text>'
    for number, (values, year) in enumerate(zip(series, years, strict=True)):
        colour = _COLOURS[number % len(_COLOURS)]
        xs = _LEFT + (np.arange(count) + 0.5) / count * (right - _LEFT)
        ys = bottom - (values - low) / (high - low) * (bottom - _TOP)
        points = " ".join(f"{x:.1f},{y:.1f}" for x, y in zip(xs, ys, strict=True))
        yield f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="1.3"/>'
        y = _TOP + 8 + 16 * number
        yield f'<path d="M{right + 12},{y} h20" stroke="{colour}" stroke-width="2"/>'
        yield f'<text x="{right + 38}" y="{y + 4}">{escape(year.policy)}</text>'
