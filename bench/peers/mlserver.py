"""MLServer: V2 as JSON over REST (it refuses binary tensor data) and gRPC; one model in its own process."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from bench.peers.base import (
    BATCH_CAP,
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
    v2_request,
)
from bench.peers.raw import app_environment


@dataclass(frozen=True, slots=True)
class MLServer:
    name = "MLServer"
    wires = (Wire.HTTP, Wire.GRPC)
    works = frozenset({"identity"})

    def missing(self) -> str:
        return not_installed("mlserver")

    def prepare(self, work: Work, models: Path, directory: Path) -> None:
        settings = {
            "name": "served",
            "implementation": "bench.peers.apps.mlserver_app.Served",
            "max_batch_size": BATCH_CAP,
            "max_batch_time": 0.001,
        }
        (directory / "model-settings.json").write_text(json.dumps(settings))

    def command(self, work: Work, models: Path, directory: Path, ports: Ports) -> Command:
        settings = {
            "host": HOST,
            "http_port": ports.http,
            "grpc_port": ports.grpc,
            "metrics_port": ports.metrics,
            "parallel_workers": 0,
            "debug": False,
        }
        (directory / "settings.json").write_text(json.dumps(settings))
        program = environment_python("mlserver").with_name("mlserver")
        return Command(
            (str(program), "start", str(directory)), app_environment(work, models, ports)
        )

    def ready(self, work: Work, directory: Path, ports: Ports) -> bool:
        return answers_200(ports.http, "/v2/models/served/ready")

    def request(self, work: Work, wire: Wire, rows: Array) -> Request:
        if wire is Wire.GRPC:
            return v2_request("served", work, wire, rows)
        tensor = {
            "name": work.input,
            "datatype": "FP32",
            "shape": rows.shape,
            "data": rows.ravel().tolist(),
        }
        body = json.dumps({"inputs": [tensor]}).encode()
        headers = {"Content-Type": "application/json"}
        return Request("/v2/models/served/infer", headers, body, _json_output)


def _json_output(body: bytes) -> Array:
    (output,) = json.loads(body)["outputs"]
    return np.array(output["data"], np.float32).reshape(output["shape"])
