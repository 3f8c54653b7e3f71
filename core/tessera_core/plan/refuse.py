"""Why something could not be placed, found by a chain of checks of which the first that fails is the reason.

``before_search`` needs the facts only: what it refuses, no rearrangement can serve. ``without_room`` and
``short`` explain what the search was left with, and quantify what would help.
"""

from __future__ import annotations

from math import ceil

from tessera_core.plan.behaviour import MILLI
from tessera_core.plan.build import selected, trusted
from tessera_core.plan.decision import Refusal, Shortfall, Why
from tessera_core.plan.layout import Layout
from tessera_core.plan.matrix import Cell, Part, row_of
from tessera_core.plan.place import Placer
from tessera_core.plan.problem import Kind, Problem
from tessera_core.plan.state import ClusterState
from tessera_core.plan.tenants_in import SHARES, SLICES


def before_search(
    state: ClusterState, problem: Problem, member: int, overhead_ms: float
) -> Refusal | None:
    """The reason that holds whatever else is placed; None when the member may find a place.

    ``overhead_ms``: the policy's allowance, which latencies shown to users include.
    """
    demand = problem.demands[member]
    rules = {pool.name: pool for pool in state.pools}
    kinds = problem.kinds
    matching = [kind for kind in kinds if selected(demand, rules[kind.pool], kind.product)]
    if not matching:
        present = ", ".join(sorted({f"{kind.pool}/{kind.product}" for kind in kinds})) or "none"
        wanted = _wanted(demand.pool_selector, demand.products)
        return Refusal(Why.NO_DEVICE, f"no healthy device is of {wanted}; there are: {present}")
    trusting = [kind for kind in matching if trusted(demand, rules[kind.pool])]
    if not trusting:
        pools = ", ".join(sorted({kind.pool for kind in matching}))
        return Refusal(
            Why.FORMAT_NOT_ALLOWED, f"the model is code, which pools {pools} do not allow"
        )
    places = sorted({place for kind in trusting for place in kind.classes})
    behaviour = problem.predictor.behaviours[member]
    measured = [p for p in places if behaviour.least_memory(p) is not None]
    if not measured:
        products = ", ".join(sorted({kind.product for kind in trusting}))
        model = demand.digest or "the model, whose digest is not known yet,"
        return Refusal(Why.NO_PROFILE, f"{model} was not measured on any part of {products}")
    roomy = [place for place in measured if behaviour.columns(place)]
    if not roomy:
        least = min(behaviour.least_memory(place) or 0 for place in measured)
        most = max(problem.places[place].memory_mib for place in measured)
        return Refusal(
            Why.INSUFFICIENT_MEMORY,
            f"one instance needs {least} MiB, the largest part it was measured on has {most} MiB",
        )
    if not any(behaviour.best(place) for place in roomy):
        return _infeasible(problem, member, roomy, overhead_ms)
    nodes = problem.homes(member)
    if demand.min_parts and nodes < demand.min_nodes:
        return Refusal(
            Why.SPREAD_UNMET,
            f"spread over {demand.min_nodes} nodes is wanted, {nodes} can serve it",
        )
    return None


def _wanted(selector: tuple[tuple[str, str], ...], products: tuple[str, ...]) -> str:
    parts = [f"{key}={value}" for key, value in selector] + [" or ".join(products)] * bool(products)
    return ", ".join(parts) or "any kind"


def _infeasible(problem: Problem, member: int, places: list[int], overhead_ms: float) -> Refusal:
    demand = problem.demands[member]
    behaviour = problem.predictor.behaviours[member]
    best, place = min((behaviour.least_latency_ms(place), place) for place in places)
    best += overhead_ms
    mine = demand.budget_ms + overhead_ms
    target = f"the target is {mine + demand.others_ms:g} ms"
    if demand.others_ms:
        rest = "the members that wait for it" if demand.stage else "preprocessing"
        target += f", of which {demand.member} may take {mine:.4g} ms and {rest} the rest"
    return Refusal(
        Why.INFEASIBLE,
        f"{target}; with no other load the best device, {problem.places[place]}, "
        f"reaches {best:.3g} ms at percentile {demand.percentile:.4g} "
        f"(overhead of {overhead_ms:g} ms included)",
        best_ms=best,
    )


