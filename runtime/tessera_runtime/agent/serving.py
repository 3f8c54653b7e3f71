"""Brings the server to what is wanted: asks what it does, tells what is new.

The server is asked every second. One that did not answer is told everything again when it does: it may be a
new one. What it was told is kept on disk, so that it can be told again by an agent that was restarted, also
without an API server.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from pathlib import Path

import msgspec

from tessera_core.api import RuntimeNode
from tessera_runtime.agent.kept import Fallback, Kept, Measured, Tried, read_kept, write_kept
from tessera_runtime.agent.keys import ServiceKeys
from tessera_runtime.agent.models import Models
from tessera_runtime.agent.observe import kind_of
from tessera_runtime.agent.orders import Order, judge
from tessera_runtime.agent.places import Profiles
from tessera_runtime.agent.steering import Corrected, Steering, told_profiles
from tessera_runtime.agent.translate import (
    LocalModel,
    ModelKey,
    Site,
    candidate_sources,
    key_sources,
    model_sources,
    server_target,
)
from tessera_runtime.agent.variants import Built, Ordered, as_run, fallen, next_build
from tessera_runtime.control import ControlClient, ControlError, ServerGone
from tessera_runtime.kube import Document
from tessera_runtime.target import ServerReport, ServerTarget, TuneRequest
from tessera_runtime.waits import set_within

log = logging.getLogger(__name__)

POLL_S = 1.0
FAST_POLL_S = 0.2
"""While something is still starting: somebody waits for it."""


class Serving:
    """What is wanted, what the server was told, and what it says."""

    def __init__(
        self,
        control: ControlClient,
        models: Models,
        keys: ServiceKeys,
        site: Callable[[], Site],
        state_dir: Path,
        changed: Callable[[], None],
        steering: Steering | None = None,
    ) -> None:
        """``site``: as of now. ``changed`` is called after every look at the server. ``steering``: None where nothing is
        placed.
        """
        self.order: Order | None = None
        """The last word of the operator; None until it was heard."""
        self.node: RuntimeNode | None = None
        """What is carried out: the last order that was not refused."""
        self.report: ServerReport | None = None
        """The last one that the server gave."""
        self.answers = False
        self.refusal = ""
        """What the server says against its target."""
        self.problems: Mapping[str, str] = {}
        """By served name: why a service is not as wanted."""
        self.settled = asyncio.Event()
        """Set once an order was heard and every model and key that it needs was found or has failed."""
        self.kept = read_kept(state_dir)
        self._control = control
        self._models = models
        self._keys = keys
        self._site = site
        self._state_dir = state_dir
        self._changed = changed
        self._steering = steering
        self._built: set[Built] = set()
        """Variants that were built, or found to be, since this agent started."""
        self._profiles: Profiles = {}
        """What the operator says that batches take."""
        self._sent: ServerTarget | None = None
        """What the server was told last: what is kept, with what was set since."""
        self._heard: object = None
        self._told = False
        """Whether the server that answers now knows the target that was kept."""
        self._told_keys: Mapping[str, tuple[str, ...]] = {}
        """What it was given last. Never kept on disk: a server that is new too is closed until they are read again."""
        self._wake = asyncio.Event()
        self._hold()

    def hear(self, document: Document | None) -> None:
        """Take over the RuntimeNode as it is now; while there is none, what was wanted last stays."""
        if document is None:
            return
        metadata = document["metadata"]
        version = (metadata.get("uid"), metadata.get("generation"))
        if version == self._heard:
            return  # only the status has changed
        self._heard = version
        self.order = judge(document, self.kept.epoch)
        if self.order.node is None:
            log.error("the spec is refused: %s", self.order.message)
        else:
            self.node = self.order.node
            self._profiles = told_profiles(self.node)
            sources = model_sources(self.node), candidate_sources(self.node)
            self._models.want({each for found in sources for each in found.values()})
            # Those of services that cannot be read stay as they are, as the services do.
            known = self._keys.wanted
            staying = {name: known[name] for name in self.order.problems if name in known}
            self._keys.want({**staying, **key_sources(self.node)})
        self.wake()

    def wake(self) -> None:
        """Do not wait for the next look."""
        self._wake.set()

    def keep_measured(self, measured: tuple[Measured, ...]) -> None:
        """Keep exactly these results."""
        self._keep(msgspec.structs.replace(self.kept, measured=measured))

    def next_build(self) -> tuple[Ordered, TuneRequest] | None:
        """What has to be built for what is ordered."""
        if self.node is None:
            return None
        site = self._site()
        found = self._found(self.node)
        return next_build(
            self.node, kind_of(site.seen), self.kept.fallbacks, self._built, found, site
        )

    def note_built(self, built: Built) -> None:
        """It may be run from now on."""
        self._built.add(built)
        self.wake()

    def fall_back(self, fallback: Fallback) -> None:
        """Do not run it."""
        self._keep_fallbacks((*self.kept.fallbacks, fallback))
        self.wake()

    def _keep_fallbacks(self, fallbacks: tuple[Fallback, ...]) -> None:
        for each in fallbacks:
            if each not in self.kept.fallbacks:
                log.error(
                    "%s/%s runs untuned instead of %s: %s",
                    *(each.service, each.member, each.variant, each.reason),
                )
        self._keep(msgspec.structs.replace(self.kept, fallbacks=fallbacks))

    def keep_tried(self, tried: tuple[Tried, ...]) -> None:
        """Keep exactly these outcomes."""
        self._keep(msgspec.structs.replace(self.kept, tried=tried))

    async def run(self) -> None:
        """For ever: bring the server to what is wanted, and know what it does."""
        while True:
            self._wake.clear()
            try:
                await self._reconcile()
                self.refusal = ""
            except ServerGone as error:
                if self.answers:
                    log.warning("%s", error)
                self.answers = self._told = False
            except ControlError as error:
                if self.refusal != str(error):
                    log.error("the server refuses its target: %s", error)
                self.refusal = str(error)
            self._changed()
            quiet = self.answers and self.report is not None and self.report.ready
            await set_within(self._wake, POLL_S if quiet else FAST_POLL_S)

    async def _reconcile(self) -> None:
        """Ask, and tell what is new. Raises ControlError."""
        self.report = await self._control.report()
        self.answers = True
        target, generation = self.kept.target, self.kept.generation
        if self.node is not None and self.order is not None:
            wanted, waiting = self._wanted(self.node, self.order), self._waiting(self.node)
            if not waiting:
                self.settled.set()
            if target is None and self._would_drop(wanted, waiting, self.report):
                return
            target, generation = wanted, self.node.metadata.generation
        if target is None:
            return
        keys = self._keys.known()
        steered = await self._steered(target, self.report)
        if not self._told or steered != self._sent or keys != self._told_keys:
            await self._control.apply(steered, keys)
            self._told, self._sent, self._told_keys = True, steered, keys
            self.report = await self._control.report()
        epoch = max(self.kept.epoch, target.epoch)
        self._keep(
            msgspec.structs.replace(self.kept, epoch=epoch, generation=generation, target=target)
        )
        self._hold()

    def corrections(self) -> tuple[Corrected, ...]:
        """What batches take here over what the operator says."""
        return self._steering.corrections() if self._steering is not None else ()

    async def _steered(self, target: ServerTarget, report: ServerReport) -> ServerTarget:
        if self._steering is None:
            return target
        # Deciding takes as long as hundreds of reports where the queue model is asked something new.
        return await asyncio.to_thread(self._steering.look, target, report, self._profiles)

    def _wanted(self, node: RuntimeNode, order: Order) -> ServerTarget:
        """The target that follows from what is wanted, from the models that are here and from the variants that may be run."""
        site, before = self._site(), self.kept.target or ServerTarget()
        kind = kind_of(site.seen)
        fallbacks = fallen(node, kind, self.report, self.kept.fallbacks)
        self._keep_fallbacks(fallbacks)
        translated = server_target(
            as_run(node, kind, fallbacks, self._built, before),
            self._found(node),
            site,
            before,
            unread=order.problems.keys(),
            without_keys=self._keys.unread(),
        )
        failed: dict[str, str] = {}
        for (service, member), source in model_sources(node).items():
            if problem := self._models.problem(source):
                failed.setdefault(service, f"{member}: {problem}")
        self.problems = {
            **failed,
            **self._keys.problems(),
            **translated.problems,
            **order.problems,
        }
        return translated.target

    def _found(self, node: RuntimeNode) -> dict[ModelKey, LocalModel]:
        found = {key: self._models.found(source) for key, source in model_sources(node).items()}
        return {key: model for key, model in found.items() if model is not None}

    def _waiting(self, node: RuntimeNode) -> frozenset[str]:
        """Services with a model that is being fetched, and has not failed, or with keys that are being read."""
        return self._keys.unread() | {
            service
            for (service, _), source in model_sources(node).items()
            if self._models.found(source) is None and not self._models.problem(source)
        }

    @staticmethod
    def _would_drop(target: ServerTarget, waiting: frozenset[str], report: ServerReport) -> bool:
        """Whether an agent that has lost its state would take away what its server runs and the spec wants,
        only because the models have not been found again yet.
        """
        told = {service.name for service in target.services}
        return any(each.name in waiting and each.name not in told for each in report.services)

    def _keep(self, kept: Kept) -> None:
        if kept == self.kept:
            return
        self.kept = kept
        try:
            write_kept(self._state_dir, kept)
        except OSError as error:
            log.error("the state cannot be kept: %s", error)

    def _hold(self) -> None:
        """Keep the files that the server was told of."""
        target = self.kept.target or ServerTarget()
        paths = {Path(m.path) for service in target.services for m in service.members if m.path}
        self._models.hold(paths)
