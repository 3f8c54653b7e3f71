"""The dispatcher: what is wanted, what is served, and the way of a request into it.

Applying a target never takes anything away from a client: a new version is loaded beside the old one and
takes over when all its instances are warm; the old one then finishes what it accepted and is let go.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Coroutine, Iterator, Mapping
from itertools import count
from pathlib import Path
from typing import Any

from tessera_runtime.artefacts import ArtefactStore
from tessera_runtime.dataplane import (
    Done,
    InferCall,
    Keys,
    MemberCall,
    ModelMetadata,
    ModelStatistics,
    RepositoryEntry,
    Ticket,
)
from tessera_runtime.dispatch.access import Gates
from tessera_runtime.dispatch.arena import ArenaSlot, InputArena
from tessera_runtime.dispatch.deadlines import Deadlines
from tessera_runtime.dispatch.fleet import Fleet, InstanceKey
from tessera_runtime.dispatch.hold import Holds
from tessera_runtime.dispatch.instances import DRAIN_TIMEOUT_S, Instance, Timeouts
from tessera_runtime.dispatch.member_calls import MemberCalls
from tessera_runtime.dispatch.names import meant, named_member, named_version
from tessera_runtime.dispatch.peers import Channels
from tessera_runtime.dispatch.processes import Workers
from tessera_runtime.dispatch.report import (
    model_statistics,
    repository_entry,
    server_report,
    service_problem,
)
from tessera_runtime.dispatch.request import Request
from tessera_runtime.dispatch.routes import Routes
from tessera_runtime.dispatch.service import Service
from tessera_runtime.dispatch.signatures import learn
from tessera_runtime.dispatch.waiting import eventually
from tessera_runtime.dispatch.wanted import check_devices, has_place, same_models
from tessera_runtime.dispatch.workers import Worker, WorkerPool
from tessera_runtime.errors import NotFound, ServeError, Unavailable
from tessera_runtime.target import DeviceTarget, Ports, ServerReport, ServerTarget, ServiceTarget

log = logging.getLogger(__name__)

LOAD_TIMEOUT_S = 300.0
"""Most that a client's load request waits for the model to become ready."""


