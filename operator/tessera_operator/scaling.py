"""Deployments of runtime pods as large as they are to be, and their pods marked for whoever takes nodes away.

Cluster autoscalers bring a node for a pod that finds none, and take one away that has no pod. So a pool grows by its
Deployment, and shrinks by pods that are deleted one by one (``sizing.py``): first the pod, then the number, so that the
ReplicaSet controller has nothing to choose; a pod that it makes in between has no node, and goes before all others.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import product

from tessera_core.api import Condition, RuntimeNode, RuntimePool
from tessera_core.api.meta import ConditionStatus
from tessera_core.plan.decision import Plan
from tessera_operator import pools, quarantine
from tessera_operator.decide import Decision
from tessera_operator.growth import Stock, growth
from tessera_operator.headroom import Headroom, Held
from tessera_operator.kinds import Document, Key
from tessera_operator.measuring import Measuring
from tessera_operator.pools import Installation
from tessera_operator.runtime_pods import Present, RuntimePods
from tessera_operator.sizing import Change, Idle, Nodes, Size, size
from tessera_operator.write import Writer

_MOST_MESSAGE = 1024
_TRY_AGAIN_S = 3600.0
_HELD = {
    Held.BUFFER: ConditionStatus.TRUE,
    Held.PODS: ConditionStatus.TRUE,
    Held.WAITING: ConditionStatus.UNKNOWN,
    Held.NOBODY: ConditionStatus.FALSE,
}


@dataclass(frozen=True, slots=True)
class Scaled:
    """What became of a pool's size in a round."""

    size: Size
    held: Held | None
    """Who holds its spare nodes; None: it has none."""


class Scaling:
    """The sizes of all pools. Not thread-safe."""

    def __init__(self, where: Installation, pods: RuntimePods) -> None:
        self._where, self._pods = where, pods
        self._idle = Idle()
        self._headroom = Headroom(where)
        self._products: dict[str, frozenset[str]] = {}
        """By pool, of the devices that it had when it last had any."""
        self._useless: dict[tuple[str, str], float] = {}
        """By pool and service: until when a node is not tried again for what it was no good for."""
        self.told: Mapping[str, Scaled] = {}
        """By pool, as of the last round."""

    def keep(
        self,
        writer: Writer,
        documents: Mapping[Key, Document],
        found: Sequence[RuntimePool],
        present: Present,
        decision: Decision,
        measuring: Measuring,
        now_s: float,
    ) -> None:
        """Have the Deployments of ``found``, and end the pods that are released."""
        planned = {each.node for each in decision.plan.assignments}
        everyone = [node for nodes in present.by_pool.values() for node in nodes]
        occupied = {node.metadata.name for node in everyone if is_occupied(node)}
        filled = {node.metadata.name for node in everyone if is_filled(node)} | planned
        names = {node.metadata.name for node in everyone}
        leaving = present.departing & names
        unknown = {node.metadata.name for node in everyone if not node.status.devices} - leaving
        recut = present.recut & names
        kept = names if measuring.under_way else unknown | occupied | recut
        idle = self._idle.see(names - filled - kept - leaving, now_s)
        in_use = occupied | filled | unknown | recut
        self._pods.protect(writer, documents, in_use, names - in_use)
        self._note_useless(decision.plan, present, idle, now_s)
        sick = {node.metadata.name for node in everyone if _is_sick(node)}
        stocks = self._stocks(found, present, filled | sick)
        known = {**decision.versions, **decision.newest}
        specs = {name: version.service.spec for name, version in known.items()}
        wish = growth(found, stocks, decision.plan, specs, _left(present))
        missing = dict(wish.missing)
        for name in measuring.cramped(everyone):
            missing[name] = max(1, missing.get(name, 0))
        told: dict[str, Scaled] = {}
        for pool in found:
            name = pool.metadata.name
            bound = present.bound.get(name, frozenset())
            own = {node.metadata.name for node in present.by_pool.get(name, ())}
            closed = (own & present.closed) - bound - leaving
            own &= bound | present.awaited
            staying = own - leaving
            more = missing.get(name, 0)
            # A sick node is none of those that are missing.
            taken = filled | sick if more else filled
            nodes = Nodes(
                filled=frozenset(staying & taken),
                kept=frozenset(staying & kept - taken),
                idle={each: idle[each] for each in staying - taken if each in idle},
                leaving=frozenset(own & leaving & occupied),
                left=frozenset(own & leaving - occupied),
                other=len(bound - own),
                closed=len(closed),
            )
            wanted = size(pool, nodes, more, now_s, full=name in wish.full)
            self._pods.release(writer, documents, wanted.released)
            writer.put(pools.deployment(pool, wanted.replicas, self._where))
            writer.put(pools.disruption_budget(pool, self._where))
            spare = min(
                pool.spec.size.headroom.spare_nodes,
                max(0, pool.spec.size.max - wanted.replicas),
            )
            told[name] = Scaled(wanted, self._headroom.keep(writer, documents, pool, spare, now_s))
        self.told = told

    def _stocks(
        self, pools: Sequence[RuntimePool], present: Present, filled: Collection[str]
    ) -> dict[str, Stock]:
        stocks = {}
        for pool in pools:
            name = pool.metadata.name
            nodes = [
                node
                for node in present.by_pool.get(name, ())
                if node.metadata.name not in present.departing
            ]
            shown = quarantine.products(nodes)
            if shown:
                self._products[name] = frozenset(shown)
            stocks[name] = Stock(
                nodes=sum(not _is_sick(node) for node in nodes),
                filled=sum(node.metadata.name in filled for node in nodes),
                products=self._products.get(name, frozenset()),
                useless_for={service for other, service in self._useless if other == name},
            )
        return stocks

    def _note_useless(
        self, plan: Plan, present: Present, idle: Collection[str], now_s: float
    ) -> None:
        """Nodes with nothing on them are none that the plan could use for what it has no place for."""
        short = {service for service, _, _ in plan.refused}
        short |= {each.service for each in plan.services if each.short is not None}
        pools = [
            pool
            for pool, nodes in present.by_pool.items()
            if any(node.metadata.name in idle for node in nodes)
        ]
        self._useless = {key: until_s for key, until_s in self._useless.items() if until_s > now_s}
        self._useless |= dict.fromkeys(product(pools, short), now_s + _TRY_AGAIN_S)


