"""The policies that are compared, each built for a job from what its own profiler would know."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from bench.control.jobs import Job, measured_before
from bench.control.oracle import MOST, PERCENT
from numpy.typing import NDArray

from tessera_core.control.clipper import Clipper
from tessera_core.control.dnnscaler import (
    PROBE_INSTANCES,
    DnnScalerBatching,
    DnnScalerInstances,
    Knob,
)
from tessera_core.control.joint import Joint
from tessera_core.control.setpoint import Goal, Policy
from tessera_core.simulate.controlled import Controlled, control

POLICIES = ("tessera", "dnnscaler", "clipper")

SETTLING_S = 60.0
"""The slowest search has ended: DNNScaler's takes 7 decisions of 3 s, or 20 s for ten instances and 6 s for each step."""
_WAIT_S = 1.0


@dataclass(frozen=True, slots=True)
class Watch:
    """How long a policy runs, and how much of it counts."""

    settling_s: float = SETTLING_S
    least_s: float = 60.0
    least_requests: int = 3000
    most_s: float = 10_000.0

    def end_s(self, rate_per_s: float) -> float:
        counted = max(self.least_s, self.least_requests / rate_per_s)
        return self.settling_s + min(counted, self.most_s)


WATCH = Watch()


def policy(name: str, job: Job) -> Policy[Any]:
    """``name``: one of POLICIES, or DNNScaler with the one knob or the other: batching, instances."""
    if name == "tessera":
        return Joint(job.profile(), PERCENT)
    if name == "clipper":
        return Clipper()
    batches = name == "batching" or (name == "dnnscaler" and job.probe.knob is Knob.BATCHING)
    if batches:
        return DnnScalerBatching()
    first, probed = job.law(1, 1), job.law(1, PROBE_INSTANCES)
    return DnnScalerInstances(measured_before(job), first, probed)


def watched(
    name: str,
    job: Job,
    arrivals_ms: NDArray[np.float64],
    end_s: float,
    goals: Sequence[tuple[float, Goal]] = (),
    load_s: float = 0.0,
) -> Controlled:
    """What ``name`` does on arrivals, under the job's own SLO where no ``goals`` are given.

    Times were measured with all instances busy. DNNScaler sets many where little comes, so to it alone idle ones cost
    nothing; the other policies and static settings pay for all that they set.
    """
    return control(
        policy(name, job),
        goals or [(0.0, Goal(job.slo_ms, MOST))],
        job.law,
        arrivals_ms,
        end_s + job.slo_ms / 1e3 + _WAIT_S,  # what waits at the end gets its answer
        load_s,
        busy_only=name == "dnnscaler",
    )


def share_within(found: Controlled, from_s: float, to_s: float) -> float:
    """Of the requests that came in this time; 1 where none did."""
    first, last = np.searchsorted(found.arrivals_ms, (from_s * 1e3, to_s * 1e3))
    if first == last:
        return 1.0
    return float(np.mean(found.latency_ms[first:last] <= found.slo_ms[first:last]))
