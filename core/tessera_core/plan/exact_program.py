"""The covering program: how each member can be served, what a board can hold, and choices as counts.

Problem: a choice of one cover per member is symmetric in the members that have the same covers and in the boards
of one kind, and every symmetric copy of a choice costs a search as much as the first.

Approach: count instead of naming. Members with the same covers form a group; a choice is how many of the group
take each cover, and how many boards of each kind have each packing. Plain data, checked once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import gcd


@dataclass(frozen=True, slots=True)
class Supply:
    """One kind of board."""

    cost: int
    """Price of using one board, ≥ 0, in a unit that all kinds share."""
    boards: int
    """How many there are, ≥ 0."""
    packings: tuple[tuple[int, ...], ...]
    """What one board can hold: parts per class, one tuple per packing, at least one. Any subset fits too."""


@dataclass(frozen=True, slots=True)
class Cover:
    """One way to serve one member."""

    kind: int
    """Index of the supply whose boards it uses."""
    parts: tuple[int, ...]
    """Parts that it takes, per class of that kind, ≥ 0."""
    width: int
    """SMs that it uses, ≥ 0: the second objective."""


@dataclass(frozen=True, slots=True)
class Group:
    """Members with the same covers."""

    covers: tuple[Cover, ...]
    """Sorted, each once."""
    members: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Program:
    """What there is and what is wanted, without names."""

    supplies: tuple[Supply, ...]
    unit: int
    """Greatest common divisor of the costs; inside the program costs count in it, so bounds round up further."""
    costs: tuple[int, ...]
    """Per kind."""
    packings: tuple[tuple[int, ...], ...]
    """Per kind, the indexes of the packings that no other packing contains."""
    groups: tuple[Group, ...]


@dataclass(frozen=True, slots=True)
class Choice:
    """A choice: members per group and cover, boards per kind and undominated packing."""

    x: tuple[tuple[int, ...], ...]
    y: tuple[tuple[int, ...], ...]
    cost: int
    """Of the boards, in the program's unit."""


def grouped(supplies: Sequence[Supply], covers: Sequence[Sequence[Cover]]) -> Program:
    """The program of ``covers[m]``, the ways to serve member m, on ``supplies``.

    Raises ValueError, naming the field, for negative numbers, unknown kinds and lengths that differ.
    """
    _check(supplies, covers)
    unit = gcd(*(supply.cost for supply in supplies)) or 1
    alike: dict[tuple[Cover, ...], list[int]] = {}
    for member, ways in enumerate(covers):
        alike.setdefault(tuple(sorted(set(ways), key=_order)), []).append(member)
    groups = [Group(ways, tuple(members)) for ways, members in alike.items()]
    groups.sort(key=lambda group: [_order(cover) for cover in group.covers])
    return Program(
        supplies=tuple(supplies),
        unit=unit,
        costs=tuple(supply.cost // unit for supply in supplies),
        packings=tuple(_undominated(supply.packings) for supply in supplies),
        groups=tuple(groups),
    )


def used(
    program: Program, covers: Sequence[Sequence[Cover]], start: Sequence[int]
) -> tuple[tuple[int, ...], ...]:
    """Per group, the indexes of the covers that ``start``, a cover's index per member, uses.

    Raises ValueError for another number of members and for unknown indexes.
    """
    if len(start) != len(covers):
        raise ValueError(f"start: {len(start)} indexes, one per member is {len(covers)}")
    for m, (j, ways) in enumerate(zip(start, covers, strict=True)):
        if not 0 <= j < len(ways):
            raise ValueError(f"start[{m}]: {j}, below {len(ways)} and at least 0")
    taken = [{covers[m][start[m]] for m in group.members} for group in program.groups]
    return tuple(
        tuple(j for j, cover in enumerate(group.covers) if cover in those)
        for group, those in zip(program.groups, taken, strict=True)
    )


def packed(
    program: Program, x: Sequence[Sequence[int]], y: Sequence[Sequence[int]]
) -> Choice | None:
    """The choice with these counts, less the boards that it can do without; None when it breaks a rule."""
    needed = [[0] * len(supply.packings[0]) for supply in program.supplies]
    for group, counts in zip(program.groups, x, strict=True):
        if sum(counts) != len(group.members) or min(counts) < 0:
            return None
        for cover, n in zip(group.covers, counts, strict=True):
            if n:
                needed[cover.kind] = _plus(needed[cover.kind], cover.parts, n)
    boards, total = [], 0
    for k, supply in enumerate(program.supplies):
        packings = [supply.packings[p] for p in program.packings[k]]
        spare = [-n for n in needed[k]]
        for packing, n in zip(packings, y[k], strict=True):
            spare = _plus(spare, packing, n)
        if sum(y[k]) > supply.boards or min((*y[k], *spare)) < 0:
            return None
        kept = []
        for packing, n in zip(packings, y[k], strict=True):
            surplus = min((n, *(s // p for s, p in zip(spare, packing, strict=True) if p)))
            spare = _plus(spare, packing, -surplus)
            kept.append(n - surplus)
        boards.append(tuple(kept))
        total += program.costs[k] * sum(kept)
    return Choice(tuple(tuple(counts) for counts in x), tuple(boards), total)


def _plus(total: Sequence[int], parts: Sequence[int], times: int) -> list[int]:
    return [a + times * b for a, b in zip(total, parts, strict=True)]


def _check(supplies: Sequence[Supply], covers: Sequence[Sequence[Cover]]) -> None:
    for k, supply in enumerate(supplies):
        if supply.cost < 0 or supply.boards < 0:
            raise ValueError(
                f"supplies[{k}]: cost {supply.cost} and boards {supply.boards}, at least 0"
            )
        if not supply.packings:
            raise ValueError(f"supplies[{k}].packings: empty, at least one")
        for p, packing in enumerate(supply.packings):
            _check_counts(f"supplies[{k}].packings[{p}]", packing, len(supply.packings[0]))
    for m, ways in enumerate(covers):
        for j, cover in enumerate(ways):
            if not 0 <= cover.kind < len(supplies):
                raise ValueError(
                    f"covers[{m}][{j}].kind: {cover.kind}, below {len(supplies)} and at least 0"
                )
            if cover.width < 0:
                raise ValueError(f"covers[{m}][{j}].width: {cover.width}, at least 0")
            classes = len(supplies[cover.kind].packings[0])
            _check_counts(f"covers[{m}][{j}].parts", cover.parts, classes)


def _check_counts(path: str, counts: tuple[int, ...], classes: int) -> None:
    if len(counts) != classes:
        raise ValueError(f"{path}: {len(counts)} numbers, one per class is {classes}")
    if any(count < 0 for count in counts):
        raise ValueError(f"{path}: {counts}, each at least 0")


def _order(cover: Cover) -> tuple[int, tuple[int, ...], int]:
    return cover.kind, cover.parts, cover.width


def _undominated(packings: tuple[tuple[int, ...], ...]) -> tuple[int, ...]:
    """Indexes of the packings that no other contains; of equal ones the first."""

    def contains(big: tuple[int, ...], small: tuple[int, ...]) -> bool:
        return all(b >= s for b, s in zip(big, small, strict=True))

    return tuple(
        i
        for i, packing in enumerate(packings)
        if not any(
            contains(other, packing) and (other != packing or j < i)
            for j, other in enumerate(packings)
        )
    )
