"""What a plan promises against what a simulation of it does, for one service or a whole cluster.

A plan predicts latency with formulas for one queue at a time. Here every queue of a service is simulated on
the same seeded arrivals, so what the formulas leave out on the safe side shows: members' queues are long
together. The instances of a member on one node take from one queue; a member on several nodes splits its
stream at random, in proportion to what each node carries. Where media are preprocessed, requests go to those queues first,
and to the members when that is done, with what is left of their time.

Queues share their batch times. Members that take turns on one slice have theirs lengthened as the planner
lengthens them, instances beside each other as their profile was measured, and every answer is charged the measured
spread of its batch time, as predictions are. With ``as_served`` a queue refuses and drops what the dispatcher would, and
what one member loses is withdrawn from the others. Else nothing is: a request that is late counts as late.

A service is simulated at a time, and what is kept of it is a few numbers, so memory does not grow with the cluster.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from math import inf
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from tessera_core.perf.service import MS_PER_S
from tessera_core.simulate.ensemble import simulate_members
from tessera_core.simulate.scenarios import Part, Queue, Scenario, Servers
from tessera_core.simulate.station import Served, Station, simulate

WARM_UP = 0.05
"""Share of the requests that is not counted: the queues start empty."""

POINTS = np.concatenate((np.linspace(0, 0.9, 91), 1 - np.geomspace(0.1, 1e-4, 61)))
"""Shares of the requests at which a distribution is kept."""

Vector = NDArray[np.float64]


class NoRequest(ValueError):
    """No request came in the time that is simulated."""


@dataclass(frozen=True, slots=True)
class PartLoad:
    """What the instances of one queue did in one part."""

    part: Part
    rows_per_s: float
    busy: float
    """Share of the time in which an instance ran batches of its own, in the mean over the instances."""


@dataclass(frozen=True, slots=True)
class Load:
    """How busy a queue was."""

    queue: Queue
    mean_batch: float
    """Rows."""
    utilisation: float
    """Busy share of its instances' time, the turns of other members included."""
    dropped: int = 0
    """Requests that were refused, or given up in the queue."""
    parts: tuple[PartLoad, ...] = ()


@dataclass(frozen=True, slots=True)
class Outcome:
    """One simulated service."""

    scenario: Scenario
    latency_ms: Vector
    """Shape (requests after warm-up,); ``inf`` for one without an answer."""
    seconds: float
    """In which they came."""
    loads: tuple[Load, ...]
    """By member and queue, preprocessing first."""

    @property
    def within(self) -> float:
        """Share of the requests that finished within the target."""
        return float(np.mean(self.latency_ms <= self.scenario.target_ms))

    def percentile_ms(self, percentile: float) -> float:
        """Simulated latency that ``percentile`` % of the requests do not exceed; ``inf``: they had no answer."""
        return float(np.percentile(self.latency_ms, percentile, method="inverted_cdf"))

    def result(self) -> Result:
        """What is kept of it."""
        latency = np.sort(self.latency_ms)
        places = np.ceil(POINTS * len(latency)).astype(np.int64) - 1
        p50, p95, p99, tail = map(self.percentile_ms, (50, 95, 99, self.scenario.percentile))
        return Result(
            scenario=self.scenario,
            requests=len(latency),
            rate_per_s=len(latency) / self.seconds,
            goodput_per_s=self.within * len(latency) / self.seconds,
            within=self.within,
            p50_ms=p50,
            p95_ms=p95,
            p99_ms=p99,
            tail_ms=tail,
            curve_ms=tuple(latency[np.maximum(places, 0)].tolist()),
            loads=self.loads,
        )


@dataclass(frozen=True, slots=True)
class Result:
    """The figures of one simulated service, over all its requests after warm-up."""

    scenario: Scenario
    requests: int
    rate_per_s: float
    goodput_per_s: float
    """Answered within the target."""
    within: float
    """Share of the requests that finished within the target."""
    p50_ms: float
    """``inf``, here and below: so many had no answer."""
    p95_ms: float
    p99_ms: float
    tail_ms: float
    """At the SLO's percentile."""
    curve_ms: tuple[float, ...]
    """At :data:`POINTS`."""
    loads: tuple[Load, ...]
    """By member and queue, preprocessing first."""

    @property
    def met(self) -> bool:
        """Whether the SLO held."""
        return 100 * self.within >= self.scenario.percentile

    @property
    def busiest(self) -> Load:
        """The queue with the highest utilisation."""
        return max(self.loads, key=lambda load: load.utilisation)


