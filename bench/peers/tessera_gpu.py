"""Tessera with one service on a whole GPU."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import msgspec
from bench.peers.base import Command, Ports, Work
from bench.peers.tessera import Tessera, apply, model_name, model_paths, server_command, service

from tessera_runtime.target import DeviceTarget, InstanceTarget, ServiceTarget

DEVICE = "gpu-0"


@dataclass(frozen=True, slots=True)
class TesseraOn(Tessera):
    """``instances`` of the only member, each for batches of at most ``cap`` rows, on a device of ``kind``."""

    kind: str = "cuda"
    instances: int = 1
    cap: int = 8
    confined: bool = True

    def prepare(self, work: Work, models: Path, directory: Path) -> None:
        self.write(directory, self._service(work, models))

    def command(self, work: Work, models: Path, directory: Path, ports: Ports) -> Command:
        options = () if self.confined else ("--workers-unconfined",)
        return server_command(directory, ports, "torch", *options)

    def ready(self, work: Work, directory: Path, ports: Ports) -> bool:
        wanted = msgspec.json.decode((directory / "service.json").read_bytes(), type=ServiceTarget)
        return apply(directory, (wanted,), DeviceTarget(DEVICE, self.kind))

    def _service(self, work: Work, models: Path) -> ServiceTarget:
        plain = service(model_name(work), model_paths(work, models), self.slo_ms)
        (member,) = plain.members
        places = (InstanceTarget(DEVICE, self.instances),)
        placed = msgspec.structs.replace(
            member, max_batch=self.cap, cap=self.cap, instances=places, allow_code=False
        )
        return msgspec.structs.replace(plain, members=(placed,))
