"""Writes the status of the RuntimeNode when it is due, and not again while it is the same."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime

from tessera_core.api import Condition, RuntimeNode, RuntimeNodeStatus, SpecInvalid
from tessera_core.api.records import record
from tessera_runtime.agent.node_status import due
from tessera_runtime.kube import Document, Kube, KubeError
from tessera_runtime.waits import pause_s, set_within

log = logging.getLogger(__name__)

LOOK_S = 1.0
"""Between two looks at whether something is due."""

MOST_PAUSE_S = 30.0

Make = Callable[[Sequence[Condition], str], RuntimeNodeStatus]
"""The status as of now, of the conditions that were written last and the time (RFC 3339)."""


class Publisher:
    """Knows what the API server has been told."""

    def __init__(self, kube: Kube, node: str, make: Make, counters_s: Callable[[], float]) -> None:
        """``counters_s``: seconds between two writes that only counters have caused, as of now."""
        self._kube = kube
        self._node = node
        self._make = make
        self._counters_s = counters_s
        self._exists = False
        self._written: RuntimeNodeStatus | None = None
        self._written_s = 0.0
        self._changed = asyncio.Event()
        self._writing = asyncio.Lock()

    def look(self) -> None:
        """Something may have changed."""
        self._changed.set()

    def hear(self, document: Document | None) -> None:
        """The object as it is now: there is nothing to write to without one, and an agent that was restarted
        finds there what the one before it had written.
        """
        if document is None:
            self._exists = False
        elif not self._exists:
            self._exists = True
            self._written = _status(document)
            self._changed.set()

    async def run(self) -> None:
        """Write whatever is due, for ever."""
        failures = 0
        while True:
            self._changed.clear()
            try:
                await self.write()
                failures = 0
            except KubeError as error:
                failures += 1
                log.warning("writing the status: %s", error)
                await asyncio.sleep(pause_s(failures, LOOK_S, MOST_PAUSE_S, error.retry_after_s))
            await set_within(self._changed, LOOK_S)

    async def write(self) -> None:
        """Write the status if it is due. Raises KubeError."""
        async with self._writing:
            now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
            before = self._written.conditions if self._written is not None else ()
            status = self._make(before, now)
            since_s = time.monotonic() - self._written_s
            if self._exists and due(self._written, status, since_s, self._counters_s()):
                await self._kube.write_status(self._node, record(RuntimeNodeStatus).encode(status))
                self._written, self._written_s = status, time.monotonic()


def _status(document: Document) -> RuntimeNodeStatus | None:
    """The status that an agent has written; None where it cannot be read. Taints are the operator's, cuts the
    partitioner's, and the spec is of no interest.
    """
    status = {**(document.get("status") or {}), "taints": [], "cuts": []}
    try:
        whole = {**document, "spec": {"epoch": 0}, "status": status}
        return RuntimeNode.from_dict(whole, strict=False).status
    except SpecInvalid:
        return None
