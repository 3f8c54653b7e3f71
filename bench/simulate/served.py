"""One CPU model on the real server, and the simulator on the arrivals that it was sent.

The worker has a core. Dispatcher and load share the other, so that neither lengthens batches. The simulator is
told these, measured before every comparison on other arrivals than it is judged by:

- the table of batch times by size, from the server's own statistics, and how single batches differ from it
  (``batches.py``): a run is simulated with that noise, and beside it with the table alone;
- the *turn*: what a lane spends per full batch beside them, on the way to the worker and back;
- the *wire*: what a lone request takes beside its batch and its turn. It is added to every latency;
- the capacity, of which the loads are shares.

Latency counts from when a request was sent, so lateness of the client is no part of it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from bench.dataplane.closed import examples
from bench.dataplane.running import Running, ServerFailed
from bench.harness import Figures
from bench.peers.base import BATCH_CAP, HOST, Wire, Work
from bench.peers.tessera import Tessera, model_name, model_paths, service
from bench.simulate.batches import SELDOM, noise_of, watching
from numpy.typing import NDArray

from tessera_cli.loadgen import (
    ClosedLoop,
    LoadPlan,
    LoadProcess,
    OpenLoop,
    Phase,
    Samples,
    Target,
)
from tessera_core.simulate import Station, simulate

Vector = NDArray[np.float64]

WARM_UP_S = 0.5
CONNECTIONS = 256
SATURATING = 3 * BATCH_CAP
"""In flight: while one batch runs, the next is there."""
LOADS_SEEN = (0.4, 0.85)
"""Shares of the capacity at which batch times of all sizes are seen."""
PERCENTILES = (50, 95, 99)


TIMED = Path(__file__).parents[1] / "models" / "timed.py"


@dataclass(frozen=True, slots=True)
class Served(Tessera):
    """The real server with a network of the work, or with the model of fixed times."""

    timed: bool = False

    def prepare(self, work: Work, models: Path, directory: Path) -> None:
        (directory / "cores").write_text(" ".join(map(str, self.worker_cores)))
        paths = [TIMED] if self.timed else model_paths(work, models)
        self.write(directory, service(model_name(work), paths, self.slo_ms))


@dataclass(frozen=True, slots=True)
class BatchTimes:
    """Totals of the server's statistics, by rows."""

    count: Mapping[int, int]
    total_ms: Mapping[int, float]

    def since(self, before: BatchTimes) -> BatchTimes:
        count = {rows: n - before.count.get(rows, 0) for rows, n in self.count.items()}
        seen = {rows: n for rows, n in count.items() if n}
        total = {rows: self.total_ms[rows] - before.total_ms.get(rows, 0.0) for rows in seen}
        return BatchTimes(seen, total)

    def table_ms(self, cap: int, known: tuple[float, ...] = ()) -> tuple[float, ...]:
        """Mean time of batches of 1 to ``cap`` rows, ms; seldom seen sizes as in ``known``, else as their neighbours.

        Raises ServerFailed where batches of one row, or full ones, are neither.
        """
        means = {size: known[size - 1] for size in range(1, cap + 1)} if known else {}
        for size, count in self.count.items():
            if count >= SELDOM or size not in means:
                means[size] = self.total_ms[size] / count
        if not {1, cap} <= means.keys():
            raise ServerFailed(f"batches of {sorted(means)} rows only")
        sizes = sorted(means)
        table = np.interp(np.arange(1, cap + 1), sizes, [means[size] for size in sizes])
        return tuple(table.tolist())


@dataclass(frozen=True, slots=True)
class Facts:
    """What the simulator is told. Milliseconds."""

    batch_ms: tuple[float, ...]
    turn_ms: float
    wire_ms: float
    capacity_per_s: float
    noise: tuple[tuple[float, ...], ...] = ()
    """What batches took over their time and turn, by size."""

    @property
    def station(self) -> Station:
        return Station(tuple(each + self.turn_ms for each in self.batch_ms), noise=self.noise)

    @property
    def steady(self) -> Station:
        """Whose batches take no more and no less than their mean."""
        return replace(self.station, noise=())


def batch_times(server: Running) -> BatchTimes:
    found = json.loads(server.get(f"/v2/models/{model_name(server.work)}/stats"))
    count, total_ms = {}, {}
    for batch in found["model_stats"][0]["batch_stats"]:
        stages = [batch[f"compute_{stage}"] for stage in ("input", "infer", "output")]
        count[batch["batch_size"]] = stages[1]["count"]
        total_ms[batch["batch_size"]] = sum(stage["ns"] for stage in stages) / 1e6
    return BatchTimes(count, total_ms)


