"""A picture of a plan: pools, nodes, devices, slices and who is in them, as one standalone SVG.

Problem: whether a packing is good is seen at a glance or not at all. Approach: every device is a bar; each
part of it is drawn from its first memory slice on and as wide as it is. The members inside lie one below the
other, in the colour of their service, filled from the left as far as their load fills their capacity. Nodes
without work are counted, not drawn, and so are used ones beyond the bounds of ``bars.py``.

The text is XML without scripts and references. Colours are hex, their text has a contrast above 4.5:1 (WCAG
2.2, success criterion 1.4.3), and the page colours follow the reader's preference for dark. Equal plans give
equal bytes.
"""

from __future__ import annotations

import colorsys
import hashlib
import re
from collections.abc import Iterator, Sequence
from html import escape

from tessera_core.gpu.devices import FULL
from tessera_core.plan.bars import MOST_LANES, Bar, Block, Machine, machines, shown
from tessera_core.plan.decision import Assignment, Plan
from tessera_core.plan.nodes import slice_name
from tessera_core.plan.state import ClusterState

BAR_WIDTH = 704
"""Pixels of a device: 88 per memory slice of most boards."""

_COLUMN = BAR_WIDTH + 40
_LANE = 18
_LABEL = 15
_GAP = 8
_MARGIN = 16
_LETTER = 6.2
"""Width of a letter of the labels on average, rather too wide."""

_NOT_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
"""What no XML 1.0 document may hold, not even escaped (production 2, Char)."""

_STYLE = """
.tessera{font:11px system-ui,sans-serif;background:#fff}
.tessera text{fill:#1a1a1a}.tessera .big{font-size:15px;font-weight:600}
.tessera .quiet{fill:#595959}.tessera .mark{fill:#a33b00;font-weight:600}
.tessera .lane text{fill:#111}.tessera .node{fill:none;stroke:#767676}
.tessera .slice{fill:none;stroke:#333;stroke-width:1.5}.tessera .hatch{stroke:#d4d4d4}
.tessera .free{fill:url(#tessera-free);stroke:#767676;stroke-dasharray:3 2}
.tessera .unhealthy{fill:none;stroke:#a33b00;stroke-dasharray:6 3}
.tessera .recut{fill:none;stroke:#a33b00;stroke-width:2}
@media (prefers-color-scheme:dark){.tessera{background:#181818}.tessera text{fill:#eee}
.tessera .quiet{fill:#b5b5b5}.tessera .mark{fill:#ff9d66}.tessera .hatch{stroke:#3c3c3c}
.tessera .recut,.tessera .unhealthy{stroke:#ff9d66}}
"""
_HATCHING = (
    '<defs><pattern id="tessera-free" width="7" height="7" patternUnits="userSpaceOnUse" '
    'patternTransform="rotate(45)"><path class="hatch" d="M0 0V7"/></pattern></defs>'
)


def colours(service: str) -> tuple[str, str]:
    """(Lighter, stronger) colour of ``service``, ``#rrggbb``: what is left and what is used of its capacity.

    The hue is a hash of the name, so a service looks the same in every plan; #111 is readable on both.
    """
    hue = int.from_bytes(hashlib.sha256(service.encode()).digest()[:2], "big") / 2**16
    return _hex(hue, 0.9), _hex(hue, 0.72)


def _hex(hue: float, lightness: float) -> str:
    channels = colorsys.hls_to_rgb(hue, lightness, 0.6)
    return "#" + "".join(f"{round(255 * each):02x}" for each in channels)


def diagram(plan: Plan, state: ClusterState) -> str:
    """The picture of ``plan``, which was made from ``state``: one SVG element, which is a document too.

    Raises ValueError where the plan names devices or slices that the state does not have.
    """
    nodes = machines(plan, state)
    drawn = shown(nodes)
    columns = 2 if any(len(each) > 1 for each in drawn.values()) else 1
    body = list(_heading(plan, nodes))
    y = 84
    for pool, chosen in drawn.items():
        lines, y = _pool(pool, chosen, [node for node in nodes if node.pool == pool], columns, y)
        body += lines
    width, height = 2 * _MARGIN + columns * _COLUMN, y + _MARGIN
    title = _text(f"Plan {plan.name}: {_summary(plan)}")
    return "\n".join(
        (
            f'<svg xmlns="http://www.w3.org/2000/svg" class="tessera" role="img" '
            f'aria-label="{title}" width="{width}" height="{height}" '
            f'viewBox="0 0 {width} {height}">',
            f"<title>{title}</title>",
            f"<desc>{_text(_counted(plan, nodes))}. Every bar is a device, its parts are slices at their "
            "places, coloured by service and filled as far as their load fills their capacity.</desc>",
            f"<style>{_STYLE}</style>",
            _HATCHING,
            *body,
            "</svg>\n",
        )
    )


