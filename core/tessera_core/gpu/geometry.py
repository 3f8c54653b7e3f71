"""MIG geometry: which placements may share one GPU, and every way to fill it.

Problem: NVIDIA's rules are positional. Two 3g fit at 0 and 4 but not beside a 2g at 4; {3g, 2g, 2g} fits only
with the 3g at 4. A planner that counts slices alone proposes layouts that the driver refuses.

Approach: a placement is a run of memory slices, so it is a bit mask, and a layout is a set of disjoint masks
within the per-profile maxima. A GPU has at most 25 placements, hence all layouts are enumerated exactly
(298 for {1g,2g,3g,4g,7g}) and cached per (model, profiles). Rules: NVIDIA MIG User Guide, "Supported MIG
Profiles" and ``nvidia-smi mig -lgipp``; see ``tables.py``.

    GeometryError(ValueError)    a geometry or request that breaks the rules; carries the Violations
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache
from itertools import combinations

from tessera_core.gpu.mig import MEDIA, GpuModel, Profile


@dataclass(frozen=True, slots=True, order=True)
class Placement:
    """One GPU instance: a profile of the GPU's model at a memory slice."""

    profile: str
    """Name as in the model's table; a driver's alias is resolved first (``find_profile``)."""
    start: int
    """First memory slice."""

    def __str__(self) -> str:
        return f"{self.profile}@{self.start}"


Geometry = tuple[Placement, ...]
"""The instances of one GPU; canonical when sorted."""


class Rule(StrEnum):
    """What a geometry can break."""

    UNKNOWN_PROFILE = "UnknownProfile"
    ILLEGAL_START = "IllegalStart"
    OVERLAP = "Overlap"
    TOO_MANY = "TooMany"
    SM_BUDGET = "SmBudget"


@dataclass(frozen=True, slots=True)
class Violation:
    """A broken rule, what breaks it, and what is allowed."""

    rule: Rule
    placements: Geometry
    detail: str


class GeometryError(ValueError):
    """A geometry or request that breaks a rule of its model."""

    def __init__(self, model: GpuModel, violations: tuple[Violation, ...]) -> None:
        super().__init__(f"{model.name}: " + "; ".join(each.detail for each in violations))
        self.violations = violations


def canonical(placements: Iterable[Placement]) -> Geometry:
    """The same instances in the one order in which geometries compare equal."""
    return tuple(sorted(placements))


def violations(model: GpuModel, geometry: Iterable[Placement]) -> tuple[Violation, ...]:
    """Every rule that ``geometry`` breaks on one ``model`` GPU, in a fixed order; empty when legal."""
    placements = canonical(geometry)
    by_name = _by_name(model)
    found: list[Violation] = []
    placed: list[tuple[Placement, Profile, int]] = []
    for placement in placements:
        profile = by_name.get(placement.profile)
        if profile is None:
            found.append(_unknown(model, placement.profile, (placement,)))
        elif placement.start not in profile.starts:
            detail = f"{placement} may start at {_list(profile.starts)}"
            found.append(Violation(Rule.ILLEGAL_START, (placement,), detail))
        else:
            placed.append((placement, profile, _mask(profile, placement.start)))
    for (left, _, left_mask), (right, _, right_mask) in combinations(placed, 2):
        if shared := left_mask & right_mask:
            slices = _list(bit for bit in range(model.memory_slices) if shared >> bit & 1)
            detail = f"{left} and {right} share memory slices {slices}"
            found.append(Violation(Rule.OVERLAP, (left, right), detail))
    found += _over_limit(by_name, placements)
    # Table starts already keep legal layouts within the budget; a table discovered from a driver may not.
    sms = sum(profile.sm_count or 0 for _, profile, _ in placed)
    if sms > model.sm_count:
        detail = f"the instances need {sms} SMs, {model.name} has {model.sm_count}"
        found.append(Violation(Rule.SM_BUDGET, placements, detail))
    return tuple(found)


@lru_cache(maxsize=64)
def layouts(model: GpuModel, profiles: tuple[str, ...] | None = None) -> tuple[Geometry, ...]:
    """Every legal geometry of one GPU from ``profiles`` (None: all of the model), the empty one included.

    Raises GeometryError for a profile that the model does not have.
    """
    slots = _slots(model, profiles)
    return tuple(
        sorted(canonical(slot.placement for slot in layout) for layout in _grow(slots, 0, ()))
    )


@lru_cache(maxsize=64)
def maximal_layouts(
    model: GpuModel, profiles: tuple[str, ...] | None = None
) -> tuple[Geometry, ...]:
    """The geometries to which no further instance of ``profiles`` can be added."""
    slots = _slots(model, profiles)
    return tuple(
        sorted(
            canonical(slot.placement for slot in layout)
            for layout in _grow(slots, 0, ())
            if not any(_fits(slot, layout) for slot in slots)
        )
    )


@lru_cache(maxsize=64)
def maximal_multisets(
    model: GpuModel, profiles: tuple[str, ...] | None = None
) -> tuple[tuple[str, ...], ...]:
    """The distinct profile multisets of the maximal layouts, each sorted by name."""
    return tuple(
        sorted(
            {tuple(each.profile for each in layout) for layout in maximal_layouts(model, profiles)}
        )
    )


