"""From rows to devices: which of several equal devices gets which row, at which exact positions.

The search treats equal devices as interchangeable, so its rows may come back permuted although hardly
anything changed. Here they are dealt out so that as much as possible stays where it runs: nodes of equal
shape are matched to the contents that differ least from their present ones, then devices within each node.
Contents that are equal match first, hence a plan that is already applied comes back unchanged.

Then each device's parts get their positions: the present geometry is kept when it has the parts that are
needed, otherwise the slices that keep their instances stay and the others are placed around them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import TypeVar

from tessera_core.gpu.devices import FULL
from tessera_core.gpu.geometry import Geometry, Placement, place
from tessera_core.plan.matrix import Matrix, Part, Row
from tessera_core.plan.problem import Problem
from tessera_core.plan.state import ClusterState, DeviceState, Slice

Token = tuple[str, str, str, int, int]
"""What runs in a part: (slice name, service, member, batch, instances)."""
Key = TypeVar("Key")
Content = TypeVar("Content")
Present = TypeVar("Present")
Cost = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Settled:
    """One device with its exact slices."""

    board: int
    geometry: Geometry
    """Empty: used whole."""
    recut: bool
    parts: tuple[tuple[Slice, Part], ...]
    """Sorted by slice."""


def settle(state: ClusterState, problem: Problem, matrix: Matrix) -> tuple[Settled, ...]:
    """Every board with its row of ``matrix``, permuted among equals, in the order of boards."""
    devices = {(node.name, device.uuid): device for node in state.nodes for device in node.devices}
    present = [devices[board.node, board.uuid] for board in problem.boards]
    rows = _deal_nodes(problem, matrix, present)
    for indices in problem.siblings.values():
        rows = _deal_devices(problem, rows, present, indices)
    return tuple(
        _positions(problem, index, device, row, state.policy.reserved_cores)
        for index, (device, row) in enumerate(zip(present, rows, strict=True))
    )


def tokens_of(problem: Problem, row: Row) -> Counter[Token]:
    """What ``row`` runs, for comparison with what a device runs."""
    return Counter(token for part in row for token in _part_tokens(problem, part))


def _part_tokens(problem: Problem, part: Part) -> list[Token]:
    found = []
    for cell in part.cells:
        demand = problem.demands[cell.member]
        found.append((part.place.slice, demand.service, demand.member, cell.cap, cell.instances))
    return found


def running_tokens(device: DeviceState) -> Counter[Token]:
    """What ``device`` runs."""
    return Counter(
        (each.slice.name, each.service, each.member, each.batch, each.instances)
        for each in device.running
    )


@dataclass(frozen=True, slots=True)
class _Held:
    """What a node runs, and the slices it is cut into by name."""

    running: Counter[Token]
    slices: Counter[str]


def _held(devices: Iterable[DeviceState]) -> _Held:
    held = _Held(Counter(), Counter())
    for device in devices:
        held.running.update(running_tokens(device))
        held.slices.update(_slice_names(device.geometry))
    return held


def _node_cost(wanted: Counter[Token], held: _Held) -> tuple[int, int]:
    """What changes, then how many slices have to be cut for it."""
    slices = Counter(name for name, *_ in wanted.elements())
    return _distance(wanted, held.running), (slices - held.slices).total()


def _distance(one: Counter[Token], two: Counter[Token]) -> int:
    return ((one - two) + (two - one)).total()


def _deal_nodes(
    problem: Problem, matrix: Matrix, present: Sequence[DeviceState]
) -> tuple[Row, ...]:
    """Rows moved between nodes of the same shape, all rows of a node together."""
    by_kind: dict[str, list[int]] = {
        # Boards of a node in an order in which equal shapes line up.
        node: sorted(indices, key=lambda index: (str(problem.boards[index].kind), index))
        for node, indices in problem.siblings.items()
    }
    shapes: dict[Hashable, list[str]] = {}
    for node, indices in sorted(by_kind.items()):
        shapes.setdefault(tuple(problem.boards[i].kind for i in indices), []).append(node)
    rows = list(matrix.rows)
    for nodes in shapes.values():
        wanted = {n: _sum(tokens_of(problem, matrix.rows[i]) for i in by_kind[n]) for n in nodes}
        held = {n: _held(present[i] for i in by_kind[n]) for n in nodes}
        for source, target in _match(wanted, held, _node_cost).items():
            for from_index, to_index in zip(by_kind[source], by_kind[target], strict=True):
                rows[to_index] = matrix.rows[from_index]
    return tuple(rows)


def _sum(counters: Iterable[Counter[Token]]) -> Counter[Token]:
    total: Counter[Token] = Counter()
    for counter in counters:
        total.update(counter)
    return total


def _deal_devices(
    problem: Problem,
    rows: Sequence[Row],
    present: Sequence[DeviceState],
    indices: Sequence[int],
) -> tuple[Row, ...]:
    """Rows moved between the equal devices of one node."""
    dealt = list(rows)
    kinds: dict[Hashable, list[int]] = {}
    for index in indices:
        kinds.setdefault(problem.boards[index].kind, []).append(index)

    def cost(row: Row, device: DeviceState) -> tuple[int, int]:
        differs = _distance(tokens_of(problem, row), running_tokens(device))
        return differs, not _covers(device.geometry, row)

    for equal in kinds.values():
        wanted = {index: rows[index] for index in equal}
        devices = {index: present[index] for index in equal}
        for source, target in _match(wanted, devices, cost).items():
            dealt[target] = rows[source]
    return tuple(dealt)


def _match(
    wanted: Mapping[Key, Content],
    present: Mapping[Key, Present],
    cost: Callable[[Content, Present], Cost],
) -> dict[Key, Key]:
    """A one-to-one map of equal-sized sides, the cheapest pair first; ties stay where they are."""
    pairs = sorted(
        # Empty contents go anywhere, so they choose last.
        (not wanted[one], cost(wanted[one], present[two]), one != two, one, two)
        for one, two in product(wanted, present)
    )
    matched: dict[Key, Key] = {}
    taken: set[Key] = set()
    for *_, one, two in pairs:
        if one not in matched and two not in taken:
            matched[one] = two
            taken.add(two)
    return matched


def _covers(geometry: Geometry | None, row: Row) -> bool:
    """Whether the slices of ``geometry`` are enough for the parts of ``row``."""
    wanted = Counter(part.place.slice for part in row)
    return wanted <= Counter(_slice_names(geometry))


def _slice_names(geometry: Geometry | None) -> list[str]:
    return [FULL] if geometry is None else [each.profile for each in geometry]


def _positions(
    problem: Problem, index: int, device: DeviceState, row: Row, reserved: int
) -> Settled:
    if device.is_cpu:
        return Settled(index, (), False, _core_sets(problem, device, row, reserved))
    if _covers(device.geometry, row):
        if device.geometry is None:
            return Settled(index, (), False, tuple((Slice(), part) for part in row))
        return Settled(index, device.geometry, False, _into(problem, device, row, device.geometry))
    if any(part.place.slice == FULL for part in row):
        return Settled(index, (), True, tuple((Slice(), part) for part in row))
    geometry = _geometry(problem, device, row)
    return Settled(index, geometry, True, _into(problem, device, row, geometry))


def _geometry(problem: Problem, device: DeviceState, row: Row) -> Geometry:
    """Exact slices for ``row``; those whose instances stay keep their place if the others then fit."""
    assert device.model is not None, "only boards with a table can be cut"
    wanted = Counter(part.place.slice for part in row)
    kept: list[Placement] = []
    for part in row:
        for start in sorted(_starts(device, _part_tokens(problem, part))):
            placement = Placement(part.place.slice, start)
            if placement not in kept and wanted[part.place.slice]:
                kept.append(placement)
                wanted[part.place.slice] -= 1
                break
    rest = place(device.model, wanted.elements(), kept)
    if rest is None:
        kept, rest = [], place(device.model, (part.place.slice for part in row))
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
        starts = _starts(device, _part_tokens(problem, part))
        same = [p for p in free if p.profile == part.place.slice and p.start in starts]
        if same:
            free.remove(same[0])
            placed.append((Slice(same[0].profile, same[0].start), part))
        else:
            waiting.append(part)
    for part in waiting:
        first = next(p for p in free if p.profile == part.place.slice)
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
        for start in sorted(_starts(device, _part_tokens(problem, part))):
            cores = _run(usable, start, part.place.sm_count)
            if cores and not taken & set(cores):
                taken |= set(cores)
                placed.append((Slice(part.place.slice, start, cores), part))
                break
        else:
            waiting.append(part)
    for part in sorted(waiting, key=lambda part: (-part.place.sm_count, part)):
        runs = (_run(usable, start, part.place.sm_count) for start in usable)
        cores = next((run for run in runs if run and not taken & set(run)), ())
        if not cores:
            return _laid_out(usable, row)
        taken |= set(cores)
        placed.append((Slice(part.place.slice, cores[0], cores), part))
    return tuple(sorted(placed))


def _run(usable: tuple[int, ...], start: int, count: int) -> tuple[int, ...]:
    """``count`` usable cores from ``start`` on; empty when there are not so many."""
    if start not in usable:
        return ()
    first = usable.index(start)
    run = usable[first : first + count]
    return run if len(run) == count else ()


def _laid_out(usable: tuple[int, ...], row: Row) -> tuple[tuple[Slice, Part], ...]:
    placed = []
    first = 0
    for part in sorted(row, key=lambda part: (-part.place.sm_count, part)):
        cores = usable[first : first + part.place.sm_count]
        first += part.place.sm_count
        placed.append((Slice(part.place.slice, cores[0], cores), part))
    return tuple(sorted(placed))
