"""From rows to devices: the exact slices and cores of every part.

The search counts parts; a device has positions. The present geometry is kept when it has the parts that are
needed, otherwise the slices that keep their instances stay and the others are placed around them. A part
that runs already goes where it runs, also with other settings, so a plan that is already applied comes back unchanged.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from tessera_core.gpu.devices import FULL
from tessera_core.gpu.geometry import Geometry, Placement, place
from tessera_core.plan.matrix import Part, Row
from tessera_core.plan.problem import Problem
from tessera_core.plan.state import DeviceState, Slice

Token = tuple[str, str, int, int]
"""What runs in a part: (service, member, batch, instances)."""


@dataclass(frozen=True, slots=True)
class Settled:
    """One device with its exact slices."""

    geometry: Geometry
    """Empty: used whole."""
    recut: bool
    parts: tuple[tuple[Slice, Part], ...]
    """Sorted by slice."""


def settle(problem: Problem, index: int, row: Row) -> Settled:
    """Board ``index`` with ``row``; cores that the policy reserves are the first ones of a processor."""
    device = problem.devices[index]
    if device.is_cpu:
        return Settled((), False, _core_sets(problem, device, row, problem.policy.reserved_cores))
    if covers(problem, device, row):
        if device.geometry is None:
            return Settled((), False, tuple((Slice(), part) for part in row))
        return Settled(device.geometry, False, _into(problem, device, row, device.geometry))
    if any(slice_name(problem, part) == FULL for part in row):
        return Settled((), True, tuple((Slice(), part) for part in row))
    geometry = _geometry(problem, device, row)
    return Settled(geometry, True, _into(problem, device, row, geometry))


def slice_name(problem: Problem, part: Part) -> str:
    """Of the slices that ``part`` may be in."""
    return problem.places[part.place].slice


def _width(problem: Problem, part: Part) -> int:
    return problem.places[part.place].sm_count


def covers(problem: Problem, device: DeviceState, row: Row) -> bool:
    """Whether the slices that a GPU has are enough for the parts of ``row``."""
    wanted = Counter(slice_name(problem, part) for part in row)
    return wanted <= Counter(_slice_names(device.geometry))


def _slice_names(geometry: Geometry | None) -> list[str]:
    return [FULL] if geometry is None else [each.profile for each in geometry]


def _geometry(problem: Problem, device: DeviceState, row: Row) -> Geometry:
    """Exact slices for ``row``; those whose instances stay keep their place if the others then fit."""
    assert device.model is not None, "only boards with a table can be cut"
    names = [slice_name(problem, part) for part in row]
    kept: dict[int, Placement] = {}
    for position, start in _present(problem, device, row):
        placement = Placement(names[position], start)
        if position not in kept and placement not in kept.values():
            kept[position] = placement
    while True:
        waiting = [name for position, name in enumerate(names) if position not in kept]
        rest = place(device.model, waiting, list(kept.values()))
        if rest is not None:
            return tuple(sorted((*kept.values(), *rest)))
        assert kept, "every row is inside a packing, and packings are layouts"
        kept.popitem()  # what has least to lose


def _present(problem: Problem, device: DeviceState, row: Row) -> list[tuple[int, int]]:
    """Parts, by position in ``row``, and starts of present slices of theirs in which some of their members run. Those that
    run exactly so come first, then the most members, whose caps and instances can be changed where they are.
    """
    inside: dict[Slice, list[Token]] = {}
    for each in device.running:
        token = (each.service, each.member, each.batch, each.instances)
        inside.setdefault(each.slice, []).append(token)
    found = []
    for position, part in enumerate(row):
        tokens = sorted(
            (*problem.demands[cell.member].key, cell.cap, cell.instances) for cell in part.cells
        )
        for piece, running in inside.items():
            stay = len({token[:2] for token in tokens} & {token[:2] for token in running})
            if stay and piece.name == slice_name(problem, part):
                found.append((sorted(running) != tokens, -stay, position, piece.start))
    return [(position, start) for _, _, position, start in sorted(found)]


def _into(
    problem: Problem, device: DeviceState, row: Row, geometry: Geometry
) -> tuple[tuple[Slice, Part], ...]:
    """Parts into slices of their profile: where they run already, else the first free one."""
    free = list(geometry)
    placed: dict[int, Placement] = {}
    for position, start in _present(problem, device, row):
        there = Placement(slice_name(problem, row[position]), start)
        if position not in placed and there in free:
            free.remove(there)
            placed[position] = there
    for position, part in enumerate(row):
        if position not in placed:
            first = next(p for p in free if p.profile == slice_name(problem, part))
            free.remove(first)
            placed[position] = first
    return tuple(
        sorted((Slice(there.profile, there.start), row[at]) for at, there in placed.items())
    )


def _core_sets(
    problem: Problem, device: DeviceState, row: Row, reserved: int
) -> tuple[tuple[Slice, Part], ...]:
    """Runs of neighbouring cores: where the part runs already, else the lowest run that is free.

    The first ``reserved`` cores are left alone. Sets that leave no run that is long enough for the others are given up.
    """
    usable = tuple(range(reserved, device.cores))
    kept: dict[int, tuple[int, ...]] = {}
    taken: set[int] = set()
    for position, start in _present(problem, device, row):
        cores = _run(usable, start, _width(problem, row[position]))
        if position not in kept and cores and not taken & set(cores):
            taken |= set(cores)
            kept[position] = cores
    while (placed := _beside(problem, row, usable, kept)) is None:
        kept.popitem()  # what has least to lose
    return tuple(
        sorted(
            (Slice(slice_name(problem, row[at]), cores[0], cores), row[at])
            for at, cores in placed.items()
        )
    )


def _beside(
    problem: Problem, row: Row, usable: tuple[int, ...], kept: dict[int, tuple[int, ...]]
) -> dict[int, tuple[int, ...]] | None:
    """Cores by position in ``row``, the widest parts first; None where a part finds none beside those that are ``kept``."""
    placed = dict(kept)
    taken = {core for cores in kept.values() for core in cores}
    waiting = [position for position in range(len(row)) if position not in kept]
    for position in sorted(waiting, key=lambda at: (-_width(problem, row[at]), row[at])):
        runs = (_run(usable, start, _width(problem, row[position])) for start in usable)
        cores = next((run for run in runs if run and not taken & set(run)), ())
        if not cores:
            assert kept, "a row has no more cores than its board"
            return None
        taken |= set(cores)
        placed[position] = cores
    return placed


def _run(usable: tuple[int, ...], start: int, count: int) -> tuple[int, ...]:
    """``count`` usable cores from ``start`` on; empty when there are not so many."""
    if start not in usable:
        return ()
    first = usable.index(start)
    run = usable[first : first + count]
    return run if len(run) == count else ()
