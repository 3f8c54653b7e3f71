"""The picture of a simulation as SVG, without matplotlib: the share of requests that take longer than a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from html import escape
from math import isfinite, log10

from tessera_core.simulate.cluster import POINTS, Result

MOST_SERVICES = 12
"""More lines cannot be told apart."""

_WIDTH, _HEIGHT = 860, 460
_LEFT, _TOP, _RIGHT, _BOTTOM = 70, 24, 230, 50
_MOST_X = 2.0
"""Latency in multiples of the target."""
_DECADES = 4
_COLOURS = ("#3366cc", "#dc6900", "#2a9d3a", "#c22f2f", "#7d4fb3", "#8a5a44")
_DASHES = ("", "7 3")


def svg(results: Sequence[Result]) -> str:
    """The first ``MOST_SERVICES`` services. One keeps its SLO where its line passes left of its dot: as late a share of
    the requests as the SLO allows, at the target.
    """
    lines = "\n".join([*_frame(), *_curves(results[:MOST_SERVICES])])
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{_WIDTH}" height="{_HEIGHT}" '
        f'viewBox="0 0 {_WIDTH} {_HEIGHT}" font-family="sans-serif" font-size="12">\n'
        f'<rect width="{_WIDTH}" height="{_HEIGHT}" fill="white"/>\n{lines}\n</svg>\n'
    )


def _x(multiple: float) -> float:
    return _LEFT + (_WIDTH - _LEFT - _RIGHT) * multiple / _MOST_X


def _y(share: float) -> float:
    return _TOP + (_HEIGHT - _TOP - _BOTTOM) * -log10(max(share, 10.0**-_DECADES)) / _DECADES


def _frame() -> Iterator[str]:
    bottom, right = _y(0.0), _x(_MOST_X)
    for decade in range(_DECADES + 1):
        y = _y(10.0**-decade)
        yield f'<path d="M{_LEFT} {y:.1f}H{right:.1f}" stroke="#ddd"/>'
        label = f"{100 * 10.0**-decade:g} %"
        yield f'<text x="{_LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{label}</text>'
    for quarter in range(0, 9, 2):
        x = _x(quarter / 4)
        yield f'<path d="M{x:.1f} {_TOP}V{bottom:.1f}" stroke="#ddd"/>'
        yield f'<text x="{x:.1f}" y="{bottom + 18:.1f}" text-anchor="middle">{quarter / 4:g}</text>'
    middle = (_LEFT + right) / 2
    yield f'<path d="M{_x(1):.1f} {_TOP}V{bottom:.1f}" stroke="#777" stroke-dasharray="2 3"/>'
    yield f'<text x="{middle:.1f}" y="{bottom + 38:.1f}" text-anchor="middle">latency / target</text>'
    yield f'<text x="{_LEFT}" y="{_TOP - 9}">requests that take longer</text>'


def _curves(results: Sequence[Result]) -> Iterator[str]:
    for number, each in enumerate(results):
        colour = _COLOURS[number % len(_COLOURS)]
        dash = _DASHES[number // len(_COLOURS) % len(_DASHES)]
        target = each.scenario.target_ms
        points = [
            f"{_x(min(ms / target, _MOST_X)):.1f},{_y(1 - share):.1f}"
            for ms, share in zip(each.curve_ms, POINTS.tolist(), strict=True)
            if isfinite(ms) and ms <= _MOST_X * target
        ]
        style = f'stroke="{colour}" stroke-dasharray="{dash}" fill="none" stroke-width="1.6"'
        yield f'<polyline points="{" ".join(points)}" {style}/>'
        allowed = _y(1 - each.scenario.percentile / 100)
        yield f'<circle cx="{_x(1):.1f}" cy="{allowed:.1f}" r="4" fill="{colour}"/>'
        y, x = _TOP + 8 + 18 * number, _x(_MOST_X) + 14
        yield f'<path d="M{x:.1f} {y}h22" {style}/>'
        yield f'<text x="{x + 28:.1f}" y="{y + 4}">{escape(each.scenario.service)}</text>'
