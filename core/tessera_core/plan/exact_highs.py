"""The covering program in HiGHS: one thread, a fixed seed, a budget of nodes, answers checked in integers.

HiGHS (https://highs.dev), package ``highspy``, is optional and imported on use. Without a clock and with one
thread it is deterministic. Columns: x by group and seen cover, then y by kind and packing. Rows: groups,
classes by kind, kinds, total cost.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import Enum, StrEnum
from itertools import accumulate, pairwise
from math import ceil, inf
from typing import Any

import numpy as np

from tessera_core.plan.exact_program import Choice, Program, packed

_SLACK = 1e-6
"""Relative error granted to a bound that the solver stopped at, before it is rounded up to an integer."""
_OPTIONS = {
    "output_flag": False,
    "threads": 1,
    "parallel": "off",
    "random_seed": 0,
    # Groups leave no symmetry worth the search, whose effort is not bounded in nodes.
    "mip_detect_symmetry": False,
    # Objectives are integers: a gap below 1 is none.
    "mip_rel_gap": 0.0,
    "mip_abs_gap": 0.99,
}


class Reason(StrEnum):
    """Why there is no answer."""

    INFEASIBLE = "Infeasible"
    """The boards cannot hold all members, whatever the choice."""
    BUDGET = "Budget"
    """No choice was found within the nodes; there may be one."""
    NO_SOLVER = "NoSolver"
    """``highspy`` is not installed."""
    SOLVER_FAILED = "SolverFailed"
    """HiGHS gave up, e.g. because this process already runs it with another number of threads."""


class Goal(Enum):
    """What a solve minimises."""

    COST = "cost"
    WIDTH = "width"


@dataclass(frozen=True, slots=True)
class Answer:
    """What one solve found."""

    choice: Choice | None
    """Packed."""
    bound: float
    """No choice of the seen covers has a lower objective: an integer, or infinite when there is no choice."""
    optimal: bool


def part_prices(program: Program) -> tuple[tuple[float, ...], ...] | Reason:
    """Per kind and class, the relaxation's price of one more part, ≥ 0, in the program's unit of cost."""
    if (highspy := _highspy()) is None:
        return Reason.NO_SOLVER
    everything = [range(len(group.covers)) for group in program.groups]
    highs = _loaded(highspy, program, everything, Goal.COST)
    status = _run(highspy, highs)
    if status in _impossible(highspy):
        return Reason.INFEASIBLE
    if status != highspy.HighsModelStatus.kOptimal:
        return Reason.SOLVER_FAILED
    duals = highs.getSolution().row_dual
    return tuple(
        tuple(max(0.0, -float(dual)) for dual in duals[low:high])
        for low, high in pairwise(_part_rows(program))
    )


def solve(
    program: Program,
    seen: Sequence[Sequence[int]],
    goal: Goal,
    known: Choice | None,
    max_nodes: int,
) -> Answer | Reason:
    """The best choice of the covers ``seen`` per group, starting from ``known``, which uses no others.

    For ``WIDTH`` only choices that cost no more than ``known`` count.
    """
    if (highspy := _highspy()) is None:
        return Reason.NO_SOLVER
    limit = known.cost if known is not None and goal is Goal.WIDTH else None
    highs = _loaded(highspy, program, seen, goal, limit)
    highs.changeColsIntegrality(
        count := highs.getNumCol(),
        np.arange(count, dtype=np.int32),
        np.full(count, int(highspy.HighsVarType.kInteger), dtype=np.uint8),
    )
    highs.setOptionValue("mip_max_nodes", max_nodes)
    if known is not None:
        values = [known.x[g][j] for g, kept in enumerate(seen) for j in kept]
        values += [n for of_kind in known.y for n in of_kind]
        indexes = np.arange(len(values), dtype=np.int32)
        highs.setSolution(len(values), indexes, np.array(values, float))

    status = _run(highspy, highs)
    if status in _impossible(highspy):
        return Answer(None, inf, optimal=True)
    optimal = status == highspy.HighsModelStatus.kOptimal
    if not optimal and status != highspy.HighsModelStatus.kSolutionLimit:
        return Reason.SOLVER_FAILED
    info = highs.getInfo()
    if optimal:
        bound = round(info.objective_function_value)
    else:
        bound = ceil(max(0.0, info.mip_dual_bound) * (1 - _SLACK))
    if info.primal_solution_status != highspy.SolutionStatus.kSolutionStatusFeasible:
        return Answer(None, bound, optimal=False)
    choice = _read(program, seen, highs.getSolution().col_value)
    return Reason.SOLVER_FAILED if choice is None else Answer(choice, bound, optimal)


def _read(
    program: Program, seen: Sequence[Sequence[int]], columns: Iterable[float]
) -> Choice | None:
    """The columns' values as a choice; None when, rounded, they break a rule."""
    values = iter([round(value) for value in columns])
    x = [[0] * len(group.covers) for group in program.groups]
    for counts, kept in zip(x, seen, strict=True):
        for j in kept:
            counts[j] = next(values)
    y = [[next(values) for _ in of_kind] for of_kind in program.packings]
    return packed(program, x, y)