def conditions(pool: RuntimePool, found: Scaled | None) -> tuple[Condition, ...]:
    """What users are told of the size of ``pool``."""
    if found is None:
        return ()
    wanted, bounds = found.size, pool.spec.size
    message = {
        Change.STEADY: "",
        Change.GROWING: f"{wanted.replicas} nodes are asked for",
        Change.SHRINKING: f"given back: {', '.join(wanted.released)}",
        Change.AT_MAXIMUM: f"more than the {bounds.max} nodes that size.max allows are needed",
    }[wanted.change]
    changes = wanted.change in (Change.GROWING, Change.SHRINKING)
    status = ConditionStatus.TRUE if changes else ConditionStatus.FALSE
    shown = [Condition("Scaling", status, wanted.change.value, message[:_MOST_MESSAGE])]
    if found.held is not None:
        spare = bounds.headroom.spare_nodes
        shown.append(Condition("Headroom", _HELD[found.held], found.held.value, f"{spare} nodes"))
    return tuple(shown)


def _left(present: Present) -> dict[str, Counter[str]]:
    """By service and pool, on how many departing nodes it is."""
    found: dict[str, Counter[str]] = {}
    for pool, nodes in present.by_pool.items():
        for node in nodes:
            if node.metadata.name in present.departing:
                told = (each for device in node.spec.devices for each in device.instances)
                for service in {each.service for each in told}:
                    found.setdefault(service, Counter())[pool] += 1
    return found


def _is_sick(node: RuntimeNode) -> bool:
    """Whether ``node`` has told its devices, and none of them may be used."""
    return bool(node.status.devices) and not quarantine.products([node])


def is_filled(node: RuntimeNode) -> bool:
    """Whether something runs on ``node``, or it is told to run something."""
    told = any(device.instances for device in node.spec.devices)
    return told or any(device.instances for device in node.status.devices)


def is_occupied(node: RuntimeNode) -> bool:
    """Whether the pod of ``node`` is in use: it runs, measures or passes on something."""
    return is_filled(node) or bool(node.spec.services or node.spec.profiling)
