"""What has to be placed: a ModelService becomes one demand per member.

Problem: a user states one rate, one latency target and one percentile for the whole ensemble; capacity is
found per member. Approach, for a service of M members that all have to answer:

- rate: requests/s × rows per request × headroom, the same for every member;
- percentile: every member gets q^(1/M). Latencies of members that see the same arrivals are positively
  associated, so P(all in time) is at least the product and the ensemble keeps q. Where partial answers are
  allowed, M is the number of members that an answer needs;
- latency: the target less an allowance for what happens outside the member's queue (parsing, combination, the way
  back);
- preprocessing comes before the members: it gets a part of the latency, in proportion to what a row alone takes, since
  at equal load waiting grows with that, and of the failures that q allows half, as either may be late.

- priority: the value of the service's PriorityClass, as of a pod in Kubernetes.

Under ``External`` and ``Fixed`` scaling somebody else decides how much: every member gets as many parts of
devices as there are replicas (one replica is one full set of members), and the rate is only what the
latency at that load is predicted for.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from tessera_core.api import Isolation, ModelService, OnTimeout, ScalingMode
from tessera_core.api.stages import stage_of
from tessera_core.perf import member_percentile, members_waited_for
from tessera_core.perf.ensemble import UNKNOWN_PART, stage_part, stage_percentile
from tessera_core.plan.decoding import stage_products
from tessera_core.plan.state import ClusterState, Policy

MOST_PARTS = 10_000
"""Bound where the service sets none."""
# SystemPriorityClasses of k8s.io/kubernetes/pkg/apis/scheduling.
BUILT_IN_PRIORITIES = {
    "system-cluster-critical": 2_000_000_000,
    "system-node-critical": 2_000_001_000,
}
"""Values of the PriorityClasses that every cluster has."""
NO_CLASS = ""
_LEAST_PERCENTILE, _MOST_PERCENTILE = 1.0, 99.9999
"""What the queue model resolves."""


@dataclass(frozen=True, slots=True)
class Demand:
    """One member of one service, in the units of the queue model."""

    service: str
    """Served name, ``<namespace>.<name>``."""
    namespace: str
    member: str
    digest: str | None
    """Content of the model, None while unknown: then there is no profile either."""
    load: float
    """Rows per second that are expected; 0: none, or not known."""
    rate: float
    """Rows per second to have capacity for: ``load`` with headroom; 0 where parts are counted instead."""
    rows_per_request: int
    percentile: float
    """Share of this member's answers, percent, that must be in time."""
    budget_ms: float
    """Latency of this member, queue and inference."""
    burstiness: float
    batch_max: int
    others_ms: float = 0.0
    """Part of the service's latency that is left to preprocessing, or to the members that wait for it."""
    required: bool = True
    stage: bool = False
    """Whether it makes what the others of its service take, which wait for it."""
    code: bool = False
    isolation: Isolation = Isolation.ANY
    min_parts: int = 1
    """Parts of devices to run on at least; 0: nothing has to run."""
    max_parts: int = MOST_PARTS
    min_nodes: int = 1
    pool_selector: tuple[tuple[str, str], ...] = ()
    products: tuple[str, ...] = ()
    priority: int = 0
    """Where capacity is short, the greater goes first."""

    @property
    def key(self) -> tuple[str, str]:
        """Identity, and the order in which demands are sorted."""
        return self.service, self.member


def priority_values(state: ClusterState) -> dict[str, int]:
    """Priority by name of the class; ``NO_CLASS``: of services that name none."""
    values = {NO_CLASS: 0, **BUILT_IN_PRIORITIES, **dict(state.priorities)}
    values[NO_CLASS] = values[state.default_priority_class or NO_CLASS]
    return values


def priority_of(service: ModelService, values: Mapping[str, int]) -> int:
    """The priority of ``service`` by ``priority_values``.

    A class that is not among them, which ``state_from_dict`` refuses, is as good as none: a server on one
    machine serves files that were written for a cluster, and knows no classes.
    """
    none = values.get(NO_CLASS, 0)
    return values.get(service.spec.priority_class_name or NO_CLASS, none)


