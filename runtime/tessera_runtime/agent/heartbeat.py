"""The agent's sign of life: a Lease that it renews, for ever."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime

from tessera_runtime.kube import Kube, KubeError

log = logging.getLogger(__name__)

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
