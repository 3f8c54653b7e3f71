"""How many runtime pods a pool is to have, and which of them go. Pure but for ``Idle``, which remembers since when.

Problem: whoever lowers the replicas of a Deployment leaves it to the ReplicaSet controller which pods end, and that
takes pods that are not ready before it looks at what a deletion costs; so it may take one that serves. Approach: the
operator deletes the pods of nodes with nothing on them, each by its name, and asks for as many fewer. It never asks
for fewer than there are pods with a node, so whatever the ReplicaSet controller removes by itself has no node yet.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from math import ceil

from tessera_core.api import RuntimePool


class Change(StrEnum):
    """What becomes of a pool's size; the reason of its condition."""

    STEADY = "Steady"
    GROWING = "Growing"
    SHRINKING = "Shrinking"
    AT_MAXIMUM = "AtMaximum"


@dataclass(frozen=True, slots=True)
class Nodes:
    """The nodes of one pool that have a runtime pod which is not ending."""

    filled: frozenset[str] = frozenset()
    """Something runs there, or is to."""
    kept: frozenset[str] = frozenset()
    """Nothing runs there, but it is measured there or soon to be, or the node has yet to say what it has."""
    idle: Mapping[str, float] = field(default_factory=dict)
    """Nothing is there, since when, s."""
    leaving: frozenset[str] = frozenset()
    """Announced to go, with something on them: they count for nothing, and keep their pods until that is elsewhere."""
    left: frozenset[str] = frozenset()
    """Announced to go, with nothing on them."""
    other: int = 0
    """Further pods that have a node: nobody hears of it, or it is not known yet."""
    closed: int = 0
    """Nodes that stay and may have no pod for now, since their GPUs are cut."""

    @property
    def staying(self) -> int:
        return len(self.filled) + len(self.kept) + len(self.idle) + self.closed


@dataclass(frozen=True, slots=True)
class Size:
    """What a pool is to have."""

    replicas: int
    released: tuple[str, ...]
    """Nodes whose pods are deleted, in this order."""
    change: Change


def size(
    pool: RuntimePool, nodes: Nodes, missing: int, now_s: float, *, full: bool = False
) -> Size:
    """``missing``: nodes beyond the filled ones that would close the plan's shortfall; ``full``: more than the pool may
    have would.

    What is used is never released, so a pool whose ``max`` was lowered shrinks as load does. Nodes that leave are
    replaced while they still serve, so for that time there may be more than ``max``.
    """
    bounds = pool.spec.size
    needed = ceil(
        (len(nodes.filled) + len(nodes.kept) + nodes.closed) * (1 + bounds.headroom.percent / 100)
        - 1e-9
    )
    wanted = max(needed, len(nodes.filled) + missing)
    floor = min(bounds.max, max(bounds.min, wanted))
    surplus = max(0, nodes.staying - floor)
    if missing and nodes.staying <= bounds.max:
        surplus = 0  # what is idle may be what is waited for
    ripe = sorted(
        (since_s, name)
        for name, since_s in nodes.idle.items()
        if now_s - since_s >= bounds.scale_down_delay_s or nodes.staying > bounds.max
    )
    given_back = tuple(name for _, name in ripe[:surplus])
    released = (*sorted(nodes.left), *given_back)
    staying = max(floor, nodes.staying - len(given_back))
    bound = nodes.staying + nodes.other - len(given_back) + len(nodes.leaving)
    if staying > nodes.staying:
        change = Change.GROWING
    elif full or wanted > bounds.max:
        change = Change.AT_MAXIMUM
    else:
        change = Change.SHRINKING if released else Change.STEADY
    # A pod for a closed node would find none, and bring another one.
    return Size(max(staying + len(nodes.leaving), bound) - nodes.closed, released, change)


class Idle:
    """Since when nothing is on a node. Not thread-safe; a new leader counts anew, which keeps nodes longer."""

    def __init__(self) -> None:
        self._since_s: dict[str, float] = {}

    def see(self, idle: Collection[str], now_s: float) -> Mapping[str, float]:
        """``idle``: all nodes with nothing on them now."""
        self._since_s = {name: self._since_s.get(name, now_s) for name in idle}
        return self._since_s
