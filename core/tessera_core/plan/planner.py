"""The planner: facts in, decision out.

    facts → demands → refuse what no arrangement can serve → prices and bound
          → keep what runs → place what is missing → (short: share out) → consolidate → exact positions → Plan

A service is placed whole or not at all: when a member that it cannot answer without finds no room, the
service is refused and its room goes to the others. A service may be placed with less than it asked for; its
plan then says what would close the gap.

What runs is the start, and it stays unless moving it pays (``Policy.min_gain_percent``, ``max_moves``). A
plan first serves and at another time tidies up: only when nothing else has to change are boards dissolved to
save cost. So a plan made from nothing comes back unchanged once it is applied, and a change of one service
touches that service; after one that took parts away, the next plan may still tidy up.

The result depends on the facts and the budget only. ``Planner`` remembers what follows from facts that did
not change, which makes it faster and nothing else.
"""

from __future__ import annotations

from collections.abc import Sequence

from tessera_core.plan.admit import serve_all
from tessera_core.plan.build import CurvesFactory, Memory, demands_in, problem_of
from tessera_core.plan.curves import Curves
from tessera_core.plan.decision import Plan, Refusal, Why
from tessera_core.plan.demand import Demand
from tessera_core.plan.grow import grow
from tessera_core.plan.layout import Layout
from tessera_core.plan.matrix import Change
from tessera_core.plan.place import Placer
from tessera_core.plan.prices import Prices, lower_bound, prices_of
from tessera_core.plan.problem import Problem
from tessera_core.plan.refine import refine
from tessera_core.plan.refuse import before_search, without_room
from tessera_core.plan.repair import keep, retune, trim
from tessera_core.plan.report import Refused, Told, named, tell
from tessera_core.plan.search import LITTLE_FAITH, Work, consolidate, order_of
from tessera_core.plan.state import Budget, ClusterState, Goal
from tessera_core.plan.stay import stay

_MILLI = 1000
_ROUNDS = 3
_MOST_HOMES = 100_000


