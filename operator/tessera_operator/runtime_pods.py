"""Runtime pods and the RuntimeNodes that stand for them: who is there, who answers, who is about to go.

A RuntimeNode is made when a pod has its node and deleted some time after the last one left, so that a pod that is
replaced finds its orders again. What a node's status says is of the pod it names: of one that is gone, nothing of
it holds any more.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from tessera_core.api import RuntimeNode, RuntimeNodeSpec
from tessera_core.api.records import record
from tessera_core.plan.state_in import POOL_LABEL
from tessera_operator.departures import departing
from tessera_operator.heartbeats import PREFIX
from tessera_operator.kinds import Document, Key, key_of
from tessera_operator.mig_manager import AWAY_LABEL
from tessera_operator.pools import ACTIVATOR, NAME_LABEL, PROTECTED, Installation
from tessera_operator.routes import MANAGED_BY, is_leaving
from tessera_operator.world import ACTIVATOR_LABEL, is_activator
from tessera_operator.write import Writer

_ENDED = ("Failed", "Succeeded")
# https://kubernetes.io/docs/concepts/workloads/controllers/replicaset/#pod-deletion-cost
_COST = "controller.kubernetes.io/pod-deletion-cost"
_SERVING: dict[str, str | None] = {**PROTECTED, _COST: None}
"""Annotations of a pod in use, which are those that it is made with; None: not there."""
_IDLE: dict[str, str | None] = {
    **dict.fromkeys(PROTECTED),
    # Cluster Autoscaler leaves pods with an emptyDir alone unless it is told that they may go.
    "cluster-autoscaler.kubernetes.io/safe-to-evict": "true",
    _COST: "-1000",
}
"""Of a pod with nothing in it."""


RETURN_S = 300.0
"""In which a pod that was away is back: images are there, a runtime starts."""


@dataclass(frozen=True, slots=True)
class Present:
    """The nodes at one moment."""

    lost: frozenset[str]
    """Nobody hears of them: what runs there gets a second home."""
    unsure: frozenset[str]
    """The lost ones, and those whose pods are about to end."""
    answering: tuple[RuntimeNode, ...]
    """Those whose status is of a pod that exists."""
    by_pool: Mapping[str, tuple[RuntimeNode, ...]]
    departing: frozenset[str] = frozenset()
    """Their machines are announced to go, and they answer until then."""
    bound: Mapping[str, frozenset[str]] = field(default_factory=dict)
    """By pool, the nodes with a pod that is not ending, whatever is known of them."""
    with_pod: frozenset[str] = frozenset()
    """Nodes with a pod, ending or not."""
    closed: frozenset[str] = frozenset()
    """Nodes that runtime pods are kept away from while their GPUs are cut. They are not lost."""
    awaited: frozenset[str] = frozenset()
    """Those that were closed, until their pod is back. They are not lost either."""

    @property
    def away(self) -> frozenset[str]:
        """Where nothing is planned."""
        return self.unsure | self.departing

    @property
    def steady(self) -> frozenset[str]:
        """Names of those that answer and stay."""
        answering = frozenset(node.metadata.name for node in self.answering)
        return answering - self.away - self.recut

    def without(self, ended: Collection[str]) -> Present:
        """Once the pods of the nodes ``ended`` are ending too."""
        bound = {pool: names.difference(ended) for pool, names in self.bound.items()}
        return replace(self, bound=bound) if ended else self

    @property
    def recut(self) -> frozenset[str]:
        """Nodes whose pod is away, or about to go, because their GPUs are cut."""
        return self.closed | self.awaited


class RuntimePods:
    """Which pod is where, and since when a node has none. Not thread-safe."""

    def __init__(self, where: Installation, lost_after_s: float) -> None:
        self._where, self._lost_after_s = where, lost_after_s
        self._without: dict[str, float] = {}
        self._gone: frozenset[str] = frozenset()
        self._back_by: dict[str, float] = {}
        """Nodes that runtime pods were kept away from: until when one is waited for."""
        self.labels: dict[str, dict[str, str]] = {}
        """What tells whose node it is, by node."""

    def see(
        self,
        documents: Mapping[Key, Document],
        nodes: Sequence[RuntimeNode],
        silent: frozenset[str],
        now_s: float,
    ) -> Present:
        """``silent``: nodes whose agents do not renew their Leases."""
        pods = {name: list(found) for name, found in _by_node(documents).items()}
        known = {node.metadata.name: node for node in nodes}
        living = {pod["metadata"]["name"]: pod for found in pods.values() for pod in found}
        ending = {
            name
            for name, found in pods.items()
            if found and all(pod["metadata"].get("deletionTimestamp") for pod in found)
        }
        closed = _closed(documents) & known.keys()
        back = {
            name
            for name, node in known.items()
            if node.status.pod in living and name not in silent | ending
        }
        self._back_by = {
            **{n: by_s for n, by_s in self._back_by.items() if n in known and by_s > now_s},
            **dict.fromkeys(closed, now_s + RETURN_S),
        }
        for name in back - closed:
            self._back_by.pop(name, None)
        recut = self._back_by.keys()
        self._without = {
            name: self._without.get(name, now_s)
            for name in known
            if not pods.get(name) and name not in recut
        }
        self._gone = frozenset(
            name for name, since_s in self._without.items() if now_s - since_s >= self._lost_after_s
        )
        self.labels = {name: _labels(found[0]) for name, found in pods.items()}
        lost = ((silent & known.keys()) | self._gone) - recut
        leaving = {name for name, node in known.items() if is_leaving(node)}
        bound: dict[str, set[str]] = {}
        for name in pods.keys() - ending:
            bound.setdefault(self.labels[name].get(POOL_LABEL, ""), set()).add(name)
        by_pool: dict[str, list[RuntimeNode]] = {}
        for name, node in known.items():
            pool = dict(node.metadata.labels).get(POOL_LABEL)
            if pool is not None and name not in lost and (pods.get(name) or name in recut):
                by_pool.setdefault(pool, []).append(node)
        return Present(
            lost=frozenset(lost),
            unsure=frozenset(lost | ((ending | leaving) & known.keys() - recut)),
            answering=tuple(node for node in nodes if (node.status.pod or "") in living),
            by_pool={pool: tuple(found) for pool, found in by_pool.items()},
            departing=departing(documents) & known.keys(),
            bound={pool: frozenset(found) for pool, found in bound.items()},
            with_pod=frozenset(pods),
            closed=closed,
            awaited=frozenset(recut - closed),
        )

    def protect(
        self,
        writer: Writer,
        documents: Mapping[Key, Document],
        serving: Collection[str],
        idle: Collection[str],
    ) -> None:
        """Have autoscalers leave the nodes ``serving`` alone, and take the nodes ``idle`` if they like. Of two pods a
        ReplicaSet would end one that is idle.
        """
        wanted = {**dict.fromkeys(idle, _IDLE), **dict.fromkeys(serving, _SERVING)}
        writes = []
        for name, pod in _pods(documents):
            annotations = pod["metadata"].get("annotations") or {}
            changed = {
                key: value
                for key, value in wanted.get(name, {}).items()
                if annotations.get(key) != value
            }
            if changed and not pod["metadata"].get("deletionTimestamp"):
                writes.append(partial(writer.merge, _head(pod, annotations=changed)))
        writer.together(writes)

    def release(
        self, writer: Writer, documents: Mapping[Key, Document], nodes: Sequence[str]
    ) -> None:
        """Delete the runtime pods of ``nodes``, in this order."""
        order = {name: index for index, name in enumerate(nodes)}
        found = [(order[name], key_of(pod), pod) for name, pod in _pods(documents) if name in order]
        for _, key, pod in sorted(found, key=lambda each: each[:2]):
            if not pod["metadata"].get("deletionTimestamp"):
                writer.remove(key, uid=pod["metadata"].get("uid"))

    def next_change_s(self, now_s: float) -> float | None:
        """Seconds until the next node without a pod is given up; None: there is none."""
        waits = (since_s + self._lost_after_s - now_s for since_s in self._without.values())
        return min((wait for wait in waits if wait > 0), default=None)

    def keep_nodes(
        self,
        writer: Writer,
        documents: Mapping[Key, Document],
        nodes: Sequence[RuntimeNode],
        epoch: int,
    ) -> None:
        """One RuntimeNode per pod that has a node, with that node's taints; none for nodes that are gone."""
        known = {node.metadata.name: node for node in nodes}
        writer.put_all(
            node_document(name, labels, RuntimeNodeSpec(epoch=epoch))
            for name, labels in self.labels.items()
            if name not in known and ("RuntimeNode", "", name) not in documents
        )
        for name, node in known.items():
            if name not in self.labels:
                continue
            taints = _taints(documents.get(("Node", "", name)))
            if taints != _present_taints(node):
                head = node_document(name, {}, None)
                writer.put({**head, "status": {"taints": taints}}, "status")
        for name in sorted(self._gone & known.keys()):
            if is_activator(known[name]) or ("Node", "", name) not in documents:
                writer.remove(("RuntimeNode", "", name))
                writer.remove(("Lease", self._where.namespace, PREFIX + name), known=False)


