"""LitServe: FastAPI and one worker process, base64 in JSON, since its API process parses every body as that."""

from __future__ import annotations

import base64
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
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
from bench.peers.raw import app_environment


@dataclass(frozen=True, slots=True)
class LitServe:
    name = "LitServe"
    wires = (Wire.HTTP,)
    works = frozenset({"identity", "cnn", "fused"})

    def missing(self) -> str:
        return not_installed("litserve")

    def prepare(self, work: Work, models: Path, directory: Path) -> None:
        pass

    def command(self, work: Work, models: Path, directory: Path, ports: Ports) -> Command:
        argv = (str(environment_python("litserve")), "-m", "bench.peers.apps.litserve_app")
        return Command(argv, app_environment(work, models, ports))

    def ready(self, work: Work, directory: Path, ports: Ports) -> bool:
        return answers_200(ports.http, "/health")

    def request(self, work: Work, wire: Wire, rows: Array) -> Request:
        body = json.dumps({"row": base64.b64encode(rows.tobytes()).decode()}).encode()
        return Request("/predict", {"Content-Type": "application/json"}, body, _answer)


def _answer(body: bytes) -> Array:
    return np.frombuffer(base64.b64decode(json.loads(body)["row"]), "<f4")[None]
