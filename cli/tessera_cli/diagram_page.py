"""``tessera plan --diagram``: the picture of a plan as a file, alone or in a page that says what it shows."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from html import escape
from pathlib import Path

from tessera_core.plan import ClusterState, Plan, ServicePlan
from tessera_core.plan.diagram import colours, diagram

SUFFIXES = (".svg", ".html")
MOST_SERVICES = 500
"""Services that the page lists."""

_STYLE = """
:root{color-scheme:light dark}body{font:15px/1.5 system-ui,sans-serif;margin:1.5rem}
dl{display:grid;grid-template-columns:max-content auto;gap:0 1rem}dd{margin:0}
table{border-collapse:collapse}th,td{padding:.15rem .8rem .15rem 0;text-align:left}
caption{text-align:left;font-weight:600}td.number{text-align:right}
.swatch{display:inline-block;width:1rem;height:1rem;border:1px solid #767676;vertical-align:-.15rem}
.picture{overflow:auto;max-width:100%}
"""


def diagram_file(text: str) -> Path:
    """The file to write, for argparse; its suffix says what."""
    path = Path(text)
    if path.suffix not in SUFFIXES:
        allowed = f"a file name that ends in {' or '.join(SUFFIXES)}"
        raise argparse.ArgumentTypeError(f"found {text[:64]!r}, allowed: {allowed}")
    return path


def save(path: Path, plan: Plan, state: ClusterState) -> None:
    """Draw ``plan``, which was made from ``state``. Raises OSError."""
    picture = diagram(plan, state)
    text = _page(plan, picture) if path.suffix == ".html" else picture
    path.write_text(text, encoding="utf-8")


def _page(plan: Plan, picture: str) -> str:
    """The picture under a summary and above the services with their colours; no scripts, nothing fetched."""
    name = escape(f"Plan {plan.name}")
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<title>{name}</title>
<style>{_STYLE}</style>
</head>
<body>
<main>
<h1>{name}</h1>
<dl>
<dt>Cost per hour</dt><dd>{plan.cost:.4g}</dd>
<dt>Lower bound</dt><dd>{plan.lower_bound:.4g}</dd>
<dt>Gap</dt><dd>{plan.gap_percent:.3g} %{", the budget ended the search" if plan.truncated else ""}</dd>
</dl>
<section class="picture" tabindex="0" aria-label="Packing">
{picture}</section>
{chr(10).join(_legend(plan))}
</main>
</body>
</html>
"""


def _legend(plan: Plan) -> Iterator[str]:
    heads = ("Colour", "Service", "Requests/s", "At most", "Predicted", "Target", "Placed")
    yield "<table>\n<caption>Services</caption>"
    yield "<tr>" + "".join(f'<th scope="col">{head}</th>' for head in heads) + "</tr>"
    for each in plan.services[:MOST_SERVICES]:
        yield _row(each)
    yield "</table>"
    if len(plan.services) > MOST_SERVICES:
        yield f"<p>and {len(plan.services) - MOST_SERVICES} more</p>"
    if plan.refused:
        yield "<h2>Refused</h2>\n<ul>"
        for service, member, refusal in plan.refused[:MOST_SERVICES]:
            yield f"<li>{escape(f'{service}/{member}: {refusal.why.value}')}</li>"
        yield "</ul>"
    if len(plan.refused) > MOST_SERVICES:
        yield f"<p>and {len(plan.refused) - MOST_SERVICES} more</p>"


def _row(each: ServicePlan) -> str:
    _, strong = colours(each.service)
    numbers = (
        f"{each.requests_per_second:.4g}",
        f"{each.max_requests_per_second:.4g}",
        f"p{each.percentile:g} {each.latency_ms:.3g} ms",
        f"{each.target_ms:g} ms",
    )
    return (
        f'<tr><td><span class="swatch" style="background:{strong}"></span></td>'
        f'<th scope="row">{escape(each.service)}</th>'
        + "".join(f'<td class="number">{number}</td>' for number in numbers)
        + f"<td>{escape(each.short.why.value) if each.short else 'fully'}</td></tr>"
    )