def replay(
    scenario: Scenario,
    arrivals_ms: Vector,
    rng: np.random.Generator,
    as_served: bool = False,
    done: Callable[[], None] = lambda: None,
) -> Outcome:
    """Simulate ``scenario`` on ascending ``arrivals_ms``, shape (requests,); ``rng`` divides them over queues.

    ``as_served``: late requests are refused and dropped. ``done`` is called after every member, and after preprocessing.
    Raises ``NoRequest``.
    """
    if not arrivals_ms.size:
        raise NoRequest(f"{scenario.service}: no request came in this time: simulate a longer one")
    slo_ms = max(scenario.target_ms - scenario.overhead_ms, 1e-9) if as_served else None
    ahead = _preprocessed(scenario, arrivals_ms, rng, slo_ms)
    if scenario.stage:
        done()
    came_ms = arrivals_ms[ahead.done] + ahead.took_ms
    left_ms = None if slo_ms is None else slo_ms - ahead.took_ms
    taken = np.stack([_divided(queues, len(came_ms), rng) for queues in scenario.members])
    latencies, loads = [], list(ahead.loads)
    for queues, row, results in zip(
        scenario.members, taken, _served(scenario, taken, came_ms, left_ms, done), strict=True
    ):
        took_ms, spread_ms = _latency_ms(queues, row, results)
        latencies.append(took_ms + spread_ms)
        loads += _loads(queues, results, scenario.rows_per_request)
    since_arrival = np.stack(latencies) + ahead.took_ms + ahead.spread_ms + scenario.overhead_ms
    answered = np.full(len(arrivals_ms), inf)
    answered[ahead.done] = _answered_ms(since_arrival, scenario)
    first = int(len(answered) * WARM_UP)
    seconds = float(arrivals_ms[-1] - (arrivals_ms[first - 1] if first else 0.0)) / MS_PER_S
    return Outcome(scenario, answered[first:], max(seconds, 1e-9), tuple(loads))


class _Preprocessed(NamedTuple):
    """What became of the requests before the members were asked."""

    done: NDArray[np.bool_]
    """By request: whether it went on to the members."""
    took_ms: Vector
    """Of those that did."""
    spread_ms: Vector
    """Of those that did: what they are charged for the measured spread of batch times."""
    loads: Sequence[Load] = ()


def _preprocessed(
    scenario: Scenario, arrivals_ms: Vector, rng: np.random.Generator, slo_ms: float | None
) -> _Preprocessed:
    queues = scenario.stage
    if not queues:
        nothing = np.zeros(len(arrivals_ms))
        return _Preprocessed(np.ones(len(arrivals_ms), np.bool_), nothing, nothing)
    # Early enough for the slowest member, as the dispatcher wants it.
    if slo_ms is not None:
        slo_ms = max(slo_ms - max(map(_alone_ms, scenario.members)), 1e-9)
    row = _divided(queues, len(arrivals_ms), rng)
    results = [
        simulate(_stations(queue), arrivals_ms[row == position], slo_ms, slo_ms is not None)
        for position, queue in enumerate(queues)
    ]
    took_ms, spread_ms = _latency_ms(queues, row, results)
    done = np.isfinite(took_ms)
    loads = _loads(queues, results, scenario.rows_per_request)
    return _Preprocessed(done, took_ms[done], spread_ms[done], loads)


def _alone_ms(queues: Sequence[Queue]) -> float:
    """What one request takes by itself where it takes longest."""
    return max(
        each.model.batch_times_ms()[0] - each.blocking_ms
        for queue in queues
        for each in queue.servers
    )


