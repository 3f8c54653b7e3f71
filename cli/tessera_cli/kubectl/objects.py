"""Documents of the cluster as objects, found by name.

Failed              the command cannot go on; the message is for the user
 └─ Forbidden       the user may not do it; what is only an addition is then left out, and that is said
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TypeVar

from rich.text import Text

from tessera_cli.output import stderr
from tessera_core.api import (
    Condition,
    ConditionStatus,
    ModelProfile,
    ModelService,
    PlacementPlan,
    RuntimeNode,
    SpecInvalid,
)
from tessera_core.api.scalars import suggestion
from tessera_operator.kinds import Document

LEAST_OF_A_NAME = 4
"""Characters of a PlacementPlan's name that may stand for it, where they are the beginning of only one."""

_Kind = TypeVar("_Kind", ModelProfile, ModelService, PlacementPlan, RuntimeNode)


class Failed(Exception):
    """The command cannot go on; the message says why, and what to do."""


class Forbidden(Failed):
    """The API server does not let this user do it."""


def note(text: str) -> None:
    """Say on standard error what the output lacks."""
    stderr.print(Text(f"note: {text}", "yellow"))


def label(document: Document) -> str:
    """``namespace.name``, or the name of an object without a namespace."""
    metadata = document["metadata"]
    return ".".join(filter(None, (metadata.get("namespace"), metadata["name"])))


def decoded(documents: Iterable[Document], kind: type[_Kind]) -> list[_Kind]:
    """The objects, sorted by namespace and name; a note is printed about those that cannot be read."""
    found = []
    for document in sorted(documents, key=label):
        try:
            # A newer operator may have written fields that this version does not know.
            found.append(kind.from_dict(document, strict=False))
        except SpecInvalid as invalid:
            note(f"{kind.KIND} {label(document)} cannot be read: {invalid}")
    return found


def split_name(text: str, namespace: str) -> tuple[str, str]:
    """(namespace, name) of ``name`` or ``namespace.name``: the name of a ModelService has no dot."""
    before, dot, name = text.rpartition(".")
    return (before, name) if dot else (namespace, text)


def service_named(text: str, namespace: str, services: Sequence[ModelService]) -> ModelService:
    """The service of that name. Raises Failed, with what is near."""
    space, name = split_name(text, namespace)
    served = f"{space}.{name}"
    names = [each.served_name for each in services]
    if served in names:
        return services[names.index(served)]
    elsewhere = [each for each in names if each.rpartition(".")[2] == name]
    near = f" (did you mean {elsewhere[0]}?)" if elsewhere else suggestion(served, names)
    raise Failed(f"found no ModelService {name} in namespace {space}{near}")


def plan_named(text: str, plans: Sequence[PlacementPlan]) -> PlacementPlan:
    """The plan whose name is, or alone begins with, ``text``. Raises Failed."""
    names = [each.metadata.name for each in plans]
    begin = [name for name in names if name.startswith(text)]
    if text in names:
        return plans[names.index(text)]
    if len(text) >= LEAST_OF_A_NAME and len(begin) == 1:
        return plans[names.index(begin[0])]
    if len(text) >= LEAST_OF_A_NAME and begin:
        raise Failed(f"{len(begin)} PlacementPlans begin with {text}: {', '.join(sorted(begin))}")
    raise Failed(
        f"found no PlacementPlan {text}{suggestion(text, names)}; kubectl tessera plan list shows them"
    )


def condition(conditions: Iterable[Condition], name: str) -> Condition | None:
    """The condition of type ``name``."""
    return next((each for each in conditions if each.type == name), None)


def holds(conditions: Iterable[Condition], name: str) -> bool:
    """Whether the condition is there and True."""
    found = condition(conditions, name)
    return found is not None and found.status is ConditionStatus.TRUE


def verdict(conditions: Iterable[Condition], name: str) -> str | None:
    """``True``, ``False`` or ``Unknown``; None where nobody has looked yet."""
    found = condition(conditions, name)
    return None if found is None else found.status.value


def shown(value: str | None) -> Text:
    """A verdict in its colour."""
    colours = {"True": "green", "False": "red", "Unknown": "yellow"}
    return Text("-" if value is None else value, colours.get(value or "", ""))


def milliseconds(value: float | None) -> str:
    """A latency of ``value`` ms to three digits; ``-`` where nothing was measured."""
    return "-" if value is None else f"{float(f'{value:.3g}'):g}ms"
