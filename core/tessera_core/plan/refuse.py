"""Why something could not be placed, found by a chain of checks of which the first that fails is the reason.

``before_search`` needs the facts only: what it refuses, no rearrangement can serve. ``without_room`` and
``short`` explain what the search was left with, and quantify what would help.
"""

from __future__ import annotations

from math import ceil

from tessera_core.gpu.devices import DeviceClass
from tessera_core.plan.build import selected, trusted
from tessera_core.plan.capacity import MILLI
from tessera_core.plan.decision import Refusal, Shortfall, Why
from tessera_core.plan.matrix import Matrix, Part, row_of
from tessera_core.plan.moves import appeal, own_part
from tessera_core.plan.problem import Kind, Problem
from tessera_core.plan.score import Scorer, Standing
from tessera_core.plan.state import ClusterState


def before_search(
    state: ClusterState, problem: Problem, member: int, overhead_ms: float
) -> Refusal | None:
    """The reason that holds whatever else is placed; None when the member may find a place.

    ``overhead_ms``: the policy's allowance, which latencies shown to users include.
    """
    demand = problem.demands[member]
    rules = {pool.name: pool for pool in state.pools}
    kinds = sorted({board.kind for board in problem.boards}, key=str)
    matching = [kind for kind in kinds if selected(demand, rules[kind.pool], kind.product)]
    if not matching:
        present = ", ".join(sorted({f"{kind.pool}/{kind.product}" for kind in kinds})) or "none"
        wanted = _wanted(demand.pool_selector, demand.products)
        return Refusal(Why.NO_DEVICE, f"no healthy device is of {wanted}; there are: {present}")
    kinds = [kind for kind in matching if trusted(demand, rules[kind.pool])]
    if not kinds:
        pools = ", ".join(sorted({kind.pool for kind in matching}))
        return Refusal(
            Why.FORMAT_NOT_ALLOWED, f"the model is code, which pools {pools} do not allow"
        )
    places = sorted({place for kind in kinds for place in kind.places})
    measured = [place for place in places if problem.predictor.cells(member, place)]
    if not measured:
        products = ", ".join(sorted({kind.product for kind in kinds}))
        model = demand.digest or "the model, whose digest is not known yet,"
        return Refusal(Why.NO_PROFILE, f"{model} was not measured on any part of {products}")
    roomy = [
        place for place in measured if _least_memory(problem, member, place) <= place.memory_mib
    ]
    if not roomy:
        least = min(_least_memory(problem, member, place) for place in measured)
        most = max(place.memory_mib for place in measured)
        return Refusal(
            Why.INSUFFICIENT_MEMORY,
            f"one instance needs {least} MiB, the largest part it was measured on has {most} MiB",
        )
    if all(problem.predictor.best(member, place) is None for place in roomy):
        return _infeasible(problem, member, roomy, overhead_ms)
    nodes = {board.node for board in problem.boards if problem.options(member, board.kind)}
    if demand.min_parts and len(nodes) < demand.min_nodes:
        return Refusal(
            Why.SPREAD_UNMET,
            f"spread over {demand.min_nodes} nodes is wanted, {len(nodes)} can serve it",
        )
    return None


def _wanted(selector: tuple[tuple[str, str], ...], products: tuple[str, ...]) -> str:
    parts = [f"{key}={value}" for key, value in selector] + [" or ".join(products)] * bool(products)
    return ", ".join(parts) or "any kind"


def _least_memory(problem: Problem, member: int, place: DeviceClass) -> int:
    cells = problem.predictor.cells(member, place)
    return min(problem.predictor.memory_mib(Part(place, (cell,))) for cell in cells)


def _infeasible(
    problem: Problem, member: int, places: list[DeviceClass], overhead_ms: float
) -> Refusal:
    demand = problem.demands[member]
    best, place = min((problem.predictor.least_latency_ms(member, p), p) for p in places)
    best += overhead_ms
    target = demand.budget_ms + overhead_ms
    return Refusal(
        Why.INFEASIBLE,
        f"the target is {target:g} ms; with no other load the best device, {place}, reaches "
        f"{best:.3g} ms at percentile {demand.percentile:.4g} (overhead of {overhead_ms:g} ms included)",
        best_ms=best,
    )