def _divided(queues: Sequence[Queue], requests: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """Which of the ``queues`` of a member each request goes to."""
    return rng.choice(len(queues), requests, p=[queue.share for queue in queues])


def _served(
    scenario: Scenario,
    taken: NDArray[np.int64],
    arrivals_ms: Vector,
    slo_ms: Vector | None,
    done: Callable[[], None],
) -> Sequence[Sequence[Served]]:
    """By member and queue. ``taken``: which queue of each member a request goes to, shape (members, requests)."""
    stations = [[_stations(queue) for queue in queues] for queues in scenario.members]
    found = []
    for queues, row in zip(stations, taken, strict=True):
        found.append(
            [
                _as_they_come(each, arrivals_ms, slo_ms, row == position)
                for position, each in enumerate(queues)
            ]
        )
        done()
    lost = any(each.dropped or each.refused for queues in found for each in queues)
    if slo_ms is None or len(stations) == 1 or not lost:
        return found
    # Only what is lost ties members to each other, and few services lose anything: these are simulated again.
    quorum = scenario.quorum
    return simulate_members(
        stations,
        taken,
        arrivals_ms,
        slo_ms,
        admission=True,
        min_members=min(quorum.fewest, len(stations)) if quorum else None,
        required=frozenset(quorum.required) if quorum else frozenset(),
    )


def _as_they_come(
    stations: Sequence[Station], arrivals_ms: Vector, slo_ms: Vector | None, mine: NDArray[np.bool_]
) -> Served:
    """Of the requests that are ``mine``, which preprocessing may have brought out of their order."""
    came_ms = arrivals_ms[mine]
    order = np.argsort(came_ms, kind="stable")
    allowed = None if slo_ms is None else slo_ms[mine][order]
    served = simulate(stations, came_ms[order], allowed, allowed is not None)
    back = np.argsort(order)
    return replace(served, latency_ms=served.latency_ms[back], batches=served.batches[back])


def _stations(queue: Queue) -> list[Station]:
    return [Station(each.model.batch_times_ms(), each.model.instances) for each in queue.servers]


def _latency_ms(
    queues: Sequence[Queue], row: NDArray[np.int64], results: Sequence[Served]
) -> tuple[Vector, Vector]:
    """By request, ``inf`` without a batch, and the spread of the server that ran it. ``row``: the queue of each."""
    latency_ms, spread_ms = np.empty((2, len(row)))
    for position, (queue, served) in enumerate(zip(queues, results, strict=True)):
        mine = row == position
        latency_ms[mine] = served.latency_ms
        spreads = np.array([each.model.spread_ms for each in queue.servers])[served.stations]
        # The last entry is that of requests without a batch.
        spread_ms[mine] = np.append(spreads, 0.0)[served.batches]
    return latency_ms, spread_ms


def _loads(queues: Sequence[Queue], results: Sequence[Served], rows_per_request: int) -> list[Load]:
    return [
        _load(queue, served, rows_per_request)
        for queue, served in zip(queues, results, strict=True)
    ]


def _load(queue: Queue, served: Served, rows_per_request: int) -> Load:
    caps = np.array([each.cap for each in queue.servers])[served.stations]
    rows = np.minimum(served.batch_sizes * rows_per_request, caps)
    parts = [
        part
        for index, each in enumerate(queue.servers)
        for part in _part_loads(each, served, served.stations == index, rows_per_request)
    ]
    mean = float(rows.mean()) if rows.size else 0.0
    return Load(queue, mean, served.utilisation, served.dropped + served.refused, tuple(parts))


def _part_loads(
    servers: Servers, served: Served, ran: NDArray[np.bool_], rows_per_request: int
) -> list[PartLoad]:
    """Of equal instances, which share their batches evenly. ``ran``: shape (batches,), which were theirs."""
    sizes = served.batch_sizes[ran]
    own_ms = np.array(servers.model.batch_times_ms()) - servers.blocking_ms
    each_s = served.span_ms * len(servers.parts) / MS_PER_S
    if not each_s:
        return []
    busy = float(own_ms[sizes - 1].sum()) / MS_PER_S / each_s
    rows_per_s = float(sizes.sum()) * rows_per_request / each_s
    instances = Counter(servers.parts)
    return [PartLoad(part, rows_per_s * count, busy) for part, count in instances.items()]


def _answered_ms(latencies: Vector, scenario: Scenario) -> Vector:
    """When each request is answered; ``latencies`` of shape (members, requests).

    An answer waits for all members until the deadline, then for as few as the quorum lets it have.
    """
    everyone: Vector = latencies.max(axis=0)
    quorum = scenario.quorum
    if quorum is None:
        return everyone
    fewest = min(quorum.fewest, len(latencies))
    enough = np.partition(latencies, fewest - 1, axis=0)[fewest - 1]
    if quorum.required:
        enough = np.maximum(enough, latencies[list(quorum.required)].max(axis=0))
    answered: Vector = np.minimum(everyone, np.maximum(enough, scenario.target_ms))
    return answered
