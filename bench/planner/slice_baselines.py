"""How others cut and fill A100s: ParvaGPU's rules, first fit, one model per GPU, and only the batch size.

All take the same tables and loads, keep the same rule for latency and return the same result. A point of a
profile is allowed where its batch takes less than ``SHARE`` of the service's SLO: half of it, as the batch
may have to wait for the one before, less a tenth for safety (ParvaGPU's ``configurator.c``). Boards are as
many as it takes, and all empty at first.

    Unplaceable   no allowed point of the model's; raised by all of them
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from math import ceil, floor

from bench.planner.tables import (
    PROFILE_NAMES,
    SIZES,
    Deployment,
    Load,
    Point,
    Profiles,
    Segment,
    Unplaceable,
)

from tessera_core.gpu.geometry import place
from tessera_core.gpu.tables import A100_80

SHARE = 0.45
WHOLE = 7
"""GPCs of a board."""
_SPARSE = 4
"""GPCs up to which ParvaGPU takes a board apart again."""
_ROUNDING = 1e-9
"""Relative; keeps a rate that is a multiple of a point's from needing one more of it."""


def allowed(profiles: Profiles, load: Load, share: float = SHARE) -> tuple[Point, ...]:
    """The points of the load's model that are fast enough for it, by (GPCs, batch, processes)."""
    return tuple(point for point in profiles[load.model] if point.latency_ms < share * load.slo_ms)


def best_by_size(points: Iterable[Point]) -> dict[int, Point]:
    """The point of the highest rate on each slice size that has one, by size; of equals the first."""
    best: dict[int, Point] = {}
    for point in sorted(points):
        if point.gpcs not in best or point.rate_per_s > best[point.gpcs].rate_per_s:
            best[point.gpcs] = point
    return best


def parvagpu(profiles: Profiles, loads: Sequence[Load]) -> Deployment:
    """ParvaGPU (arXiv 2409.14447; artefact src/configurator.c and src/allocator.c).

    Per service: the point of the highest rate per GPC as often as its rate goes into the demand, and for the
    rest the smallest slice that carries it. Then slices by size, 7 to 1, each to the fullest board that takes
    it; a board takes one 3g, at memory slice 4. Last, from the last board back, those with at most four GPCs
    are taken apart into 2g and 1g slices, which are placed anew.

    Where the artefact errs, this does not: processes beyond the third are not read (it writes them past the
    end of an array); a slice keeps the rate of its own point when it is taken apart (it takes that of the
    remainder); a service without a 1g or 2g point keeps its slice (it loses it); a slice that has just been
    placed on the board being taken apart is not taken apart again; sizes without an allowed point are
    skipped (it dereferences null). Start positions, which overlap there, are left to an exact search:
    what a board takes here always has one.
    """
    queues: dict[int, deque[Segment]] = {size: deque() for size in SIZES}
    choices: dict[str, dict[int, Point]] = {}
    for load in sorted(loads):
        choices[load.name] = best = _best(profiles, load)
        for point in _configured(best, load.rate_per_s):
            queues[point.gpcs].append(Segment(load.name, load.model, point))
    boards: list[list[Segment]] = []
    _place_all(boards, queues)
    _take_apart(boards, queues, choices)
    return _deployment(boards)


def first_fit(profiles: Profiles, loads: Sequence[Load]) -> Deployment:
    """Every service's slice size of the highest rate per GPC, repeated, on the first board where it fits.

    Textbook first fit (Johnson et al., SIAM J. Comput. 3, 1974) over MIG slices, services by name.
    """
    boards: list[list[Segment]] = []
    for load in sorted(loads):
        point = _densest(_best(profiles, load).values())
        for _ in range(_copies(load.rate_per_s, point)):
            segment = Segment(load.name, load.model, point)
            board = next((each for each in boards if _fits(each, point.gpcs)), None)
            if board is None:
                boards.append([segment])
            else:
                board.append(segment)
    return _deployment(boards)


def model_per_gpu(profiles: Profiles, loads: Sequence[Load]) -> Deployment:
    """Whole boards for one service each, with the best batch size and number of processes on them.

    What a cluster does whose GPUs are handed out as Kubernetes' device plugin does by default.
    """
    return _whole_boards(profiles, loads, most_processes=None)


def best_batch_only(profiles: Profiles, loads: Sequence[Load]) -> Deployment:
    """Whole boards with one instance each: only the batch size is chosen.

    The comparison of Pochelu et al. (arXiv 2208.14049), which tune nothing else.
    """
    return _whole_boards(profiles, loads, most_processes=1)