def _summary(plan: Plan) -> str:
    return (
        f"cost {plan.cost:.4g} per hour, lower bound {plan.lower_bound:.4g}, "
        f"gap {plan.gap_percent:.3g} %"
    )


def _counted(plan: Plan, nodes: Sequence[Machine]) -> str:
    devices = sum(bool(device.assignments) for device in plan.devices)
    text = (
        f"{_many(len(plan.services), 'service')} on {_many(devices, 'device')}; "
        f"{sum(node.used for node in nodes)} of {_many(len(nodes), 'node')} used"
    )
    short = sum(each.short is not None for each in plan.services)
    text += f"; {_many(short, 'service')} short" if short else ""
    return text + (f"; {_many(len(plan.refused), 'member')} refused" if plan.refused else "")


def _many(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _heading(plan: Plan, nodes: Sequence[Machine]) -> Iterator[str]:
    light, strong = colours("")
    yield _line(_MARGIN, 28, f"Plan {plan.name}", "big")
    yield _line(_MARGIN, 46, f"{_summary(plan)}; {_counted(plan, nodes)}")
    yield (
        f'<g class="legend" transform="translate({_MARGIN} 58)">'
        f'<rect width="36" height="14" fill="{light}"/>'
        f'<rect width="24" height="14" fill="{strong}"/>'
        '<rect class="slice" width="36" height="14"/>'
        f"{_line(44, 11, 'in use: a colour per service, as full as its load')}"
        '<rect class="free" x="340" width="36" height="14"/>'
        f"{_line(384, 11, 'free')}"
        '<rect class="recut" x="440" width="36" height="14"/>'
        f"{_line(484, 11, 'device is cut anew')}</g>"
    )


def _pool(
    name: str, drawn: Sequence[Machine], nodes: Sequence[Machine], columns: int, y: int
) -> tuple[list[str], int]:
    """One pool from ``y`` on, in rows of ``columns`` nodes, and where it ends."""
    lines = [_line(_MARGIN, y + 18, _cut(f"pool {name}", BAR_WIDTH), "big")]
    y += 28
    for first in range(0, len(drawn), columns):
        row = drawn[first : first + columns]
        for column, node in enumerate(row):
            lines += _node(node, _MARGIN + column * _COLUMN, y)
        y += max(_node_height(node) for node in row) + _GAP
    used = sum(node.used for node in nodes)
    for number, what in ((used - len(drawn), "used, not drawn"), (len(nodes) - used, "unused")):
        if number:
            y += _LABEL
            lines.append(_line(_MARGIN, y, f"{_many(number, 'node')} {what}", "quiet"))
    return lines, y + 2 * _GAP


def _node_height(node: Machine) -> int:
    return 2 * _GAP + _LABEL + sum(_bar_height(bar) for bar in node.bars)


def _bar_height(bar: Bar) -> int:
    return _LABEL + bar.lanes * _LANE + _GAP


def _node(node: Machine, x: int, y: int) -> Iterator[str]:
    yield f'<g class="machine" transform="translate({x} {y})"><title>{_text(node.name)}</title>'
    yield f'<rect class="node" width="{_COLUMN - _GAP}" height="{_node_height(node)}" rx="4"/>'
    yield _line(12, 16, _cut(node.name, BAR_WIDTH))
    below = _GAP + _LABEL
    for bar in node.bars:
        yield from _bar(node, bar, below)
        below += _bar_height(bar)
    yield "</g>"


def _bar(node: Machine, bar: Bar, y: int) -> Iterator[str]:
    device = bar.device
    cores = f", {_many(device.cores, 'core')}" if device.is_cpu else ""
    label = f"{device.uuid}: {device.product}{cores}"
    whole = f'y="{_LABEL}" width="{BAR_WIDTH}" height="{bar.lanes * _LANE}"'
    yield f'<g class="device" transform="translate(12 {y})">'
    yield f"<title>{_text(f'{node.name}/{label}')}</title>"
    yield _line(0, 11, _cut(label, BAR_WIDTH - 80), "quiet")
    if device.healthy or any(block.inside for block in bar.blocks):
        scale = BAR_WIDTH / bar.positions
        for block in bar.blocks:
            yield from _block(block, scale, bar.lanes * _LANE)
    else:
        yield f'<rect class="unhealthy" {whole}/>{_line(6, _LABEL + 13, "unhealthy", "mark")}'
    if bar.recut:
        yield f'{_line(BAR_WIDTH - 40, 11, "re-cut", "mark")}<rect class="recut" {whole}/>'
    yield "</g>"


def _block(block: Block, scale: float, height: int) -> Iterator[str]:
    x, width = block.start * scale, block.width * scale
    place = f'x="{_number(x)}" y="{_LABEL}" width="{_number(width)}" height="{height}"'
    if not block.inside:
        title = f"{block.name}: free" if block.name else "free, not cut"
        yield f'<rect class="free" {place}><title>{_text(title)}</title></rect>'
        text = "free" if block.name == FULL else block.name
        yield from _label(x, _LABEL, height, _cut(text, width - 8), "quiet")
        return
    lane = height / block.lanes
    fully = block.lanes if len(block.inside) <= MOST_LANES else MOST_LANES - 1
    for index, each in enumerate(block.inside[:fully]):
        yield from _lane(each, x, _LABEL + index * lane, width, lane)
    if rest := len(block.inside) - fully:
        names = ", ".join(f"{each.service}/{each.member}" for each in block.inside[fully:])
        yield f"<g><title>{_text(_cut(names, 100 * _LETTER))}</title>"
        yield from _label(x, _LABEL + fully * lane, lane, _cut(f"and {rest} more", width - 8))
        yield "</g>"
    yield f'<rect class="slice" {place}/>'


def _lane(each: Assignment, x: float, y: float, width: float, height: float) -> Iterator[str]:
    """One member in a part, filled as far as its load fills its capacity."""
    light, strong = colours(each.service)
    filled = min(1.0, each.load / each.rate) if each.rate > 0 else float(each.load > 0)
    member = f"{each.service}/{each.member}"
    title = (
        f"{member} on {each.node}/{each.device} {slice_name(each.slice)}: "
        f"{_many(each.instances, 'instance')}, batches up to {each.batch}; {each.load:.6g} of "
        f"{each.rate:.6g} rows/s ({100 * filled:.3g} %), predicted {each.latency_ms:.3g} ms"
    )
    place = f'x="{_number(x)}" y="{_number(y)}" height="{_number(height)}"'
    yield f'<g class="lane"><title>{_text(title)}</title>'
    yield f'<rect {place} width="{_number(width)}" fill="{light}"/>'
    yield f'<rect {place} width="{_number(width * filled)}" fill="{strong}"/>'
    numbers = f"{member}, {each.instances} of batch {each.batch}"
    without_namespace = member.partition(".")[2] or member
    wordings = (f"{numbers}, {each.slice.name}", numbers, member, without_namespace)
    fitting = (text for text in wordings if len(text) * _LETTER <= width - 8)
    yield from _label(x, y, height, next(fitting, _cut(each.member, width - 8)))
    yield "</g>"


def _label(x: float, y: float, height: float, text: str, kind: str = "") -> Iterator[str]:
    """``text`` in the middle of the left end of a rectangle, if there is any."""
    if text:
        yield _line(x + 4, y + height / 2 + 4, text, kind)


def _cut(text: str, width: float) -> str:
    """``text``, or as much of it as fits; nothing where not even two letters do."""
    room = int(width / _LETTER)
    if len(text) <= room:
        return text
    return f"{text[: room - 1]}…" if room > 2 else ""


def _line(x: float, y: float, text: str, kind: str = "") -> str:
    attribute = f' class="{kind}"' if kind else ""
    return f'<text{attribute} x="{_number(x)}" y="{_number(y)}">{_text(text)}</text>'


def _number(value: float) -> str:
    """Two decimals at most: a hundredth of a pixel is not seen."""
    return f"{value:.2f}".rstrip("0").rstrip(".")


def _text(text: str) -> str:
    """``text`` as XML content or attribute value."""
    return escape(_NOT_XML.sub("\ufffd", text))
