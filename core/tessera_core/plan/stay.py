"""Which of several interchangeable boards gets which row: the one that runs most of it already.

Problem: boards of one kind on one node are the same to the search, so it may leave one with what another one runs, and
copies would be loaded and unloaded for nothing. Approach: an assignment of rows to those boards that keeps the most
copies where they are, then cuts the fewest boards. Rows that did not change stay out of it: exchanging them could only
lose, since a board that runs exactly its row keeps all of it.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from math import inf

from tessera_core.plan.layout import Layout
from tessera_core.plan.matrix import Row
from tessera_core.plan.problem import Problem
from tessera_core.plan.settle import covers, slice_name
from tessera_core.plan.state import DeviceState

Copies = Counter[tuple[str, str, str]]
"""How many of (slice name, service, member)."""


def stay(layout: Layout, mark: int) -> None:
    """Exchange rows of ``layout`` that changed since ``mark``, when it held what runs, between interchangeable boards."""
    problem = layout.problem
    alike: dict[tuple[int, int], list[int]] = defaultdict(list)
    for index, before in sorted(layout.rows_at(mark).items()):
        board = problem.boards[index]
        if layout.rows[index] != before and not board.closed:
            alike[board.node, board.kind.index].append(index)
    for boards in alike.values():
        if len(boards) > 1 and any(problem.devices[index].running for index in boards):
            rows = [layout.rows[index] for index in boards]
            devices = [problem.devices[index] for index in boards]
            chosen = assigned(_worths(problem, rows, devices))
            layout.change({boards[at]: row for row, at in zip(rows, chosen, strict=True)})


def _worths(
    problem: Problem, rows: Sequence[Row], devices: Sequence[DeviceState]
) -> list[list[int]]:
    """By row and device: copies that stay first, then that nothing is cut, then that it is the device that has the row."""
    base = len(rows) + 1
    present = [
        Copies((each.slice.name, each.service, each.member) for each in device.running)
        for device in devices
    ]
    found = []
    for own, row in enumerate(rows):
        wanted = Copies(
            (slice_name(problem, part), *problem.demands[cell.member].key)
            for part in row
            for cell in part.cells
        )
        found.append(
            [
                ((wanted & runs).total() * base + covers(problem, device, row)) * base + (at == own)
                for at, (device, runs) in enumerate(zip(devices, present, strict=True))
            ]
        )
    return found


def assigned(worths: Sequence[Sequence[int]]) -> list[int]:
    """By row of the square matrix ``worths`` the column that it gets, so that their sum is the greatest.

    The Hungarian method (Kuhn 1955) with potentials, a shortest augmenting path for each row: O(n^3).
    """
    size = len(worths)
    of_row, of_column = [0.0] * (size + 1), [0.0] * (size + 1)
    taker = [size] * (size + 1)
    """By column the row that has it, ``size``: nobody; the last column is where a path starts."""
    for row in range(size):
        taker[size], column = row, size
        least, before, done = [inf] * size, [size] * size, [False] * (size + 1)
        while taker[column] != size:
            done[column], here = True, taker[column]
            for other in range(size):
                if not done[other]:
                    slack = -worths[here][other] - of_row[here] - of_column[other]
                    if slack < least[other]:
                        least[other], before[other] = slack, column
            column = min((c for c in range(size) if not done[c]), key=least.__getitem__)
            step = least[column]
            for other in range(size + 1):
                if done[other]:
                    of_row[taker[other]] += step
                    of_column[other] -= step
                elif other < size:
                    least[other] -= step
        while column != size:
            taker[column] = taker[before[column]]
            column = before[column]
        taker[size] = size
    found = [0] * size
    for column in range(size):
        found[taker[column]] = column
    return found
