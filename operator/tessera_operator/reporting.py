"""What users read: the status of services, pools and plans, and Events where something changed for them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from tessera_core.api import Condition, ModelService, ModelServiceStatus, RuntimeNode, RuntimePool
from tessera_core.api.meta import ConditionStatus
from tessera_core.api.modelservice import ModelServiceSpec, ScalingMode
from tessera_core.api.placementplan import PlacementPlanStatus
from tessera_core.api.records import record
from tessera_core.api.runtimenode import Health
from tessera_core.api.runtimepool import GPU_RESOURCE, PartitionBackend, RuntimePoolStatus
from tessera_core.gpu.mig import label
from tessera_operator import pools, quarantine, routes, scaling
from tessera_operator.conditions import READY, Seen, changes, dated, status_of
from tessera_operator.decide import Decision
from tessera_operator.events import event
from tessera_operator.kinds import Document, Key
from tessera_operator.measuring import Measuring
from tessera_operator.quarantine import DEVICES_HEALTHY, Healths
from tessera_operator.recutting import Rules, partitioning
from tessera_operator.rollout import Rollout
from tessera_operator.traffic import Traffic
from tessera_operator.world import World
from tessera_operator.write import Writer

FINALIZER = "tessera.dev/drain"
"""Keeps a deleted ModelService until nothing of it runs."""
NUMBERS_S = 30.0
"""Between two writes of a status of which only measured numbers changed."""


@dataclass(frozen=True, slots=True)
class Round:
    """What one round found and decided, as far as users are told of it."""

    decision: Decision
    orders: routes.Orders
    addresses: Mapping[str, tuple[str, ...]]
    rollout: Rollout | None
    answering: Sequence[RuntimeNode]
    by_pool: Mapping[str, Sequence[RuntimeNode]]
    scaled: Mapping[str, scaling.Scaled]
    """By pool."""
    rules: Rules
    now_s: float
    now: str


class Reporter:
    """Writes what users read. Not thread-safe."""

    def __init__(
        self, writer: Writer, documents: Mapping[Key, Document], *, tls: bool = False
    ) -> None:
        """``tls``: of the servers that clients reach."""
        self._writer, self._documents, self._tls = writer, documents, tls
        self._numbers_s: dict[str, float] = {}
        self._healths = Healths()
        self._begun: dict[str, int] = {}
        """By service that states no replicas: the generation for which they were set."""
        self._taken: frozenset[str] = frozenset()
        """Services whose name somebody else's Service has."""

    def keep_services(self, services: Sequence[ModelService]) -> frozenset[str]:
        """Have the Services of ``services``. Served names of those whose name somebody else's Service has: its
        clients must not get our pods.
        """
        keys = {
            each.served_name: ("Service", each.metadata.namespace, each.metadata.name)
            for each in services
        }
        documents = {
            each.served_name: routes.service_document(each, tls=self._tls) for each in services
        }
        self._writer.put_all(
            documents[name] for name, key in keys.items() if key in self._documents
        )
        self._writer.together(
            [
                partial(self._writer.create, documents[name])
                for name, key in keys.items()
                if key not in self._documents
            ]
        )
        taken = self._writer.taken & set(keys.values())
        self._taken = frozenset(name for name, key in keys.items() if key in taken)
        return self._taken

    def keep_finalizers(self, services: Sequence[ModelService], running: Collection[str]) -> None:
        """Have the finalizer on every service that lives, and take it from those of which nothing runs."""
        documents = [_finalizers(each, runs=each.served_name in running) for each in services]
        writes = [partial(self._writer.merge, each) for each in documents if each is not None]
        self._writer.together(writes)

    def keep_replicas(self, services: Sequence[ModelService]) -> None:
        """Have replicas stated for every service that somebody else scales: until then an autoscaler reads no scale."""
        begun: dict[str, int] = {}
        for each in services:
            if each.metadata.deletion_timestamp is not None or not _lacks_replicas(each.spec):
                continue
            name, generation = each.served_name, each.metadata.generation or 0
            key = ModelService.KIND, each.metadata.namespace, each.metadata.name
            # The news of what was written may be on its way.
            if self._begun.get(name) == generation or self._writer.scale(
                key, each.spec.scaling.min_replicas
            ):
                begun[name] = generation
        self._begun = begun

    def write_plan_status(self, name: str, status: PlacementPlanStatus) -> bool:
        return self._writer.put(
            {
                "apiVersion": "tessera.dev/v1alpha1",
                "kind": "PlacementPlan",
                "metadata": {"name": name},
                "status": record(PlacementPlanStatus).encode(status),
            },
            "status",
        )

    def report(self, world: World, traffic: Traffic, measuring: Measuring, found: Round) -> None:
        """The status of every service and pool."""
        seen = _Index(found)
        reports = [
            self._report_of(service, traffic, measuring, found, seen)
            for service in world.services
            if service.metadata.deletion_timestamp is None
        ]
        self._writer.together([report for report in reports if report is not None])
        living = {service.served_name for service in world.services}
        self._numbers_s = {k: v for k, v in self._numbers_s.items() if k in living}
        nodes = [self._documents[key] for key in sorted(self._documents) if key[0] == "Node"]
        conflicts = pools.conflicts(world.pools, nodes)
        for pool in world.pools:
            self._tell_of_devices(pool, found)
            self._report_pool(pool, found, conflicts.get(pool.metadata.name))
        self._healths.forget({node.metadata.name for node in world.nodes})

    def _report_of(
        self,
        service: ModelService,
        traffic: Traffic,
        measuring: Measuring,
        found: Round,
        index: _Index,
    ) -> Callable[[], None] | None:
        """What writes the status of ``service``; None where there is nothing to be said."""
        status = status_of(self._seen(service, traffic, measuring, found, index), found.now)
        old = service.status
        if status == old:
            return None
        last_s = self._numbers_s.get(service.served_name)
        if _without_numbers(status) == _without_numbers(old) and (
            last_s is not None and found.now_s - last_s < NUMBERS_S
        ):
            return None
        return partial(self._report_service, service, status, found)

    def _report_service(
        self, service: ModelService, status: ModelServiceStatus, found: Round
    ) -> None:
        document = {
            "apiVersion": "tessera.dev/v1alpha1",
            "kind": "ModelService",
            "metadata": {"name": service.metadata.name, "namespace": service.metadata.namespace},
            "status": record(ModelServiceStatus).encode(status),
        }
        if self._writer.put(document, "status"):
            self._numbers_s[service.served_name] = found.now_s
            for condition in changes(service.status.conditions, status.conditions):
                self._event(service, condition, found.now)

    def _seen(
        self,
        service: ModelService,
        traffic: Traffic,
        measuring: Measuring,
        found: Round,
        index: _Index,
    ) -> Seen:
        name, decision = service.served_name, found.decision
        newest, version = decision.newest.get(name), decision.versions.get(name)
        digests = {
            member.name: digest
            for member in service.spec.placed
            if (digest := measuring.digests.get((name, member.name, member.model.uri))) is not None
        }
        if newest is not None:
            digests.update(newest.digests)
        before = service.status.plan_ref
        taken = (
            f"the Service {service.metadata.name} is not Tessera's" if name in self._taken else ""
        )
        return Seen(
            service=service,
            errors=decision.errors.get(name, ()),
            runs=version.generation if version is not None else 0,
            measuring=measuring.words(name),
            measured=newest is not None
            and newest.is_complete
            and index.is_measured(newest.digests.values()),
            lacking=decision.scouting.words(name),
            problem="; ".join(
                filter(None, (taken, index.problems.get(name, ""), measuring.problem(name)))
            ),
            planned=index.planned.get(name),
            refused=index.refused.get(name, ()),
            assigned=index.assigned.get(name, ()),
            ready=index.ready.get(name, {}),
            digests=digests,
            addresses=0 if name in self._taken else len(found.addresses.get(name, ())),
            idle=name in index.idle,
            window=traffic.window(service, found.now_s),
            plan=found.rollout.name
            if found.rollout is not None and name in index.moved
            else (before.name if before is not None else None),
            under_way=name in index.under_way,
            url=routes.url_of(service, tls=self._tls),
        )

    def _report_pool(
        self, pool: RuntimePool, found: Round, conflict: tuple[str, str] | None
    ) -> None:
        name, spec = pool.metadata.name, pool.spec
        answering = {node.metadata.name for node in found.answering}
        nodes = [node for node in found.by_pool.get(name, ()) if node.metadata.name in answering]
        gpus = sum(
            label(device.product) != "cpu" for node in nodes for device in node.status.devices
        )
        ready = bool(nodes) or spec.size.min == 0
        conditions = [
            Condition(
                READY,
                ConditionStatus.TRUE if ready else ConditionStatus.FALSE,
                "NodesReady" if nodes else ("Empty" if ready else "NoNode"),
                f"{len(nodes)} nodes, {spec.size.min} to {spec.size.max} wanted",
            ),
            Condition(
                "Conflict",
                ConditionStatus.TRUE if conflict else ConditionStatus.FALSE,
                "NodeOfAnotherPool" if conflict else "None",
                f"the older pool {conflict[0]} selects node {conflict[1]} too" if conflict else "",
            ),
            quarantine.condition(nodes),
        ]
        conditions += scaling.conditions(pool, found.scaled.get(name))
        if spec.partition is not None and spec.partition.backend is not PartitionBackend.STATIC:
            conditions.append(
                partitioning(spec.partition, found.by_pool.get(name, ()), found.rules)
            )
        status = RuntimePoolStatus(
            conditions=tuple(
                dated(each, pool.status.conditions, pool.metadata.generation, found.now)
                for each in conditions
            ),
            nodes=len(nodes),
            gpus=gpus if GPU_RESOURCE in dict(spec.node.resources) else 0,
            free_capacity=_free(nodes, found.orders),
            cost=round(spec.cost.per_node_hour * len(nodes), 4),
        )
        if status != pool.status:
            self._writer.put(
                {
                    "apiVersion": "tessera.dev/v1alpha1",
                    "kind": "RuntimePool",
                    "metadata": {"name": name},
                    "status": record(RuntimePoolStatus).encode(status),
                },
                "status",
            )

    def _tell_of_devices(self, pool: RuntimePool, found: Round) -> None:
        """Events about nodes of whose devices one must not be used, or may be again."""
        nodes = found.by_pool.get(pool.metadata.name, ())
        told = next((each for each in pool.status.conditions if each.type == DEVICES_HEALTHY), None)
        expected = told is None or told.status is not ConditionStatus.FALSE
        for node, news in self._healths.changes(nodes, expected=expected):
            warns = news.status is ConditionStatus.FALSE
            self._writer.create(
                event(RuntimeNode.KIND, node.metadata, news, found.now, warns=warns)
            )

    def _event(self, service: ModelService, condition: Condition, now: str) -> None:
        bad = condition.status is ConditionStatus.FALSE and condition.type not in (
            "CapacityShortfall",
            "Progressing",
        )
        short = condition.type == "CapacityShortfall" and condition.status is ConditionStatus.TRUE
        self._writer.create(
            event(ModelService.KIND, service.metadata, condition, now, warns=bad or short)
        )


