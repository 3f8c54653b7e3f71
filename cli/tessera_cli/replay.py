"""What a plan promises against what a simulation of it does.

A plan predicts latency with formulas for one queue at a time. Here every queue of a service is simulated on
the same seeded arrivals, so what the formulas leave out on the safe side shows: members' queues are long
together. The instances of a member on one node take from one queue; a member on several nodes splits its
stream at random, in proportion to what each node carries.

The two share their batch times. Members that take turns on one slice have theirs lengthened as the planner
lengthens them, and every answer is charged the measured spread of its batch time, as predictions are. Nothing
is dropped: a request that is late counts as late.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from math import isfinite

import numpy as np
from numpy.typing import NDArray

from tessera_core.api import ModelService, OnTimeout
from tessera_core.perf import ServiceModel
from tessera_core.plan import ClusterState, Demand, Plan, slice_name
from tessera_core.plan.predict import Pool, member_latency_ms, pools_of, shares_of
from tessera_core.simulate import Station, simulate
from tessera_core.simulate.arrivals import gamma

WARM_UP = 0.05
"""Share of the requests that is not counted: the queues start empty."""

Vector = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Servers:
    """Equal instances."""

    model: ServiceModel
    """Batch times as whole requests see them; rates are requests per second."""
    cap: int
    """Rows of the largest batch."""


@dataclass(frozen=True, slots=True)
class Queue:
    """The instances of one member that take from one queue."""

    member: str
    where: tuple[str, ...]
    """The parts of devices that they run in."""
    servers: tuple[Servers, ...]
    share: float = 1.0
    """Of the member's requests."""


@dataclass(frozen=True, slots=True)
class Quorum:
    """Who may be missing from an answer at the deadline."""

    fewest: int
    required: tuple[int, ...]
    """Positions of members that no answer lacks."""


@dataclass(frozen=True, slots=True)
class Scenario:
    """One service under load."""

    service: str
    rate_per_s: float
    """Requests per second, above 0."""
    target_ms: float
    percentile: float
    members: tuple[tuple[Queue, ...], ...]
    """Queues of every member."""
    predicted_ms: float | None = None
    """The planner's latency at ``percentile``; None where a queue has no steady state."""
    burstiness: float = 1.0
    overhead_ms: float = 0.0
    """Part of every latency that is spent outside the queues."""
    rows_per_request: int = 1
    quorum: Quorum | None = None
    """None: every answer has all members."""


