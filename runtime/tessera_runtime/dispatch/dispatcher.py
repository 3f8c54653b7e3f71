"""The dispatcher: what is wanted, what is served, and the way of a request into it.

Applying a target never takes anything away from a client: a new version is loaded beside the old one and
takes over when all its instances are warm; the old one then finishes what it accepted and is let go.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Coroutine
from typing import Any

from tessera_core.ensemble.metadata import CombineError
from tessera_runtime.dataplane import (
    Done,
    InferCall,
    ModelMetadata,
    ModelStatistics,
    RepositoryEntry,
)
from tessera_runtime.dispatch.arena import ArenaSlot, InputArena
from tessera_runtime.dispatch.deadlines import Deadlines
from tessera_runtime.dispatch.instances import DRAIN_TIMEOUT_S, Instance, Timeouts, Workers
from tessera_runtime.dispatch.report import model_statistics, server_report, service_problem
from tessera_runtime.dispatch.request import Request
from tessera_runtime.dispatch.service import Service
from tessera_runtime.dispatch.signatures import Incompatible, publish
from tessera_runtime.dispatch.waiting import eventually
from tessera_runtime.dispatch.workers import WorkerPool
from tessera_runtime.errors import NotFound, ServeError, Unavailable
from tessera_runtime.target import DeviceTarget, Ports, ServerReport, ServerTarget, ServiceTarget
from tessera_runtime.worker import messages as m

log = logging.getLogger(__name__)

LOAD_TIMEOUT_S = 300.0
"""Most that a client's load request waits for the model to become ready."""

InstanceKey = tuple[int, str, int]
"""Member index, device, ordinal."""