class Planner:
    """Plans again and again; equal facts get equal plans, whatever was planned before.

    ``curves``: the capacity model, that is what a profile promises under a latency budget.
    """

    def __init__(self, curves: CurvesFactory = Curves) -> None:
        self._memory = Memory(curves)
        self._told = Told()

    def plan(self, state: ClusterState, budget: Budget | None = None) -> Plan:
        """The placement of every demand of ``state``, or a typed reason against it.

        ``budget``: bounds the search in units of work; the state's own when absent.
        """
        return named(self.decide(state, budget))

    def decide(self, state: ClusterState, budget: Budget | None = None) -> Plan:
        """The plan without its name, which is a hash of all devices."""
        budget = budget or state.budget
        everything = demands_in(state, self._memory)
        idle = {demand.service for demand in everything if demand.min_parts == 0}
        wanted = tuple(demand for demand in everything if demand.service not in idle)
        problem, refused = self._servable(state, wanted)
        needs = [-int(-demand.rate * _MILLI // 1) for demand in problem.demands]
        prices = prices_of(problem, needs)
        work = Work(budget.max_iterations)
        placer = _searched(problem, needs, prices, work, budget)
        layout = placer.layout
        for member, demand in enumerate(problem.demands):
            if not layout.hosts[member] and demand.key not in refused:
                refused[demand.key] = without_room(placer, member)
        _name_the_missing(problem, refused)
        placer.needs = needs
        served = frozenset(
            problem.demands[members[0]].service
            for members in problem.services
            if all(placer.served(member) for member in members)
        )
        bound = lower_bound(problem, needs, prices, served)
        names = tuple(sorted(idle))
        return tell(state, placer, refused, names, bound, work.exhausted, self._told)

    def _servable(
        self, state: ClusterState, demands: tuple[Demand, ...]
    ) -> tuple[Problem, Refused]:
        """The problem of the demands that some arrangement may serve, and why the others are refused."""
        problem = problem_of(state, demands, self._memory)
        refused: Refused = {}
        runs: set[tuple[str, str]] | None = None
        homes = self._memory.homes
        if len(homes) > _MOST_HOMES:
            homes.clear()
        for member, demand in enumerate(demands):
            key = problem.predictor.behaviours[member], problem.eligible[member]
            if key not in homes:
                homes[key] = problem.homes(member)
            if homes[key] >= demand.min_nodes:
                continue
            reason = before_search(state, problem, member, state.policy.overhead_ms)
            if reason is not None and reason.why is Why.SPREAD_UNMET:
                if runs is None:
                    runs = {
                        (each.service, each.member)
                        for device in problem.devices
                        for each in device.running
                    }
                # Fewer nodes than were wished for are no reason to end what runs.
                reason = None if demand.key in runs else reason
            if reason is not None:
                refused[demand.key] = reason
        if not refused:
            return problem, refused
        for service, members in enumerate(problem.services):
            out = [m for m in members if demands[m].key in refused]
            if out and not problem.answers_without(service, out):
                _refuse_rest(problem, members, out, refused)
        left = tuple(demand for demand in demands if demand.key not in refused)
        return problem_of(state, left, self._memory), refused


def plan(state: ClusterState, budget: Budget | None = None) -> Plan:
    """``Planner.plan`` once."""
    return Planner().plan(state, budget)


def _refuse_rest(
    problem: Problem, members: Sequence[int], out: Sequence[int], refused: Refused
) -> None:
    names = ", ".join(problem.demands[member].member for member in out)
    reason = Refusal(Why.MEMBER_REFUSED, f"the service cannot answer without {names}")
    for member in members:
        refused.setdefault(problem.demands[member].key, reason)


def _name_the_missing(problem: Problem, refused: Refused) -> None:
    """Of services that were refused for lack of room: which members lacked it, and which only follow."""
    for service, members in enumerate(problem.services):
        out = [m for m in members if problem.demands[m].key in refused]
        if len(out) < 2 or problem.answers_without(service, out):
            continue
        # All are out by now; those with the most telling reason stay, the others point to them.
        telling = [m for m in out if refused[problem.demands[m].key].why is not Why.MEMBER_REFUSED]
        for member in out:
            if member not in telling:
                del refused[problem.demands[member].key]
        _refuse_rest(problem, members, telling, refused)


def _searched(
    problem: Problem, needs: list[int], prices: Prices, work: Work, budget: Budget
) -> Placer:
    """The best layout that was found."""
    layout = Layout(problem, prices)
    keep(layout)
    placer = Placer(layout, needs)
    if layout.used():
        present = layout.mark()
        _adjust(placer, work)
        stay(layout, present)
        return placer
    complete = serve_all(placer, work)
    if problem.goal is Goal.MINIMISE_COST:
        consolidate(placer, work)
        placer = refine(placer, budget.max_nodes)
    elif complete:
        everyone = range(len(problem.demands))
        grow(placer, order_of(problem, needs, prices, everyone), work)
    for _ in range(_ROUNDS):
        # What the next plan would change in this one is changed right away.
        rows = placer.layout.used()
        again = Layout(problem, prices)
        again.change(rows)
        placer = Placer(again, needs, placer)
        _adjust(placer, work)
        if again.used() == rows:
            break
    return placer


def _adjust(placer: Placer, work: Work) -> None:
    """From what runs to what is needed now: first serve; only where nothing has to change, save cost."""
    layout, problem, needs = placer.layout, placer.problem, placer.needs
    slack, runs = problem.policy.slack, layout.used()
    layout.faith = LITTLE_FAITH
    everyone = range(len(problem.demands))
    if problem.goal is Goal.MINIMISE_COST:
        trim(placer, slack)
    grown = [m for m in everyone if layout.hosts[m] and not placer.served(m)]
    for member in grown:
        retune(placer, member)
    serve_all(placer, work)
    for member in grown:
        _regrow(placer, member, runs)
    if problem.goal is Goal.MINIMISE_COST and layout.used() == runs:
        # What would be missing again after the next wave of the rate is not given up for the sake of cost.
        placer.needs = [
            min(int(need / (1 - slack)), max(need, layout.capacity(m))) if slack < 1 else need
            for m, need in enumerate(needs)
        ]
        _tidied(placer, work)
        placer.needs = needs


def _regrow(placer: Placer, member: int, runs: Change) -> None:
    """Place a member that took a new board for its higher rate afresh, where that saves the board.

    Parts that suited a lower rate may slow down the queue that they share with the new ones.
    """
    layout = placer.layout
    if all(index in runs for index in layout.hosts[member]) or not placer.served(member):
        return
    mark, before = layout.mark(), layout.score
    layout.without(member)
    if not placer.place(member) or layout.score.cost >= before.cost:
        layout.rollback(mark)


def _tidied(placer: Placer, work: Work) -> None:
    """Dissolve boards if that saves enough for the moves it takes."""
    layout, policy = placer.layout, placer.problem.policy
    mark, before = layout.mark(), layout.score
    worth = before.cost * policy.min_gain_percent / 100
    consolidate(placer, work)
    saved = before.cost - layout.score.cost
    moved = _moved(layout, mark)
    if saved <= 0 or saved < worth or moved > policy.max_moves:
        layout.rollback(mark)


def _moved(layout: Layout, mark: int) -> int:
    """Cells that are in another place than at ``mark``."""
    before = layout.rows_at(mark)
    return sum(
        1
        for index, row in before.items()
        for part in row
        for cell in part.cells
        if part not in layout.rows[index]
    )