def without_room(placer: Placer, member: int) -> Refusal:
    """Why no part was found for ``member``."""
    problem, layout = placer.problem, placer.layout
    demand = problem.demands[member]
    shortfall = _what_helps(placer, member, max(placer.missing(member), 1))
    if demand.namespace in problem.quotas and not _any_within_quota(layout, member):
        return Refusal(
            Why.QUOTA_EXCEEDED, _beyond_quota(placer, member, placer.missing(member)), shortfall
        )
    if _fits_but_for_tenants(layout, member):
        return Refusal(
            Why.ISOLATION_UNMET,
            "the room that is left is on devices or nodes of other tenants",
            shortfall,
        )
    behaviour = problem.predictor.behaviours[member]
    places = {
        place
        for index in problem.eligible[member]
        for place in problem.kinds[index].classes
        if behaviour.best(place) is not None
    }
    least = min(behaviour.least_memory(place) or 0 for place in places)
    free = max(
        (
            _free_mib(layout, index)
            for index, board in enumerate(problem.boards)
            if board.kind.index in problem.eligible[member]
        ),
        default=0,
    )
    if free < least:
        return Refusal(
            Why.INSUFFICIENT_MEMORY,
            f"one instance needs {least} MiB, at most {free} MiB are left on one part",
            shortfall,
        )
    return Refusal(
        Why.INSUFFICIENT_CAPACITY,
        "no part is left that meets the SLO without breaking another one's",
        shortfall,
    )


def short(placer: Placer, member: int) -> Refusal:
    """Why a placed ``member`` has less than it asked for."""
    problem, layout = placer.problem, placer.layout
    demand = problem.demands[member]
    parts, nodes = layout.parts(member), len(layout.nodes(member))
    capacity = layout.capacity(member)
    missing = placer.missing(member)
    shortfall = _what_helps(placer, member, missing)
    if parts == 0:
        return without_room(placer, member)
    if missing == 0 and nodes < demand.min_nodes:
        return Refusal(
            Why.SPREAD_UNMET,
            f"{demand.member} is on {nodes} of {demand.min_nodes} wanted nodes",
            shortfall,
        )
    if parts < demand.min_parts:
        return Refusal(
            Why.INSUFFICIENT_CAPACITY,
            f"{demand.member} has {parts} of {demand.min_parts} wanted parts",
            shortfall,
        )
    if overloaded(placer, member):
        gap = int(demand.load * MILLI) - capacity
        return Refusal(
            Why.INSUFFICIENT_CAPACITY,
            f"{demand.member} has the {parts} parts that were asked for; they carry "
            f"{capacity / MILLI:.6g} of the expected {demand.load:.6g} rows/s",
            _what_helps(placer, member, gap),
        )
    limit = ""
    if parts >= demand.max_parts:
        limit = f", and maxReplicas allows {demand.max_parts} parts"
    why = Why.INSUFFICIENT_CAPACITY
    if demand.namespace in problem.quotas and not _any_within_quota(layout, member):
        why, limit = Why.QUOTA_EXCEEDED, f"; {_beyond_quota(placer, member, missing)}"
    return Refusal(
        why,
        f"{demand.member} carries {capacity / MILLI:.6g} of {demand.rate:.6g} rows/s{limit}",
        shortfall,
    )


def overloaded(placer: Placer, member: int) -> bool:
    """Whether a member whose parts are counted, by somebody else's decision, gets more than they carry."""
    demand = placer.problem.demands[member]
    return demand.rate == 0 and placer.layout.capacity(member) < int(demand.load * MILLI)


