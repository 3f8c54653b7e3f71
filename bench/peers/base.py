"""What every server under measurement has in common, so that the bench knows none of them.

A peer says how it is prepared and started for one work, when it is ready, and what a request to it looks
like. Starting, pinning, checking answers and stopping are the same for all: ``bench/dataplane/running.py``.
"""

from __future__ import annotations

import http.client
import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from tessera_cli.loadgen import Protocol as LoadProtocol
from tessera_cli.loadgen.wire import decode, encode

Array = npt.NDArray[np.float32]

Wire = LoadProtocol
"""HTTP or gRPC; ``Protocol`` is what :class:`Peer` is."""

ROOT = Path(__file__).parents[2]
ENVIRONMENTS = ROOT / ".bench" / "peers"
"""One virtual environment per peer: their requirements contradict each other."""

HOST = "127.0.0.1"

BATCH_CAP = 8
"""Rows per batch, of every server: where the small CNNs have gained most of what batching gives."""

GRPC_INFER = "/inference.GRPCInferenceService/ModelInfer"

ONE_THREAD = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}


@dataclass(frozen=True, slots=True)
class Work:
    """What is computed. The networks of one directory are the same files for every server."""

    name: str
    row_shape: tuple[int, ...]
    input: str = "input"
    output: str = "output_0"
    dtype: str = "f4"
    """Of the input: single precision, or ``u1``, bytes."""

    @property
    def networks(self) -> tuple[str, ...]:
        """File names without suffix; none: the identity."""
        return NETWORKS[self.name]


NETWORKS: Mapping[str, tuple[str, ...]] = {
    "identity": (),
    "cnn": ("cnn0",),
    "ensemble": ("cnn0", "cnn1", "cnn2"),
    "fused": ("fused",),
    "resnet18": ("resnet18",),
    "resnet50": ("resnet50",),
    "bottlenecks": ("bottlenecks",),
    "mlp": ("mlp",),
    **{
        name: (name,)
        for name in ("small", "wide", "deep", "pixels_small", "pixels_wide", "pixels_deep")
    },
}

IMAGE = (3, 64, 64)

WORKS: Mapping[str, Work] = {
    work.name: work
    for work in (
        Work("identity", (16,), "x", "y"),
        Work("cnn", IMAGE),
        Work("ensemble", IMAGE),  # three networks and their mean, as the server composes them
        Work("fused", IMAGE),  # the same in one network
        Work("resnet18", (3, 224, 224)),
        Work("resnet50", (3, 224, 224), dtype="u1"),  # on a GPU
        Work("bottlenecks", (3, 32, 32), dtype="u1"),  # its like, where there is none
        Work("mlp", (16,)),
        Work("small", (3, 48, 48)),  # three shapes, for a processor
        Work("wide", (16,)),
        Work("deep", (3, 16, 16)),
        Work("pixels_small", (3, 224, 224), dtype="u1"),  # and for a GPU
        Work("pixels_wide", (3, 224, 224), dtype="u1"),
        Work("pixels_deep", (3, 224, 224), dtype="u1"),
    )
}


@dataclass(frozen=True, slots=True)
class Ports:
    http: int
    grpc: int
    metrics: int


def free_ports() -> Ports:
    """Three ports that were free a moment ago."""
    listeners = [socket.create_server((HOST, 0)) for _ in range(3)]
    numbers = [listener.getsockname()[1] for listener in listeners]
    for listener in listeners:
        listener.close()
    return Ports(*numbers)


@dataclass(frozen=True, slots=True)
class Command:
    argv: tuple[str, ...]
    environment: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Request:
    """One inference request and how its answer is read."""

    path: str
    headers: Mapping[str, str]
    body: bytes
    read: Callable[[bytes], Array]
    """The only output of an answer's body. Raises ValueError or KeyError when it is none."""

    @property
    def raw_http(self) -> bytes:
        """The request as the open-loop generator sends it."""
        head = "".join(f"{name}: {value}\r\n" for name, value in self.headers.items())
        return (
            f"POST {self.path} HTTP/1.1\r\nHost: localhost\r\n{head}"
            f"Content-Length: {len(self.body)}\r\n\r\n"
        ).encode() + self.body


class Peer(Protocol):
    """A server that can be measured."""

    @property
    def name(self) -> str: ...

    @property
    def wires(self) -> tuple[Wire, ...]: ...

    @property
    def works(self) -> frozenset[str]:
        """Names of what it can compute; more may be possible."""

    def missing(self) -> str:
        """Why it cannot be measured here; empty when it can."""

    def prepare(self, work: Work, models: Path, directory: Path) -> None:
        """Write what it needs into ``directory``. ``models`` holds the networks."""

    def command(self, work: Work, models: Path, directory: Path, ports: Ports) -> Command: ...

    def ready(self, work: Work, directory: Path, ports: Ports) -> bool:
        """Whether it serves; called until it says so."""

    def request(self, work: Work, wire: Wire, rows: Array) -> Request: ...


def v2_request(model: str, work: Work, wire: Wire, rows: Array) -> Request:
    """Open Inference Protocol v2, binary tensors."""
    encoded = encode(wire, model, {work.input: rows})
    if wire is Wire.GRPC:
        headers = {"content-type": "application/grpc", "te": "trailers"}
        return Request(GRPC_INFER, headers, encoded, lambda body: only(decode(wire, body)))
    head, _, body = encoded.partition(b"\r\n\r\n")
    line, *fields = head.decode().split("\r\n")
    wanted = dict(entry.split(": ", 1) for entry in fields)
    headers = {
        "Inference-Header-Content-Length": wanted["Inference-Header-Content-Length"],
        "Content-Type": "application/octet-stream",
    }
    return Request(line.split()[1], headers, body, lambda body: only(decode(wire, body)))


def only(outputs: Mapping[str, Any]) -> Array:
    (output,) = outputs.values()
    return np.asarray(output)


def answers_200(port: int, path: str) -> bool:
    """Whether ``GET path`` is answered with 200."""
    connection = http.client.HTTPConnection(HOST, port, timeout=5)
    try:
        connection.request("GET", path)
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def environment_python(name: str) -> Path:
    return ENVIRONMENTS / name / "bin" / "python"


def not_installed(name: str) -> str:
    """Why the environment of a peer is not there; empty when it is."""
    note = ENVIRONMENTS / f"{name}.failed"
    if note.exists():
        return note.read_text().strip()
    return "" if environment_python(name).exists() else "not installed: make bench-peers"
