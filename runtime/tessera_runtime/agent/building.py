"""Builds the variants that this node is told to run and that are compiled, one at a time, before they are run."""

from __future__ import annotations

import asyncio
import logging

from tessera_runtime.agent.measure import BUILD_S, why_not
from tessera_runtime.agent.serving import Serving
from tessera_runtime.control import ControlClient, ControlError, ServerGone

log = logging.getLogger(__name__)

LOOK_S = 0.5
TIMEOUT_S = BUILD_S + 120.0
MOST_ATTEMPTS = 3
"""When the server ends or is silent meanwhile."""


class Building:
    """On one node."""

    def __init__(self, socket: str, serving: Serving) -> None:
        """``socket``: path of the server's control socket."""
        self._socket = socket
        self._serving = serving
        self._attempts = 0

    async def run(self) -> None:
        """For ever."""
        while True:
            if self._serving.answers:
                await self._build()
            await asyncio.sleep(LOOK_S)

    async def _build(self) -> None:
        found = self._serving.next_build()
        if found is None:
            return
        order, request = found
        what = f"{order.instance.variant} of {order.service}/{order.member}"
        log.info("building %s", what)
        control = ControlClient(self._socket)
        try:
            outcome = await control.tune(request, TIMEOUT_S)
            problem = why_not(outcome, request.tolerance)
        except ControlError as error:
            self._attempts += 1
            if isinstance(error, ServerGone) and self._attempts < MOST_ATTEMPTS:
                log.warning("building %s: %s", what, error)
                return
            problem = str(error)
        finally:
            await control.close()
        self._attempts = 0
        if problem:
            log.error("%s is not run here: %s", what, problem)
            self._serving.fall_back(order.fallback(f"it could not be built here: {problem}"))
        else:
            self._serving.note_built(order.built)
