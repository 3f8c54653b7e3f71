"""Poisson arrivals: the highest rate whose p99 holds, and what happens at twice the capacity.

The generator is our own, in processes of its own: each sends its share of the rate, and a sum of Poisson
streams is one. Times are drawn in advance and latency counts from the intended moment, so that a slow server
cannot slow its load. How many requests left late is told beside the figures: then the client was the limit.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import numpy as np
from bench.dataplane.running import Running
from bench.peers.base import HOST, Array, Wire

from tessera_cli.loadgen import LoadPlan, LoadProcess, OpenLoop, Phase, Samples, Target

WARMUP_S = 0.5
CONNECTIONS = {Wire.HTTP: 128, Wire.GRPC: 16}
"""Per generator. HTTP holds one request at a time on each; gRPC many."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """One rate, after warm-up."""

    offered_per_s: float
    good_per_s: float
    """Answered well and within the SLO, by when they were meant to be sent."""
    requests: int
    failed: int
    lost: int
    late: float
    """Share that the client sent over 5 ms after its time."""
    p50_ms: float
    p99_ms: float
    """Of the good answers."""
    refused_p50_ms: float
    refused_p99_ms: float
    """From the intended moment to an answer that is no result; NaN without any."""


def poisson(
    server: Running,
    wire: Wire,
    rows: Array,
    rate_per_s: float,
    seconds: float,
    cores: Sequence[int],
    slo_ms: float = math.inf,
    seed: int = 1,
    connections: int | None = None,
) -> Outcome:
    """Offer ``rate_per_s`` for ``seconds``, one generator on each of ``cores``. Raises LoadFailed."""
    requests = tuple(
        request.raw_http if wire is Wire.HTTP else request.body
        for request in (server.peer.request(server.work, wire, row[None]) for row in rows)
    )
    target = Target(wire, HOST, server.port(wire), requests, connections or CONNECTIONS[wire])
    share = rate_per_s / len(cores)
    with ExitStack() as stack:
        loads = []
        for number, core in enumerate(cores):
            shape = OpenLoop((Phase(share, WARMUP_S + seconds),), seed * 1000 + number)
            plan = LoadPlan((target,), shape, answer_timeout_s=2.0, progress_s=60.0, cores=(core,))
            load = stack.enter_context(LoadProcess(plan))
            loads.append((load, load.messages()))
        for _, messages in loads:  # all are sent their plans before any is waited for
            next(messages)
        found = []
        for load, messages in loads:
            for _ in messages:
                pass
            found.append(load.samples())
    return outcome(found, rate_per_s, seconds, slo_ms)


def outcome(found: Sequence[Samples], rate_per_s: float, seconds: float, slo_ms: float) -> Outcome:
    """What the generators saw together, from WARMUP_S on."""
    intended, sent, done, good = (
        np.concatenate(arrays)
        for arrays in zip(*((s.intended, s.sent, s.done, s.good) for s in found), strict=True)
    )
    inside = intended >= WARMUP_S
    latency_ms = (done - intended) * 1e3
    answered = inside & good
    refused = inside & ~good & ~np.isnan(done)
    requests = int(inside.sum())
    p50, p99 = _percentiles(latency_ms[answered])
    refused_p50, refused_p99 = _percentiles(latency_ms[refused])
    return Outcome(
        offered_per_s=rate_per_s,
        good_per_s=float((answered & (latency_ms <= slo_ms)).sum()) / seconds,
        requests=requests,
        failed=int(refused.sum()),
        lost=int((inside & np.isnan(done)).sum()),
        late=float(((sent - intended) > 0.005)[inside].mean()) if requests else math.nan,
        p50_ms=p50,
        p99_ms=p99,
        refused_p50_ms=refused_p50,
        refused_p99_ms=refused_p99,
    )


def _percentiles(values: Array) -> tuple[float, float]:
    if not values.size:
        return math.nan, math.nan
    p50, p99 = np.percentile(values, (50, 99))
    return float(p50), float(p99)


def highest_rate(
    holds: Callable[[float], bool], ceiling_per_s: float, steps: int, floor: float = 0.1
) -> float:
    """Bisect between ``floor`` · ceiling and the ceiling; 0 when not even the floor holds.

    Each step halves the interval: the answer is off by at most ``(1 - floor) / 2**steps`` of the ceiling.
    """
    low, high, found = floor, 1.0, 0.0
    for _ in range(steps):
        middle = (low + high) / 2
        if holds(middle * ceiling_per_s):
            low = found = middle
        else:
            high = middle
    if not found and holds(floor * ceiling_per_s):
        found = floor
    return found * ceiling_per_s
