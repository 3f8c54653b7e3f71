"""The edits of ``tessera plan --what-if`` as text, and the answer: two plans side by side.

node-lost=NAME          the node is gone
node-added=NAME*N       N more nodes like it, which run nothing; without *N one
rate=SERVICE*X          SERVICE (namespace.name) expects X times its rate; without SERVICE every one does
add=FILE                the ModelServices of FILE come too, with the ModelProfiles beside them

WhatIfInvalid           an edit that cannot be read, or a file that it names
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from rich.text import Text

from tessera_cli.files import STDIN, FileInvalid, read_documents
from tessera_cli.plan_tables import Part, reason
from tessera_cli.tables import table
from tessera_core.api import ModelProfile, ModelService, SpecInvalid, decode
from tessera_core.api.quantities import parse_decimal
from tessera_core.api.scalars import suggestion
from tessera_core.plan.what_if import (
    Comparison,
    Edit,
    Figures,
    NodeLost,
    NodesAdded,
    RateTimes,
    ServiceAdded,
    ServiceChange,
)

SYNTAX = ("node-lost=NAME", "node-added=NAME*N", "rate=NAMESPACE.SERVICE*X", "rate=*X", "add=FILE")
_KINDS = ("node-lost", "node-added", "rate", "add")


class WhatIfInvalid(Exception):
    """An edit that cannot be read; the message says what was found and what is allowed."""


def read_edits(texts: Sequence[str], state_file: str) -> tuple[Edit, ...]:
    """The edits that ``texts`` describe, in their order. Raises WhatIfInvalid.

    ``state_file``: where the state comes from; standard input can be read only once.
    """
    if [state_file, *texts].count(STDIN) + texts.count(f"add={STDIN}") > 1:
        raise WhatIfInvalid("--what-if add=-: standard input can be read only once")
    return tuple(edit for text in texts for edit in _edits(text))


def _edits(text: str) -> Iterator[Edit]:
    kind, _, rest = text.partition("=")
    name, times, number = rest.rpartition("*")
    match kind:
        case "node-lost" if rest:
            yield NodeLost(rest)
        case "node-added" if rest and not times:
            yield NodesAdded(rest)
        case "node-added" if name:
            yield NodesAdded(name, _whole(text, number))
        case "rate" if times:
            yield RateTimes(_factor(text, number), name or None)
        case "add" if rest:
            yield from _added(rest)
        case _:
            near = suggestion(kind, list(_KINDS)) if kind not in _KINDS else ""
            raise _invalid(text, ", ".join(SYNTAX) + near)


def _factor(text: str, number: str) -> float:
    try:
        return parse_decimal(number)
    except ValueError:
        raise _invalid(text, "a decimal factor after *, such as 1.5") from None


def _whole(text: str, number: str) -> int:
    if not (number.isascii() and number.isdecimal() and len(number) <= 9):
        raise _invalid(text, "a whole number of nodes after *, such as 2")
    return int(number)


def _invalid(text: str, allowed: str) -> WhatIfInvalid:
    return WhatIfInvalid(f"--what-if: found {text[:64]!r}, allowed: {allowed}")


def _added(path: str) -> Iterator[ServiceAdded]:
    services: list[ModelService] = []
    profiles: list[ModelProfile] = []
    try:
        for document in read_documents(path):
            where = f"--what-if add={path} (document {document.position})"
            try:
                found = decode(document.content)
            except SpecInvalid as error:
                raise WhatIfInvalid(f"{where}: {error}") from error
            if isinstance(found, ModelService):
                services.append(found)
            elif isinstance(found, ModelProfile):
                profiles.append(found)
            else:
                kind = type(found).__name__
                allowed = "ModelService, and ModelProfile beside it"
                raise WhatIfInvalid(f"{where}: kind: found {kind}, allowed: {allowed}")
    except FileInvalid as error:
        raise WhatIfInvalid(f"--what-if add={error}") from error
    if not services:
        raise WhatIfInvalid(f"--what-if add={path}: found no ModelService, allowed: one or more")
    for service in services:
        yield ServiceAdded(service, tuple(profiles))


def comparison_parts(edits: Sequence[Edit], found: Comparison) -> list[Part]:
    """What the edits change: figures of both plans, then the services that differ."""
    parts: list[Part] = [Text.assemble(("what if ", "bold"), ", ".join(map(str, edits)))]
    figures = table("", ("",), ("planned now", "what if"))
    for (name, base), (_, what_if) in zip(_named(found.base), _named(found.what_if), strict=True):
        figures.add_row(name, base, what_if)
    parts.append(figures)
    if not found.services:
        return [*parts, Text("no service is placed otherwise")]
    changed = table(
        "Services that change", ("service", "planned now", "what if"), ("instances",), ("why",)
    )
    for each in found.services:
        before, after = each.instances
        changed.add_row(
            each.service,
            each.before.value,
            each.after.value,
            f"{before} → {after}",
            _why(each),
        )
    return [*parts, changed]


def _named(figures: Figures) -> Iterator[tuple[str, str]]:
    yield "cost per hour", f"{figures.cost:.4g}"
    yield "lower bound", f"{figures.lower_bound:.4g}"
    yield "used devices", str(figures.devices)
    yield "instances", str(figures.instances)
    yield "moved against what runs", str(figures.moved)
    yield "started", str(figures.started)
    yield "stopped", str(figures.stopped)
    yield "services placed fully", str(figures.placed)
    yield "short", str(figures.short)
    yield "refused", str(figures.refused)


def _why(change: ServiceChange) -> Text:
    lines = [
        Text.assemble(f"{member}: " if member else "", reason(refusal))
        for member, refusal in change.reasons
    ]
    if not lines and change.before is change.after:
        lines = [Text("other places, batches or numbers of instances")]
    return Text("\n").join(lines)


def comparison_data(edits: Sequence[Edit], found: Comparison) -> dict[str, Any]:
    """The same, as plain values."""
    return {
        "edits": [str(edit) for edit in edits],
        "base": _figures(found.base),
        "whatIf": _figures(found.what_if),
        "services": [
            {
                "service": each.service,
                "before": each.before.value,
                "after": each.after.value,
                "instances": {"before": each.instances[0], "after": each.instances[1]},
                "reasons": [
                    {
                        **({"member": member} if member else {}),
                        "reason": refusal.why.value,
                        "detail": refusal.detail,
                    }
                    for member, refusal in each.reasons
                ],
            }
            for each in found.services
        ],
    }


def _figures(figures: Figures) -> dict[str, float]:
    return {
        "cost": float(f"{figures.cost:.4g}"),
        "lowerBound": float(f"{figures.lower_bound:.4g}"),
        "usedDevices": figures.devices,
        "instances": figures.instances,
        "moved": figures.moved,
        "started": figures.started,
        "stopped": figures.stopped,
        "placed": figures.placed,
        "short": figures.short,
        "refused": figures.refused,
    }
