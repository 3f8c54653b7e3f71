"""What the operator would decide now: its own decision, made here from what the cluster states.

The objects are read as the operator reads them, with the settings of its ConfigMap, and its ``Decider`` plans: what
makes no sense is set aside, nodes whose agent gives no sign of life are left out, a version that is not measured
waits. Two things only the operator itself knows are taken from what it writes: rates are those of the statuses, so a
peak that is over already does not count here; and a Lease's age goes by this machine's clock.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING

import yaml

from tessera_cli.kubectl.objects import Failed, Forbidden, condition, decoded, note
from tessera_core.api import FieldError, ModelService, PlacementPlan, RuntimeNode, SpecInvalid
from tessera_core.api.errors import Report, describe
from tessera_core.api.records import record
from tessera_core.plan import Budget, ClusterState, Plan
from tessera_operator.conditions import PLANNED
from tessera_operator.config import Config
from tessera_operator.decide import Decider
from tessera_operator.heartbeats import renewals
from tessera_operator.kinds import Document, Key
from tessera_operator.recutting import reported, rules_of
from tessera_operator.traffic import PEAK_S, SCALED_TO_ZERO, Traffic
from tessera_operator.variants import chosen, in_force
from tessera_operator.world import World

if TYPE_CHECKING:
    from tessera_cli.kubectl.cluster import Cluster

CONFIG_MAP, CONFIG_KEY = "tessera-operator", "operator.yaml"
SEEN_BY_A_PLAN = (
    "RuntimePool",
    "RuntimeNode",
    "ModelService",
    "ModelProfile",
    "PlacementPlan",
    "PriorityClass",
    "ResourceQuota",
)
"""Kinds that a plan is made from."""
OF_KUBERNETES = SEEN_BY_A_PLAN[-2:]
AWAKE = 1e-3
"""Requests per second of a service that may sleep and does not."""


@dataclass(frozen=True, slots=True)
class Facts:
    """What a plan is made from, the plan, and what was left out of it."""

    state: ClusterState
    plan: Plan
    proposal: Plan | None
    """A better one, whose cuts of GPUs have to wait."""
    nodes: tuple[RuntimeNode, ...]
    """As they are."""
    errors: Mapping[str, tuple[FieldError, ...]]
    """By service: why its present spec is not planned."""
    rejected: Mapping[Key, SpecInvalid]
    """Other objects that are set aside, and why."""
    lost: tuple[str, ...]
    """RuntimeNodes without a sign of life."""


class Reported(Traffic):
    """Rates as the operator's statuses state them, at ``now``; until there is one, the hint of the spec."""

    def __init__(self, now: datetime) -> None:
        super().__init__()
        self._now = now

    def planned_rate(self, service: ModelService, now_s: float) -> float:
        """Requests per second: those of the last minute, of a young service at least its hint."""
        status, hint = service.status, service.spec.traffic.requests_per_second
        planned = condition(status.conditions, PLANNED)
        if planned is not None and planned.reason == SCALED_TO_ZERO:
            return 0.0
        rate = hint if status.slo is None else status.slo.requests_per_second
        created = service.metadata.creation_timestamp
        if created and (self._now - datetime.fromisoformat(created)).total_seconds() < PEAK_S:
            rate = max(rate, hint)
        return rate if service.spec.scaling.min_replicas else max(rate, AWAKE)


def read(cluster: Cluster, now: datetime) -> Facts:
    """The present facts and their plan; a note is printed about what was left out. Raises Failed."""
    documents, config = seen_by_plans(cluster), settings(cluster)
    leases = list[Document]()
    try:
        leases = cluster.leases()
    except Forbidden as forbidden:
        note(f"planned as if all nodes were alive: {forbidden}")
    facts = decide(documents, leases, config, now)
    for name in facts.lost:
        note(f"planned without RuntimeNode {name}: its agent gives no sign of life")
    for (kind, space, name), invalid in sorted(facts.rejected.items()):
        note(f"planned without {kind} {'.'.join(filter(None, (space, name)))}: {invalid}")
    if facts.proposal is not None:
        note("a plan that cuts GPUs anew is better and waits: see kubectl tessera plan list")
    for service, errors in sorted(facts.errors.items()):
        note(f"the spec of {service} is not planned: {SpecInvalid(errors)}")
    return facts


