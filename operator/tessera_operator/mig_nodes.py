"""Nodes whose GPUs NVIDIA's MIG manager cuts: the operator is their partitioner.

It does for them what the partitioner does for nodes with the backend NVML: it looks at what the RuntimeNode orders, brings it
about, here by labels, and tells in ``status.cuts`` how far that is. So a re-cut is the same transaction.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from tessera_core.api import RuntimeNode, RuntimePool
from tessera_core.api.records import record
from tessera_core.api.runtimenode import CutProblem, CutStatus, DeviceStatus
from tessera_core.api.runtimepool import PartitionBackend
from tessera_core.gpu.geometry import Geometry
from tessera_core.plan.state_in import POOL_LABEL
from tessera_operator.config import MigManager
from tessera_operator.kinds import (
    CONFIG_MAP,
    NODE,
    RUNTIME_NODE,
    Document,
    Key,
    head,
    managers,
)
from tessera_operator.mig_layouts import Layout, Layouts, has_counts, layout_of, named
from tessera_operator.mig_manager import (
    ALLOWED,
    ALLOWED_LABEL,
    AWAY_LABEL,
    CONFIG_LABEL,
    Move,
    NodeView,
    next_move,
)
from tessera_operator.partitioners import PARTITIONER
from tessera_operator.recutting import last_recut
from tessera_operator.runtime_pods import Present, RuntimePods, node_document
from tessera_operator.scaling import is_occupied
from tessera_operator.write import Writer

_MANAGER = "tessera-mig-manager"
"""Field manager of what is said in place of a partitioner."""
_LONG_AGO_S = 1e9


@dataclass(frozen=True, slots=True)
class _Here:
    """One node, and what is ordered there."""

    node: RuntimeNode
    labels: Mapping[str, str]
    ordered: Mapping[str, Geometry]
    """By GPU that is to be cut."""
    wanted: Layout | None
    """None where the GPUs are as ordered."""
    is_managed: bool
    """Whether its pool is cut so; else only a label is left to be taken away."""
    may_be_cut: bool
    """Whether an administrator lets it be, and all is known that it takes."""

    @property
    def name(self) -> str:
        return self.node.metadata.name

    @property
    def present(self) -> Layout | None:
        """As agents have told it last; None: not all of it."""
        return layout_of(self.node, {})


@dataclass(frozen=True, slots=True)
class Kept:
    """What became of the nodes in a round."""

    ended: frozenset[str] = frozenset()
    """Nodes whose pods were ended."""
    due_s: float | None = None
    """Seconds until time alone brings something; None: it does not."""


class MigNodes:
    """Not thread-safe."""

    def __init__(self, settings: MigManager | None, pods: RuntimePods) -> None:
        self._settings, self._pods = settings, pods
        self._was_read = False

    def keep(
        self,
        writer: Writer,
        documents: Mapping[Key, Document],
        pools: Sequence[RuntimePool],
        nodes: Sequence[RuntimeNode],
        present: Present,
        coming: Mapping[tuple[str, str], Geometry],
        now: datetime,
    ) -> Kept:
        """Do what comes next on each node.

        ``coming``: what plans will have GPUs cut into, so that the manager has it by then.
        """
        settings = self._settings
        here = [each for each in _nodes(pools, nodes, documents) if each.may_be_cut]
        told = {each.name for each in here if each.is_managed and settings is not None}
        _withdraw(writer, documents, pools, nodes, told)
        if settings is None or not here:
            return Kept()
        layouts = self._layouts(writer, documents, settings, here, coming, now)
        if layouts is None:
            return Kept()
        ages_s = layouts.ages_s(now)
        known = {name for name, age_s in ages_s.items() if age_s >= settings.sync_s}
        ended = set[str]()
        for each in here:
            move = next_move(_view(each, present, known, now))
            if move.labels:
                document = head((NODE.name, "", each.name))
                document["metadata"]["labels"] = dict(move.labels)
                writer.merge(document)
            if move.end_pod:
                self._pods.release(writer, documents, [each.name])
                ended.add(each.name)
            if each.is_managed:
                self._tell(writer, each, move)
        waits = (settings.sync_s - age_s for name, age_s in ages_s.items() if name not in known)
        return Kept(frozenset(ended), min(waits, default=None))

    def _layouts(
        self,
        writer: Writer,
        documents: Mapping[Key, Document],
        settings: MigManager,
        here: Sequence[_Here],
        coming: Mapping[tuple[str, str], Geometry],
        now: datetime,
    ) -> Layouts | None:
        """What the ConfigMap has; None: nobody knows."""
        key = CONFIG_MAP.name, settings.namespace, settings.config_map
        if not self._was_read:
            # Who may only change an object learns what is in it by changing nothing.
            self._was_read = writer.merge(
                head((CONFIG_MAP.name, settings.namespace, settings.config_map))
            )
            if not self._was_read:
                return None
        before = Layouts.read(documents[key])
        labels = [each.labels.get(CONFIG_LABEL, "") for each in here]
        after = before.keep(_wanted(here, coming), labels, now)
        if not writer.put(after.document(settings.namespace, settings.config_map)):
            return before
        return after

    def _tell(self, writer: Writer, here: _Here, move: Move) -> None:
        """As a partitioner does."""
        devices = here.node.status.devices
        self._write(writer, here, [_cut(each, here, move) for each in devices if each.mig_capable])

    def _write(self, writer: Writer, here: _Here, cuts: Sequence[CutStatus]) -> None:
        status = {"cuts": [record(CutStatus).encode(each) for each in cuts]}
        writer.put({**node_document(here.name, {}, None), "status": status}, "status", _MANAGER)


def _withdraw(
    writer: Writer,
    documents: Mapping[Key, Document],
    pools: Sequence[RuntimePool],
    nodes: Sequence[RuntimeNode],
    told: Collection[str],
) -> None:
    """Who may not cut a node any more tells of no GPU there, but partitioners end without a word. ``told``: nodes of which
    the operator tells.
    """
    cut = _cut_by(PartitionBackend.NVML, pools)
    for node in nodes:
        key = RUNTIME_NODE.name, "", node.metadata.name
        may = {_MANAGER} if key[2] in told else set()
        if dict(node.metadata.labels).get(POOL_LABEL) in cut:
            may.add(PARTITIONER)
        for manager in ({_MANAGER, PARTITIONER} & managers(documents.get(key, head(key)))) - may:
            writer.withdraw(key, "status", manager)


def _cut_by(backend: PartitionBackend, pools: Sequence[RuntimePool]) -> set[str]:
    return {
        pool.metadata.name
        for pool in pools
        if pool.spec.partition is not None and pool.spec.partition.backend is backend
    }


def _nodes(
    pools: Sequence[RuntimePool], nodes: Sequence[RuntimeNode], documents: Mapping[Key, Document]
) -> Iterator[_Here]:
    """Those of pools that are cut so, and others that runtime pods are still kept away from."""
    cut = _cut_by(PartitionBackend.MIG_MANAGER, pools)
    for node in nodes:
        machine = documents.get((NODE.name, "", node.metadata.name))
        labels = (machine or {}).get("metadata", {}).get("labels") or {}
        is_allowed = labels.get(ALLOWED_LABEL) == ALLOWED
        if dict(node.metadata.labels).get(POOL_LABEL) in cut:
            ordered = {each.uuid: each.geometry for each in node.spec.devices if each.cut}
            is_known = layout_of(node, {}) is not None
            wanted = _to_come(node, ordered)
            yield _Here(node, labels, ordered, wanted, True, may_be_cut=is_allowed and is_known)
        elif AWAY_LABEL in labels:
            yield _Here(node, labels, {}, None, False, may_be_cut=is_allowed)


def _to_come(node: RuntimeNode, ordered: Mapping[str, Geometry]) -> Layout | None:
    devices = {each.uuid: each for each in node.status.devices}
    if all(has_counts(devices[uuid], cut) for uuid, cut in ordered.items() if uuid in devices):
        return None
    return layout_of(node, ordered)


def _wanted(here: Sequence[_Here], coming: Mapping[tuple[str, str], Geometry]) -> Iterator[Layout]:
    """Layouts that nodes are to have or to get back, in the order in which they count."""
    for each in here:
        goals = {uuid: cut for (node, uuid), cut in coming.items() if node == each.name}
        for layout in (each.wanted, each.present, layout_of(each.node, goals)):
            if layout is not None:
                yield layout


def _view(here: _Here, present: Present, known: Collection[str], now: datetime) -> NodeView:
    ordered = last_recut(here.node)
    return NodeView(
        labels=here.labels,
        has_pod=here.name in present.with_pod,
        in_use=is_occupied(here.node),
        is_told=here.name in {node.metadata.name for node in present.answering},
        wanted=here.wanted,
        present=here.present,
        known=known,
        ordered_s=_LONG_AGO_S if ordered is None else (now - ordered).total_seconds(),
    )


def _cut(device: DeviceStatus, here: _Here, move: Move) -> CutStatus:
    wanted = here.ordered.get(device.uuid)
    if wanted is None:
        return CutStatus(device.uuid, device.slices)
    generation = here.node.metadata.generation or 0
    if here.wanted is None:
        return CutStatus(device.uuid, named(device.slices, wanted), generation)
    problem = move.problem or CutProblem.OUT_OF_TIME
    return CutStatus(device.uuid, device.slices, generation, problem, move.message)
