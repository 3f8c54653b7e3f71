"""Tessera itself: the real server, told directly what to run.

There is no agent and no planner: a benchmark fixes the setpoints, so that figures of two days differ by the
server alone.
"""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec
from bench.peers.base import (
    BATCH_CAP,
    HOST,
    Array,
    Command,
    Ports,
    Request,
    Wire,
    Work,
    v2_request,
)

from tessera_core.api.modelservice import Combine, OnTimeout
from tessera_runtime.control import ControlClient, ControlError
from tessera_runtime.supervisor import control_path
from tessera_runtime.target import (
    DeviceTarget,
    InstanceTarget,
    MemberTarget,
    ServerReport,
    ServerTarget,
    ServiceTarget,
    ServiceTime,
)

_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(ServiceTarget).decode

DEVICE = "cpu"

FAR_SLO_MS = 1000.0
"""Nothing is dropped, so that closed loops measure capacity."""

IDENTITY = Path(__file__).parents[1] / "models" / "identity.py"


def service(
    name: str,
    paths: Sequence[Path],
    slo_ms: float = FAR_SLO_MS,
    service_time: ServiceTime | None = None,
) -> ServiceTarget:
    """A service of one member per file, averaged; ``.py`` files are Python models."""
    members = tuple(
        MemberTarget(
            name=f"member{index}",
            path=str(path),
            format="Python" if path.suffix == ".py" else "TorchExport",
            digest=path.name,
            max_batch=BATCH_CAP,
            cap=BATCH_CAP,
            instances=(InstanceTarget(DEVICE),),
            allow_code=True,
            service_time=service_time,
        )
        for index, path in enumerate(paths)
    )
    return ServiceTarget(
        name=name,
        version="1",
        members=members,
        combine=Combine.NONE if len(members) == 1 else Combine.MEAN,
        min_members=len(members),
        on_timeout=OnTimeout.FAIL,
        slo_ms=slo_ms,
        percent=99.0,
    )


def model_paths(work: Work, models: Path) -> list[Path]:
    return [models / f"{name}.pt2" for name in work.networks] or [IDENTITY]


def model_name(work: Work) -> str:
    return f"bench.{work.name}"


@dataclass(frozen=True, slots=True)
class Tessera:
    """One service of one work; ``slo_ms`` is what its requests are held to."""

    slo_ms: float = FAR_SLO_MS
    worker_cores: tuple[int, ...] = ()
    """Empty: those of the whole server."""
    reuse_port: bool = False
    """Whether others may share its ports."""

    name = "Tessera"
    wires = (Wire.HTTP, Wire.GRPC)
    works = frozenset({"identity", "cnn", "ensemble", "fused", "resnet18"})

    def missing(self) -> str:
        return ""

    def prepare(self, work: Work, models: Path, directory: Path) -> None:
        if self.worker_cores:
            (directory / "cores").write_text(" ".join(map(str, self.worker_cores)))
        self.write(directory, service(model_name(work), model_paths(work, models), self.slo_ms))

    def tell(self, work: Work, models: Path, directory: Path, service_time: ServiceTime) -> bool:
        """Give a running server the profile of its members; whether it is still ready."""
        paths = model_paths(work, models)
        return apply(directory, (service(model_name(work), paths, self.slo_ms, service_time),))

    @staticmethod
    def write(directory: Path, wanted: ServiceTarget) -> None:
        (directory / "service.json").write_bytes(_encode(wanted))

    def command(self, work: Work, models: Path, directory: Path, ports: Ports) -> Command:
        options = ("--reuse-port",) if self.reuse_port else ()
        return server_command(directory, ports, "torch" if work.networks else "", *options)

    def ready(self, work: Work, directory: Path, ports: Ports) -> bool:
        wanted = _decode((directory / "service.json").read_bytes())
        return apply(directory, (wanted,))

    def request(self, work: Work, wire: Wire, rows: Array) -> Request:
        return v2_request(model_name(work), work, wire, rows)


def server_command(directory: Path, ports: Ports, preload: str, *options: str) -> Command:
    """It ends with this process, also where that is killed and can end nothing itself."""
    return Command(
        (
            *(sys.executable, "-m", "tessera_runtime.supervisor"),
            *("--parent", str(os.getpid())),
            *("--run-dir", str(directory), "--host", HOST, "--log-level", "warning"),
            *("--http", str(ports.http), "--grpc", str(ports.grpc)),
            *("--metrics", str(ports.metrics), "--preload", preload, "--drain-timeout", "1"),
            *options,
        )
    )


def apply(
    directory: Path, services: tuple[ServiceTarget, ...], device: DeviceTarget | None = None
) -> bool:
    """Tell the server what to run, which it may know already; whether it serves all of it. Without ``device``: on
    its cores.
    """

    async def ask() -> bool:
        control = ControlClient(str(control_path(directory)))
        # The cores of this process are those of the bench; the server was started on its own.
        cores = tuple(int(core) for core in (directory / "cores").read_text().split())
        on = device or DeviceTarget(DEVICE, "cpu", cores, len(cores))
        try:
            await control.apply(ServerTarget(devices=(on,), services=services))
            return (await control.report()).ready
        except ControlError:
            return False
        finally:
            await control.close()

    return asyncio.run(ask())


def report(directory: Path) -> ServerReport:
    """Raises ControlError."""

    async def ask() -> ServerReport:
        control = ControlClient(str(control_path(directory)))
        try:
            return await control.report()
        finally:
            await control.close()

    return asyncio.run(ask())
