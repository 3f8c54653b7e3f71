"""DNNScaler: batches or co-located instances, whichever raises the throughput of a model more, under a latency SLO.

Nabavinejad, Ebrahimi, Reda: "Throughput Maximization of DNN Inference: Batching or Multi-Tenancy?", arXiv
2308.13803; rules and constants as in the authors' code (github.com/nabavinejad/DNNScaler), including what is odd
there: both scalers judge the *mean time of a batch*, never what requests wait, and the one for instances that of the
first instance only, over a window that starts as zeros. One thing is mended: the code's largest index of batch sizes
lies one past the end of its list.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum
from math import ceil, floor
from statistics import fmean

import numpy as np

from tessera_core.control.completion import Matrix, complete
from tessera_core.control.setpoint import Goal, Setpoint, Window

HOLD_FROM = 0.85
"""Of the SLO: from there up to the SLO nothing is changed."""
PROBE_ROWS = 32
PROBE_INSTANCES = 8
"""The profiler's two questions: what a batch of so many, and so many instances, do for throughput."""

BATCHING_S = 3.0
MOST_ROWS = 127

MOST_INSTANCES = 10
SAMPLING_S = 1.0
SETTLE_S = 5.0
"""After one instance more or less."""
START_S = 2.0
"""For each instance that is launched at the start; 1 to 3 s in the job scripts."""
REMEMBERED = 99
"""Batches of the first instance."""
FROZEN_FROM = 0.95
"""Of the mean before the growth that went too far."""


class Knob(StrEnum):
    BATCHING = "Batching"
    MULTI_TENANCY = "MultiTenancy"


@dataclass(frozen=True, slots=True)
class Probe:
    """Throughput in rows per second, as the profiler measures it before the start."""

    one: float
    """One row at a time, one instance."""
    batched: float
    """Batches of PROBE_ROWS, one instance."""
    shared: float
    """One row at a time, PROBE_INSTANCES instances."""

    @property
    def knob(self) -> Knob:
        """The one that raises throughput more over :attr:`one`; batches where they tie."""
        return Knob.MULTI_TENANCY if self.shared > self.batched else Knob.BATCHING


@dataclass(frozen=True, slots=True)
class BatchingState:
    """Sizes are indexes from 0: a batch of index + 1 rows."""

    index: int = 0
    low: int = 0
    high: int = MOST_ROWS - 1
    wait_s: float = BATCHING_S

    @property
    def setpoint(self) -> Setpoint:
        return Setpoint(self.index + 1, 1)


class DnnScalerBatching:
    """A binary search whose bracket opens again when the answer has left it."""

    def start(self, goal: Goal) -> BatchingState:
        return BatchingState(high=_last(goal))

    def step(self, state: BatchingState, window: Window, goal: Goal) -> BatchingState:
        batches_ms = window.batches_ms
        if not batches_ms:
            return state
        seen_ms, last = fmean(batches_ms), _last(goal)
        index, low, high = (min(each, last) for each in (state.index, state.low, state.high))
        if seen_ms > goal.slo_ms and index > 0:
            low, high = (0, low) if index == low else (low, index)
            index = floor((low + high) / 2)
        elif seen_ms < HOLD_FROM * goal.slo_ms and index < last:
            low, high = (high, last) if index == high else (index, high)
            index = ceil((low + high) / 2)
        return replace(state, index=index, low=low, high=high)


def _last(goal: Goal) -> int:
    return min(MOST_ROWS, goal.most.cap) - 1


@dataclass(frozen=True, slots=True)
class Frozen:
    """Nothing is changed while the mean stays between these and the SLO is the same."""

    from_ms: float
    to_ms: float
    slo_ms: float


@dataclass(frozen=True, slots=True)
class InstancesState:
    instances: int
    wait_s: float
    remembered_ms: tuple[float, ...] = ()
    """Batches of the first instance, the last REMEMBERED."""
    before_ms: float = 0.0
    """The mean before the last growth; 0 before the first."""
    frozen: Frozen | None = None

    @property
    def setpoint(self) -> Setpoint:
        return Setpoint(1, self.instances)


class DnnScalerInstances:
    """One instance more or less at a time, from an estimate by matrix completion."""

    def __init__(self, known_ms: Matrix, first_ms: float, probe_ms: float) -> None:
        """``known_ms``: of models measured before, shape (models, MOST_INSTANCES); ``first_ms``, ``probe_ms``: of this
        one, with 1 and with PROBE_INSTANCES instances.
        """
        row = np.full(MOST_INSTANCES, np.nan)
        row[0], row[PROBE_INSTANCES - 1] = first_ms, probe_ms
        self._estimate_ms = complete(np.vstack([known_ms, row]), rank=2)[-1]

    def start(self, goal: Goal) -> InstancesState:
        """The most that are expected to hold the SLO, all at once."""
        most = min(MOST_INSTANCES, goal.most.instances)
        holding = [n for n in range(1, most + 1) if self._estimate_ms[n - 1] < goal.slo_ms]
        instances = max(holding, default=1)
        return InstancesState(instances, wait_s=START_S * instances)

    def step(self, state: InstancesState, window: Window, goal: Goal) -> InstancesState:
        first = [batch.ms for batch in window.batches[0]] if window.batches else []
        remembered_ms = (*state.remembered_ms, *first)[-REMEMBERED:]
        seen_ms = sum(remembered_ms) / REMEMBERED  # what was not seen yet counts as 0
        state = replace(state, remembered_ms=remembered_ms, wait_s=SAMPLING_S)
        frozen = state.frozen
        if frozen is not None and (
            frozen.slo_ms == goal.slo_ms and frozen.from_ms <= seen_ms <= frozen.to_ms
        ):
            return state
        state = replace(state, frozen=None)
        most = min(MOST_INSTANCES, goal.most.instances)
        if seen_ms < HOLD_FROM * goal.slo_ms and state.instances < most:
            return replace(state, instances=state.instances + 1, before_ms=seen_ms, wait_s=SETTLE_S)
        if seen_ms > goal.slo_ms and state.instances > 1:
            return replace(
                state,
                instances=state.instances - 1,
                frozen=Frozen(FROZEN_FROM * state.before_ms, seen_ms, goal.slo_ms),
                wait_s=SETTLE_S,
            )
        return state
