"""Which nodes are lost: nobody renewed their Lease for a while. Time is an argument.

Clocks of machines differ, so what counts is for how long a Lease did not change by the operator's own clock. While
the operator could not look, nobody is to blame: the agents could not reach the API server either.
"""

from __future__ import annotations

from collections.abc import Mapping

PREFIX = "tessera-node-"
"""Of the name of a node's Lease."""


class Heartbeats:
    """Leases as they were seen. Not thread-safe."""

    def __init__(self, lost_after_s: float) -> None:
        self._lost_after_s = lost_after_s
        self._seen: dict[str, tuple[str, float]] = {}
        self._looked_s: float | None = None

    def look(self, renewals: Mapping[str, str], now_s: float) -> None:
        """``renewals``: by node, what its Lease says of its last renewal."""
        blind = self._looked_s is not None and now_s - self._looked_s > self._lost_after_s / 2
        self._looked_s = now_s
        self._seen = {
            node: (renewed, known[1])
            if not blind and (known := self._seen.get(node)) is not None and known[0] == renewed
            else (renewed, now_s)
            for node, renewed in renewals.items()
        }

    def lost(self, now_s: float) -> frozenset[str]:
        """Nodes that had a Lease and did not renew it. One that never had one is not known to have lived."""
        return frozenset(
            node
            for node, (_, since_s) in self._seen.items()
            if now_s - since_s >= self._lost_after_s
            and now_s - (self._looked_s or now_s) < 1 + self._lost_after_s / 2
        )


def renewals(leases: list[dict[str, object]]) -> dict[str, str]:
    """By node, from Lease documents; Leases of others are left out."""
    found = {}
    for lease in leases:
        metadata, spec = lease.get("metadata"), lease.get("spec")
        if not isinstance(metadata, Mapping) or not isinstance(spec, Mapping):
            continue
        name = str(metadata.get("name", ""))
        if name.startswith(PREFIX):
            found[name.removeprefix(PREFIX)] = str(spec.get("renewTime", ""))
    return found
