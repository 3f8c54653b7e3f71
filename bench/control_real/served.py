"""A real server with one network, whose batches and instances are set over its control socket while it serves.

As many instances as any setting has are loaded once; those that a setting leaves out stand by. So every setting is there
within a message, for all policies alike.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from statistics import median

import msgspec
from bench.control_real.places import Place, Task
from bench.dataplane.closed import examples
from bench.dataplane.running import Running
from bench.models.networks import export
from bench.peers.base import HOST, Command, Ports, Wire, Work
from bench.peers.tessera import Tessera, apply, model_name, model_paths, server_command, service

from tessera_cli.loadgen import LoadPlan, OpenLoop, Phase, Target
from tessera_core.control.dnnscaler import PROBE_INSTANCES, PROBE_ROWS, Probe
from tessera_core.control.setpoint import Setpoint
from tessera_core.control.steer import Told
from tessera_core.perf import LatencyProfile, ProfileRow
from tessera_runtime.agent.measure import batch_time, profile_rows
from tessera_runtime.agent.steering import told_of
from tessera_runtime.control import ControlClient
from tessera_runtime.supervisor import control_path
from tessera_runtime.target import (
    DeviceTarget,
    InstanceTarget,
    ProfileRequest,
    ServerTarget,
    ServiceTarget,
    ServiceTime,
)

PROFILE_TIMEOUT_S = 120.0
HANG_S = 20.0
CONNECTIONS = 128
"""Of each generator: all together hold what a server answers within the SLO."""
ANSWER_TIMEOUT_S = 2.0
SEEDS = 100
"""Generators have seeds of their own: a sum of Poisson streams is one."""


@dataclass(frozen=True, slots=True)
class Placed(Tessera):
    """Tessera with ``most`` instances of one network on ``device``."""

    device: DeviceTarget = field(kw_only=True)
    most: Setpoint = field(kw_only=True)
    code: Path | None = field(kw_only=True, default=None)
    """A Python model in place of the work's network."""

    def prepare(self, work: Work, models: Path, directory: Path) -> None:
        self.write(directory, self.service(work, models, self.most, self.slo_ms))

    def command(self, work: Work, models: Path, directory: Path, ports: Ports) -> Command:
        return server_command(directory, ports, "" if self.code else "torch")

    def ready(self, work: Work, directory: Path, ports: Ports) -> bool:
        wanted = msgspec.json.decode((directory / "service.json").read_bytes(), type=ServiceTarget)
        return apply(directory, (wanted,), self.device)

    def service(
        self,
        work: Work,
        models: Path,
        setpoint: Setpoint,
        slo_ms: float,
        service_time: ServiceTime | None = None,
    ) -> ServiceTarget:
        """The one of the network with ``setpoint``."""
        paths = [self.code] if self.code else model_paths(work, models)
        plain = service(model_name(work), paths, slo_ms, service_time)
        (member,) = plain.members
        place = InstanceTarget(
            self.device.id,
            self.most.instances,
            self.most.cap,
            setpoint=setpoint.cap,
            active=setpoint.instances,
        )
        placed = msgspec.structs.replace(
            member, max_batch=self.most.cap, cap=self.most.cap, instances=(place,)
        )
        return msgspec.structs.replace(plain, members=(placed,))


@dataclass(frozen=True, slots=True)
class Measured:
    """What the server's own profiler says."""

    profile: LatencyProfile
    probe: Probe
    """DNNScaler's three questions."""
    first_ms: float
    probe_ms: float
    """Single rows, with one instance and with as many as the probe has."""


