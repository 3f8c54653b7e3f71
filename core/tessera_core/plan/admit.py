"""Who gets what when not everybody can have everything.

Priority first: a service of a higher class is served fully before one of a lower class gets anything. Within
a class the smallest served share is made as large as it can be (max-min fairness): all get the same share of
what they asked for, found by bisection, and what is then left goes to whoever can use it. A service of which
some member that every answer needs finds no place at any share is refused, and its room goes to the others.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import groupby

from tessera_core.plan.layout import Layout
from tessera_core.plan.matrix import Change, row_of
from tessera_core.plan.place import Placer
from tessera_core.plan.problem import Problem
from tessera_core.plan.search import LITTLE_FAITH, Arranged, Work, arrange, order_of

_BISECTIONS = 7
_FEW_BISECTIONS, _MANY = 4, 500
"""For more members than ``_MANY``: shares are then even to 6 %, and what is left over is used up anyway."""
_LEAST_SHARE = 1e-6
_MOST_ALONE = 200
"""Services that are tried alone."""
_SAFE_SHARE = 0.999
_ALIKE = 0.02
"""Shares that differ by less are equal: not worth moving anybody."""


def serve_all(placer: Placer, work: Work) -> bool:
    """Place everybody as far as there is room; whether that is all that was asked for."""
    layout, problem = placer.layout, placer.problem
    mark = layout.mark()
    everyone = range(len(problem.demands))
    lacking = [member for member in everyone if not placer.served(member)]
    tried = arrange(placer, order_of(problem, placer.needs, layout.prices, lacking), work)
    if not tried.failed:
        return True
    layout.rollback(mark)
    demands = problem.demands
    order = order_of(problem, placer.needs, layout.prices, everyone)
    if len(lacking) == len(order):
        # Those that had to go first to find a place begin with it.
        order = sorted(tried.order, key=lambda member: -demands[member].priority)
    classes = [list(each) for _, each in groupby(order, key=lambda m: demands[m].priority)]
    for number, members in enumerate(classes):
        lower = [member for rest in classes[number + 1 :] for member in rest]
        _serve_class(placer, members, lower, work)
    return False


def _serve_class(placer: Placer, members: list[int], lower: list[int], work: Work) -> None:
    """Place one class; those below it make room where that helps."""
    layout = placer.layout
    lacking = [member for member in members if not placer.served(member)]
    if not lacking:
        return
    mark = layout.mark()
    first = arrange(placer, lacking, work)
    if not first.failed:
        return
    layout.rollback(mark)
    # What stays where it is, what the classes below leave, and everything anew: in this order, and the next
    # only where it is clearly fairer.
    _add(placer, members)
    best = standing(placer, members), _rows_since(layout, mark)
    layout.rollback(mark)
    below = layout.used() if any(layout.hosts[member] for member in lower) else {}
    for member in lower:
        layout.without(member)
    bare = layout.mark()
    if below:
        if arrange(placer, lacking, work).failed:
            layout.rollback(bare)
            _add(placer, members)
        best = _fairer(best, (standing(placer, members), _rows_since(layout, mark)))
        layout.rollback(bare)
    if min(best[0]) < 1.0:
        # Whether all of it was just tried on the same boards.
        tried = first if not below and len(lacking) == len(members) else None
        for member in members:
            layout.without(member)
        clear, faith = layout.mark(), layout.faith
        # The same two ways whether something runs or not, so that a plan stays when it is planned again.
        for layout.faith in (1.0, LITTLE_FAITH) if len(members) <= _MANY else (1.0,):
            layout.rollback(clear)
            _arranged_anew(placer, members, tried if layout.faith == faith else None, work)
            best = _fairer(best, (standing(placer, members), _rows_since(layout, mark)))
        layout.faith = faith
    layout.rollback(mark)
    layout.change(best[1])
    _put_back(layout, below, frozenset(lower))


def _arranged_anew(placer: Placer, members: list[int], tried: Arranged | None, work: Work) -> None:
    """Place all of a class, of which nobody has anything: fully if that can be, otherwise shared out.

    ``tried``: how placing it fully went, where that is known.
    """
    mark = placer.layout.mark()
    if tried is None:
        tried = arrange(placer, members, work)
    if tried.failed:
        placer.layout.rollback(mark)
        _shared_out(placer, tried.order, _within_reach(placer, tried.failed), work)


def _add(placer: Placer, members: list[int]) -> None:
    """Use what is left; services that cannot answer all the same leave their room to the others."""
    layout, problem = placer.layout, placer.problem
    for _ in range(2):
        use_up(placer, members)
        dumb = [
            member
            for service in sorted({problem.home[member] for member in members})
            if not share_of(placer, service)
            for member in problem.services[service]
            if layout.hosts[member]
        ]
        if not dumb:
            break
        for member in dumb:
            layout.without(member)


Standing = tuple[float, ...]
"""Shares, ascending: one per service, and one per optional member."""


def standing(placer: Placer, members: Sequence[int]) -> Standing:
    """How ``members``, all of some services, are served: shares of what was asked for, the smallest first.

    Optional members count for themselves: they are not there to be dropped for the sake of others.
    """
    problem = placer.problem
    shares = {each: share_of(placer, each) for each in {problem.home[m] for m in members}}
    optional = (
        _share(placer, member) if shares[problem.home[member]] else 0.0
        for member in members
        if not problem.demands[member].required
    )
    return tuple(sorted((*shares.values(), *optional)))


def fairer(one: Standing, other: Standing) -> bool:
    """Whether ``other`` is clearly fairer: the first share that differs by more than a little is larger."""
    for here, there in zip(one, other, strict=True):
        if abs(here - there) > _ALIKE or (here > 0) != (there > 0):
            return there > here
    return False


def _fairer(
    one: tuple[Standing, Change], other: tuple[Standing, Change]
) -> tuple[Standing, Change]:
    return other if fairer(one[0], other[0]) else one


def _put_back(layout: Layout, rows: Change, lower: frozenset[int]) -> None:
    """Parts that only members of ``lower`` had in ``rows``, where the boards still have room for them."""
    problem = layout.problem
    for index, row in rows.items():
        board = problem.boards[index]
        for part in row:
            if {cell.member for cell in part.cells} <= lower:
                with_it = row_of((*layout.rows[index], part))
                spaces = {problem.demands[cell.member].namespace for cell in part.cells}
                if with_it.count(part) <= row.count(part) and (
                    layout.legal(index, with_it)
                    and all(layout.admits(board.node, board.kind, space) for space in spaces)
                    and all(
                        layout.within_quota(space, board.kind, (part.place,)) for space in spaces
                    )
                ):
                    layout.change({index: with_it})


def _within_reach(placer: Placer, failed: Sequence[int]) -> list[int]:
    """By member, what it needs or, where that is less, what it would have if its service were alone in its class.

    Whoever is held back by a quota of its own, or by the greatest number of replicas, is no reason for others
    to get less: shares rise together, and who has reached this is left behind.
    """
    layout, problem = placer.layout, placer.problem
    reach = list(placer.needs)
    for service in sorted({problem.home[member] for member in failed})[:_MOST_ALONE]:
        mark = layout.mark()
        members = problem.services[service]
        for member in members:
            placer.place(member)
        share = share_of(placer, service)
        layout.rollback(mark)
        if 0 < share < 1:
            for member in members:
                reach[member] = max(1, int(reach[member] * share * _SAFE_SHARE))
    return reach


def _shared_out(placer: Placer, members: list[int], reach: Sequence[int], work: Work) -> None:
    layout, problem = placer.layout, placer.problem
    full = list(placer.needs)
    base = layout.mark()
    refused: set[int] = set()
    present = list(members)
    failed: list[int] = []
    while present:
        layout.rollback(base)
        failed = _arranged(placer, present, full, reach, _LEAST_SHARE, work).failed
        if not failed:
            break
        out = _hopeless(problem, layout, failed).intersection(present)
        if not out:
            break
        refused |= out
        present = [member for member in present if member not in refused]
    else:
        layout.rollback(base)
    # Whoever has a place and still lacks parts or nodes lacks them at any share, and holds up nobody.
    lame = frozenset(failed)
    refused -= _second_chance(placer, sorted(refused), full)
    present = [member for member in members if member not in refused]
    low, high = _LEAST_SHARE, 1.0
    best = _rows_since(layout, base)
    for _ in range(_BISECTIONS if len(present) <= _MANY else _FEW_BISECTIONS):
        share = (low + high) / 2
        layout.rollback(base)
        failed, present = _arranged(placer, present, full, reach, share, work)
        if not lame.issuperset(failed) or not all(layout.hosts[member] for member in failed):
            high = share
        else:
            low, best = share, _rows_since(layout, base)
    layout.rollback(base)
    layout.change(best)
    placer.needs = full
    use_up(placer, present)


def _arranged(
    placer: Placer,
    members: Sequence[int],
    full: Sequence[int],
    reach: Sequence[int],
    share: float,
    work: Work,
) -> Arranged:
    """Place ``members`` at ``share`` of what they need, ``reach`` at most."""
    needs = list(full)
    for member in members:
        wanted = min(int(full[member] * share), reach[member])
        needs[member] = max(min(1, full[member]), wanted)
    placer.needs = needs
    return arrange(placer, members, work)


def _hopeless(problem: Problem, layout: Layout, failed: Iterable[int]) -> set[int]:
    """Members that have no part at all, with their whole service where it cannot answer without them."""
    out: set[int] = set()
    for service in sorted({problem.home[member] for member in failed}):
        members = problem.services[service]
        missing = [member for member in members if not layout.hosts[member]]
        if missing:
            out.update(missing if problem.answers_without(service, missing) else members)
    return out


def _second_chance(placer: Placer, refused: list[int], full: list[int]) -> set[int]:
    """Members of refused services that do find a place after all, now that others have theirs."""
    layout, problem = placer.layout, placer.problem
    back: set[int] = set()
    for service in sorted({problem.home[member] for member in refused}):
        members = problem.services[service]
        needs = list(placer.needs)
        for member in members:
            needs[member] = min(1, full[member])
        placer.needs = needs
        mark = layout.mark()
        if all(placer.place(member) for member in members):
            back.update(members)
        else:
            layout.rollback(mark)
    return back


def use_up(placer: Placer, members: Sequence[int]) -> None:
    """Give what is left, service by service, the smallest first, where it raises what the service answers; then where
    only copies or nodes are too few.
    """
    layout, problem = placer.layout, placer.problem
    services = sorted(
        {problem.home[member] for member in members},
        key=lambda s: (sum(placer.needs[m] for m in problem.services[s]), s),
    )
    for service in services:
        mark = layout.mark()
        before = _shares(placer, service)
        for member in problem.services[service]:
            placer.place(member)
        if _shares(placer, service) <= before:
            layout.rollback(mark)
    for service in services:
        if share_of(placer, service):
            for member in problem.services[service]:
                if not placer.missing(member):
                    placer.place(member)


def _shares(placer: Placer, service: int) -> tuple[float, float]:
    """What a service answers, then the sum over its members: optional ones make an answer better."""
    every = (_share(placer, member) for member in placer.problem.services[service])
    return share_of(placer, service), sum(every)


def share_of(placer: Placer, service: int) -> float:
    """Share of what it asked for that a service gets: that of its worst member which answers need.

    0: it cannot answer, for too few of its members run at all.
    """
    problem, layout = placer.problem, placer.layout
    missing = [member for member in problem.services[service] if not layout.hosts[member]]
    if missing and not problem.answers_without(service, missing):
        return 0.0
    present = [member for member in problem.needed(service) if layout.hosts[member]]
    return min((_share(placer, member) for member in present), default=0.0)


def _share(placer: Placer, member: int) -> float:
    layout, need = placer.layout, placer.needs[member]
    if need:
        return min(1.0, layout.capacity(member) / need)
    return min(1.0, layout.parts(member) / max(1, placer.problem.demands[member].min_parts))


def _rows_since(layout: Layout, mark: int) -> Change:
    return {index: layout.rows[index] for index in layout.changed(mark)}