def seen_by_plans(cluster: Cluster) -> list[Document]:
    """The objects that plans are made from; a note is printed about what is left out. Raises Failed."""
    documents: list[Document] = []
    for kind in SEEN_BY_A_PLAN:
        try:
            documents += cluster.objects(kind)
        except Forbidden as forbidden:
            if kind not in OF_KUBERNETES:
                raise
            note(f"without objects of kind {kind}: {forbidden}")
    return documents


def settings(cluster: Cluster) -> Config:
    """Those of the operator; its defaults, with a note, where this user may not read them. Raises Failed."""
    try:
        return config_of(cluster.config_map(CONFIG_MAP))
    except Forbidden as forbidden:
        note(f"with the operator's default settings: {forbidden}")
        return Config()


def decide(
    documents: Iterable[Document], leases: Iterable[Document], config: Config, now: datetime
) -> Facts:
    """What the operator would make of ``documents`` at ``now``. Raises Failed when nothing can be planned."""
    world, plans = World(), list[PlacementPlan]()
    for document in documents:
        if document["kind"] == "PlacementPlan":
            plans += decoded([document], PlacementPlan)
        else:
            world.put(document)
    lost = lost_nodes(leases, now, config.lost_after_s)
    try:
        rules = rules_of(world.pools, world.nodes, plans, reported(world.nodes), now)
        decider = Decider(config, world, Reported(now))
        heard = [node for node in world.nodes if node.metadata.name not in lost]
        uses = in_force(chosen(world.services, world.profiles, world.tuned).uses, heard)
        decision = decider.decide(0.0, lost, afresh=True, rules=rules, uses=uses)
        rejected = world.observe(config.policy, Budget(), lost=lost).rejected
    except SpecInvalid as invalid:
        raise Failed(f"the cluster's objects contradict each other: {invalid}") from None
    return Facts(
        state=decision.state,
        plan=decision.plan,
        proposal=decision.proposal,
        nodes=world.nodes,
        errors=decision.errors,
        rejected={key: why for key, why in rejected.items() if key[0] != "ModelService"},
        lost=tuple(sorted(lost & {node.metadata.name for node in world.nodes})),
    )


def lost_nodes(leases: Iterable[Document], now: datetime, after_s: float) -> frozenset[str]:
    """Names of the nodes whose Lease was renewed last more than ``after_s`` seconds before ``now``."""
    return frozenset(
        node
        for node, renewed in renewals([dict(lease) for lease in leases]).items()
        if renewed and (now - datetime.fromisoformat(renewed)).total_seconds() > after_s
    )


def config_of(data: Mapping[str, str]) -> Config:
    """The settings in the data of the operator's ConfigMap. Raises Failed, which names the key."""
    where = f"the ConfigMap {CONFIG_MAP}"
    try:
        found = yaml.safe_load(data.get(CONFIG_KEY, ""))
    except yaml.YAMLError as wrong:
        raise Failed(f"{where}: {CONFIG_KEY} is not YAML: {' '.join(str(wrong).split())}") from None
    if not isinstance(found, Mapping | None):
        raise Failed(f"{where}: {CONFIG_KEY}: found {describe(found)}, allowed: a mapping")
    report = Report(strict=False)  # the operator may be of another version
    config = record(Config).decode(found or {}, CONFIG_KEY, report)
    if report.errors:
        raise Failed(f"{where}: {SpecInvalid(report.errors)}")
    assert isinstance(config, Config)
    return config