class Server:
    """One network that is served, told and asked. Whoever asks gets ControlError where the server refuses."""

    def __init__(self, place: Place, task: Task, models: Path, running: Running) -> None:
        self.place = place
        self.task = task
        self._models = models
        self._running = running
        self._runner = asyncio.Runner()
        self._client = ControlClient(str(control_path(running.directory)))
        self._service_time: ServiceTime | None = None
        self._slo_ms = task.slo_ms
        self._requests = tuple(
            running.peer.request(task.work, Wire.HTTP, row[None]).raw_http
            for row in examples(task.work)
        )

    @property
    def pid(self) -> int:
        """Of its first process, which ends with this one."""
        return self._running.pid

    def close(self) -> None:
        self._runner.run(self._client.close())
        self._runner.close()

    def set(self, setpoint: Setpoint, slo_ms: float | None = None) -> None:
        """``slo_ms``: the service's from now on, where it changes."""
        self._slo_ms = slo_ms or self._slo_ms
        wanted = self._service(setpoint)
        target = ServerTarget(devices=(self.place.device,), services=(wanted,))
        self._runner.run(self._client.apply(target))

    def told(self) -> Told:
        """What it has counted, and its newest batches."""
        report = self._runner.run(self._client.report())
        (member,) = report.services[0].members
        return told_of(member, report.monotonic_s)

    def plans(self, phases: Sequence[Phase], seed: int, progress_s: float) -> list[LoadPlan]:
        """Open-loop load: a share of it for each generator."""
        port, cores = self._running.port(Wire.HTTP), self.place.load
        target = Target(Wire.HTTP, HOST, port, self._requests, CONNECTIONS)
        shares = tuple(Phase(each.rate_per_s / len(cores), each.seconds) for each in phases)
        return [
            LoadPlan(
                (target,),
                OpenLoop(shares, seed * SEEDS + number),
                answer_timeout_s=ANSWER_TIMEOUT_S,
                progress_s=progress_s,
                cores=(core,),
            )
            for number, core in enumerate(cores)
        ]

    def measure(self, cell_s: float, passes: int) -> Measured:
        """Every cap with every number of instances, up to the first that takes longer than the SLO, and what DNNScaler's
        probe needs. From then on the dispatcher admits by the times of as many instances as there are cores for.

        Cells are the medians of ``passes`` over all of them. A stall of the machine lasts longer than a cell, and with one
        in most cells of a single pass the dispatcher would expect every row to be late, and admit none.
        """
        counts = tuple(range(1, self.place.most.instances + 1))
        seen, probed = [], []
        for _ in range(passes):
            seen.append(self._profile(self.place.caps, counts, cell_s))
            probed.append(self._profile((1,), (PROBE_INSTANCES,), cell_s))
        profile = LatencyProfile(typical(seen))
        (shared,) = typical(probed)
        time = batch_time(profile, self.place.at_once)
        self._service_time = ServiceTime(time.alpha_ms, time.tau0_ms)
        one, batched = profile.throughput(1), profile.throughput(PROBE_ROWS)
        probe = Probe(one, batched, shared.throughput)
        return Measured(profile, probe, profile.service_ms(1), shared.p50_ms)

    def _profile(
        self, batches: tuple[int, ...], counts: tuple[int, ...], cell_s: float
    ) -> tuple[ProfileRow, ...]:
        request = ProfileRequest(
            device=self.place.device,
            member=msgspec.structs.replace(self._service(self.place.most).members[0], instances=()),
            inputs=(),
            outputs=(),
            batches=batches,
            instances=counts,
            cell_s=cell_s,
            most_ms=self.task.slo_ms,
            hang_s=HANG_S,
        )
        return profile_rows(self._runner.run(self._client.profile(request, PROFILE_TIMEOUT_S)))

    def _service(self, setpoint: Setpoint) -> ServiceTarget:
        peer = self._running.peer
        assert isinstance(peer, Placed), "serving() starts no other"
        return peer.service(
            self.task.work, self._models, setpoint, self._slo_ms, self._service_time
        )


def typical(passes: Sequence[Sequence[ProfileRow]]) -> tuple[ProfileRow, ...]:
    """Each cell as the median of the passes that have it."""
    found: dict[tuple[int, int], list[ProfileRow]] = {}
    for row in chain.from_iterable(passes):
        found.setdefault((row.batch, row.instances), []).append(row)
    return tuple(
        ProfileRow(
            batch,
            instances,
            median(row.p50_ms for row in rows),
            median(row.p99_ms for row in rows),
            median(row.throughput for row in rows),
            median(row.memory_mib for row in rows),
        )
        for (batch, instances), rows in sorted(found.items())
    )


@contextmanager
def serving(place: Place, task: Task, folder: Path) -> Iterator[Server]:
    """A server that is ready. Raises ServerFailed."""
    for network in () if task.code else task.work.networks:
        export(network, task.work.row_shape, folder)
    peer = Placed(slo_ms=task.slo_ms, device=place.device, most=place.most, code=task.code)
    with Running(peer, task.work, folder, folder / task.name, place.dispatcher) as running:
        server = Server(place, task, folder, running)
        try:
            yield server
        finally:
            server.close()
