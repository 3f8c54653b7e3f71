"""How many GPUs it takes to cut so many slices from, for thousands of counts at once.

The fewest GPUs for many slices is a linear program over the ways to cut one (cutting stock; Gilmore and Gomory 1961). Its
dual has as many variables as there are profiles and does not depend on the counts, so its vertices are listed once: the
answer is then the largest of a few scalar products. Rounding up to whole GPUs leaves out less than one GPU for each profile.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from tessera_core.gpu.geometry import maximal_multisets
from tessera_core.gpu.mig import MEDIA, GpuModel, Profile

Vector = NDArray[np.float64]

_CLOSE = 1e-9


def cut_profiles(model: GpuModel) -> tuple[Profile, ...]:
    """Those that a fleet cuts, widest first: known SMs, no media extensions, smaller than the whole GPU."""
    return tuple(
        each
        for each in model.profiles
        if each.sm_count is not None
        and MEDIA not in each.attributes
        and each.compute_slices < model.compute_slices
    )


@dataclass(frozen=True, slots=True, eq=False)
class Packing:
    """Of one GPU model."""

    profiles: tuple[Profile, ...]
    prices: Vector
    """Vertices of the dual, shape (vertices, profiles): what a slice costs in GPUs when GPUs are cut for it alone."""

    def gpus(self, counts: Vector) -> Vector:
        """The fewest GPUs that hold ``counts``, shape (..., profiles), up to rounding; shape (...)."""
        fewest: Vector = (counts @ self.prices.T).max(axis=-1)
        return fewest


@lru_cache(maxsize=16)
def packing_of(model: GpuModel) -> Packing:
    """Profiles of ``model`` and the dual of cutting it."""
    profiles = cut_profiles(model)
    names = tuple(each.name for each in profiles)
    if not names:
        return Packing((), np.zeros((1, 0)))
    found = {
        tuple(multiset.count(name) for name in names)
        for multiset in maximal_multisets(model, names)
    }
    # A way to cut that another one contains forbids nothing more.
    ways = [
        one
        for one in sorted(found)
        if not any(other != one and np.greater_equal(other, one).all() for other in found)
    ]
    return Packing(profiles, _vertices(np.array(ways, dtype=np.float64)))


def _vertices(ways: Vector) -> Vector:
    """Of the prices y >= 0 for which no way to cut costs more than its GPU: ways @ y <= 1. Shape (vertices, profiles)."""
    size = ways.shape[1]
    planes = np.concatenate((ways, -np.eye(size)))
    bounds = np.concatenate((np.ones(len(ways)), np.zeros(size)))
    chosen = np.array(list(combinations(range(len(planes)), size)))
    systems = planes[chosen]
    regular = np.abs(np.linalg.det(systems)) > _CLOSE
    points = np.linalg.solve(systems[regular], bounds[chosen[regular]][..., None])[..., 0]
    inside = (points @ planes.T <= bounds + _CLOSE).all(axis=1)
    vertices: Vector = np.unique(points[inside].round(12), axis=0)
    # Of prices that are nowhere above others the others decide.
    best = [
        one
        for one in vertices
        if not any((other >= one).all() and (other > one).any() for other in vertices)
    ]
    return np.array(best)
