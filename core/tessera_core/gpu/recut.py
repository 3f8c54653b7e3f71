"""From the instances that a GPU has to those that are wanted, in steps of which each is legal by itself.

Problem: instances cannot be moved or resized, only destroyed and created, and a place is free for a new one only
when all that overlap it are gone. What is right already may be serving and must not be touched.

Approach: two instances of equal placement are the same instance, so what goes and what comes are set differences.
All that goes goes first; then widest first, the order in which tools that take counts alone find every layout, so
that a GPU which was left in the middle looks the same whoever cut it.

An instance is *unfinished* when it has not exactly the one compute instance that spans it, as after a crash between
the two creations. It runs nothing of ours, so it goes and comes again.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from tessera_core.gpu.geometry import GeometryError, Placement, canonical, violations
from tessera_core.gpu.mig import GpuModel


@dataclass(frozen=True, slots=True)
class Destroy:
    """Take an instance away, with the compute instances in it."""

    placement: Placement


@dataclass(frozen=True, slots=True)
class Create:
    """Make an instance at exactly this place, with the one compute instance that spans it."""

    placement: Placement


def recut(
    model: GpuModel,
    present: Iterable[Placement],
    wanted: Iterable[Placement],
    unfinished: Iterable[Placement] = (),
) -> tuple[Destroy | Create, ...]:
    """The steps from ``present`` to ``wanted`` on one ``model`` GPU, in their order; empty: nothing differs.

    ``present`` may hold profiles that the model's table lacks; they are destroyed. ``unfinished``: those of ``present``
    that are not whole. Raises GeometryError when ``wanted`` is not legal.
    """
    goal = canonical(wanted)
    if broken := violations(model, goal):
        raise GeometryError(model, broken)
    there = set(present)
    kept = there - set(unfinished)
    width = {profile.name: profile.memory_slices for profile in model.profiles}
    destroyed = sorted(there - (kept & set(goal)), key=_position)
    created = sorted(set(goal) - kept, key=lambda each: (-width[each.profile], _position(each)))
    return (*map(Destroy, destroyed), *map(Create, created))


def _position(placement: Placement) -> tuple[int, str]:
    return placement.start, placement.profile
