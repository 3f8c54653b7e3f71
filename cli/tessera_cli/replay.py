"""What a plan promises against what a simulation of it does.

A plan predicts latency with formulas for one queue at a time. Here every queue of a service is simulated on
the same seeded arrivals, so what the formulas leave out on the safe side shows: members' queues are long
together, and a member with several slices splits its stream at random, in proportion to what each carries.

The two share their batch times. Members that take turns on one slice have theirs lengthened as the planner
lengthens them, and every answer is charged the measured spread of its batch time, as predictions are. Nothing
is dropped: a request that is late counts as late.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, replace
from math import isfinite, log

import numpy as np
from numpy.typing import NDArray

from tessera_core.api import ModelService, OnTimeout
from tessera_core.perf import ServiceModel, latency_percentile
from tessera_core.plan import Assignment, ClusterState, Demand, Plan, slice_name
from tessera_core.plan.build import demands_in, profiles_of
from tessera_core.plan.capacity import Predictor, per_request
from tessera_core.plan.matrix import Cell, Part
from tessera_core.simulate import Station, simulate
from tessera_core.simulate.arrivals import gamma

WARM_UP = 0.05
"""Share of the requests that is not counted: the queues start empty."""

Vector = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Queue:
    """The instances of one member on one slice."""

    member: str
    where: str
    model: ServiceModel
    """Batch times as whole requests see them; rates are requests per second."""
    cap: int
    """Rows of the largest batch."""
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
    burstiness: float = 1.0
    overhead_ms: float = 0.0
    """Part of every latency that is spent outside the queues."""
    rows_per_request: int = 1
    member_share: float = 1.0
    """A service percentile q is predicted from the members' percentile q to the power of this."""
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
    """By member and slice."""

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
    demands = demands_in(state)
    queues = _queues(plan, state, demands)
    services = {each.served_name: each for each in state.services}
    found = []
    for each in plan.services:
        mine = [demand for demand in demands if demand.service == each.service]
        placed = [demand for demand in mine if demand.key in queues]
        if each.requests_per_second == 0:
            continue
        first = placed[0]
        found.append(
            Scenario(
                service=each.service,
                rate_per_s=each.requests_per_second * rate_factor,
                target_ms=each.target_ms,
                percentile=each.percentile,
                members=tuple(queues[demand.key] for demand in placed),
                burstiness=first.burstiness if burstiness is None else burstiness,
                overhead_ms=state.policy.overhead_ms,
                rows_per_request=first.rows_per_request,
                member_share=log(first.percentile / 100) / log(each.percentile / 100),
                quorum=_quorum(services[each.service], placed),
            )
        )
    return tuple(found)


def _queues(
    plan: Plan, state: ClusterState, demands: tuple[Demand, ...]
) -> dict[tuple[str, str], tuple[Queue, ...]]:
    """The queues by (service, member), as the planner models them."""
    predictor = Predictor(demands, profiles_of(state), state.policy.neighbour_derate)
    index = {demand.key: position for position, demand in enumerate(demands)}
    places = {str(each.place): each.place for each in state.measured}
    carried: dict[tuple[str, str], float] = defaultdict(float)
    slices: dict[tuple[object, ...], list[Assignment]] = defaultdict(list)
    for each in plan.assignments:
        carried[each.service, each.member] += each.rate
        slices[each.node, each.device, each.slice].append(each)
    found: dict[tuple[str, str], list[Queue]] = defaultdict(list)
    for beside in slices.values():
        cells = [Cell(index[x.service, x.member], x.batch, x.instances) for x in beside]
        part = Part(places[beside[0].device_class], tuple(sorted(cells)))
        for each, cell in zip(beside, cells, strict=True):
            alone = predictor.service(cell, part.place)
            in_turn = replace(alone, tau0_ms=alone.tau0_ms + predictor.blocking_ms(cell, part))
            found[each.service, each.member].append(
                Queue(
                    member=each.member,
                    where=f"{each.node}/{each.device} {slice_name(each.slice)}",
                    model=per_request(in_turn, demands[cell.member].rows_per_request),
                    cap=each.batch,
                    share=each.rate / carried[each.service, each.member],
                )
            )
    return {key: tuple(queues) for key, queues in found.items()}


def _quorum(service: ModelService, placed: list[Demand]) -> Quorum | None:
    ensemble = service.spec.ensemble
    if ensemble.on_timeout is not OnTimeout.PARTIAL:
        return None
    required = tuple(index for index, demand in enumerate(placed) if demand.required)
    return Quorum(ensemble.min_members, required)


def predicted_ms(scenario: Scenario, percentile: float) -> float | None:
    """The planner's latency at ``percentile``; None where a queue has no steady state."""
    of_member = 100 * (percentile / 100) ** scenario.member_share
    worst = max(
        latency_percentile(
            queue.model, scenario.rate_per_s * queue.share, of_member, scenario.burstiness
        )
        for queues in scenario.members
        for queue in queues
    )
    return worst + scenario.overhead_ms if isfinite(worst) else None


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
            station = Station(queue.model.batch_times_ms(), queue.model.instances)
            served = simulate(station, arrivals[mine])
            latency[mine] = served.latency_ms + queue.model.spread_ms
            sizes = served.batch_sizes
            rows = float(sizes.mean()) * scenario.rows_per_request if sizes.size else 0.0
            loads.append(Load(queue, min(rows, queue.cap), served.utilisation))
        latencies.append(latency)
        done()
    answered = _answered_ms(np.stack(latencies) + scenario.overhead_ms, scenario)
    return Outcome(scenario, answered[int(len(answered) * WARM_UP) :], tuple(loads))


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
