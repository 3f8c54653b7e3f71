"""The demo's load: how fast, what is seen while it runs, and what the largest rate turns out to be."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from examples.digits.serving import Address

from tessera_cli.loadgen import (
    LoadPlan,
    LoadProcess,
    OpenLoop,
    Phase,
    Progress,
    Protocol,
    Samples,
    Target,
    summarise,
)
from tessera_cli.loadgen.wire import encode
from tessera_runtime.agent.status import ServiceStatus

MODEL = "default.digits"
PROTOCOLS = (Protocol.HTTP, Protocol.GRPC)
"""Requests alternate between them."""
HTTP_CONNECTIONS, GRPC_CONNECTIONS = 64, 2

IMAGES = 8
"""Per request: a number of eight digits."""

BASE, STEP = 0.15, 0.4
"""Rates of the two phases as shares of the predicted maximum: with room for a virtual machine that loses half
of its processor time to its neighbours for a second or two."""
MOST_RATE = 300.0
"""Requests per second that front ends and load carry with ease on one slow core that they share, whatever the
models take; the prediction is of the models alone."""

RAMP = (0.6, 0.75, 0.9, 1.0, 1.1, 1.25, 1.5)
"""Rates of the ramp as shares of the predicted maximum."""
RAMP_STEP_S = 2.0

_WINDOW_TICKS = 6
"""Progress messages of half a second over which live percentiles are taken."""


@dataclass(frozen=True, slots=True)
class Rates:
    base: float
    step: float
    predicted_max: float


@dataclass(frozen=True, slots=True)
class Tick:
    """One line of the live table: what the client sees now, and what the server says about itself."""

    at_s: float
    rate_per_s: float
    p50_ms: float
    p99_ms: float
    """Over the last three seconds, from the intended moment; NaN before there is an answer."""
    failed: int
    """In all, as ``late``."""
    late: int
    in_flight: int
    status: ServiceStatus | None


@dataclass(frozen=True, slots=True)
class Maximum:
    """The largest rate that kept the SLO in the ramp."""

    rate_per_s: float
    """0 when no step did."""
    reached_end: bool
    """The last step kept it: the true maximum is larger."""


def choose_rates(predicted_max: float) -> Rates:
    """Base and step rates for a predicted maximum, all in requests per second."""
    most = min(predicted_max, MOST_RATE)
    return Rates(BASE * most, STEP * most, predicted_max)


def grouped(rows: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """[n,…] as [requests,IMAGES,…]: what one request holds, or its answer. ``n`` is a multiple of IMAGES."""
    return rows.reshape(-1, IMAGES, *rows.shape[1:])


def targets(address: Address, images: npt.NDArray[np.float32]) -> tuple[Target, ...]:
    """The encoded requests of all ``images``, once per protocol."""

    def requests(protocol: Protocol) -> tuple[bytes, ...]:
        return tuple(encode(protocol, MODEL, {"image": group}) for group in grouped(images))

    return (
        Target(
            Protocol.HTTP, address.host, address.http, requests(Protocol.HTTP), HTTP_CONNECTIONS
        ),
        Target(
            Protocol.GRPC, address.host, address.grpc, requests(Protocol.GRPC), GRPC_CONNECTIONS
        ),
    )


def two_phases(rates: Rates, seconds: float, seed: int) -> OpenLoop:
    return OpenLoop((Phase(rates.base, seconds), Phase(rates.step, seconds)), seed)


def ramp(rates: Rates, seed: int) -> OpenLoop:
    """Up to and beyond the predicted maximum, where front ends and load could carry it for a moment."""
    most = min(rates.predicted_max, 2 * MOST_RATE)
    return OpenLoop(tuple(Phase(share * most, RAMP_STEP_S) for share in RAMP), seed)


def run(
    plan: LoadPlan, status: Callable[[], ServiceStatus | None], show: Callable[[Tick], None]
) -> tuple[Samples, tuple[Tick, ...]]:
    """Send the load from its own process and show each tick. Raises LoadFailed."""
    with LoadProcess(plan) as load:
        seen = []
        for tick in _ticks(load, plan.progress_s, status):
            show(tick)
            seen.append(tick)
        return load.samples(), tuple(seen)


def _ticks(
    load: LoadProcess, interval_s: float, status: Callable[[], ServiceStatus | None]
) -> Iterator[Tick]:
    recent: deque[Progress] = deque(maxlen=_WINDOW_TICKS)
    failed = late = 0
    for message in load.messages():
        if not isinstance(message, Progress):
            continue
        recent.append(message)
        failed += message.failed
        late += message.late
        latencies = [latency for each in recent for latency in each.latencies_ms]
        p50, p99 = np.percentile(latencies, (50, 99)) if latencies else (np.nan, np.nan)
        yield Tick(
            at_s=message.at_s,
            rate_per_s=sum(each.answered for each in recent) / (len(recent) * interval_s),
            p50_ms=float(p50),
            p99_ms=float(p99),
            failed=failed,
            late=late,
            in_flight=message.in_flight,
            status=status(),
        )


def maximum(samples: Samples, shape: OpenLoop, slo_ms: float, percent: float) -> Maximum:
    """The largest rate of a ramp's steps that kept the SLO.

    Not the last before the first miss: a step has some hundred requests, so a hiccup of the machine can cost
    one that the next ones keep with ease.
    """
    begin = best = 0.0
    kept = False
    for phase in shape.phases:
        end = begin + phase.seconds
        kept = summarise(samples, begin, end, slo_ms).attainment * 100 >= percent
        best = phase.rate_per_s if kept else best
        begin = end
    return Maximum(best, reached_end=kept)