def _what_helps(placer: Placer, member: int, missing: int) -> Shortfall | None:
    """The classes of part that carry ``missing``, and how many of each; the one at the least price first."""
    found = _by_price(placer, member, missing)
    if not found:
        return None
    problem = placer.problem
    rows = problem.demands[member].rows_per_request
    wanted = {str(problem.places[place]): parts for _, place, parts in found}
    _, place, parts = found[0]
    rate = missing / MILLI / rows
    return Shortfall(rate, str(problem.places[place]), parts, tuple(sorted(wanted.items())))


def _by_price(placer: Placer, member: int, missing: int) -> list[tuple[Kind, int, int]]:
    """Kinds of board, class of part and number of parts that carry ``missing``; the cheapest first."""
    problem = placer.problem
    demand = problem.demands[member]
    behaviour = problem.predictor.behaviours[member]
    ranked: list[tuple[bool, float, int, int, int, int]] = []
    for index in problem.eligible[member]:
        kind = problem.kinds[index]
        prices = placer.layout.prices.of_kind[index]
        for position, place in enumerate(kind.classes):
            best = behaviour.best(place)
            if best is not None:
                count = max(1, ceil(missing / best.rate))
                price = max(prices[position], 1e-6)
                ranked.append((count > 1, price * count, problem.width(place), place, count, index))
    least = max(demand.min_parts - placer.layout.parts(member), 1)
    return [
        (problem.kinds[index], place, max(least, count))
        for *_, place, count, index in sorted(ranked)
    ]


def _beyond_quota(placer: Placer, member: int, missing: int) -> str:
    """What the namespace of ``member`` has, and which quota leaves room for what is missing."""
    problem, layout = placer.problem, placer.layout
    namespace = problem.demands[member].namespace
    quota = problem.quotas[namespace]
    slices, shares = layout.of_quota(namespace)
    has, needs = [], []
    found = next(iter(_by_price(placer, member, max(missing, 1))), None)
    if quota.slices is not None:
        has.append(f"{slices} of {quota.slices} slices")
        if found is not None and slices + found[2] > quota.slices:
            needs.append(f"{SLICES} of {slices + found[2]}")
    if quota.shares is not None:
        has.append(f"{shares:.4g} of {quota.shares:g} devices")
        if found is not None:
            kind, place, parts = found
            wanted = ceil(1e3 * (shares + parts * problem.share_of(kind, place)) - 1e-6) / 1e3
            if wanted > quota.shares:
                needs.append(f"{SHARES} of {wanted:g}")
    remedy = f"; it takes {' and '.join(needs)} in its ResourceQuotas" if needs else ""
    return f"namespace {namespace} has {' and '.join(has)}{remedy}"


def _any_within_quota(layout: Layout, member: int) -> bool:
    """Whether the quota leaves room for any one part that ``member`` could use."""
    problem = layout.problem
    behaviour = problem.predictor.behaviours[member]
    namespace = problem.demands[member].namespace
    return any(
        layout.within_quota(namespace, problem.kinds[index], (place,))
        for index in problem.eligible[member]
        for place in problem.kinds[index].classes
        if behaviour.best(place) is not None
    )


def _free_mib(layout: Layout, index: int) -> int:
    """Memory left on the roomiest part of a board, or of the whole board while it is unused."""
    problem, row = layout.problem, layout.rows[index]
    kind: Kind = problem.boards[index].kind
    used = [problem.predictor.memory_mib(part) for part in row]
    if not row or kind.memory_shared:
        return kind.memory_mib - sum(used)
    return max(
        problem.places[part.place].memory_mib - mib for part, mib in zip(row, used, strict=True)
    )


def _fits_but_for_tenants(layout: Layout, member: int) -> bool:
    """Whether some board has a part for ``member``, tenants left aside."""
    problem = layout.problem
    behaviour = problem.predictor.behaviours[member]
    for index, board in enumerate(problem.boards):
        if board.closed or board.kind.index not in problem.eligible[member]:
            continue
        for place in board.kind.classes:
            best = behaviour.best(place)
            if best is None:
                continue
            part = Part(place, (Cell(member, best.cap, best.instances),))
            row = row_of((*layout.rows[index], part))
            if layout.state_of(board.kind, row) >= 0 and problem.has_memory(board.kind, row):
                return True
    return False
