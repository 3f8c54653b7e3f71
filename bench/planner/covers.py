"""Everything that a capacity model lets a member be served with, and the bounds that follow from it.

Every minimal set of parts of one kind of board, for every way in which the model lets parts work together.
Over all of them the configuration linear program bounds the cost of every plan in which each member stays on
one node, and the integer program gives the optimum where it is small enough. Node boundaries are left out, so
both are bounds for a cluster of several nodes.

For the planner's own model the ways are those in which its law is certain to hold (``Behaviour.regimes``); a
plan may hold more in others, so there the bound is one over regimes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from tessera_core.plan.build import CurvesFactory, Memory, demands_in, problem_of
from tessera_core.plan.exact import Chosen, Cover, Supply, Unsolved, choose, fractional
from tessera_core.plan.problem import Problem
from tessera_core.plan.state import ClusterState

_MICRO = 1e6
_NEEDS = 1000
"""The planner's needs are thousandths of a row per second."""
MOST_COVERS = 60_000
"""Of one member; more are refused."""


@dataclass(frozen=True, slots=True)
class Optimum:
    """The integer program's answer."""

    cost: float
    width: int
    """Sum of ``widths`` over the parts in use; the least for this cost where proven."""
    bound: float
    proven: bool


@dataclass(frozen=True, slots=True)
class Choices:
    """Boards and covers of a state, in the words of ``plan.exact``."""

    supplies: tuple[Supply, ...]
    covers: tuple[tuple[Cover, ...], ...]
    """By member; members that are alike share one tuple."""

    def lp_bound(self) -> float:
        """No choice among the covers costs less, nor would one that splits boards and members."""
        found = fractional(self.supplies, self.covers)
        if isinstance(found, Unsolved):
            raise RuntimeError(f"the linear program has no answer: {found.reason}")
        return found.bound / _MICRO

    def optimum(self, max_nodes: int) -> Optimum | None:
        """The cheapest, and of these the narrowest, choice; None when ``max_nodes`` were not enough."""
        found = choose(self.supplies, self.covers, max_nodes)
        if not isinstance(found, Chosen):
            return None
        return Optimum(found.cost / _MICRO, found.width, found.bound / _MICRO, found.optimal)


def choices(
    state: ClusterState, curves: CurvesFactory, widths: dict[str, int] | None = None
) -> Choices:
    """Of all services of ``state``. ``widths``: of a part by the name of its slice; its SMs when absent.

    Raises ValueError for a member with more than ``MOST_COVERS`` covers.
    """
    memory = Memory(curves)
    problem = problem_of(state, demands_in(state, memory), memory)
    supplies = tuple(
        Supply(
            kind.cost,
            sum(board.kind is kind for board in problem.boards),
            tuple(tuple(int(count) for count in mix) for mix in kind.shape.mixes),
        )
        for kind in problem.kinds
    )
    known: dict[tuple[int, int, tuple[int, ...]], tuple[Cover, ...]] = {}
    found = []
    for member, demand in enumerate(problem.demands):
        need = -int(-demand.rate * _NEEDS // 1)
        key = id(problem.predictor.behaviours[member]), need, problem.eligible[member]
        if key not in known:
            known[key] = tuple(_covers(problem, member, need, widths))
        found.append(known[key])
    return Choices(supplies, tuple(found))


def minimal(rates: Sequence[int], need: int, most: int) -> Iterator[tuple[int, ...]]:
    """Every way to take at most ``most`` parts that carry ``need`` and would not without any one of them.

    ``rates``: of one part by class, positive.
    """
    order = sorted(range(len(rates)), key=lambda index: -rates[index])
    counts = [0] * len(rates)

    def take(position: int, left: int, parts: int) -> Iterator[tuple[int, ...]]:
        index = order[position]
        rate = rates[index]
        enough = -(-left // rate)
        # Slower ones that follow are each needed only if the rest without them is not enough.
        if enough <= parts:
            counts[index] += enough
            yield tuple(counts)
            counts[index] -= enough
        if position + 1 < len(order):
            for count in range(min(enough - 1, parts), -1, -1):
                counts[index] = count
                yield from take(position + 1, left - count * rate, parts - count)
            counts[index] = 0

    if need > 0 and rates:
        yield from take(0, need, most)


def _covers(
    problem: Problem, member: int, need: int, widths: dict[str, int] | None
) -> Iterator[Cover]:
    seen: set[tuple[int, tuple[int, ...]]] = set()
    for index in problem.eligible[member]:
        kind = problem.kinds[index]
        for regime in problem.predictor.behaviours[member].regimes(need, kind.classes):
            options = [option for option in regime.options if option.rate > 0]
            rates = [option.rate for option in options]
            for counts in minimal(rates, regime.need, regime.most):
                parts = [0] * len(kind.classes)
                width = 0
                for option, count in zip(options, counts, strict=True):
                    parts[kind.position[option.place]] = count
                    name = problem.places[option.place].slice
                    width += count * (
                        problem.width(option.place) if widths is None else widths[name]
                    )
                key = index, tuple(parts)
                if key not in seen:
                    seen.add(key)
                    if len(seen) > MOST_COVERS:
                        raise ValueError(
                            f"{'/'.join(problem.demands[member].key)}: more than {MOST_COVERS} covers"
                        )
                    yield Cover(index, tuple(parts), width)
