"""Where the instances of a GPU are, for those who may not ask its driver.

Problem: an instance is named by its profile and place (``1g.10gb@4``), and the place is told to the privileged only. What
serves sees which instances there are and of which profiles, and has to name them all the same.

Approach: places that were told by somebody with the privilege are taken over. For the others a legal layout is deduced:
such a place is a name, and the instance may lie elsewhere. Where GPUs are cut, the places are told; where nobody cuts,
a name is all that a place is needed for.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from functools import lru_cache

from tessera_core.gpu.geometry import Geometry, Placement, canonical, layouts, violations
from tessera_core.gpu.mig import GpuModel


def locate(
    model: GpuModel,
    instances: Mapping[str, str],
    told: Mapping[str, Placement],
    before: Mapping[str, Placement],
) -> dict[str, Placement]:
    """Places for the instances of one ``model`` GPU, by UUID: together a legal geometry, the same for the same arguments.

    ``instances``: the profile of each by UUID, as the model's table calls it. ``told``: where instances are; ``before``:
    how they were named last. Both may speak of instances that are gone. Where table and driver disagree so that not all
    find a place, as few as possible are left out.

    An instance keeps the name it had but for two reasons: a place that is told now, its own or the one it was thought to
    have; and one that came and has no room beside it otherwise. Of ways to make room the one with most names kept is taken.
    A name can then pass from one instance to another, so what runs there has to be known by the UUID.
    """
    fixed = _agreed(model, instances, told)
    rest = {uuid: name for uuid, name in sorted(instances.items()) if uuid not in fixed}
    kept = {uuid: before[uuid] for uuid, name in rest.items() if _fits(before.get(uuid), name)}
    profiles = tuple(sorted(rest.values()))
    free = list(_layout(model, canonical(fixed.values()), profiles, canonical(kept.values())))
    found = dict(fixed)
    for uuid, placement in kept.items():
        if placement in free:
            free.remove(placement)
            found[uuid] = placement
    for uuid, name in rest.items():
        place = next((each for each in free if each.profile == name), None)
        if uuid not in found and place is not None:
            free.remove(place)
            found[uuid] = place
    return found


def _agreed(
    model: GpuModel, instances: Mapping[str, str], told: Mapping[str, Placement]
) -> dict[str, Placement]:
    """Of what is told, that which is of these instances and legal together."""
    found: dict[str, Placement] = {}
    for uuid, name in sorted(instances.items()):
        placement = told.get(uuid)
        if placement is None or not _fits(placement, name):
            continue
        if not violations(model, (*found.values(), placement)):
            found[uuid] = placement
    return found


def _fits(placement: Placement | None, profile: str) -> bool:
    return placement is not None and placement.profile == profile


@lru_cache(maxsize=4096)
def _layout(
    model: GpuModel, fixed: Geometry, profiles: tuple[str, ...], kept: Geometry
) -> Geometry:
    """Places for ``profiles`` beside ``fixed``: for most of them, then most of ``kept``, then the smallest."""
    used = tuple(sorted({*profiles, *(each.profile for each in fixed)}))
    there, wanted, names = set(fixed), Counter(profiles), set(kept)
    added = (
        canonical(set(layout) - there) for layout in layouts(model, used) if there.issubset(layout)
    )
    possible = (each for each in added if Counter(one.profile for one in each) <= wanted)
    return min(possible, key=lambda each: (-len(each), -len(names.intersection(each)), each))
