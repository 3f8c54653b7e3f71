"""Reading what the operator wants of this node, and judging whether to follow it: pure."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from tessera_core.api import RuntimeNode, SpecInvalid

_PATH = re.compile(r"spec\.(services|candidates)\[(\d+)\]")


@dataclass(frozen=True, slots=True)
class Order:
    """What to carry out, or why not."""

    node: RuntimeNode | None
    """None: nothing of it is carried out."""
    reason: str
    """Of the condition SpecAccepted."""
    message: str = ""
    problems: Mapping[str, str] = field(default_factory=dict)
    """By served name: services that cannot be read and are left as they are."""


def judge(document: Mapping[str, Any], epoch: int) -> Order:
    """``epoch``: the largest that was carried out. A smaller one is from a leader that was deposed."""
    try:
        node, problems = _read(document)
    except SpecInvalid as error:
        return Order(None, "Invalid", str(error)[:1024])
    if node.spec.epoch < epoch:
        return Order(
            None,
            "EpochTooSmall",
            f"spec.epoch: found {node.spec.epoch}, {epoch} was carried out already: "
            "the writer is a leader that was deposed",
        )
    return Order(node, "Accepted", problems=problems)


def _read(document: Mapping[str, Any]) -> tuple[RuntimeNode, dict[str, str]]:
    """The node without the versions that cannot be read, and why services are not among it. Raises
    SpecInvalid where that is not all.
    """
    without_status = {key: value for key, value in document.items() if key != "status"}
    try:
        return RuntimeNode.from_dict(without_status, strict=False), {}
    except SpecInvalid as error:
        blamed: dict[tuple[str, int], str] = {}
        for each in error.errors:
            found = _PATH.match(each.path)
            if found is None:
                raise
            blamed.setdefault((found[1], int(found[2])), str(each))
    spec = dict(document["spec"])
    problems = {
        str(spec["services"][index].get("name")): why[:1024]
        for (part, index), why in blamed.items()
        if part == "services"
    }
    for part in {part for part, _ in blamed}:
        spec[part] = [each for i, each in enumerate(spec[part]) if (part, i) not in blamed]
    return RuntimeNode.from_dict({**without_status, "spec": spec}, strict=False), problems