@dataclass(frozen=True, slots=True)
class Load:
    """How busy a queue was."""

    queue: Queue
    mean_batch: float
    """Rows."""
    utilisation: float
    """Busy share of its instances' time, the turns of other members included."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """One simulated service."""

    scenario: Scenario
    latency_ms: Vector
    """Shape (requests after warm-up,)."""
    loads: tuple[Load, ...]
    """By member and queue."""

    @property
    def within(self) -> float:
        """Share of the requests that finished within the target."""
        return float(np.mean(self.latency_ms <= self.scenario.target_ms))

    @property
    def met(self) -> bool:
        """Whether the SLO held."""
        return 100 * self.within >= self.scenario.percentile

    @property
    def busiest(self) -> Load:
        """The queue with the highest utilisation."""
        return max(self.loads, key=lambda load: load.utilisation)

    def percentile_ms(self, percentile: float) -> float:
        """Simulated latency that ``percentile`` % of the requests do not exceed."""
        return float(np.percentile(self.latency_ms, percentile, method="inverted_cdf"))


def scenarios(
    plan: Plan, state: ClusterState, rate_factor: float = 1.0, burstiness: float | None = None
) -> tuple[Scenario, ...]:
    """The placed services that expect traffic, at ``rate_factor`` times their expected rates.

    ``state`` is the one that ``plan`` was made from. ``burstiness`` None takes each service's own.
    """
    if burstiness is not None:
        state = replace(
            state, services=tuple(_with_burstiness(each, burstiness) for each in state.services)
        )
    placed: dict[str, dict[str, list[Pool]]] = defaultdict(lambda: defaultdict(list))
    for pool in pools_of(plan, state):
        placed[pool.demand.service][pool.demand.member].append(pool)
    services = {each.served_name: each for each in state.services}
    found = []
    for each in plan.services:
        if each.requests_per_second == 0:
            continue
        spec = services[each.service].spec
        rate = each.requests_per_second * rate_factor
        # In the order of the service: of two members with equal queues the first is named.
        members = [
            placed[each.service][m.name] for m in spec.members if m.name in placed[each.service]
        ]
        latency = max(member_latency_ms(pools, rate) for pools in members)
        found.append(
            Scenario(
                service=each.service,
                rate_per_s=rate,
                target_ms=each.target_ms,
                percentile=each.percentile,
                members=tuple(_queues(pools) for pools in members),
                predicted_ms=latency + state.policy.overhead_ms if isfinite(latency) else None,
                burstiness=spec.traffic.burstiness,
                overhead_ms=state.policy.overhead_ms,
                rows_per_request=spec.traffic.items_per_request,
                quorum=_quorum(services[each.service], [pools[0].demand for pools in members]),
            )
        )
    return tuple(found)


def _with_burstiness(service: ModelService, burstiness: float) -> ModelService:
    traffic = replace(service.spec.traffic, burstiness=burstiness)
    return replace(service, spec=replace(service.spec, traffic=traffic))


def _queues(pools: Sequence[Pool]) -> tuple[Queue, ...]:
    """The queues of one member, as the planner models them."""
    return tuple(
        Queue(
            member=pool.demand.member,
            where=tuple(
                f"{each.node}/{each.device} {slice_name(each.slice)}" for each in pool.assignments
            ),
            servers=_servers(pool),
            share=share,
        )
        for pool, share in zip(pools, shares_of(pools), strict=True)
    )


def _servers(pool: Pool) -> tuple[Servers, ...]:
    """Those that are equal put together."""
    counts: Counter[Servers] = Counter()
    for model, each in zip(pool.models, pool.assignments, strict=True):
        counts[Servers(replace(model, instances=1), each.batch)] += model.instances
    return tuple(
        replace(each, model=replace(each.model, instances=count)) for each, count in counts.items()
    )


def _quorum(service: ModelService, placed: list[Demand]) -> Quorum | None:
    ensemble = service.spec.ensemble
    if ensemble.on_timeout is not OnTimeout.PARTIAL:
        return None
    required = tuple(index for index, demand in enumerate(placed) if demand.required)
    return Quorum(ensemble.min_members, required)


def replay(
    scenario: Scenario,
    requests: int,
    rng: np.random.Generator,
    done: Callable[[], None] = lambda: None,
) -> Outcome:
    """Simulate ``scenario`` for as long as ``requests`` take to come, on average.

    ``done`` is called after every member. Raises ``ValueError`` when no request came: a burst is long.
    """
    rate = scenario.rate_per_s
    arrivals = gamma(rate, scenario.burstiness, requests / rate, rng)
    if not arrivals.size:
        raise ValueError(f"no request came in the time of {requests}: simulate more of them")
    latencies, loads = [], []
    for queues in scenario.members:
        latency = np.empty_like(arrivals)
        taken = rng.choice(len(queues), len(arrivals), p=[queue.share for queue in queues])
        for position, queue in enumerate(queues):
            mine = taken == position
            latency[mine], load = _serve(queue, arrivals[mine], scenario.rows_per_request)
            loads.append(load)
        latencies.append(latency)
        done()
    answered = _answered_ms(np.stack(latencies) + scenario.overhead_ms, scenario)
    return Outcome(scenario, answered[int(len(answered) * WARM_UP) :], tuple(loads))


def _serve(queue: Queue, arrivals_ms: Vector, rows_per_request: int) -> tuple[Vector, Load]:
    """Latencies of the requests of one queue, ms, and how busy it was."""
    stations = [
        Station(each.model.batch_times_ms(), each.model.instances) for each in queue.servers
    ]
    served = simulate(stations, arrivals_ms)
    # Nothing is dropped: the batches hold all requests, in their order.
    spread = np.array([each.model.spread_ms for each in queue.servers])[served.stations]
    latency = served.latency_ms + np.repeat(spread, served.batch_sizes)
    caps = np.array([each.cap for each in queue.servers])[served.stations]
    rows = np.minimum(served.batch_sizes * rows_per_request, caps)
    mean = float(rows.mean()) if rows.size else 0.0
    return latency, Load(queue, mean, served.utilisation)


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