def demands_of(
    service: ModelService,
    digests: dict[str, str],
    policy: Policy,
    priorities: Mapping[str, int] = BUILT_IN_PRIORITIES,
    share: float = UNKNOWN_PART,
) -> tuple[Demand, ...]:
    """The demands of ``service``, in the order of its members, preprocessing last.

    ``digests``: the digest by member name, of models that were fetched or refer to a profile; for others
    the one that the spec states counts. ``priorities``: as of ``priority_values``. ``share``: of the latency target that
    preprocessing gets, as of ``stage_share``.
    """
    spec = service.spec
    traffic, placement = spec.traffic, spec.placement
    objective = spec.slo.objectives[0]
    rows = traffic.items_per_request
    load = traffic.requests_per_second * rows
    least, most, counted = _parts(service)
    answering = members_waited_for(
        len(spec.members),
        sum(each.required for each in spec.members),
        spec.ensemble.min_members,
        spec.ensemble.on_timeout is OnTimeout.PARTIAL,
    )
    budget_ms = objective.target_s * 1e3 - policy.overhead_ms
    percent = objective.percent
    stages = spec.placed[len(spec.members) :]
    if stages:
        percent = stage_percentile(percent)
    else:
        share = 0.0
    percentile = member_percentile(percent, answering)
    selector = placement.pool_selector
    members = tuple(
        Demand(
            service=service.served_name,
            namespace=service.metadata.namespace,
            member=member.name,
            digest=digests.get(member.name, member.model.digest),
            load=load,
            rate=0.0 if counted else load * policy.headroom,
            rows_per_request=rows,
            percentile=_resolved(percentile),
            budget_ms=budget_ms * (1 - share),
            others_ms=budget_ms * share,
            burstiness=traffic.burstiness,
            batch_max=member.batch.max,
            required=member.required,
            code=member.model.format.is_code,
            isolation=placement.isolation,
            min_parts=max(least, placement.spread.min_nodes) if least else 0,
            max_parts=max(most, placement.spread.min_nodes),
            min_nodes=placement.spread.min_nodes,
            pool_selector=selector.match_labels if selector else (),
            products=placement.products,
            priority=priority_of(service, priorities),
        )
        for member in spec.members
    )
    return members + tuple(
        replace(
            members[0],
            member=stage.name,
            digest=stage.model.digest,
            percentile=_resolved(percent),
            budget_ms=budget_ms * share,
            others_ms=budget_ms * (1 - share),
            batch_max=stage.batch.max,
            required=True,
            stage=True,
            code=False,
            products=stage_products(spec),
        )
        for stage in stages
    )


def end_to_end_ms(latencies: Iterable[tuple[Demand, float]]) -> float:
    """Latency of one service in ms, without the overhead, of those of its members: that of preprocessing, and of the slowest
    that waits for it.
    """
    ahead = slowest = 0.0
    for demand, latency_ms in latencies:
        if demand.stage:
            ahead = latency_ms
        else:
            slowest = max(slowest, latency_ms)
    return ahead + slowest


def stage_share(
    service: ModelService, digests: Mapping[str, str], alone_ms: Mapping[str, float]
) -> float:
    """The part of the latency target that preprocessing gets. ``alone_ms``: by digest, how long one row takes where it
    takes least.
    """
    spec = service.spec
    if spec.preprocess is None:
        return 0.0
    stage = alone_ms.get(stage_of(spec.preprocess).model.digest or "")
    known = [
        alone_ms[digest]
        for each in spec.members
        for digest in [digests.get(each.name) or each.model.digest or ""]
        if each.required and digest in alone_ms
    ]
    return stage_part(stage, max(known, default=None))


def _resolved(percentile: float) -> float:
    return min(max(percentile, _LEAST_PERCENTILE), _MOST_PERCENTILE)


def _parts(service: ModelService) -> tuple[int, int, bool]:
    """Fewest and most parts per member, and whether they are counted rather than derived from the rate."""
    scaling = service.spec.scaling
    match scaling.mode:
        case ScalingMode.EXTERNAL:
            written = service.spec.replicas
            count = scaling.min_replicas if written is None else written
        case ScalingMode.FIXED:
            count = scaling.min_replicas
        case ScalingMode.SLO:
            idle = service.spec.traffic.requests_per_second == 0
            least = scaling.min_replicas if idle else max(1, scaling.min_replicas)
            return least, scaling.max_replicas or MOST_PARTS, False
    return count, count, True