class Dispatcher:
    """Implements :class:`tessera_runtime.dataplane.DataPlane`. Lives on one event loop."""

    def __init__(
        self, arena: InputArena, pool: WorkerPool, *, timeouts: Timeouts, plain_names: bool
    ) -> None:
        """``plain_names``: whether ``digits`` may be said for ``vision.digits`` where it is unambiguous.
        In a cluster it may not: the namespace would be guessed.
        """
        self.arena = arena
        self.workers = Workers(pool)
        self.target = ServerTarget()
        self.ports = Ports()
        self.serving: dict[str, Service] = {}
        self.starting: dict[str, Service] = {}
        """Next versions that are being loaded, by name."""
        self.instances: dict[Service, dict[InstanceKey, Instance]] = {}
        """Those that are wanted, of each service."""
        self._leaving: dict[Service, dict[InstanceKey, Instance]] = {}
        """Those that are not, and serve until the wanted ones of their member are warm."""
        self._signatures: dict[Service, dict[int, m.Loaded]] = {}
        self._unloaded: set[str] = set()
        """Models that a client has asked to unload."""
        self._deadlines = Deadlines()
        self._timeouts = timeouts
        self._plain_names = plain_names
        self._tasks: set[asyncio.Task[None]] = set()
        self._draining = False
        self._told = False
        """Whether anybody has said what is wanted: before, there is nothing to be ready with."""

    # What is wanted

    def apply(self, target: ServerTarget) -> None:
        """Work towards ``target``. Returns at once; :meth:`report` tells how far it has come.

        Raises KeyError for an instance on a device that ``target`` does not have; nothing changes then.
        """
        _check_devices(target)
        self._told = True
        self.target = target
        wanted = {service.name: service for service in target.services}
        for name, service_target in wanted.items():
            self._want(name, service_target)
        for name in {*self.serving, *self.starting} - set(wanted):
            for services in (self.starting, self.serving):
                if name in services:
                    self._retire(services.pop(name))
        self._unloaded &= set(wanted)

    def report(self) -> ServerReport:
        return server_report(self, time.monotonic())

    def stop_advertising(self) -> None:
        """Say not ready from now on, and keep answering: who balances load needs time to look away."""
        self._draining = True

    async def drain(self, timeout_s: float) -> None:
        """Return when everything accepted is answered, or after ``timeout_s``."""
        await eventually(lambda: not any(s.in_flight for s in self.instances), timeout_s)

    async def close(self) -> None:
        """End all instances without waiting for work."""
        for task in self._tasks:
            task.cancel()
        running = [
            instance
            for instances in (*self.instances.values(), *self._leaving.values())
            for instance in instances.values()
        ]
        await asyncio.gather(*(instance.stop(drain=False) for instance in running))
        self.instances.clear()
        self._leaving.clear()

    def _want(self, name: str, target: ServiceTarget) -> None:
        current = self.starting.get(name) or self.serving.get(name)
        if current is not None and _models(current.target) == _models(target):
            current.retarget(target)
            self._scale(current)
            if self.serving.get(name) is current:
                return
        elif current is None:
            current = self.serving[name] = Service(target, self._deadlines)
            self._scale(current)
        else:
            if name in self.starting:
                self._retire(self.starting.pop(name))
            if name in self.serving and _models(self.serving[name].target) == _models(target):
                self.serving[name].retarget(target)  # back to what is served: nothing to load
                self._scale(self.serving[name])
                return
            current = self.starting[name] = Service(target, self._deadlines)
            self._scale(current)
        self._promote(current)

    def _scale(self, service: Service) -> None:
        """Start and stop instances until they are the wanted ones: first start, then stop, so that a
        member that moves is served all the way.
        """
        devices = {device.id: device for device in self.target.devices}
        wanted: dict[InstanceKey, DeviceTarget] = {}
        if service.name not in self._unloaded:
            for index, member in enumerate(service.target.members):
                for place in member.instances:
                    for ordinal in range(place.count):
                        wanted[index, place.device, ordinal] = devices[place.device]
        have = self.instances.setdefault(service, {})
        leaving = self._leaving.setdefault(service, {})
        for key, device in wanted.items():
            if key in leaving:
                have[key] = leaving.pop(key)
            elif key not in have:
                have[key] = Instance(
                    service,
                    key[0],
                    device,
                    self.workers,
                    self._timeouts,
                    self._loaded,
                    self._warm,
                )
        for key in [key for key in have if key not in wanted]:
            leaving[key] = have.pop(key)
        self._end_replaced(service)

    def _end_replaced(self, service: Service) -> None:
        """End the instances whose members have all the wanted ones warm."""
        have, leaving = self.instances.get(service, {}), self._leaving.get(service, {})
        waited_for = {key[0] for key, instance in have.items() if not instance.ready}
        for key in [key for key in leaving if key[0] not in waited_for]:
            self._run(leaving.pop(key).stop(drain=True))

    def _warm(self, service: Service) -> None:
        """An instance of ``service`` takes batches from now on."""
        self._promote(service)
        self._end_replaced(service)

    def _loaded(self, service: Service, index: int, loaded: m.Loaded) -> None:
        """An instance has loaded its model: once all members have, the service knows its signature."""
        signatures = self._signatures.setdefault(service, {})
        signatures[index] = loaded
        if service.metadata is not None or len(signatures) < len(service.members):
            return
        try:
            published = publish(
                service.target, [signatures[i] for i in range(len(service.members))]
            )
        except (Incompatible, CombineError) as error:
            service.problem = str(error)
            log.error("%s cannot be served: %s", service.name, error)
            return
        for member, names, largest in zip(
            service.members, published.input_names, published.largest, strict=True
        ):
            member.input_names = names
            member.largest = largest
        service.publish(published.metadata, published.outputs, published.buckets)

    def _promote(self, service: Service) -> None:
        """A version whose instances are all warm takes over from the one that serves."""
        name = service.name
        if self.starting.get(name) is not service or service.metadata is None:
            return
        if all(instance.ready for instance in self.instances[service].values()):
            del self.starting[name]
            old = self.serving.get(name)
            self.serving[name] = service
            log.info("%s: version %s takes over", name, service.version)
            if old is not None:
                self._retire(old)

    def _retire(self, service: Service) -> None:
        self._run(self._let_go(service))

    async def _let_go(self, service: Service) -> None:
        """Finish what ``service`` has accepted, then end its instances."""
        await eventually(lambda: not service.in_flight, DRAIN_TIMEOUT_S)
        instances = [
            *self.instances.pop(service, {}).values(),
            *self._leaving.pop(service, {}).values(),
        ]
        self._signatures.pop(service, None)
        await asyncio.gather(*(instance.stop(drain=True) for instance in instances))

    def _run(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    # DataPlane

    def allocate(self, nbytes: int) -> ArenaSlot:
        return self.arena.allocate(nbytes)

    def submit(self, call: InferCall, done: Done) -> Request:
        try:
            service = self._service(call.model, call.version)
            if call.model in self._unloaded:
                raise Unavailable(f"model {call.model} is unloaded")
        except ServeError:
            for slot in call.slots:
                slot.release()
            raise
        return service.submit(call, done)

    def resolve(self, name: str, host: str) -> str:
        if name in self.serving:
            return name
        # Host as Kubernetes writes it: <service>.<namespace>[.svc…]; it only completes a plain name.
        labels = host.partition(":")[0].split(".")
        if len(labels) > 1 and labels[0] == name and f"{labels[1]}.{name}" in self.serving:
            return f"{labels[1]}.{name}"
        if self._plain_names and "." not in name:
            found = [served for served in self.serving if served.partition(".")[2] == name]
            if len(found) == 1:
                return found[0]
        return name

    def live(self) -> bool:
        return True

    def ready(self) -> bool:
        wanted = (s for name, s in self.serving.items() if name not in self._unloaded)
        return self._told and not self._draining and all(service.ready for service in wanted)

    def model_ready(self, model: str, version: str) -> bool:
        return self._service(model, version).ready and not self._draining

    def metadata(self, model: str, version: str) -> ModelMetadata:
        metadata = self._service(model, version).metadata
        if metadata is None:
            raise Unavailable(f"model {model} is still being loaded")
        return metadata

    def statistics(self, model: str, version: str) -> tuple[ModelStatistics, ...]:
        services = [self._service(model, version)] if model else list(self.serving.values())
        return tuple(model_statistics(service) for service in services)

    def repository(self) -> tuple[RepositoryEntry, ...]:
        return tuple(self._entry(service) for service in self.serving.values())

    async def load(self, model: str) -> None:
        service = self._service(model, "")
        self._unloaded.discard(model)
        for version in (service, self.starting.get(model)):
            if version is not None:
                self._scale(version)
        settled = await eventually(
            lambda: service.ready or bool(service_problem(self, service)), LOAD_TIMEOUT_S
        )
        if not service.ready:
            problem = service_problem(self, service) if settled else "it takes too long"
            raise Unavailable(f"model {model} cannot be loaded: {problem}")

    async def unload(self, model: str) -> None:
        service = self._service(model, "")
        self._unloaded.add(model)
        await eventually(lambda: not service.in_flight, DRAIN_TIMEOUT_S)
        self._scale(service)

    def _service(self, model: str, version: str) -> Service:
        service = self.serving.get(model)
        if service is None:
            raise NotFound(f"no model {model!r}; served are {sorted(self.serving)}")
        if version and version != service.version:
            raise NotFound(
                f"model {model} has no version {version!r}; served is {service.version!r}"
            )
        return service

    def _entry(self, service: Service) -> RepositoryEntry:
        if service.name in self._unloaded:
            busy = self.instances.get(service)
            state, reason = ("UNLOADING", "") if busy else ("UNAVAILABLE", "unloaded")
        elif service.ready:
            state, reason = "READY", ""
        else:
            problem = service_problem(self, service)
            state, reason = ("UNAVAILABLE", problem) if problem else ("LOADING", "")
        return RepositoryEntry(service.name, service.version, state, reason)


def _check_devices(target: ServerTarget) -> None:
    known = {device.id for device in target.devices}
    for service in target.services:
        for member in service.members:
            for place in member.instances:
                if place.device not in known:
                    raise KeyError(place.device)


def _models(target: ServiceTarget) -> object:
    """What makes a version: a change of any of it needs models loaded, a change of the rest does not."""
    members = [
        (x.name, x.digest, x.format, x.allow_code, x.max_batch, x.weight, x.required)
        for x in target.members
    ]
    return (
        members,
        target.combine,
        target.min_members,
        target.on_timeout,
        target.inputs,
        target.outputs,
    )
