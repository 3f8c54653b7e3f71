"""mosec: a Rust front end and Python workers, raw tensors over HTTP. Not the V2 protocol."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from bench.peers.base import (
    HOST,
    Array,
    Command,
    Ports,
    Request,
    Wire,
    Work,
    answers_200,
    environment_python,
    not_installed,
)
from bench.peers.raw import app_environment, raw_request


@dataclass(frozen=True, slots=True)
class Mosec:
    name = "mosec"
    wires = (Wire.HTTP,)
    works = frozenset({"identity", "cnn", "fused", "resnet18"})

    def missing(self) -> str:
        return not_installed("mosec")

    def prepare(self, work: Work, models: Path, directory: Path) -> None:
        pass

    def command(self, work: Work, models: Path, directory: Path, ports: Ports) -> Command:
        argv = (
            *(str(environment_python("mosec")), "-m", "bench.peers.apps.mosec_app"),
            *("--address", HOST, "--port", str(ports.http), "--timeout", "30000"),
            *("--path", str(directory / "sockets"), "--log-level", "warning"),
        )
        return Command(argv, app_environment(work, models, ports))

    def ready(self, work: Work, directory: Path, ports: Ports) -> bool:
        return answers_200(ports.http, "/")

    def request(self, work: Work, wire: Wire, rows: Array) -> Request:
        return raw_request("/inference", rows)
