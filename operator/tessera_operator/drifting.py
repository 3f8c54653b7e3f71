"""Recording drift: the status of ModelProfiles and Events, of what ``drift`` finds."""

from __future__ import annotations

from collections.abc import Iterable

from tessera_core.api import Condition, ModelProfile, RuntimeNode
from tessera_core.api.meta import ConditionStatus
from tessera_core.api.modelprofile import Drift, ModelProfileStatus
from tessera_core.api.records import record
from tessera_operator.conditions import dated
from tessera_operator.drift import Change, Drifts
from tessera_operator.events import event
from tessera_operator.kinds import Document
from tessera_operator.variants import Uses
from tessera_operator.write import Writer

DRIFTED = "Drifted"
MANAGER = "tessera-operator-drift"
"""Of the fields that are written here: what is applied for a profile as it was measured, by the operator or by whoever
made it, neither takes these away nor is taken away by them."""


class Drifting:
    """Keeps ModelProfiles saying what batches take. Not thread-safe."""

    def __init__(self, writer: Writer, lasting_s: float) -> None:
        self._writer = writer
        self._drifts = Drifts(lasting_s)

    def keep(
        self,
        profiles: Iterable[ModelProfile],
        nodes: Iterable[RuntimeNode],
        uses: Uses,
        now_s: float,
        now: str,
    ) -> None:
        """Record what has changed for good. ``nodes``: those whose agents answer; ``uses``: variants that are in force;
        ``now``: RFC 3339.

        What could not be written is tried again in the next round.
        """
        for change in self._drifts.note(profiles, nodes, now_s, uses):
            condition = _condition(change, now)
            if self._writer.put(_document(change, condition, now), "status", MANAGER):
                self._drifts.written(change)
                slower = change.ratio is not None and change.ratio > 1
                found = event(
                    ModelProfile.KIND, change.profile.metadata, condition, now, warns=slower
                )
                self._writer.create(found)


def _condition(change: Change, now: str) -> Condition:
    if change.ratio is None:
        found = Condition(DRIFTED, ConditionStatus.FALSE, "AsMeasured")
    else:
        longer = change.ratio > 1
        where = "1 node" if change.nodes == 1 else f"{change.nodes} nodes"
        found = Condition(
            DRIFTED,
            ConditionStatus.TRUE,
            "BatchesTakeLonger" if longer else "BatchesTakeLess",
            f"{change.ratio:g} times as long as measured, on {where}"
            + ("; plans count with it" if longer else ""),
        )
    profile = change.profile
    return dated(found, profile.status.conditions, profile.metadata.generation, now)


def _document(change: Change, condition: Condition, now: str) -> Document:
    drift = Drift(change.ratio, now, change.nodes) if change.ratio is not None else None
    metadata = change.profile.metadata
    status = record(ModelProfileStatus).encode(
        ModelProfileStatus(conditions=(condition,), drift=drift)
    )
    return {
        "apiVersion": "tessera.dev/v1alpha1",
        "kind": ModelProfile.KIND,
        "metadata": {"name": metadata.name, "namespace": metadata.namespace},
        "status": status,
    }
