"""The least cost of a tiny cluster by trying everything: the oracle that the planner is compared with.

Rule: purely additive. A part of a board belongs to one member; a part of class c carries ``rates[c]`` rows/s
of it; a member is served when its parts carry its need. A used board costs its whole price.

Approach: every choice of used boards and of a packing for each is tried, the cheapest first. It gives so many
parts of each class; members then take minimal sets of parts in turn, with memory of what was tried. The first
choice that serves all is the optimum.

    TooLarge(ValueError)   more choices than ``MOST_CHOICES``: not a tiny case
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import combinations_with_replacement, product
from math import comb, prod

MOST_CHOICES = 200_000
_ROUNDING = 1e-9
"""Relative; parts that carry a need up to rounding carry it."""

Parts = tuple[int, ...]
"""Number of parts by class."""


@dataclass(frozen=True, slots=True)
class Kind:
    """Boards that are alike. Raises ValueError for what is not a board."""

    cost: float
    count: int
    packings: tuple[tuple[int, ...], ...]
    """What one board may be cut into: class indices, one per part."""

    def __post_init__(self) -> None:
        if self.cost < 0 or self.count < 0 or not self.packings:
            raise ValueError(f"kind: needs cost and count >= 0 and a packing, found {self}")


@dataclass(frozen=True, slots=True)
class Member:
    """What has to be carried. Raises ValueError for a need that is not positive."""

    need: float
    """Rows per second."""
    rates: tuple[float, ...]
    """Rows per second that one part of each class carries; 0 where it cannot run."""

    def __post_init__(self) -> None:
        if not self.need > 0:
            raise ValueError(f"need: must be positive, found {self.need}")


class TooLarge(ValueError):
    """The case has too many choices to try."""


def least_cost(kinds: Sequence[Kind], members: Sequence[Member]) -> float | None:
    """The minimum over all ways to serve all ``members``; None when there is none.

    Raises ValueError when members do not agree on the number of classes, TooLarge for a large case.
    """
    if not members:
        return 0.0
    classes = len(members[0].rates)
    if any(len(member.rates) != classes for member in members):
        raise ValueError("rates: every member needs one number per class")
    choices = prod(comb(len(kind.packings) + kind.count, kind.count) for kind in kinds)
    if choices > MOST_CHOICES:
        raise TooLarge(f"{choices} choices of boards and packings, at most {MOST_CHOICES}")
    tried: set[Parts] = set()
    for cost, parts in sorted(_choices(kinds, classes)):
        if parts not in tried and _serves(parts, members):
            return cost
        tried.add(parts)
    return None


def _choices(kinds: Sequence[Kind], classes: int) -> Iterator[tuple[float, Parts]]:
    """(cost, parts) of every choice of 0 .. count boards of each kind with a packing each."""
    by_kind = [
        [
            (used * kind.cost, packings)
            for used in range(kind.count + 1)
            for packings in combinations_with_replacement(kind.packings, used)
        ]
        for kind in kinds
    ]
    for choice in product(*by_kind):
        parts = [0] * classes
        for _, packings in choice:
            for packing in packings:
                for index in packing:
                    parts[index] += 1
        yield sum(cost for cost, _ in choice), tuple(parts)


def _serves(parts: Parts, members: Sequence[Member]) -> bool:
    """Whether ``parts`` can be dealt out so that every member gets its need."""
    if any(_carried(parts, member) < member.need * (1 - _ROUNDING) for member in members):
        return False  # not even with all of them to itself

    @cache
    def deal(index: int, left: Parts) -> bool:
        if index == len(members):
            return True
        return any(
            deal(index + 1, tuple(have - take for have, take in zip(left, taken, strict=True)))
            for taken in _minimal(members[index], left)
        )

    return deal(0, parts)


def _carried(parts: Parts, member: Member) -> float:
    return sum(count * rate for count, rate in zip(parts, member.rates, strict=True))


def _minimal(member: Member, left: Parts) -> Iterator[Parts]:
    """Every set of parts of ``left`` that carries the member's need and would not without any one part."""
    ranges = (
        range(count + 1) if rate else range(1)
        for count, rate in zip(left, member.rates, strict=True)
    )
    need = member.need * (1 - _ROUNDING)
    for taken in product(*ranges):
        carried = _carried(taken, member)
        spare = min(
            (rate for count, rate in zip(taken, member.rates, strict=True) if count), default=0.0
        )
        if carried >= need > carried - spare:
            yield taken