def _closed(documents: Mapping[Key, Document]) -> frozenset[str]:
    """Names of the Nodes that runtime pods are kept away from."""
    return frozenset(
        key[2]
        for key, node in documents.items()
        if key[0] == "Node" and AWAY_LABEL in (node["metadata"].get("labels") or {})
    )


def _by_node(documents: Mapping[Key, Document]) -> dict[str, list[Document]]:
    """Runtime pods that have a node, by the name of their RuntimeNode."""
    found: dict[str, list[Document]] = {}
    for name, pod in _pods(documents):
        found.setdefault(name, []).append(pod)
    return found


def _pods(documents: Mapping[Key, Document]) -> Iterator[tuple[str, Document]]:
    for key in sorted(key for key in documents if key[0] == "Pod"):
        pod = documents[key]
        node = pod["spec"].get("nodeName")
        if node and pod.get("status", {}).get("phase") not in _ENDED:
            labels = pod["metadata"].get("labels") or {}
            yield (key[2] if labels.get(NAME_LABEL) == ACTIVATOR else node), pod


def _head(pod: Document, **metadata: Any) -> dict[str, Any]:
    name, namespace = pod["metadata"]["name"], pod["metadata"]["namespace"]
    return {"kind": "Pod", "metadata": {"name": name, "namespace": namespace, **metadata}}


