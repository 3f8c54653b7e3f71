"""Ray Serve: one deployment with its batching decorator, raw bytes over HTTP."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from bench.peers.base import (
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
class RayServe:
    name = "Ray Serve"
    wires = (Wire.HTTP,)
    works = frozenset({"identity"})

    def missing(self) -> str:
        return not_installed("ray")

    def prepare(self, work: Work, models: Path, directory: Path) -> None:
        pass

    def command(self, work: Work, models: Path, directory: Path, ports: Ports) -> Command:
        argv = (str(environment_python("ray")), "-m", "bench.peers.apps.ray_app")
        environment = app_environment(work, models, ports) | {"RAY_USAGE_STATS_ENABLED": "0"}
        return Command(argv, environment)

    def ready(self, work: Work, directory: Path, ports: Ports) -> bool:
        return answers_200(ports.http, "/-/healthz")

    def request(self, work: Work, wire: Wire, rows: Array) -> Request:
        return raw_request("/", rows)
