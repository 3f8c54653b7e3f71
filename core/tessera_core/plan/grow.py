"""The most that a fixed cluster can serve: ``admit``'s question with shares above one.

All rates rise by the same factor, found by halving and bisection, as far as everybody still finds a place. What is then left
goes to whoever can use it, and batches become longer where latency budgets and memory allow it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from math import ceil, inf

from tessera_core.plan.admit import use_up
from tessera_core.plan.matrix import Cell, replace_part
from tessera_core.plan.place import Placer
from tessera_core.plan.problem import Problem
from tessera_core.plan.search import Work, arrange

_HALVINGS, _BISECTIONS, _DOUBLINGS = 40, 7, 12
_MOST_STEPS = 256


def grow(placer: Placer, order: Sequence[int], work: Work) -> None:
    """Raise every rate by the same factor as far as the boards allow, then use up what is left.

    Starts from a layout in which everybody is served; ``placer.needs`` afterwards are the raised ones.
    """
    layout, problem = placer.layout, placer.problem
    full = [max(need, 1000) for need in placer.needs]
    best, low, high = layout.used(), 1.0, max(1.0, _most_growth(problem, full))

    def reached(factor: float) -> bool:
        layout.become({})
        placer.needs = [int(need * factor) for need in full]
        return not arrange(placer, list(order), work).failed

    for _ in range(_HALVINGS):
        if high <= low * 1.01:
            break
        middle = max(low, high / 2)
        if reached(middle):
            best, low = layout.used(), middle
            break
        high = middle
    for _ in range(_BISECTIONS):
        middle = (low * high) ** 0.5
        if reached(middle):
            best, low = layout.used(), middle
        else:
            high = middle
    layout.become(best)
    # Some can grow further than all together can.
    for doubling in range(_DOUBLINGS):
        before = layout.mark()
        placer.needs = [int(need * high * 2**doubling) for need in full]
        use_up(placer, range(len(problem.demands)))
        if doubling and layout.mark() == before:
            break
    reached_by_all = min(
        (layout.capacity(member) / full[member] for member in order if layout.hosts[member]),
        default=1.0,
    )
    placer.needs = [int(need * reached_by_all) for need in full]
    for index in sorted(layout.used()):
        for position in range(len(layout.rows[index])):
            _stretch(placer, index, position)


def _most_growth(problem: Problem, needs: Sequence[int]) -> float:
    """No common factor on ``needs`` can be reached above this: every member alone on all boards, at its best."""
    counts = Counter(board.kind.index for board in problem.boards)
    growth = inf
    for member, demand in enumerate(problem.demands):
        behaviour = problem.predictor.behaviours[member]
        everything = sum(
            counts[index]
            * max(
                behaviour.most_rate(place) * ceil(max(mix[position] for mix in kind.shape.mixes))
                for position, place in enumerate(kind.classes)
            )
            for index in problem.eligible[member]
            for kind in [problem.kinds[index]]
            if kind.classes
        )
        widest = max(
            (behaviour.most_rate(place) for place in range(len(problem.places))), default=0
        )
        growth = min(growth, min(everything, demand.max_parts * widest) / needs[member])
    return growth if problem.demands else 1.0


def _stretch(placer: Placer, index: int, position: int) -> None:
    """Longer batches in one part, as long as everybody keeps what they need: they waste less of the device.

    One step of one cap at a time, the one that saves most time first; memory and latency budgets end it.
    """
    layout = placer.layout
    for _ in range(_MOST_STEPS):
        row = layout.rows[index]
        part = row[position]
        steps = []
        for cell in part.cells:
            grid = placer.guests.caps(cell.member, part.place)
            at = next((i for i, point in enumerate(grid) if point[:2] == cell[1:]), None)
            if at is None or at + 1 == len(grid):
                continue
            (cap, _, ms), (more, count, longer) = grid[at], grid[at + 1]
            gain = layout.capacity(cell.member) * (ms / cap - longer / more)
            steps.append((-gain, Cell(cell.member, more, count)))
        for gain, cell in sorted(steps):
            grown = replace_part(row, position, part.with_cell(cell))
            mark = layout.mark()
            if gain < 0 and layout.legal(index, grown):
                layout.change({index: grown})
                if all(
                    layout.capacity(each.member) >= placer.needs[each.member] for each in part.cells
                ):
                    break
                layout.rollback(mark)
        else:
            return
