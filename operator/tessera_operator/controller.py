"""One round of the loop: take over what changed, decide, and write what differs from what is wanted.

    facts → decision → rollout → node specs → endpoints → status

Everything is level-triggered: a round looks at the present and at nothing else, so a round that failed, was
repeated or never came changes nothing but when things happen. A PlacementPlan is written before anything of it
is done; where that fails the round ends.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from tessera_core.api import Device, ModelService, RuntimeNode, SpecInvalid
from tessera_core.api.placementplan import PlacementPlan, Step
from tessera_operator import partitioners, plans, pools, quarantine, routes
from tessera_operator.cluster import Cluster
from tessera_operator.config import Config
from tessera_operator.costs import Meter
from tessera_operator.decide import Decider, Decision, batch_lines, batch_times, capacity
from tessera_operator.drifting import Drifting
from tessera_operator.heartbeats import Heartbeats
from tessera_operator.kinds import Document, Key, key_of
from tessera_operator.measuring import Measuring
from tessera_operator.orders import ordered, remaining
from tessera_operator.reporting import Reporter, Round
from tessera_operator.rollout import Rollout, begin, proceed, unsettled
from tessera_operator.runtime_pods import Present, RuntimePods, node_document, owned_labels
from tessera_operator.scaling import Scaling
from tessera_operator.traffic import Traffic
from tessera_operator.wanted import Context, Routers, holds, spec_of
from tessera_operator.world import World, is_activator
from tessera_operator.write import Writer


@dataclass(frozen=True, slots=True)
class Now:
    """One moment, by two clocks."""

    s: float
    """Monotonic."""
    text: str
    """RFC 3339, for people."""


class Controller:
    """The memory of one leader. Not thread-safe."""

    def __init__(
        self, cluster: Cluster, config: Config, where: pools.Installation, epoch: int
    ) -> None:
        self._config, self._where, self._epoch = config, where, epoch
        self._documents: dict[Key, Document] = {}
        self._plans: dict[str, PlacementPlan] = {}
        self._world = World()
        self._traffic = Traffic()
        self._decider = Decider(config, self._world, self._traffic)
        self._measuring = Measuring(config.cpu_slices)
        self._pods = RuntimePods(where, config.lost_after_s)
        self._scaling = Scaling(where, self._pods)
        self._routers = Routers()
        self._rollout: Rollout | None = None
        self._afresh = False
        self._geometries = quarantine.Geometries()
        self.meter = Meter()
        self.heartbeats = Heartbeats(config.lost_after_s)
        self.devices: Mapping[tuple[str, str], int] = {}
        """By pool and health, as of the last round."""
        self.writer = Writer(cluster, self._documents)
        self._tls = where.tls is not None
        self._drifting = Drifting(self.writer, config.drift_after_s)
        self._reporter = Reporter(self.writer, self._documents, tls=self._tls)

    def take(self, changed: Mapping[Key, Document | None]) -> None:
        """Take over objects that are new, changed, or, with None, gone."""
        for key, document in changed.items():
            if document is None:
                self._documents.pop(key, None)
                self._plans.pop(key[2], None) if key[0] == "PlacementPlan" else None
                self._world.remove(key)
                continue
            self._documents[key] = document
            if key[0] == "PlacementPlan":
                try:
                    self._plans[key[2]] = PlacementPlan.from_dict(document, strict=False)
                except SpecInvalid:
                    self._plans.pop(key[2], None)
            else:
                self._world.put(document)

    def round(self, now: Now) -> float | None:
        """Decide and write once. Seconds until time alone calls for another round; None: nothing is due."""
        self.writer.failed.clear()
        nodes = self._world.nodes
        present = self._pods.see(self._documents, nodes, self.heartbeats.lost(now.s), now.s)
        self._traffic.note(self._world.services, nodes, now.s)
        steady = [node for node in present.answering if node.metadata.name in present.steady]
        self._drifting.keep(self._world.profiles, steady, now.s, now.text)
        # What a node that is about to go runs gets another home while it still answers.
        away = present.away
        recut = self._geometries.have_changed(nodes)
        decision = self._decider.decide(now.s, away, afresh=self._afresh or recut)
        names = [service.served_name for service in self._world.services]
        self.meter.note(decision.state, names, now.s)
        self._measuring.see(nodes, decision, self.writer, now.s)
        tasks = self._measuring.assign(decision, self._world, present.steady, now.s)
        self._keep_pools(decision, present, now.s)
        if not self._keep_plan(decision, now):
            return None
        places = {node.metadata.name: node for node in nodes if not is_activator(node)}
        capacities = capacity(decision.plan)
        told: dict[str, tuple[Device, ...]] = {
            name: node.spec.devices for name, node in places.items()
        }
        homes = routes.homes_of(present.answering, told, present.unsure, capacities)
        # Who is not heard of cannot take anything over.
        heard = {name: node for name, node in places.items() if name not in present.lost}
        if self._rollout is not None:
            self._rollout = proceed(
                self._rollout,
                places,
                away,
                lambda service: self._is_routed(service, heard, homes),
                approved=self._is_approved(self._rollout),
            )
        begun = self._rollout.begun if self._rollout is not None else ()
        waited_for = unsettled(decision.plan, self._rollout)
        told = {
            name: self._orders_of(node, begun, present, waited_for) for name, node in places.items()
        }
        homes = routes.homes_of(present.answering, told, present.unsure, capacities)
        serving: dict[str, list[RuntimeNode]] = defaultdict(list)
        for node in present.answering:
            for served in node.status.services:
                serving[served.name].append(node)
        addresses = {
            name: self._addresses(service, serving[name], told, present.unsure)
            for service in self._world.services
            for name in [service.served_name]
        }
        context = Context(
            decision.versions,
            decision.newest,
            homes,
            batch_times(decision),
            batch_lines(decision),
            self._epoch,
            self._rollout.name if self._rollout is not None else None,
        )
        self._tell(nodes, told, tasks, addresses, context, present.lost, now)
        self._keep_endpoints(addresses)
        self._finish([node for node in nodes if node.metadata.name not in present.lost], now)
        self._reporter.report(
            self._world,
            self._traffic,
            self._measuring,
            Round(
                decision,
                told,
                addresses,
                self._rollout,
                present.answering,
                present.by_pool,
                self._scaling.told,
                now.s,
                now.text,
            ),
        )
        self.devices = quarantine.counts(present.by_pool)
        waits = [
            left
            for service in self._world.services
            if (left := self._traffic.next_change_s(service, now.s)) is not None
        ]
        if (left := self._pods.next_change_s(now.s)) is not None:
            waits.append(left)
        if self._routers.waiting or self._afresh:
            waits.append(1.0)
        return min(waits, default=None)

    def _orders_of(
        self,
        node: RuntimeNode,
        begun: Sequence[Step],
        present: Present,
        waited_for: frozenset[str],
    ) -> tuple[Device, ...]:
        """What ``node`` is told to run. ``waited_for``: services whose copies are not yet where they are to be."""
        name = node.metadata.name
        if name in present.unsure:
            # What has no room elsewhere is there again when the pod was replaced.
            return node.spec.devices
        if name in present.departing:
            return remaining(node, waited_for)
        return ordered(node, begun)

    def _keep_pools(self, decision: Decision, present: Present, now_s: float) -> None:
        found = self._world.pools
        known = self._documents
        self._scaling.keep(self.writer, known, found, present, decision, self._measuring, now_s)
        for pool in self._world.pools:
            if partitioners.is_cut_here(pool):
                self.writer.put(partitioners.daemon_set(pool, self._where))
            else:
                self.writer.remove(partitioners.key_of_set(pool, self._where))
        self._pods.keep_nodes(self.writer, self._documents, self._world.nodes, self._epoch)

    def _keep_plan(self, decision: Decision, now: Now) -> bool:
        """Have the object of the plan under way; False where it could not be written."""
        if decision.is_new or (self._rollout is None and self._afresh):
            self._afresh = False
            rollout = begin(
                decision, self._epoch, self._world.pools, self._world.nodes, self._plans.values()
            )
            if rollout is None or self._rollout is None or rollout.name != self._rollout.name:
                self._rollout = rollout
        rollout = self._rollout
        if rollout is not None and rollout.name not in self._plans:
            document = plans.to_object(rollout.spec).to_dict()
            document.pop("status", None)
            if not self.writer.put(document):
                self._rollout, self._afresh = None, True
                return False
            self._plans[rollout.name] = plans.to_object(rollout.spec)
        return True

    def _is_approved(self, rollout: Rollout) -> bool:
        written = self._plans.get(rollout.name)
        return rollout.spec.approved or (written is not None and written.spec.approved)

    def _is_routed(
        self,
        service: str,
        nodes: Mapping[str, RuntimeNode],
        homes: Mapping[routes.Member, Sequence[routes.Home]],
    ) -> bool:
        """Whether every node that has the service was told of all its homes, and has taken it over."""
        for name, node in nodes.items():
            for served in node.spec.services:
                if served.name != service:
                    continue
                if node.status.observed_generation != node.metadata.generation:
                    return False
                for member in served.members:
                    wanted = routes.peers(homes.get((service, member.name), ()), name)
                    if [each.node for each in member.routes] != [each.node for each in wanted]:
                        return False
        return True

    def _addresses(
        self,
        service: ModelService,
        nodes: Sequence[RuntimeNode],
        told: routes.Orders,
        unsure: frozenset[str],
    ) -> tuple[str, ...]:
        """Of the pods that clients are sent to. ``nodes``: those that know ``service``."""
        if service.metadata.deletion_timestamp is not None:
            return ()
        name = service.served_name
        places = [node for node in nodes if not is_activator(node)]
        found = routes.endpoints(name, places, told, unsure)
        if found or not holds(service.spec):
            return found
        return tuple(
            sorted(
                node.status.address for node in nodes if is_activator(node) and node.status.address
            )
        )

    def _tell(
        self,
        nodes: Sequence[RuntimeNode],
        told: routes.Orders,
        tasks: Mapping[str, Any],
        addresses: Mapping[str, tuple[str, ...]],
        context: Context,
        lost: frozenset[str],
        now: Now,
    ) -> None:
        alive = {
            service.served_name
            for service in self._world.services
            if service.metadata.deletion_timestamp is None
        }
        held = {
            name for name, version in context.versions.items() if holds(version.service.spec)
        } & alive
        listed: dict[str, set[str]] = defaultdict(set)
        for service, found in addresses.items():
            for address in found:
                listed[address].add(service)
        documents = []
        for node in nodes:
            name, address = node.metadata.name, node.status.address or ""
            if name in lost:
                continue
            devices = told.get(name, ())
            hosted = {each.service for device in devices for each in device.instances}
            if is_activator(node):
                routed: tuple[str, ...] = tuple(sorted(held))
            else:
                routed = self._routers.of(node, hosted, listed[address], alive, now.s)
            spec = spec_of(node, devices, routed, tasks.get(name, ()), context)
            labels = self._pods.labels.get(name) or owned_labels(node)
            if spec != node.spec or not labels.items() <= dict(node.metadata.labels).items():
                documents.append(node_document(name, labels, spec))
        self.writer.put_all(documents)
        self._routers.forget(nodes)

    def _keep_endpoints(self, addresses: Mapping[str, tuple[str, ...]]) -> None:
        living = [
            service
            for service in self._world.services
            if service.metadata.deletion_timestamp is None and service.metadata.uid
        ]
        taken = self._reporter.keep_services(living)
        documents: list[Document] = []
        for service in living:
            name = service.served_name
            found = routes.slice_document(service, () if name in taken else addresses[name])
            if name not in taken or key_of(found) in self._documents:
                documents.append(found)
            if self._config.gateway is not None and name not in taken:
                documents += routes.gateway_documents(service, self._config.gateway, tls=self._tls)
        self.writer.put_all(documents)

    def _finish(self, nodes: Sequence[RuntimeNode], now: Now) -> None:
        """Finalizers of services, and what is written of the plan. ``nodes``: those that are not lost."""
        running = {
            each.service
            for node in nodes
            for device in node.spec.devices
            for each in device.instances
        } | {
            each.service
            for node in nodes
            for device in node.status.devices
            for each in device.instances
        }
        self._reporter.keep_finalizers(self._world.services, running)
        self._reporter.keep_replicas(self._world.services)
        rollout = self._rollout
        for name, plan in sorted(self._plans.items()):
            if rollout is not None and rollout.name == name:
                status = plans.progress(
                    plan.status,
                    plan.spec.steps,
                    rollout.done,
                    rollout.begun,
                    approved=self._is_approved(rollout),
                    now=now.text,
                )
            elif plans.is_open(plan):
                status = plans.superseded(plan.status, now.text)
            else:
                continue
            if status != plan.status and self._reporter.write_plan_status(name, status):
                self._plans[name] = replace(plan, status=status)
        if rollout is not None and rollout.is_done:
            # What is left, or what only now can be tidied up, is the next plan's.
            self._rollout, self._afresh = None, True
        current = rollout.name if rollout is not None else None
        for name in plans.obsolete(self._plans.values(), current):
            self.writer.remove(("PlacementPlan", "", name))
