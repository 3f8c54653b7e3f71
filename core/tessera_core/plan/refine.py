"""The exact refinement: which cover every member takes, decided all at once by a solver.

The search takes one member after the other. Here the choice is one integer program on counts
(``exact.choose``): one cover per member, boards by packing, least cost first and then least width. What it
leaves out (nodes, tenants, memory that processor cores share) is checked by putting its choice into a layout
of its own; that layout replaces the one that was found only where it serves everybody at a lower score.
"""

from __future__ import annotations

from collections.abc import Sequence

from tessera_core.plan.exact import Chosen, Cover, Supply, choose
from tessera_core.plan.layout import Layout
from tessera_core.plan.place import Placer, Wish
from tessera_core.plan.problem import Problem

_MOST_COVERS = 60
"""Per member."""


def refine(placer: Placer, max_nodes: int) -> Placer:
    """A placer whose layout scores lower, or ``placer``; ``max_nodes`` 0 leaves the solver out.

    Only where every member takes whole parts on one node each: a member that is spread, counted or a guest
    is beyond the program, and then nothing is tried.
    """
    problem = placer.problem
    if not max_nodes or not _expressible(placer):
        return placer
    kinds = [kind for kind in problem.kinds if not kind.memory_shared]
    numbers = {kind.index: number for number, kind in enumerate(kinds)}
    wishes = [
        [w for w in placer.wishes(m, placer.needs[m]) if w.kind.index in numbers][:_MOST_COVERS]
        for m in range(len(problem.demands))
    ]
    if not all(wishes):
        return placer
    supplies = [
        Supply(
            kind.cost,
            sum(board.kind is kind and not board.closed for board in problem.boards),
            tuple(tuple(int(count) for count in mix) for mix in kind.shape.mixes),
        )
        for kind in kinds
    ]
    covers = [
        [Cover(numbers[wish.kind.index], wish.counts, wish.width) for wish in each]
        for each in wishes
    ]
    chosen = choose(supplies, covers, max_nodes)
    if not isinstance(chosen, Chosen) or chosen.cost > placer.layout.score.cost:
        return placer
    picked = [each[cover] for each, cover in zip(wishes, chosen.covers, strict=True)]
    found = _realised(problem, placer, picked)
    return found if found is not None and found.layout.score < placer.layout.score else placer


def _expressible(placer: Placer) -> bool:
    layout, problem = placer.layout, placer.problem
    return all(
        placer.needs[member] > 0
        and demand.min_parts == 1
        and demand.min_nodes == 1
        and len(layout.nodes(member)) == 1
        and all(
            len(part.cells) == 1
            for index in layout.hosts[member]
            for part in layout.parts_of(member, index)
        )
        for member, demand in enumerate(problem.demands)
    )


def _realised(problem: Problem, placer: Placer, picked: Sequence[Wish]) -> Placer | None:
    """The picked covers on boards, the largest first; None where some node boundary is in the way."""
    best: Placer | None = None
    everyone = range(len(picked))
    orders = (
        sorted(everyone, key=lambda m: (-max(map(problem.width, picked[m].places)), m)),
        sorted(everyone, key=lambda m: (-picked[m].width, m)),
    )
    for faith in (1.0, 0.5, 0.1):
        for members in orders:
            layout = Layout(problem, placer.layout.prices)
            layout.faith = faith
            fresh = Placer(layout, placer.needs)
            if all(fresh.take(member, picked[member]) for member in members) and (
                best is None or layout.score < best.layout.score
            ):
                best = fresh
    return best
