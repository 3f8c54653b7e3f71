"""What runs now, as a layout to start from: kept wherever it still may, trimmed where it is clearly too much.

Stability comes from here. A plan starts with the present placement, takes away what is no longer allowed or
wanted, and adds what is missing; nothing moves for the sake of a rate that wavers (``Policy.slack``).
"""

from __future__ import annotations

from tessera_core.plan.behaviour import Running as Setting
from tessera_core.plan.layout import Layout
from tessera_core.plan.matrix import Cell, Change, Part, Row, row_of
from tessera_core.plan.place import Placer
from tessera_core.plan.problem import Kind, Problem
from tessera_core.plan.state import DeviceState, Slice


def keep(layout: Layout) -> None:
    """Put everything that runs, and still may, into an empty ``layout``."""
    problem = layout.problem
    members = {demand.key: member for member, demand in enumerate(problem.demands)}
    for index, device in enumerate(problem.devices):
        if device.running:
            row = present_row(problem, members, index, device)
            if row:
                _put(layout, index, row)


def present_row(
    problem: Problem, members: dict[tuple[str, str], int], index: int, device: DeviceState
) -> Row:
    """The cells of one device that some demand still asks for and that may run there."""
    kind = problem.boards[index].kind
    pieces: dict[Slice, list[Cell]] = {}
    for each in device.running:
        member = members.get((each.service, each.member))
        place = _place(problem, kind, each.slice)
        if member is None or place is None or kind.index not in problem.eligible[member]:
            continue
        setting = Setting(place, each.batch, each.instances)
        cap = problem.predictor.behaviours[member].cap_to_keep(setting)
        if cap is not None:
            pieces.setdefault(each.slice, []).append(Cell(member, cap, each.instances))
    return row_of(
        Part(place, tuple(sorted(cells)))
        for piece, cells in pieces.items()
        if (place := _place(problem, kind, piece)) is not None
    )


def _place(problem: Problem, kind: Kind, piece: Slice) -> int | None:
    """The class of a present slice on a board of ``kind``."""
    for place in kind.classes:
        if problem.places[place].slice == piece.name:
            return place
    return None


def _put(layout: Layout, index: int, row: Row) -> None:
    """Put in as much of ``row`` as the rules still allow."""
    problem = layout.problem
    board = problem.boards[index]
    while row:
        spaces = {problem.demands[cell.member].namespace for part in row for cell in part.cells}
        trusted = all(layout.admits(board.node, board.kind, space) for space in spaces) and (
            len(spaces) == 1 or not board.kind.private_node
        )
        if trusted and layout.legal(index, row):
            layout.change({index: row})
            return
        # The last part goes first: which one is arbitrary, but always the same one.
        last = row[-1]
        fewer = Part(last.place, last.cells[:-1])
        row = row_of((*row[:-1], fewer))


def trim(placer: Placer, slack: float) -> None:
    """Take parts away from members that would have ``slack`` to spare even without them."""
    layout, problem = placer.layout, placer.problem
    for member, demand in enumerate(problem.demands):
        need = placer.needs[member]
        while (
            layout.capacity(member) * (1 - slack) >= need
            and layout.parts(member) > max(1, demand.min_parts)
            and _drop_one(placer, member, slack)
        ):
            pass


def _drop_one(placer: Placer, member: int, slack: float) -> bool:
    layout, problem = placer.layout, placer.problem
    need = placer.needs[member]
    nodes = problem.demands[member].min_nodes
    parts = [
        (_cells(layout.rows[index]), -problem.width(part.place), index, part)
        for index in layout.hosts[member]
        for part in layout.parts_of(member, index)
    ]
    for _, _, index, part in sorted(parts):
        mark = layout.mark()
        rest = list(layout.rows[index])
        rest.remove(part)
        layout.change({index: row_of((*rest, part.without(member)))})
        enough = layout.capacity(member) * (1 - slack) >= need and layout.parts(member)
        if enough and len(layout.nodes(member)) >= nodes:
            return True
        layout.rollback(mark)
    return False


def _cells(row: Row) -> int:
    """What a board runs: it is free, and saves its price, when that is one cell less."""
    return sum(len(part.cells) for part in row)


def retune(placer: Placer, member: int) -> None:
    """Choose the caps anew in the parts that ``member`` has to itself, when that alone is enough."""
    layout, problem = placer.layout, placer.problem
    behaviour = problem.predictor.behaviours[member]
    mark = layout.mark()
    for node in layout.nodes(member):
        best = layout.capacity(member), layout.mark()
        for caps in behaviour.settings():
            change: Change = {}
            for index in layout.hosts[member]:
                if problem.boards[index].node == node:
                    change[index] = row_of(
                        _tuned(part, member, caps) for part in layout.rows[index]
                    )
            here = layout.mark()
            layout.change(change)
            if layout.capacity(member) > best[0]:
                best = layout.capacity(member), layout.mark()
            else:
                layout.rollback(here)
    if placer.missing(member):
        layout.rollback(mark)


def _tuned(part: Part, member: int, caps: dict[tuple[int, int], int]) -> Part:
    cell = part.of(member)
    if cell is None or len(part.cells) > 1:
        return part
    cap = caps.get((part.place, cell.instances))
    return part if cap is None else part.with_cell(Cell(member, cap, cell.instances))
