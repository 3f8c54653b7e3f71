"""Clipper's batch size: additive increase, multiplicative decrease on the p95 of batch times.

Crankshaw et al., "Clipper: A Low-Latency Online Prediction Serving System", NSDI 2017; the constants are those of
the comparison in DNNScaler's code (github.com/nabavinejad/DNNScaler): every 3 s, + 4 below 0.85 of the SLO, × 0.9
above it, held in between; one instance. It judges the time of a batch, not what requests wait before it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from tessera_core.control.setpoint import Goal, Setpoint, Window

INTERVAL_S = 3.0
UP_ROWS = 4
DOWN = 0.9
HOLD_FROM = 0.85
"""Of the SLO."""
PERCENT = 95.0


@dataclass(frozen=True, slots=True)
class ClipperState:
    setpoint: Setpoint
    wait_s: float = INTERVAL_S


class Clipper:
    """Batches only."""

    def start(self, goal: Goal) -> ClipperState:
        return ClipperState(Setpoint(1, 1))

    def step(self, state: ClipperState, window: Window, goal: Goal) -> ClipperState:
        batches_ms = window.batches_ms
        if not batches_ms:
            return state
        cap = state.setpoint.cap
        seen_ms = float(np.percentile(batches_ms, PERCENT, method="inverted_cdf"))
        if seen_ms > goal.slo_ms:
            cap = max(1, int(DOWN * cap))
        elif seen_ms < HOLD_FROM * goal.slo_ms:
            cap += UP_ROWS
        return replace(state, setpoint=Setpoint(min(cap, goal.most.cap), 1))
