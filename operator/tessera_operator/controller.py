"""One round of the loop: take over what changed, decide, and write what differs from what is wanted.

    facts → decision → rollout → node specs → endpoints → status

Everything is level-triggered: a round looks at the present and at nothing else, so a round that failed, was
repeated or never came changes nothing but when things happen. A PlacementPlan is written before anything of it
is done; where that fails the round ends.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tessera_core.api import Device, ModelService, RuntimeNode
from tessera_core.api.placementplan import Step
from tessera_operator import activators, partitioners, pools, quarantine, routes
from tessera_operator.batches import batch_lines, batch_times
from tessera_operator.cluster import Cluster
from tessera_operator.config import Config
from tessera_operator.costs import Meter
from tessera_operator.cuts import for_nobody
from tessera_operator.decide import Decider, Decision, capacity
from tessera_operator.drifting import Drifting
from tessera_operator.heartbeats import Heartbeats
from tessera_operator.instants import to_time
from tessera_operator.kinds import Document, Key, key_of
from tessera_operator.measuring import Measuring
from tessera_operator.mig_nodes import MigNodes
from tessera_operator.orders import ordered, remaining
from tessera_operator.recutting import notes_of
from tessera_operator.reporting import Reporter, Round
from tessera_operator.rollout import unsettled
from tessera_operator.runtime_pods import Present, RuntimePods, node_document, owned_labels
from tessera_operator.scaling import Scaling
from tessera_operator.traffic import Traffic
from tessera_operator.tuning import Tasks, Tuning
from tessera_operator.undertakings import Undertakings
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
        self._world = World()
        self._traffic = Traffic()
        self._decider = Decider(config, self._world, self._traffic)
        self._measuring = Measuring(config.cpu_slices)
        self._pods = RuntimePods(where, config.lost_after_s)
        self._scaling = Scaling(where, self._pods)
        self._mig_nodes = MigNodes(config.mig_manager, self._pods)
        self._routers = Routers()
        self._geometries = quarantine.Geometries()
        self.meter = Meter()
        self.heartbeats = Heartbeats(config.lost_after_s)
        self.devices: Mapping[tuple[str, str], int] = {}
        """By pool and health, as of the last round."""
        self.writer = Writer(cluster, self._documents)
        self._tls = where.tls is not None
        self._drifting = Drifting(self.writer, config.drift_after_s)
        self._tuning = Tuning(
            self.writer, config.tuning_tasks, config.reserved_cores, config.cpu_slices
        )
        self._reporter = Reporter(self.writer, self._documents, tls=self._tls)
        self._plans = Undertakings(self.writer, self._reporter.write_plan_status, epoch)

    def take(self, changed: Mapping[Key, Document | None]) -> None:
        """Take over objects that are new, changed, or, with None, gone."""
        for key, document in changed.items():
            if key[0] == "PlacementPlan":
                self._plans.take(key[2], document)
            if document is None:
                self._documents.pop(key, None)
                self._world.remove(key)
            else:
                self._documents[key] = document
                self._world.put(document)

    def round(self, now: Now) -> float | None:
        """Decide and write once. Seconds until time alone calls for another round; None: nothing is due."""
        self.writer.failed.clear()
        nodes = self._world.nodes
        present = self._pods.see(self._documents, nodes, self.heartbeats.lost(now.s), now.s)
        staying = activators.holders(
            node for node in present.answering if node.metadata.name not in present.unsure
        )
        unheld = activators.unheld(self._world.services, nodes, staying)
        self._traffic.note(self._world.services, nodes, now.s, unheld)
        steady = [node for node in present.answering if node.metadata.name in present.steady]
        answering = [node for node in present.answering if not is_activator(node)]
        uses = self._tuning.look(self._world, answering)
        profiles = (*self._world.profiles, *self._world.tuned)
        self._drifting.keep(profiles, steady, uses, now.s, now.text)
        # What a node that is about to go runs gets another home while it still answers.
        away = present.away
        rules = self._plans.rules(self._world.pools, nodes, now.s, to_time(now.text))
        afresh = self._geometries.have_changed(nodes) or self._plans.afresh
        given_up, settled = self._measuring.given_up, self._plans.rollout is None
        decision = self._decider.decide(
            now.s, away, afresh=afresh, rules=rules, given_up=given_up, settled=settled, uses=uses
        )
        names = [service.served_name for service in self._world.services]
        self.meter.note(decision.state, names, now.s)
        self._measuring.see(nodes, decision, self.writer, now.s)
        quiet = present.steady - self._plans.cutting
        measured = self._measuring.assign(decision, self._world, quiet, now.s)
        calm = [node for node in nodes if node.metadata.name in quiet and not is_activator(node)]
        tasks = self._tuning.keep(
            decision, self._world, calm, measured, self._measuring.allows, now.text
        )
        known, coming = self._documents, self._plans.coming
        recut = self._mig_nodes.keep(
            self.writer, known, self._world.pools, nodes, present, coming, rules.now
        )
        self._keep_pools(decision, present.without(recut.ended), now.s)
        if not self._plans.keep(decision, nodes, rules):
            return None
        places = {node.metadata.name: node for node in nodes if not is_activator(node)}
        capacities = capacity(decision.plan)
        told: dict[str, tuple[Device, ...]] = {
            name: node.spec.devices for name, node in places.items()
        }
        homes = routes.homes_of(present.answering, told, present.unsure, capacities)
        # Who is not heard of cannot take anything over.
        silent = present.lost | (present.recut - present.with_pod)
        heard = {name: node for name, node in places.items() if name not in silent}
        if not self._plans.proceed(
            places, away, lambda service: self._is_routed(service, heard, homes), rules, now.s
        ):
            return 0.0
        rollout = self._plans.rollout
        begun = rollout.begun if rollout is not None else ()
        waited_for = unsettled(decision.plan, rollout)
        orders = self._tuning.orders(decision.versions.values(), answering)
        told = {
            name: orders.of(node, self._orders_of(node, begun, present, waited_for))
            for name, node in places.items()
        }
        homes = routes.homes_of(present.answering, told, present.unsure, capacities)
        serving: dict[str, list[RuntimeNode]] = defaultdict(list)
        for node in present.answering:
            for served in node.status.services:
                serving[served.name].append(node)
        # One that leaves is better than none.
        held = {**activators.holders(present.answering), **staying}
        addresses = {
            name: self._addresses(service, serving[name], told, present.unsure, held)
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
            rollout.name if rollout is not None else None,
        )
        free = for_nobody(rollout.spec.steps) if rollout is not None else frozenset()
        self._tell(nodes, told, tasks, addresses, context, present.lost, free, now)
        self._keep_endpoints(addresses)
        self._finish([node for node in nodes if node.metadata.name not in present.lost])
        self._plans.finish(rules, nodes)
        self._reporter.report(
            self._world,
            self._traffic,
            self._measuring,
            Round(
                decision,
                told,
                addresses,
                rollout,
                present.answering,
                present.by_pool,
                self._scaling.told,
                rules,
                now.s,
                now.text,
            ),
        )
        self.devices = quarantine.counts(present.by_pool)
        waits = [] if recut.due_s is None else [recut.due_s]
        waits += [
            left
            for service in self._world.services
            if (left := self._traffic.next_change_s(service, now.s)) is not None
        ]
        if (left := self._pods.next_change_s(now.s)) is not None:
            waits.append(left)
        if self._routers.waiting or self._plans.afresh:
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
            if pools.is_cut_here(pool):
                self.writer.put(partitioners.daemon_set(pool, self._where))
            else:
                self.writer.remove(partitioners.key_of_set(pool, self._where))
        self._pods.keep_nodes(self.writer, self._documents, self._world.nodes, self._epoch)

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
        held: activators.Holders,
    ) -> tuple[str, ...]:
        """Of the pods that clients are sent to. ``nodes``: those that know ``service``."""
        if service.metadata.deletion_timestamp is not None:
            return ()
        name = service.served_name
        places = [node for node in nodes if not is_activator(node)]
        found = routes.endpoints(name, places, told, unsure)
        return found or (held.get(name, ()) if holds(service.spec) else ())

    def _tell(
        self,
        nodes: Sequence[RuntimeNode],
        told: routes.Orders,
        tasks: Tasks,
        addresses: Mapping[str, tuple[str, ...]],
        context: Context,
        lost: frozenset[str],
        free: frozenset[tuple[str, str]],
        now: Now,
    ) -> None:
        """``free``: GPUs that are cut although nobody is there."""
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
            measured, tuned = tasks.profiling.get(name, ()), tasks.tuning.get(name, ())
            spec = spec_of(node, devices, routed, measured, tuned, context)
            labels = self._pods.labels.get(name) or owned_labels(node)
            if spec != node.spec or not labels.items() <= dict(node.metadata.labels).items():
                notes = notes_of(node, devices, now.text, free)
                documents.append(node_document(name, labels, spec, notes))
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

    def _finish(self, nodes: Sequence[RuntimeNode]) -> None:
        """Let go services that are deleted and of which nothing runs. ``nodes``: those that are not lost."""
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