def _labels(pod: Document) -> dict[str, str]:
    labels = pod["metadata"].get("labels") or {}
    if labels.get(NAME_LABEL) == ACTIVATOR:
        return {ACTIVATOR_LABEL: "true"}
    return {POOL_LABEL: labels.get(POOL_LABEL, "")}


def _taints(node: Document | None) -> list[dict[str, str]]:
    if node is None:
        return []
    found = [
        {"key": each["key"], "effect": each["effect"], "value": each.get("value", "")}
        for each in node["spec"].get("taints") or ()
    ]
    return sorted(found, key=lambda each: (each["key"], each["effect"]))


def _present_taints(node: RuntimeNode) -> list[dict[str, str]]:
    return [
        {"key": each.key, "effect": each.effect.value, "value": each.value}
        for each in node.status.taints
    ]


def owned_labels(node: RuntimeNode) -> dict[str, str]:
    """Those labels of ``node`` that the operator has given it."""
    return {
        name: value for name, value in node.metadata.labels if name in (POOL_LABEL, ACTIVATOR_LABEL)
    }


def node_document(
    name: str,
    labels: Mapping[str, str],
    spec: RuntimeNodeSpec | None,
    annotations: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """All that the operator says of a node but for its taints: what is left out of an apply is taken back."""
    head: dict[str, Any] = {
        "apiVersion": "tessera.dev/v1alpha1",
        "kind": "RuntimeNode",
        "metadata": {"name": name},
    }
    if spec is None:
        return head
    head["metadata"]["labels"] = {**MANAGED_BY, **labels}
    if annotations:
        head["metadata"]["annotations"] = dict(annotations)
    return {**head, "spec": record(RuntimeNodeSpec).encode(spec)}