def _lacks_replicas(spec: ModelServiceSpec) -> bool:
    return spec.scaling.mode is ScalingMode.EXTERNAL and spec.replicas is None


def _finalizers(service: ModelService, *, runs: bool) -> dict[str, Any] | None:
    """The change of the finalizers of ``service``; None where they are as they should be."""
    present = service.metadata.finalizers
    deleted = service.metadata.deletion_timestamp is not None
    if deleted and FINALIZER in present and not runs:
        wanted = [each for each in present if each != FINALIZER]
    elif not deleted and FINALIZER not in present:
        wanted = [*present, FINALIZER]
    else:
        return None
    return {
        "apiVersion": "tessera.dev/v1alpha1",
        "kind": "ModelService",
        "metadata": {
            "name": service.metadata.name,
            "namespace": service.metadata.namespace,
            "resourceVersion": service.metadata.resource_version,
            "finalizers": wanted,
        },
    }


class _Index:
    """One round's facts by service, so that many services cost no more than one pass."""

    def __init__(self, found: Round) -> None:
        plan = found.decision.plan
        self.planned = {each.service: each for each in plan.services}
        self.idle = frozenset(plan.idle)
        self.refused: dict[str, list[Any]] = {}
        for service, member, refusal in plan.refused:
            self.refused.setdefault(service, []).append((member, refusal))
        self.assigned: dict[str, list[Any]] = {}
        for each in plan.assignments:
            self.assigned.setdefault(each.service, []).append(each)
        self.ready: dict[str, dict[str, int]] = {}
        self.problems: dict[str, str] = {}
        for node in found.answering:
            for device in node.status.devices:
                for instance in device.instances:
                    members = self.ready.setdefault(instance.service, {})
                    members[instance.member] = members.get(instance.member, 0) + instance.ready
            for served in node.status.services:
                if served.problem:
                    self.problems.setdefault(served.name, f"{node.metadata.name}: {served.problem}")
        rollout = found.rollout
        steps = rollout.spec.steps if rollout is not None else ()
        done = rollout.done if rollout is not None else frozenset()
        self.moved = {step.target.service for step in steps}
        self.under_way = {step.target.service for step in steps if step.id not in done}
        self._measured = {each.digest for each in found.decision.state.measured}

    def is_measured(self, digests: Any) -> bool:
        return all(digest in self._measured for digest in digests)


def _without_numbers(status: ModelServiceStatus) -> ModelServiceStatus:
    conditions = tuple(
        replace(each, message="") if each.type in ("SLOMet", "Planned") else each
        for each in status.conditions
    )
    return replace(status, slo=None, conditions=conditions)


def _free(nodes: Sequence[RuntimeNode], orders: routes.Orders) -> tuple[tuple[str, int], ...]:
    """Healthy devices on which nothing is ordered, by product; of processors, their cores."""
    found: dict[str, int] = {}
    for node in nodes:
        busy = {
            device.uuid: device.instances
            for device in orders.get(node.metadata.name, ())
            if device.instances
        }
        for device in node.status.devices:
            product = label(device.product)
            if product != "cpu":
                is_free = device.uuid not in busy and device.health is not Health.UNHEALTHY
                found[f"{product}/full"] = found.get(f"{product}/full", 0) + is_free
            elif node.status.cpu is not None:
                taken = sum(
                    int(each.slice.partition("@")[0].removeprefix("cpu-"))
                    for each in busy.get(device.uuid, ())
                )
                free = max(0, node.status.cpu.cores - taken)
                found["cpu/cpu-1"] = found.get("cpu/cpu-1", 0) + free
    return tuple(sorted(found.items()))
