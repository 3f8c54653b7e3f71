"""Hearing of a RuntimeNode: what a process on its node learns from the API server, for as long as it runs.

It goes on for ever, and waits between failures with growing pauses.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable

from tessera_runtime.kube import Document, Expired, Kube, KubeError
from tessera_runtime.waits import pause_s

log = logging.getLogger(__name__)

FIRST_PAUSE_S = 0.2
MOST_PAUSE_S = 30.0
SHORT_WATCH_S = 5.0
"""A watch that ends sooner counts as a failure, however it ended."""


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