def _loaded(
    highspy: Any,
    program: Program,
    seen: Sequence[Sequence[int]],
    goal: Goal,
    limit: int | None = None,
) -> Any:
    """A silent solver that holds the relaxation, with the total cost at most ``limit``."""
    first = _part_rows(program)
    boards_row, cost_row = first[-1], first[-1] + len(program.supplies)
    starts, rows, values = [0], list[int](), list[int]()
    objective, most = list[int](), list[int]()

    def column(entries: Iterable[tuple[int, int]], price: int, upper: int) -> None:
        for row, value in entries:
            if value:
                rows.append(row)
                values.append(value)
        starts.append(len(rows))
        objective.append(price)
        most.append(upper)

    narrow = goal is Goal.WIDTH
    for g, (group, kept) in enumerate(zip(program.groups, seen, strict=True)):
        for j in kept:
            cover = group.covers[j]
            parts = enumerate(cover.parts, first[cover.kind])
            column([(g, 1), *parts], cover.width if narrow else 0, len(group.members))
    for k, (supply, cost) in enumerate(zip(program.supplies, program.costs, strict=True)):
        for packing in program.packings[k]:
            parts = enumerate((-n for n in supply.packings[packing]), first[k])
            entries = [*parts, (boards_row + k, 1), (cost_row, cost)]
            column(entries, 0 if narrow else cost, supply.boards)

    sizes = [len(group.members) for group in program.groups]
    classes = boards_row - len(sizes)
    boards = [supply.boards for supply in program.supplies]
    lp = highspy.HighsLp()
    lp.num_col_, lp.num_row_ = len(most), cost_row + 1
    lp.col_cost_ = np.array(objective, float)
    lp.col_lower_, lp.col_upper_ = np.zeros(len(most)), np.array(most, float)
    lp.row_lower_ = np.array([*sizes, *[-inf] * (classes + len(boards) + 1)], float)
    lp.row_upper_ = np.array(
        [*sizes, *[0] * classes, *boards, inf if limit is None else limit], float
    )
    lp.a_matrix_.format_ = highspy.MatrixFormat.kColwise
    lp.a_matrix_.start_ = np.array(starts, np.int32)
    lp.a_matrix_.index_ = np.array(rows, np.int32)
    lp.a_matrix_.value_ = np.array(values, float)
    highs = highspy.Highs()
    for name, value in _OPTIONS.items():
        highs.setOptionValue(name, value)
    highs.passModel(lp)
    return highs


def _run(highspy: Any, highs: Any) -> Any:
    """The model's status after a run; that of a solve error when the run did not take place."""
    if highs.run() == highspy.HighsStatus.kError:
        return highspy.HighsModelStatus.kSolveError
    return highs.getModelStatus()


def _impossible(highspy: Any) -> tuple[Any, Any]:
    """Presolve may not tell the two apart; no program here is unbounded, since nothing costs less than 0."""
    return (
        highspy.HighsModelStatus.kInfeasible,
        highspy.HighsModelStatus.kUnboundedOrInfeasible,
    )


def _part_rows(program: Program) -> list[int]:
    """Per kind the row of its first class, then the row after the last of all."""
    sizes = (len(supply.packings[0]) for supply in program.supplies)
    return list(accumulate(sizes, initial=len(program.groups)))


def _highspy() -> Any | None:
    """The solver's package; None where it is not installed."""
    try:
        import highspy
    except ImportError:
        return None
    return highspy
