"""Carries out the profiling tasks, one at a time, beside whatever is served."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Callable

from tessera_runtime.agent.measure import BUILD_S, PROFILE_TIMEOUT_S, why_not
from tessera_runtime.agent.models import Models
from tessera_runtime.agent.profiling import (
    Job,
    Key,
    measured_result,
    next_job,
    still_asked,
    task_key,
)
from tessera_runtime.agent.serving import Serving
from tessera_runtime.agent.translate import Site
from tessera_runtime.control import ControlClient, ControlError, ServerGone

log = logging.getLogger(__name__)

LOOK_S = 1.0
"""Between two looks at whether there is a task."""

MOST_ATTEMPTS = 3
"""At one task, when the server ends or is silent meanwhile."""


class Measuring:
    """Profiling on one node."""

    def __init__(
        self,
        socket: str,
        serving: Serving,
        models: Models,
        site: Callable[[], Site],
        changed: Callable[[], None],
    ) -> None:
        """``changed`` is called when there is a result. ``site``: as of now. ``socket``: path of the server's control
        socket.
        """
        self._socket = socket
        self._serving = serving
        self._models = models
        self._site = site
        self._changed = changed
        self._attempts: Counter[Key] = Counter()

    async def run(self) -> None:
        """For ever."""
        while True:
            node, kept = self._serving.node, self._serving.kept
            if node is not None and self._serving.answers:
                measured = still_asked(node, kept.measured)
                self._serving.keep_measured(measured)
                job = next_job(node, measured, self._models.found, self._site())
                if job is not None:
                    await self._carry_out(job)
            await asyncio.sleep(LOOK_S)

    async def _carry_out(self, job: Job) -> None:
        key = task_key(job.task)
        log.info("measuring %s/%s on %s", job.task.service, job.task.member, job.task.slice)
        control = ControlClient(self._socket)  # the other one goes on asking for reports
        report, problem = None, ""
        try:
            if job.build is not None:
                problem = why_not(await control.tune(job.build, BUILD_S), job.build.tolerance)
            if not problem:
                report = await control.profile(job.request, PROFILE_TIMEOUT_S)
        except ControlError as error:
            problem = str(error)
            self._attempts[key] += 1
            if isinstance(error, ServerGone) and self._attempts[key] < MOST_ATTEMPTS:
                log.warning("measuring: %s", error)
                return
        finally:
            await control.close()
        del self._attempts[key]
        result = measured_result(job, report, problem, self._site().driver)
        self._serving.keep_measured((*self._serving.kept.measured, result))
        self._changed()