def measured_facts(server: Running, seconds: float, core: int, seed: int) -> Facts:
    """Raises ServerFailed and LoadFailed."""
    begun = batch_times(server)
    lone = load(server, ClosedLoop(1, seconds, WARM_UP_S), core)
    alone = batch_times(server)
    full = load(server, ClosedLoop(SATURATING, seconds, WARM_UP_S), core)
    saturated = batch_times(server)
    # A closed loop is full of batches of one size from its start: the last ones, on its way out, are not counted.
    steady = full.done[(full.done >= 0.0) & (full.done < seconds)]
    capacity = len(steady) / seconds
    with watching(server.directory) as batches:
        for number, share in enumerate(LOADS_SEEN):
            phase = Phase(share * capacity, WARM_UP_S + seconds)
            load(server, OpenLoop((phase,), seed + number), core)
    one_ms = alone.since(begun).table_ms(1)[0]
    full_ms = saturated.since(alone)
    if BATCH_CAP not in full_ms.count:
        raise ServerFailed(
            f"batches of {sorted(full_ms.count)} rows only at {SATURATING} in flight"
        )
    busy_ms = full_ms.total_ms[BATCH_CAP] / full_ms.count[BATCH_CAP]
    turn_ms = max(0.0, BATCH_CAP / capacity * 1e3 - busy_ms)
    lone_ms = float(np.median(latencies_ms(lone)))
    table_ms = batch_times(server).since(alone).table_ms(BATCH_CAP)
    facts = Facts(table_ms, turn_ms, max(0.0, lone_ms - one_ms - turn_ms), capacity)
    return replace(facts, noise=noise_of(batches, facts.station.batch_ms))


def compared(
    server: Running, facts: Facts, share: float, seconds: float, core: int, seed: int
) -> Figures:
    """One Poisson run at ``share`` of the capacity, and its simulation. Raises ServerFailed and LoadFailed."""
    before = batch_times(server)
    phase = Phase(share * facts.capacity_per_s, WARM_UP_S + seconds)
    with watching(server.directory) as batches:
        seen = load(server, OpenLoop((phase,), seed), core)
    during = batch_times(server).since(before)
    if not seen.good.all():
        raise ServerFailed(f"{int((~seen.good).sum())} of {len(seen.good)} requests failed")
    order = np.argsort(seen.sent, kind="stable")
    sent_ms = seen.sent[order] * 1e3
    counted = sent_ms >= WARM_UP_S * 1e3
    found = latencies_ms(seen)[order][counted]
    served = simulate(facts.station, sent_ms)
    made = served.latency_ms[counted] + facts.wire_ms
    told = replace(facts, batch_ms=during.table_ms(BATCH_CAP, facts.batch_ms), noise=())
    told = replace(told, noise=noise_of(batches, told.station.batch_ms))
    measured_p99 = float(np.percentile(found, 99))
    own, steady = (
        float(np.percentile(simulate(each, sent_ms).latency_ms[counted] + facts.wire_ms, 99))
        for each in (told.station, facts.steady)
    )
    rows = sum(size * n for size, n in during.count.items())
    known_ms = sum(facts.batch_ms[size - 1] * n for size, n in during.count.items())
    late = float(((seen.sent - seen.intended) > 1e-3).mean())
    return {
        "requests": float(counted.sum()),
        "rate_per_s": float(counted.sum()) / seconds,
        "measured_mean_ms": float(found.mean()),
        "simulated_mean_ms": float(made.mean()),
        "mean_error": float(made.mean() / found.mean()) - 1,
        **_percentiles(found, made),
        "own_p99_error": own / measured_p99 - 1,
        "steady_p99_error": steady / measured_p99 - 1,
        "measured_batch": rows / sum(during.count.values()),
        "simulated_batch": float(served.batch_sizes.mean()),
        "batch_time_drift": sum(during.total_ms.values()) / known_ms - 1,
        "turn_ms": facts.turn_ms,
        "wire_ms": facts.wire_ms,
        "batch_1_ms": facts.batch_ms[0],
        "batch_full_ms": facts.batch_ms[-1],
        "sent_1ms_late": late,
        "load_average": os.getloadavg()[0],
    }


def _percentiles(found: Vector, made: Vector) -> Figures:
    figures = {}
    for percentile in PERCENTILES:
        measured, simulated = (float(np.percentile(each, percentile)) for each in (found, made))
        figures[f"measured_p{percentile}_ms"] = measured
        figures[f"simulated_p{percentile}_ms"] = simulated
        figures[f"p{percentile}_error"] = simulated / measured - 1
    return figures


def latencies_ms(seen: Samples) -> Vector:
    """From when each was sent."""
    latency: Vector = (seen.done - seen.sent) * 1e3
    return latency[~np.isnan(latency)]


def load(server: Running, shape: OpenLoop | ClosedLoop, core: int) -> Samples:
    """Raises LoadFailed."""
    rows = examples(server.work)
    requests = tuple(
        server.peer.request(server.work, Wire.HTTP, row[None]).raw_http for row in rows
    )
    connections = CONNECTIONS if isinstance(shape, OpenLoop) else shape.concurrency
    target = Target(Wire.HTTP, HOST, server.port(Wire.HTTP), requests, connections)
    plan = LoadPlan((target,), shape, progress_s=60.0, cores=(core,))
    with LoadProcess(plan) as process:
        return process.samples()
