"""Cut a GPU as wanted: look, take the first step that is left, look again.

Nothing is remembered between steps, so a partitioner that was killed anywhere, or failed, goes on by being called again.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable

from tessera_core.gpu.geometry import Placement
from tessera_core.gpu.recut import Create, Destroy, recut
from tessera_runtime.partitioner.errors import InUse, OutOfTime, Stopped
from tessera_runtime.partitioner.gpu import MigGpu, Slice

RETRY_S = 0.2
"""Between two tries to destroy what is in use: a context may outlive its process by some tenths of a second."""


def cut(
    gpu: MigGpu,
    wanted: Iterable[Placement],
    *,
    patience_s: float,
    go_on: Callable[[], bool] = lambda: True,
    clock: Callable[[], float] = time.monotonic,
    pause: Callable[[float], None] = time.sleep,
) -> tuple[Slice, ...]:
    """Leave exactly ``wanted`` on ``gpu`` and return it as it is then, with UUIDs; what is right already stays.

    ``patience_s``: after it no step begins but the first, and nothing in use is waited for. A call of the driver cannot
    be cut short. ``go_on`` is asked before every step, so that no instance is left unfinished where it says no. MIG is
    switched on where something is wanted, and never off. Raises GeometryError for a goal that is not legal, before
    anything is changed, and PartitionError.
    """
    goal = tuple(wanted)
    give_up = clock() + patience_s
    slices = gpu.slices()
    steps = _left(gpu, slices, goal)
    if goal and go_on():
        gpu.enable_mig()
    late = False
    while steps:
        if not go_on():
            raise Stopped(gpu.uuid, steps)
        if late:
            raise OutOfTime(gpu.uuid, steps)
        try:
            _take(gpu, steps[0])
        except InUse:
            if clock() >= give_up:
                raise
            pause(RETRY_S)
        else:
            late = clock() >= give_up
        slices = gpu.slices()
        steps = _left(gpu, slices, goal)
    return slices


def _left(
    gpu: MigGpu, slices: tuple[Slice, ...], goal: tuple[Placement, ...]
) -> tuple[Destroy | Create, ...]:
    unfinished = (each.placement for each in slices if each.uuid is None)
    return recut(gpu.model, (each.placement for each in slices), goal, unfinished)


def _take(gpu: MigGpu, step: Destroy | Create) -> None:
    match step:
        case Destroy(placement):
            gpu.destroy(placement)
        case Create(placement):
            gpu.create(placement)