def without_room(problem: Problem, scorer: Scorer, standing: Standing, member: int) -> Refusal:
    """Why the first placement found no part for ``member``."""
    shortfall = _what_helps(problem, standing, member, scorer.missing(standing, member))
    if _would_fit_alone(problem, standing.matrix, member):
        return Refusal(
            Why.ISOLATION_UNMET,
            "the room that is left is on devices or nodes of other tenants",
            shortfall,
        )
    least = min(
        _least_memory(problem, member, place)
        for kind in _kinds(problem, member)
        for place in problem.options(member, kind)
    )
    free = max(
        (
            _free_mib(problem, index, standing)
            for index, board in enumerate(problem.boards)
            if problem.options(member, board.kind)
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


def short(problem: Problem, scorer: Scorer, standing: Standing, member: int) -> Refusal:
    """Why a placed ``member`` has less than it asked for."""
    demand = problem.demands[member]
    nodes = len(scorer.nodes(standing.matrix, member))
    missing = scorer.missing(standing, member)
    shortfall = _what_helps(problem, standing, member, missing)
    if missing == 0 and nodes < demand.min_nodes:
        return Refusal(
            Why.SPREAD_UNMET,
            f"{demand.member} is on {nodes} of {demand.min_nodes} wanted nodes",
            shortfall,
        )
    if standing.parts[member] < demand.min_parts:
        return Refusal(
            Why.INSUFFICIENT_CAPACITY,
            f"{demand.member} has {standing.parts[member]} of {demand.min_parts} wanted parts",
            shortfall,
        )
    if overloaded(problem, standing, member):
        gap = int(demand.load * MILLI) - standing.capacity[member]
        return Refusal(
            Why.INSUFFICIENT_CAPACITY,
            f"{demand.member} has the {standing.parts[member]} parts that were asked for; they carry "
            f"{standing.capacity[member] / MILLI:.6g} of the expected {demand.load:.6g} rows/s",
            _what_helps(problem, standing, member, gap),
        )
    limit = ""
    if standing.parts[member] >= demand.max_parts:
        limit = f", and maxReplicas allows {demand.max_parts} parts"
    return Refusal(
        Why.INSUFFICIENT_CAPACITY,
        f"{demand.member} carries {standing.capacity[member] / MILLI:.6g} of "
        f"{demand.rate:.6g} rows/s{limit}",
        shortfall,
    )


def overloaded(problem: Problem, standing: Standing, member: int) -> bool:
    """Whether a member whose parts are counted, by somebody else's decision, gets more than they carry."""
    demand = problem.demands[member]
    return demand.rate == 0 and standing.capacity[member] < int(demand.load * MILLI)


def _what_helps(
    problem: Problem, standing: Standing, member: int, missing: int
) -> Shortfall | None:
    """The class of part that carries ``missing`` at the least price, and how many of it."""
    demand = problem.demands[member]
    ranked = [
        (appeal(problem, member, missing, kind, place), place)
        for kind in _kinds(problem, member)
        for place in problem.options(member, kind)
    ]
    if not ranked:
        return None
    _, place = min(ranked)
    cell = problem.predictor.best(member, place)
    assert cell is not None, "options() gives places with a best cell only"
    (rate,) = problem.predictor.rates(Part(place, (cell,)))
    parts = max(demand.min_parts - standing.parts[member], ceil(missing / rate), 1)
    return Shortfall(missing / MILLI / demand.rows_per_request, str(place), parts)


def _kinds(problem: Problem, member: int) -> list[Kind]:
    kinds = {board.kind for board in problem.boards if problem.may_use(member, board.kind)}
    return sorted(kinds, key=str)


def _free_mib(problem: Problem, index: int, standing: Standing) -> int:
    kind, row = problem.boards[index].kind, standing.matrix.rows[index]
    if not row:
        return kind.memory_mib
    return max(problem.free_mib(index, row, part) for part in row)


def _would_fit_alone(problem: Problem, matrix: Matrix, member: int) -> bool:
    """Whether some board has parts and memory for ``member``, tenants left aside."""
    for board, row in zip(problem.boards, matrix.rows, strict=True):
        part = own_part(problem, member, 0, board.kind, row)
        if part is not None and problem.has_room(board.kind, row_of((*row, part))):
            return True
    return False
