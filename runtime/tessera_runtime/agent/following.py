"""The agent's two standing conversations with the API server: hearing of its RuntimeNode, and being alive.

Both go on for ever, wait for answers with bounds and between failures with growing pauses.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime

from tessera_runtime.agent.kube import Document, Expired, Kube, KubeError
from tessera_runtime.agent.waits import pause_s

log = logging.getLogger(__name__)

FIRST_PAUSE_S = 0.2
MOST_PAUSE_S = 30.0
SHORT_WATCH_S = 5.0
"""A watch that ends sooner counts as a failure, however it ended."""

HEARTBEAT_S = 10.0
LEASE_S = 40
"""After which a node that was not heard of counts as lost."""


@dataclass(frozen=True, slots=True)
class Identity:
    """Who this agent is."""

    node: str
    """Name of its RuntimeNode."""
    pod: str
    address: str
    namespace: str


class Follower:
    """Hears of every change of one RuntimeNode, across ends of the watch, failures and deletion."""

    def __init__(self, kube: Kube, node: str, hear: Callable[[Document | None], None]) -> None:
        """``hear`` is given the object as it is after each change; None while there is none."""
        self._kube = kube
        self._node = node
        self._hear = hear
        self._anew = asyncio.Event()

    def read_again(self) -> None:
        """The connection may be dead without anybody having said so."""
        self._anew.set()

    async def run(self) -> None:
        failures = 0
        while True:
            started, asked_s = time.monotonic(), None
            self._anew.clear()
            try:
                await self._watch()
            except Expired:
                log.info("the watch is too old: reading the RuntimeNode again")
            except KubeError as error:
                asked_s = error.retry_after_s
                log.warning("following the RuntimeNode: %s", error)
            short = time.monotonic() - started < SHORT_WATCH_S
            failures = failures + 1 if short else 0
            await asyncio.sleep(pause_s(failures, FIRST_PAUSE_S, MOST_PAUSE_S, asked_s))

    async def _watch(self) -> None:
        """Read and watch, until the watch ends or is to begin anew. Raises KubeError."""
        found = await self._kube.node(self._node)
        self._hear(found)
        listening = asyncio.create_task(self._listen(found))
        anew = asyncio.create_task(self._anew.wait())
        try:
            await asyncio.wait({listening, anew}, return_when=asyncio.FIRST_COMPLETED)
            if listening.done():
                listening.result()
        finally:
            for task in (listening, anew):
                task.cancel()
            await asyncio.gather(listening, anew, return_exceptions=True)

    async def _listen(self, found: Document | None) -> None:
        version = str(found["metadata"]["resourceVersion"]) if found is not None else ""
        async for changed in self._kube.watch_node(self._node, version):
            self._hear(changed)


async def beat(kube: Kube, who: Identity, back: Callable[[], None]) -> None:
    """Renew the Lease of the node for ever; ``back`` is called when the API server answers after it did not."""
    failed = False
    while True:
        started = time.monotonic()
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        try:
            await kube.renew(who.namespace, f"tessera-node-{who.node}", who.pod, LEASE_S, now)
            if failed:
                back()
            failed = False
        except KubeError as error:
            failed = True
            log.warning("renewing the Lease: %s", error)
        await asyncio.sleep(max(1.0, HEARTBEAT_S - (time.monotonic() - started)))
