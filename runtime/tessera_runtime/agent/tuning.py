"""Carries out the tuning tasks: one variant at a time on each slice, several slices at once, beside whatever is served."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Callable
from functools import partial

from tessera_core.api import RuntimeNode
from tessera_core.api.measurements import TuningResult
from tessera_core.api.tuning import Outcome
from tessera_runtime.agent.measure import BUILD_S
from tessera_runtime.agent.models import Models
from tessera_runtime.agent.serving import Serving
from tessera_runtime.agent.translate import Site, candidate_sources
from tessera_runtime.agent.tune import (
    Key,
    Trial,
    asked,
    failed,
    kept,
    next_trials,
    outcome_of,
    results,
    still_asked,
)
from tessera_runtime.control import ControlClient, ControlError, ServerGone

log = logging.getLogger(__name__)

LOOK_S = 0.5
"""Between two looks: what is taken back is to end soon."""
TIMEOUT_S = BUILD_S + 600.0
"""Of one variant: building it, and measuring it on all shares."""
MOST_ATTEMPTS = 2
"""At one variant, when the server ends or is silent meanwhile."""


class Tuning:
    """Tuning on one node."""

    def __init__(
        self,
        socket: str,
        serving: Serving,
        models: Models,
        site: Callable[[], Site],
        changed: Callable[[], None],
    ) -> None:
        """As :class:`tessera_runtime.agent.measuring.Measuring` has them."""
        self._socket = socket
        self._serving = serving
        self._models = models
        self._site = site
        self._changed = changed
        self._under_way: dict[Key, asyncio.Task[None]] = {}
        self._attempts: Counter[Key] = Counter()

    async def run(self) -> None:
        """For ever. Cancelled, it ends what is under way."""
        try:
            while True:
                node = self._serving.node
                if node is not None:
                    self._look(node)
                await asyncio.sleep(LOOK_S)
        finally:
            for task in self._under_way.values():
                task.cancel()
            await asyncio.gather(*self._under_way.values(), return_exceptions=True)

    def results(self) -> tuple[TuningResult, ...]:
        """What became of the tasks so far."""
        node, models = self._serving.node, self._models
        if node is None:
            return ()
        sources = candidate_sources(node).values()
        problems = {source: models.problem(source) for source in sources}
        tried = still_asked(node, self._serving.kept.tried)
        return results(node, tried, self._under_way, models.found, problems, self._site())

    def _look(self, node: RuntimeNode) -> None:
        """End what is no longer asked for, begin what can be."""
        wanted = asked(node)
        tried = still_asked(node, self._serving.kept.tried)
        self._serving.keep_tried(tried)
        for key, task in self._under_way.items():
            if key not in wanted:
                task.cancel()  # which closes its connection, whereupon the server ends it
        if not self._serving.answers:
            return
        busy = [key[2:4] for key in self._under_way]
        for trial in next_trials(node, tried, self._models.found, self._site(), busy):
            task = asyncio.create_task(self._try(trial), name=f"tuning {trial.key}")
            self._under_way[trial.key] = task
            task.add_done_callback(partial(self._ended, trial.key))
            self._changed()

    def _ended(self, key: Key, _: asyncio.Task[None]) -> None:
        del self._under_way[key]
        self._changed()

    async def _try(self, trial: Trial) -> None:
        service, member, _, piece, variant = trial.key
        log.info("trying %s of %s/%s on %s", variant, service, member, piece)
        control = ControlClient(self._socket)
        outcome: Outcome
        try:
            outcome = outcome_of(await control.tune(trial.request, TIMEOUT_S), trial.request)
        except ControlError as error:
            self._attempts[trial.key] += 1
            if isinstance(error, ServerGone) and self._attempts[trial.key] < MOST_ATTEMPTS:
                log.warning("trying %s: %s", variant, error)
                return
            outcome = failed(variant, str(error))
        finally:
            await control.close()
        del self._attempts[trial.key]
        log.info("%s: %s, %s", variant, outcome.verdict.value, outcome.message)
        self._serving.keep_tried((*self._serving.kept.tried, kept(trial, outcome)))