def _whole_boards(
    profiles: Profiles, loads: Sequence[Load], most_processes: int | None
) -> Deployment:
    boards: list[list[Segment]] = []
    for load in sorted(loads):
        whole = best_by_size(
            point
            for point in allowed(profiles, load)
            if most_processes is None or point.processes <= most_processes
        ).get(WHOLE)
        if whole is None:
            raise Unplaceable(f"{load.name}: {load.model} has no point on a whole board")
        copies = _copies(load.rate_per_s, whole)
        boards += [[Segment(load.name, load.model, whole)] for _ in range(copies)]
    return _deployment(boards)


def _best(profiles: Profiles, load: Load) -> dict[int, Point]:
    best = best_by_size(allowed(profiles, load))
    if not best:
        fastest = min(point.latency_ms for point in profiles[load.model])
        raise Unplaceable(
            f"{load.name}: the fastest batch of {load.model} takes {fastest:g} ms, which is not "
            f"below {SHARE} of its SLO of {load.slo_ms:g} ms"
        )
    return best


def _densest(points: Iterable[Point]) -> Point:
    """The highest rate per GPC; of equals the smaller slice."""
    return max(points, key=lambda point: (point.rate_per_s / point.gpcs, -point.gpcs))


def _copies(rate_per_s: float, point: Point) -> int:
    return max(1, ceil(rate_per_s / point.rate_per_s * (1 - _ROUNDING)))


def _configured(best: dict[int, Point], rate_per_s: float) -> Iterable[Point]:
    """ParvaGPU's slices of one service: repeated densest point, then the smallest that carries the rest."""
    densest = _densest(best.values())
    copies = _copies(rate_per_s, densest) - 1
    rest = (rate_per_s - copies * densest.rate_per_s) * (1 - _ROUNDING)
    last = next(best[size] for size in SIZES if size in best and best[size].rate_per_s >= rest)
    return [densest] * copies + [last]


def _place_all(boards: list[list[Segment]], queues: dict[int, deque[Segment]]) -> None:
    for size in reversed(SIZES):
        while queues[size]:
            segment = queues[size].popleft()
            fitting = [board for board in boards if _parvagpu_fits(board, size)]
            if fitting:
                max(fitting, key=_used).append(segment)  # of equally full ones the first
            else:
                boards.append([segment])


def _take_apart(
    boards: list[list[Segment]],
    queues: dict[int, deque[Segment]],
    choices: dict[str, dict[int, Point]],
) -> None:
    """Surplus of one service's new slices counts towards its next slice that is taken apart."""
    owed: dict[str, float] = {}
    for board in reversed(list(boards)):
        if _used(board) > _SPARSE:
            continue
        for segment in list(board):
            best = choices[segment.service]
            one, two = best.get(1), best.get(2)
            if one is None and two is None:
                continue
            board.remove(segment)
            rate = owed.get(segment.service, 0.0) + segment.point.rate_per_s
            pieces: list[Point] = []
            if one is not None and two is not None and two.rate_per_s / 2 > one.rate_per_s:
                pieces += [two] * max(0, floor(rate / two.rate_per_s * (1 + _ROUNDING)))
                rate -= len(pieces) * two.rate_per_s
            small = one or two
            assert small is not None
            more = max(0, ceil(rate / small.rate_per_s - _ROUNDING))
            owed[segment.service] = rate - more * small.rate_per_s
            for piece in pieces + [small] * more:
                queues[piece.gpcs].append(Segment(segment.service, segment.model, piece))
            _place_all(boards, queues)


def _used(board: Sequence[Segment]) -> int:
    return sum(segment.gpcs for segment in board)


def _parvagpu_fits(board: Sequence[Segment], gpcs: int) -> bool:
    """Enough free GPCs, and no second 3g; every such multiset of sizes has legal start positions."""
    second = gpcs == 3 and any(segment.gpcs == 3 for segment in board)
    return not second and _used(board) + gpcs <= WHOLE


def _fits(board: Sequence[Segment], gpcs: int) -> bool:
    """Whether one more slice has legal start positions beside (and by moving) those of ``board``."""
    sizes = sorted((*(segment.gpcs for segment in board), gpcs))
    return (
        sum(sizes) <= WHOLE and place(A100_80, [PROFILE_NAMES[each] for each in sizes]) is not None
    )


def _deployment(boards: Iterable[Sequence[Segment]]) -> Deployment:
    """Used boards; slices the largest first, each size in the order in which it was placed."""
    return Deployment(
        tuple(tuple(sorted(board, key=lambda each: -each.gpcs)) for board in boards if board)
    )