class Dispatcher:
    """Implements :class:`tessera_runtime.dataplane.DataPlane`. Lives on one event loop."""

    def __init__(
        self,
        arena: InputArena,
        pool: WorkerPool,
        artefacts: ArtefactStore,
        *,
        timeouts: Timeouts,
        plain_names: bool,
        hold_s: float = 300.0,
        channels: Channels | None = None,
        mps_root: Path | None = None,
    ) -> None:
        """``hold_s``: most that a request may wait for the first instance or peer of its service.
        ``mps_root``: as in :class:`~tessera_runtime.dispatch.mps.MpsServers`.

        ``plain_names``: whether ``digits`` may be said for ``vision.digits`` where it is unambiguous.
        In a cluster it may not: the namespace would be guessed.
        """
        self.arena = arena
        self.workers = Workers(pool, mps_root)
        self.target = ServerTarget()
        self.ports = Ports()
        self.serving: dict[str, Service] = {}
        self.starting: dict[str, Service] = {}
        """Next versions that are being loaded, by name."""
        self.fleets: dict[Service, Fleet] = {}
        """Of all versions that are being loaded, serve, or finish what they have."""
        self._fleet_numbers = count()
        self._routes: dict[Service, dict[int, Routes]] = {}
        """By member index, of members that have or had peers."""
        self.holds = Holds(self.serving.get, self._submit_held, hold_s)
        self.gates = Gates()
        self.unloaded: set[str] = set()
        """Models that a client has asked to unload."""
        self._channels = channels or Channels()
        self._deadlines = Deadlines()
        self._artefacts = artefacts
        self._timeouts = timeouts
        self._plain_names = plain_names
        self._tasks: set[asyncio.Task[None]] = set()
        self.draining = False
        """Whether the process was told to end."""
        self._told = False
        """Whether anybody has said what is wanted: before, there is nothing to be ready with."""

    # What is wanted

    def apply(self, target: ServerTarget, keys: Mapping[str, Keys]) -> None:
        """Work towards ``target``. Returns at once; :meth:`report` tells how far it has come. ``keys``: those of
        services that need one, where they are known; the others keep what they were given before.

        Raises KeyError for an instance on a device that ``target`` does not have; nothing changes then.
        """
        check_devices(target)
        self._told = True
        self.target = target
        wanted = {service.name: service for service in target.services}
        needed = {name: service.needs_key for name, service in wanted.items()}
        self.gates.set(needed, {service.name for service in self.fleets}, keys)
        for name, service_target in wanted.items():
            self._want(name, service_target)
        for name in {*self.serving, *self.starting} - set(wanted):
            for services in (self.starting, self.serving):
                if name in services:
                    self._retire(services.pop(name))
            self.holds.forget(name)
        self.unloaded &= set(wanted)

    def report(self) -> ServerReport:
        return server_report(self, time.monotonic())

    def running(self) -> Iterator[tuple[Service, InstanceKey, Instance]]:
        """All instances: those that are wanted, and those that are leaving."""
        for service, fleet in self.fleets.items():
            for key, instance in fleet:
                yield service, key, instance

    def wanted_of(self, service: Service) -> Mapping[InstanceKey, Instance]:
        """The instances that ``service`` is to have."""
        fleet = self.fleets.get(service)
        return fleet.wanted if fleet is not None else {}

    def stop_advertising(self) -> None:
        """Say not ready from now on, and keep answering: who balances load needs time to look away."""
        self.draining = True

    async def drain(self, timeout_s: float) -> None:
        """Return when everything accepted is answered, or after ``timeout_s``."""
        await eventually(lambda: not any(s.in_flight for s in self.fleets), timeout_s)

    async def close(self) -> None:
        """End all instances without waiting for work."""
        for task in self._tasks:
            task.cancel()
        running = [instance for fleet in self.fleets.values() for instance in fleet.disband()]
        await asyncio.gather(*(instance.stop(drain=False) for instance in running))
        self.fleets.clear()
        await self.workers.mps.close()
        await self._channels.close()

    def _want(self, name: str, target: ServiceTarget) -> None:
        current = self.starting.get(name) or self.serving.get(name)
        if current is not None and same_models(current.target, target):
            current.retarget(target)
            self._arrange(current)
            if self.serving.get(name) is current:
                return
        elif current is None:
            current = self.serving[name] = Service(target, self._deadlines, self.allocate)
            self._arrange(current)
        else:
            if name in self.starting:
                self._retire(self.starting.pop(name))
            if name in self.serving and same_models(self.serving[name].target, target):
                self.serving[name].retarget(target)  # back to what is served: nothing to load
                self._arrange(self.serving[name])
                return
            current = self.starting[name] = Service(target, self._deadlines, self.allocate)
            self._arrange(current)
        self._promote(current)

    def _arrange(self, service: Service) -> None:
        """Have exactly the wanted peers and instances."""
        self._route(service)
        self._scale(service)

    def _route(self, service: Service) -> None:
        routes = self._routes.setdefault(service, {})
        for index, (member, target) in enumerate(
            zip(service.members, service.target.members, strict=True)
        ):
            if target.peers and index not in routes:
                routes[index] = Routes(
                    service,
                    index,
                    self._channels,
                    self.gates.presented,
                    learn,
                    self._place_ready,
                )
            if index in routes:
                routes[index].set(target.peers)
            member.routes = routes[index] if target.peers else None

    def _scale(self, service: Service) -> None:
        if service not in self.fleets:
            number = next(self._fleet_numbers)
            self.fleets[service] = Fleet(service, number, self._start, self._timeouts, self._run)
        devices = {device.id: device for device in self.target.devices}
        self.fleets[service].scale(devices, service.name not in self.unloaded)

    def _start(
        self,
        service: Service,
        index: int,
        device: DeviceTarget,
        variant: str,
        company: str | None,
    ) -> Instance:
        return Instance(
            service,
            index,
            device,
            variant,
            company,
            self.workers,
            self._artefacts,
            self._timeouts,
            learn,
            self._place_ready,
        )

    def replace(self, worker: Worker) -> None:
        """Have all instances of a process leave it: to be said again until it has ended."""
        worker.retired = True
        for fleet in self.fleets.values():
            fleet.replace(worker)

    def _place_ready(self, service: Service) -> None:
        """An instance or a peer of ``service`` takes work from now on."""
        self._promote(service)
        if service in self.fleets:
            self.fleets[service].settle()
        self.holds.release_soon(service.name)

    def _promote(self, service: Service) -> None:
        """A version takes over from the one that serves when all its instances are warm and every required
        member has an instance or a peer; at once, when nothing is wanted to serve it.
        """
        name = service.name
        if self.starting.get(name) is not service:
            return
        warm = service.ready and self.fleets[service].warm
        if warm or not has_place(service.target):
            del self.starting[name]
            old = self.serving.get(name)
            self.serving[name] = service
            log.info("%s: version %s takes over", name, service.version)
            if old is not None:
                self._retire(old)

    def _retire(self, service: Service) -> None:
        self._run(self._let_go(service))

    async def _let_go(self, service: Service) -> None:
        """Finish what ``service`` has accepted, then end its instances.

        Peers change versions at moments of their own: they are answered until they stop calling.
        """
        await eventually(
            lambda: not service.in_flight and not service.called_lately, DRAIN_TIMEOUT_S
        )
        fleet = self.fleets.pop(service, None)
        instances = fleet.disband() if fleet is not None else []
        for index, routes in self._routes.pop(service, {}).items():
            routes.set(())
            service.members[index].routes = None
        await asyncio.gather(*(instance.stop(drain=True) for instance in instances))

    def _run(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    # DataPlane

    def allocate(self, nbytes: int) -> ArenaSlot:
        return self.arena.allocate(nbytes)

    def submit(self, call: InferCall, done: Done) -> Ticket:
        try:
            if call.part is not None:
                calls = self._called(call.model, call.part)
            else:
                service = self._service(call.model, call.version)
                if call.model in self.unloaded:
                    raise Unavailable(f"model {call.model} is unloaded")
                if service.target.hold and (not service.ready or self.holds.waiting(service.name)):
                    return self.holds.add(call, done, service.target.hold)
        except ServeError:
            for slot in call.slots:
                slot.release()
            raise
        return calls.submit(call, done) if call.part is not None else service.submit(call, done)

    def _submit_held(self, call: InferCall, done: Done, since: float) -> Request:
        try:
            service = self._service(call.model, call.version)
        except NotFound:
            for slot in call.slots:
                slot.release()
            raise
        return service.submit(call, done, since)

    def resolve(self, name: str, host: str, keys: Keys) -> str:
        served = meant(name, host, self.serving, plain_names=self._plain_names)
        self.gates.check(served, keys)
        return served

    def live(self) -> bool:
        return True

    def ready(self) -> bool:
        wanted = (s for name, s in self.serving.items() if name not in self.unloaded)
        return self._told and not self.draining and all(map(_takes_requests, wanted))

    def model_ready(self, model: str, version: str) -> bool:
        return _takes_requests(self._service(model, version))

    def metadata(self, model: str, version: str) -> ModelMetadata:
        metadata = self._service(model, version).metadata
        if metadata is None:
            raise Unavailable(f"model {model} is still being loaded")
        return metadata

    def member_metadata(self, model: str, part: MemberCall) -> ModelMetadata:
        return self._called(model, part).metadata()

    def queued_rows(self, model: str, part: MemberCall) -> int:
        try:
            return self._called(model, part).queued_rows
        except Unavailable:
            return 0

    def statistics(self, model: str, version: str, keys: Keys) -> tuple[ModelStatistics, ...]:
        services = [self._service(model, version)] if model else self._open_to(keys)
        return tuple(model_statistics(service) for service in services)

    def repository(self, keys: Keys) -> tuple[RepositoryEntry, ...]:
        return tuple(repository_entry(self, service) for service in self._open_to(keys))

    def _open_to(self, keys: Keys) -> list[Service]:
        return [each for name, each in self.serving.items() if self.gates.open_to(name, keys)]

    async def load(self, model: str) -> None:
        service = self._service(model, "")
        self.unloaded.discard(model)
        for version in (service, self.starting.get(model)):
            if version is not None:
                self._arrange(version)
        settled = await eventually(
            lambda: service.ready or bool(service_problem(self, service)), LOAD_TIMEOUT_S
        )
        if not service.ready:
            problem = service_problem(self, service) if settled else "it takes too long"
            raise Unavailable(f"model {model} cannot be loaded: {problem}")

    async def unload(self, model: str) -> None:
        service = self._service(model, "")
        self.unloaded.add(model)
        await eventually(lambda: not service.in_flight, DRAIN_TIMEOUT_S)
        self._scale(service)

    def _service(self, model: str, version: str) -> Service:
        if not self._told:
            raise Unavailable("the server has just started and does not know yet what it serves")
        return named_version(self.serving, model, version)

    def _called(self, model: str, part: MemberCall) -> MemberCalls:
        return named_member(self._versions(model), model, part)

    def _versions(self, model: str) -> Iterator[Service]:
        """The one that serves first."""
        if model in self.serving:
            yield self.serving[model]
        for service in self.fleets:
            if service.name == model:
                yield service


def _takes_requests(service: Service) -> bool:
    return service.ready or service.target.hold > 0