def place(
    model: GpuModel, profiles: Iterable[str], occupied: Iterable[Placement] = ()
) -> Geometry | None:
    """Places for the multiset ``profiles`` on one GPU beside ``occupied``; None when there are none.

    Exact: finds a placement whenever one exists. Of several it takes the one that leaves most places for
    the widest profiles, then the smallest in canonical order, so a lone 1g goes to slice 6 and not
    into the middle of a future 3g. Returns the new instances only, canonical. Raises GeometryError when
    ``occupied`` is not legal or a profile is unknown.
    """
    return _place(model, tuple(sorted(profiles)), canonical(occupied))


@dataclass(frozen=True, slots=True)
class _Slot:
    placement: Placement
    profile: Profile
    mask: int


def _mask(profile: Profile, start: int) -> int:
    return ((1 << profile.memory_slices) - 1) << start


@lru_cache(maxsize=64)
def _by_name(model: GpuModel) -> dict[str, Profile]:
    return {profile.name: profile for profile in model.profiles}


@lru_cache(maxsize=64)
def _slots(model: GpuModel, profiles: tuple[str, ...] | None = None) -> tuple[_Slot, ...]:
    """All placements of ``profiles``, in the model's order of profiles."""
    known = _by_name(model)
    chosen = set(known if profiles is None else profiles)
    if unknown := sorted(chosen - known.keys()):
        raise GeometryError(model, tuple(_unknown(model, name, ()) for name in unknown))
    return tuple(
        _Slot(Placement(profile.name, start), profile, _mask(profile, start))
        for profile in model.profiles
        if profile.name in chosen
        for start in profile.starts
    )


def _fits(slot: _Slot, layout: Sequence[_Slot]) -> bool:
    """Whether ``slot`` can join ``layout``: free memory slices, below the maximum, one media extension."""
    if any(slot.mask & other.mask for other in layout):
        return False
    if sum(other.profile.name == slot.profile.name for other in layout) >= slot.profile.max_count:
        return False
    media = MEDIA in slot.profile.attributes
    return not (media and any(MEDIA in other.profile.attributes for other in layout))


def _grow(
    slots: Sequence[_Slot], first: int, layout: tuple[_Slot, ...]
) -> Iterator[tuple[_Slot, ...]]:
    """``layout`` and every legal extension of it by ``slots[first:]``; each set comes once."""
    yield layout
    for index in range(first, len(slots)):
        if _fits(slots[index], layout):
            yield from _grow(slots, index + 1, (*layout, slots[index]))


@lru_cache(maxsize=4096)
def _place(model: GpuModel, wanted: tuple[str, ...], taken: Geometry) -> Geometry | None:
    known = _by_name(model)
    broken = violations(model, taken) + tuple(
        _unknown(model, name, ()) for name in sorted(set(wanted) - known.keys())
    )
    if broken:
        raise GeometryError(model, broken)
    slots = _slots(model)
    base = tuple(slot for slot in slots if slot.placement in taken)
    # Widest first fails soonest: the wide ones have the fewest starts.
    order = [profile.name for profile in model.profiles for _ in range(wanted.count(profile.name))]
    best: tuple[tuple[int, ...], Geometry] | None = None
    for layout in _fill(slots, order, 0, base):
        left = Counter(slot.profile.name for slot in slots if _fits(slot, layout))
        # Negated, so that the smallest candidate keeps the most places, the widest profile counting first.
        cost = tuple(-left[profile.name] for profile in model.profiles)
        candidate = (cost, canonical(slot.placement for slot in layout[len(base) :]))
        if best is None or candidate < best:
            best = candidate
    return None if best is None else best[1]


def _fill(
    slots: Sequence[_Slot], order: Sequence[str], first: int, layout: tuple[_Slot, ...]
) -> Iterator[tuple[_Slot, ...]]:
    """Every way to add the profiles of ``order`` to ``layout``, each once.

    ``order`` follows the order of ``slots``, so looking only ahead loses no layout and repeats none.
    """
    if not order:
        yield layout
        return
    for index in range(first, len(slots)):
        slot = slots[index]
        if slot.profile.name == order[0] and _fits(slot, layout):
            yield from _fill(slots, order[1:], index + 1, (*layout, slot))


def _over_limit(by_name: dict[str, Profile], placements: Geometry) -> Iterator[Violation]:
    for name, count in sorted(Counter(each.profile for each in placements).items()):
        if name in by_name and count > by_name[name].max_count:
            those = tuple(each for each in placements if each.profile == name)
            detail = f"{count} instances of {name}, at most {by_name[name].max_count} fit one GPU"
            yield Violation(Rule.TOO_MANY, those, detail)
    media = tuple(
        each
        for each in placements
        if each.profile in by_name and MEDIA in by_name[each.profile].attributes
    )
    if len({each.profile for each in media}) > 1:
        detail = f"{_list(media)} each need the media extensions, of which a GPU has one set"
        yield Violation(Rule.TOO_MANY, media, detail)


def _unknown(model: GpuModel, name: str, placements: Geometry) -> Violation:
    detail = f"unknown profile {name!r}, has {_list(profile.name for profile in model.profiles)}"
    return Violation(Rule.UNKNOWN_PROFILE, placements, detail)


def _list(items: Iterable[object]) -> str:
    return ", ".join(str(item) for item in items)
