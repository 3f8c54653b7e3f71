"""The fewest geometries of one GPU that together have every one of some profiles.

Problem: what has to be tried on each kind of slice takes a cut for every geometry, and one GPU has only room for some
kinds at a time. That is set cover; a board has six profiles at most beside those with media extensions, so it is solved
exactly by looking at all combinations of few geometries.
"""

from __future__ import annotations

from collections.abc import Collection
from functools import lru_cache
from itertools import combinations

from tessera_core.gpu.geometry import Geometry, maximal_layouts, place
from tessera_core.gpu.mig import GpuModel


def covers(model: GpuModel, wanted: Collection[str]) -> tuple[Geometry, ...]:
    """Geometries of one ``model`` GPU with one instance of each profile ``wanted`` among them: as few as there can be, of
    which the first has as many of the profiles as possible, then the second. Raises GeometryError for a profile that the
    model does not have.
    """
    return _covers(model, tuple(sorted(set(wanted))))


@lru_cache(maxsize=1024)  # 127 sets of profiles of each board, asked for in each round
def _covers(model: GpuModel, wanted: tuple[str, ...]) -> tuple[Geometry, ...]:
    if not wanted:
        return ()
    fits = {frozenset(each.profile for each in one) for one in maximal_layouts(model, wanted)}
    largest = sorted(
        (one for one in fits if not any(one < other for other in fits)),
        key=lambda one: (-len(one), sorted(one)),
    )
    for count in range(1, len(wanted) + 1):
        found = [
            shares
            for some in combinations(largest, count)
            if frozenset().union(*some) == set(wanted)
            for shares in [_shares(some)]
        ]
        if found:
            best = min(found, key=lambda shares: [(-len(one), sorted(one)) for one in shares])
            return tuple(_placed(model, one) for one in best)
    raise AssertionError("each profile fits a GPU that has nothing else")


def _placed(model: GpuModel, profiles: Collection[str]) -> Geometry:
    found = place(model, profiles)
    assert found is not None, "what is part of a layout has places"
    return found


def _shares(some: tuple[frozenset[str], ...]) -> list[frozenset[str]]:
    """What each of ``some`` has that those before it have not."""
    found: list[frozenset[str]] = []
    for one in some:
        found.append(one.difference(*found))
    return sorted(found, key=lambda one: (-len(one), sorted(one)))
