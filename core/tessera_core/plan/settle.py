"""From rows to devices: the exact slices and cores of every part.

The search counts parts; a device has positions. The present geometry is kept when it has the parts that are
needed, otherwise the slices that keep their instances stay and the others are placed around them. A part
that runs already goes where it runs, so a plan that is already applied comes back unchanged.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from tessera_core.gpu.devices import FULL
from tessera_core.gpu.geometry import Geometry, Placement, place
from tessera_core.plan.matrix import Part, Row
from tessera_core.plan.problem import Problem
from tessera_core.plan.state import DeviceState, Slice

Token = tuple[str, str, str, int, int]
"""What runs in a part: (slice name, service, member, batch, instances)."""


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
    if _covers(problem, device.geometry, row):
        if device.geometry is None:
            return Settled((), False, tuple((Slice(), part) for part in row))
        return Settled(device.geometry, False, _into(problem, device, row, device.geometry))
    if any(_name(problem, part) == FULL for part in row):
        return Settled((), True, tuple((Slice(), part) for part in row))
    geometry = _geometry(problem, device, row)
    return Settled(geometry, True, _into(problem, device, row, geometry))


def _name(problem: Problem, part: Part) -> str:
    return problem.places[part.place].slice


def _width(problem: Problem, part: Part) -> int:
    return problem.places[part.place].sm_count


def _tokens(problem: Problem, part: Part) -> list[Token]:
    name = _name(problem, part)
    return [
        (name, *problem.demands[cell.member].key, cell.cap, cell.instances) for cell in part.cells
    ]


def _covers(problem: Problem, geometry: Geometry | None, row: Row) -> bool:
    """Whether the slices of ``geometry`` are enough for the parts of ``row``."""
    wanted = Counter(_name(problem, part) for part in row)
    return wanted <= Counter(_slice_names(geometry))


def _slice_names(geometry: Geometry | None) -> list[str]:
    return [FULL] if geometry is None else [each.profile for each in geometry]


def _geometry(problem: Problem, device: DeviceState, row: Row) -> Geometry:
    """Exact slices for ``row``; those whose instances stay keep their place if the others then fit."""
    assert device.model is not None, "only boards with a table can be cut"
    wanted = Counter(_name(problem, part) for part in row)
    kept: list[Placement] = []
    for part in row:
        for start in sorted(_starts(device, _tokens(problem, part))):
            placement = Placement(_name(problem, part), start)
            if placement not in kept and wanted[_name(problem, part)]:
                kept.append(placement)
                wanted[_name(problem, part)] -= 1
                break
    rest = place(device.model, wanted.elements(), kept)
    if rest is None:
        kept, rest = [], place(device.model, (_name(problem, part) for part in row))
    assert rest is not None, "every row is inside a packing, and packings are layouts"
    return tuple(sorted((*kept, *rest)))


def _starts(device: DeviceState, tokens: Sequence[Token]) -> set[int]:
    """Starts of the present slices that run exactly ``tokens``."""
    inside: dict[Slice, list[Token]] = {}
    for each in device.running:
        token = (each.slice.name, each.service, each.member, each.batch, each.instances)
        inside.setdefault(each.slice, []).append(token)
    return {piece.start for piece, found in inside.items() if sorted(found) == sorted(tokens)}


def _into(
    problem: Problem, device: DeviceState, row: Row, geometry: Geometry
) -> tuple[tuple[Slice, Part], ...]:
    """Parts into slices of their profile: where they run already, else the first free one."""
    free = list(geometry)
    placed: list[tuple[Slice, Part]] = []
    waiting: list[Part] = []
    for part in row:
        starts = _starts(device, _tokens(problem, part))
        same = [p for p in free if p.profile == _name(problem, part) and p.start in starts]
        if same:
            free.remove(same[0])
            placed.append((Slice(same[0].profile, same[0].start), part))
        else:
            waiting.append(part)
    for part in waiting:
        first = next(p for p in free if p.profile == _name(problem, part))
        free.remove(first)
        placed.append((Slice(first.profile, first.start), part))
    return tuple(sorted(placed))


def _core_sets(
    problem: Problem, device: DeviceState, row: Row, reserved: int
) -> tuple[tuple[Slice, Part], ...]:
    """Runs of neighbouring cores: where the part runs already, else the lowest run that is free.

    The first ``reserved`` cores are left alone. When the kept sets leave no run that is long enough, all
    sets are laid out anew.
    """
    usable = tuple(range(reserved, device.cores))
    placed: list[tuple[Slice, Part]] = []
    waiting: list[Part] = []
    taken: set[int] = set()
    for part in row:
        for start in sorted(_starts(device, _tokens(problem, part))):
            cores = _run(usable, start, _width(problem, part))
            if cores and not taken & set(cores):
                taken |= set(cores)
                placed.append((Slice(_name(problem, part), start, cores), part))
                break
        else:
            waiting.append(part)
    for part in sorted(waiting, key=lambda part: (-_width(problem, part), part)):
        runs = (_run(usable, start, _width(problem, part)) for start in usable)
        cores = next((run for run in runs if run and not taken & set(run)), ())
        if not cores:
            return _laid_out(problem, usable, row)
        taken |= set(cores)
        placed.append((Slice(_name(problem, part), cores[0], cores), part))
    return tuple(sorted(placed))


def _run(usable: tuple[int, ...], start: int, count: int) -> tuple[int, ...]:
    """``count`` usable cores from ``start`` on; empty when there are not so many."""
    if start not in usable:
        return ()
    first = usable.index(start)
    run = usable[first : first + count]
    return run if len(run) == count else ()


def _laid_out(
    problem: Problem, usable: tuple[int, ...], row: Row
) -> tuple[tuple[Slice, Part], ...]:
    placed = []
    first = 0
    for part in sorted(row, key=lambda part: (-_width(problem, part), part)):
        cores = usable[first : first + _width(problem, part)]
        first += _width(problem, part)
        placed.append((Slice(_name(problem, part), cores[0], cores), part))
    return tuple(sorted(placed))
