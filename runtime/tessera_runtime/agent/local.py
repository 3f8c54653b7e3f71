"""Local mode: planner, agent and server on this machine, with files in place of the API server.

The same arrows as in a cluster: observe this machine, plan, tell the server, report. What in a cluster is a
RuntimeNode object is a document in the state directory here, and a profile is a ModelProfile document.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import msgspec

from tessera_core.api import ModelProfile, ModelService
from tessera_core.api.members import Member
from tessera_core.api.modelservice import ScalingMode
from tessera_core.api.runtimenode import BatchTime, ServedMember, ServedService
from tessera_core.gpu.devices import DeviceClass
from tessera_core.perf import ModelHealth
from tessera_core.plan.decision import Plan, ServicePlan
from tessera_core.plan.nodes import to_runtime_nodes
from tessera_core.plan.planner import plan
from tessera_core.plan.predict import latency_at
from tessera_core.plan.state import ClusterState, Policy
from tessera_core.tuning.variants import UNTUNED, parse
from tessera_runtime.agent.choices import Choices, engine_of, with_variants
from tessera_runtime.agent.measure import PROFILE_TIMEOUT_S, batch_time, profile_request
from tessera_runtime.agent.observe import Spot, cluster_state, device_class, kind_of
from tessera_runtime.agent.places import Profiles
from tessera_runtime.agent.profiles import ProfileStore, engine_version, spots_of, to_profile
from tessera_runtime.agent.status import LocalStatus, MemberStatus, ServiceStatus, write_status
from tessera_runtime.agent.steering import Steering
from tessera_runtime.agent.translate import (
    LocalModel,
    ModelKey,
    Site,
    TranslationError,
    device_piece,
    device_target,
    server_target,
)
from tessera_runtime.agent.windows import Seen, Window
from tessera_runtime.control import ControlClient, ControlError
from tessera_runtime.devices.inventory import Inventory, shared_by_mps
from tessera_runtime.models.cache import CachedModel, ModelCache
from tessera_runtime.target import ServerReport, ServerTarget, ServiceReport

log = logging.getLogger(__name__)

LIVE_WINDOW_S = 10.0
REPORT_INTERVAL_S = 1.0
NODE_FILE = "runtimenode.json"

FULL_DISPATCHER = 0.9
"""Share of its core that the dispatcher can be busy before it delays requests noticeably itself."""


@dataclass(frozen=True, slots=True)
class Options:
    """What a user may choose."""

    state_dir: Path
    policy: Policy
    cpu_cores: tuple[int, ...] = (1,)
    """Sizes of core sets that are measured."""
    instances: tuple[int, ...] = (1,)
    """Instance counts per CPU device that are measured; GPUs are measured with 1, 2 and 4."""
    allow_code: bool = True
    host: str = "127.0.0.1"
    tls: bool = False
    """Whether the server speaks TLS, as those are told who want to know where it is."""
    hang_s: float = 60.0
    """A batch that takes longer while it is measured is hung."""
    gpus_on_cores: bool = False
    mps: int = 0
    """As in :class:`Site`."""


@dataclass(frozen=True, slots=True)
class Progress:
    """Called as work goes on; drawn by the command."""

    fetching: Callable[[str, int, int | None], None]
    """(member, bytes done, bytes in all where the store says)"""
    measuring: Callable[[str, str, int, int], None]
    """(member, device class, done, in all)"""


class LocalAgent:
    """Runs one server for some ModelServices."""

    def __init__(
        self,
        services: Sequence[ModelService],
        seen: Inventory,
        control: ControlClient,
        options: Options,
        progress: Progress,
    ) -> None:
        seen = shared_by_mps(seen) if options.mps else seen
        self._services = tuple(services)
        self._seen = seen
        self._control = control
        self._options = options
        self._progress = progress
        self._cache = ModelCache(options.state_dir / "models", max_bytes=64 << 30)
        # What is measured of GPUs that are none is never to be found where there are some.
        profiles = "profiles-on-cores" if options.gpus_on_cores else "profiles"
        self._store = ProfileStore(options.state_dir / profiles, seen.processor)
        self._choices = Choices(options.state_dir / "variants", seen.processor)
        self._site = Site(seen, options.allow_code, options.gpus_on_cores, options.mps)
        self._models: dict[ModelKey, CachedModel] = {}
        self._profiles: list[ModelProfile] = []
        self._fresh: set[tuple[str, DeviceClass]] = set()
        """What this agent has measured itself."""
        self.relies_on_earlier = False
        """Whether something of what was measured is of an earlier run."""
        self._live = Window(LIVE_WINDOW_S)
        self._slo = Window(max(s.spec.slo.objectives[0].window_s for s in services))
        self.state = ClusterState()
        self.plan: Plan | None = None
        self._planned = ServerTarget()
        """What follows from the plan."""
        self._told = ServerTarget()
        """That, as it was set last."""
        self._reported: ServerReport | None = None
        self._steering = Steering(kind_of(seen))
        self._steered: Profiles = {}
        """What batches take, of services whose capacity is not said by their users."""

    async def fetch(self) -> None:
        """Bring every member's model to this machine. Raises FetchError."""
        for service, member in self._members():
            self._models[service.served_name, member.name] = await asyncio.to_thread(
                self._cache.fetch,
                member.model.uri,
                member.model.digest,
                None,
                partial(self._progress.fetching, member.name),
            )

    async def measure(
        self, given: Sequence[ModelProfile], *, again: bool = False
    ) -> tuple[ModelProfile, ...]:
        """Find or measure a profile of every model on every kind of place here; ``again``: find none of earlier runs.
        Raises ControlError.
        """
        self._profiles = list(given)
        self.relies_on_earlier = False
        known = {(p.spec.model_digest, p.spec.device_class) for p in given}
        work = [
            (service, member, spot)
            for service, member in self._members()
            for spot in spots_of(member, service.spec, self._seen, self._options.cpu_cores)
        ]
        for done, (service, member, spot) in enumerate(work):
            place = spot.place
            digest = self._models[service.served_name, member.name].digest
            if (digest, place) in known:
                continue
            known.add((digest, place))
            self._progress.measuring(member.name, str(place), done, len(work))
            self._profiles.append(await self._profile(service, member, digest, spot, again))
        self._progress.measuring("", "", len(work), len(work))
        return tuple(self._profiles)

    def replan(self, rates: Mapping[str, float] | None = None) -> Plan:
        """Plan anew; ``rates`` (requests per second by served name) replace the services' hints."""
        services = [
            service
            if rates is None or service.served_name not in rates
            else _at_rate(service, rates[service.served_name])
            for service in self._services
        ]
        self.state = cluster_state(
            self._seen,
            services,
            self._profiles,
            {key: model.digest for key, model in self._models.items()},
            self._options.policy,
            allow_code=self._options.allow_code,
        )
        self.plan = plan(self.state)
        return self.plan

    async def apply(self) -> None:
        """Tell the server, and keep the document. Raises ControlError, TranslationError."""
        assert self.plan is not None
        node = to_runtime_nodes(self.plan, epoch=0)[0]
        services = tuple(self._served(service) for service in self._services)
        node = replace(node, spec=replace(node.spec, services=services))
        path = self._options.state_dir / NODE_FILE
        unfinished = path.with_suffix(".partial")
        unfinished.write_text(json.dumps(node.to_dict(), indent=1))
        os.replace(unfinished, path)
        models = {key: LocalModel(str(m.path), m.digest) for key, m in self._models.items()}
        translated = server_target(node, models, self._site, ServerTarget())
        for service, problem in translated.problems.items():
            raise TranslationError(f"{service}: {problem}")
        self._planned = with_variants(
            translated.target, lambda digest, device: self._variant(digest, self._class_of(device))
        )
        self._steered = self._steered_profiles()
        await self._tell(self._planned)

    async def steer(self) -> None:
        """Set batches and instances anew, beneath what is planned, after the last report. Raises ControlError."""
        if self._reported is None:
            return
        # Deciding takes as long as hundreds of reports where the queue model is asked something new.
        wanted = await asyncio.to_thread(
            self._steering.look, self._planned, self._reported, self._steered
        )
        if wanted != self._told:
            await self._tell(wanted)

    async def _tell(self, target: ServerTarget) -> None:
        await self._control.apply(target)
        self._told = target

    def _steered_profiles(self) -> Profiles:
        return {
            (service.served_name, member.name, (each.place.product, each.place.slice)): each.profile
            for service, member in self._members()
            if service.spec.scaling.mode is ScalingMode.SLO
            for each in self.state.measured
            if each.digest == self._models[service.served_name, member.name].digest
        }

    async def report(self) -> LocalStatus:
        """Ask the server, write the status file, return it. Raises ControlError."""
        report = await self._control.report()
        self._reported = report
        self._live.add(report)
        self._slo.add(report)
        status = self._status(report)
        write_status(self._options.state_dir, status)
        return status

    async def run(self, each: Callable[[LocalStatus], None]) -> None:
        """Report and steer until cancelled. A server that was restarted is told again what is wanted."""
        while True:
            try:
                status = await self.report()
                if len(status.services) < len(self._services):
                    await self.apply()
                await self.steer()
                each(status)
            except ControlError as error:
                log.warning("the server does not answer: %s", error)
            await asyncio.sleep(REPORT_INTERVAL_S)

    def _members(self) -> list[tuple[ModelService, Member]]:
        return [(service, member) for service in self._services for member in service.spec.placed]

    async def _profile(
        self, service: ModelService, member: Member, digest: str, spot: Spot, again: bool
    ) -> ModelProfile:
        variant = self._variant(digest, spot.place)
        engine = engine_version(member.model.format, spot.place.product)
        if variant:
            engine = f"{engine_of(parse(variant).backend)} {variant}"
        found = self._store.find(digest, spot.place, engine)
        fresh = (digest, spot.place) in self._fresh
        if found is not None and (fresh or not again):
            self.relies_on_earlier |= not fresh
            return found
        model = self._models[service.served_name, member.name]
        request = profile_request(
            member,
            service.spec,
            LocalModel(str(model.path), digest),
            device_target(spot.device, spot.slice, self._site),
            cpu_instances=self._options.instances,
            hang_s=self._options.hang_s,
            allow_code=self._options.allow_code,
        )
        try:
            report = await self._control.profile(
                msgspec.structs.replace(request, variant=variant), PROFILE_TIMEOUT_S
            )
        except ControlError as error:
            raise ControlError(f"{service.served_name}/{member.name}: {error}") from error
        if variant:
            report = msgspec.structs.replace(report, engine=engine)
        profile = to_profile(digest, spot.place, report, self._site.driver or None)
        self._store.keep(profile)
        self._fresh.add((digest, spot.place))
        return profile

    def _variant(self, digest: str, place: DeviceClass) -> str:
        """How a model is run at ``place``: as all services that have it let it be."""
        found = {
            self._choices.find(digest, place, service.spec.tuning)
            for service, member in self._members()
            if self._models[service.served_name, member.name].digest == digest
        }
        return found.pop() if len(found) == 1 else UNTUNED

    def _class_of(self, device: str) -> DeviceClass:
        return device_class(self._seen, *device_piece(device))

    def _served(self, service: ModelService) -> ServedService:
        """The service with what was measured: of each member the slowest of its places."""
        assert self.plan is not None
        measured = {(m.digest, str(m.place)): m.profile for m in self.state.measured}
        times: dict[str, BatchTime] = {}
        for each in self.plan.assignments:
            if each.service != service.served_name:
                continue
            profile = measured[self._models[each.service, each.member].digest, each.device_class]
            slowest = batch_time(profile, each.instances)
            if each.member not in times or slowest.tau0_ms > times[each.member].tau0_ms:
                times[each.member] = slowest
        return ServedService(
            name=service.served_name,
            generation=service.metadata.generation or 1,
            spec=service.spec,
            members=tuple(
                ServedMember(
                    member.name,
                    self._models[service.served_name, member.name].digest,
                    times.get(member.name),
                )
                for member in service.spec.placed
            ),
        )

    def _status(self, report: ServerReport) -> LocalStatus:
        assert self.plan is not None
        host = self._options.host
        return LocalStatus(
            updated=datetime.now(UTC).isoformat(timespec="milliseconds"),
            pid=os.getpid(),
            http=f"http{'s' * self._options.tls}://{host}:{report.ports.http}",
            grpc=f"{host}:{report.ports.grpc}",
            metrics=f"http://{host}:{report.ports.metrics}/metrics",
            ready=report.ready,
            plan=self.plan.name,
            services=tuple(self._service_status(service) for service in report.services),
            refused=tuple(
                f"{service}/{member}: {refusal.why.value}: {refusal.detail}"
                for service, member, refusal in self.plan.refused
            ),
        )

    def _health(self, name: str) -> dict[str, ModelHealth]:
        """By member."""
        return {
            member: each.health
            for each in self._steering.health()
            if each.service == name
            for member in each.members
        }

    def _most(self, planned: ServicePlan | None) -> float | None:
        """What the members carry, or the dispatcher's one core where that is less and was seen already."""
        if planned is None:
            return None
        dispatch_us = self._live.dispatch_us()
        if dispatch_us is None:
            return planned.max_requests_per_second
        return min(planned.max_requests_per_second, FULL_DISPATCHER * 1e6 / dispatch_us)

    def _service_status(self, report: ServiceReport) -> ServiceStatus:
        assert self.plan is not None
        live, slo = self._live.seen(report.name), self._slo.seen(report.name)
        planned = next((s for s in self.plan.services if s.service == report.name), None)
        rate = live.requests_per_second if live is not None else 0.0
        predicted = latency_at(self.plan, self.state, report.name, rate)
        service = next(s for s in self._services if s.served_name == report.name)
        return ServiceStatus(
            name=report.name,
            version=report.version,
            ready=report.ready,
            slo_ms=report.slo_ms,
            percent=service.spec.slo.objectives[0].percent,
            window_s=live.seconds if live is not None else 0.0,
            requests_per_second=rate,
            p50_ms=live.p50_ms if live is not None else None,
            p99_ms=live.p99_ms if live is not None else None,
            attainment=slo.attainment if slo is not None else None,
            good=report.good,
            total=report.total,
            predicted_p99_ms=predicted,
            max_requests_per_second=self._most(planned),
            members=_member_statuses(report, live, self._health(report.name)),
            codes=report.codes,
            problem=report.problem or next((m.problem for m in report.members if m.problem), ""),
        )


def _member_statuses(
    report: ServiceReport, live: Seen | None, health: Mapping[str, ModelHealth]
) -> tuple[MemberStatus, ...]:
    mean_batch = dict(live.mean_batch) if live is not None else {}
    return tuple(
        MemberStatus(
            name=member.name,
            device=member.device,
            instances=member.ready,
            wanted=member.wanted,
            batch_cap=member.cap,
            mean_batch=mean_batch.get(member.name),
            queued_rows=member.queued_rows,
            latency_ratio=found.ratio if found is not None else None,
            latency_unmet=found.unmet or "" if found is not None else "",
            restarts=member.restarts,
            problem=member.problem,
        )
        for member in report.members
        for found in [health.get(member.name)]
    )


def _at_rate(service: ModelService, rate: float) -> ModelService:
    traffic = replace(service.spec.traffic, requests_per_second=rate)
    return replace(service, spec=replace(service.spec, traffic=traffic))
