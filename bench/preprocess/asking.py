"""Requests with photographs, and loads of them from a process of its own."""

from __future__ import annotations

import json
import struct
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from bench.harness import Figures
from bench.peers.base import HOST, Ports, Wire
from bench.processes import cpu_s

from tessera_cli.loadgen import (
    ClosedLoop,
    LoadFailed,
    LoadPlan,
    LoadProcess,
    OpenLoop,
    Phase,
    Samples,
    Target,
    summarise,
)
from tessera_cli.loadgen.wire import decode, encode
from tessera_runtime.protocol.messages import ModelInferRequest

ANSWER_TIMEOUT_S = 60.0

_SIZE, _PREFIX = struct.Struct("<I"), struct.Struct(">BI")
"""Before an element of a BYTES tensor, and before a message of gRPC."""


@dataclass(frozen=True, slots=True)
class Asked:
    """Who is asked, with what. Several targets share the requests evenly."""

    targets: tuple[Target, ...]
    leader: int
    """Process of the server whose processor time is counted, with that of all it started."""
    parts: int = 1
    """Requests that one image takes."""


def image_request(wire: Wire, model: str, encoded: bytes) -> bytes:
    """A request to a stage, as the load generator sends it: BYTES ``[1]``, the answer wanted in binary."""
    element = _SIZE.pack(len(encoded)) + encoded
    if wire is Wire.GRPC:
        tensor = {"name": "image", "datatype": "BYTES", "shape": [1]}
        message: bytes = ModelInferRequest(
            model_name=model, inputs=[tensor], raw_input_contents=[element]
        ).SerializeToString()
        return _PREFIX.pack(0, len(message)) + message
    sizes = {"binary_data_size": len(element)}
    document = {
        "inputs": [{"name": "image", "datatype": "BYTES", "shape": [1], "parameters": sizes}],
        "parameters": {"binary_data_output": True},
    }
    header = json.dumps(document).encode()
    lengths = f"Inference-Header-Content-Length: {len(header)}\r\n"
    return _posted(f"/v2/models/{model}/infer", header + element, lengths)


def tensor_request(wire: Wire, model: str, row: npt.NDArray[np.float32]) -> bytes:
    return encode(wire, model, {"input": row[None]})


def plain_request(path: str, encoded: bytes) -> bytes:
    return _posted(path, encoded)


def _posted(path: str, body: bytes, headers: str = "") -> bytes:
    return (
        f"POST {path} HTTP/1.1\r\nHost: localhost\r\n{headers}Content-Length: {len(body)}\r\n\r\n"
    ).encode() + body


def target(wire: Wire, ports: Ports, requests: Sequence[bytes], connections: int) -> Target:
    port = ports.http if wire is Wire.HTTP else ports.grpc
    return Target(wire, HOST, port, tuple(requests), connections if wire is Wire.HTTP else 1)


def answers(targets: Sequence[Target]) -> list[tuple[bytes, ...]]:
    """Bodies by target, one for each of its requests in turn; all are sent at once, and each has as many. An answer that comes
    at once has one more sent. Raises LoadFailed.
    """
    (count,) = {len(each.requests) for each in targets}
    once = ClosedLoop(count * len(targets), seconds=0.0, warmup_s=0.0)
    plan = LoadPlan(tuple(targets), once, keep_answers=True, answer_timeout_s=ANSWER_TIMEOUT_S)
    bodies = _run(plan).answers
    return [bodies[index :: len(targets)] for index in range(len(targets))]


def output(asked: Target, body: bytes) -> npt.NDArray[np.float32]:
    """The only output of an answer of the server."""
    (found,) = decode(asked.protocol, body).values()
    return np.asarray(found, np.float32)


def closed(
    asked: Asked, in_flight: int, warm_s: float, seconds: float, cores: tuple[int, ...]
) -> Figures:
    """Images per second with so many requests in flight. Raises LoadFailed, also when a request fails."""
    plan = LoadPlan(
        asked.targets,
        ClosedLoop(in_flight, seconds, warm_s),
        answer_timeout_s=ANSWER_TIMEOUT_S,
        progress_s=60.0,
        cores=cores,
    )
    before = cpu_s(asked.leader)
    samples = _run(plan)
    used_s = cpu_s(asked.leader) - before
    seen = summarise(samples, 0.0, seconds)
    return {
        "rate_per_s": arrival_rate(samples.done, seconds) / asked.parts,
        "p50_ms": seen.p50_ms,
        "p99_ms": seen.p99_ms,
        "cpu_ms": 1e3 * used_s * asked.parts / len(samples.done),
    }


def arrival_rate(done: npt.NDArray[np.float64], seconds: float) -> float:
    """Answers per second of those that came within ``[0, seconds)``: the slope of their count over the times at which they came.

    They come in batches, of which a count within fixed limits takes in one more or less: 7 % of five seconds. Where
    they came in less than half of the time, too few for a slope, it is their count.
    """
    came = np.sort(done[(done >= 0) & (done < seconds)])
    if len(came) < 2 or np.ptp(came) < seconds / 2:
        return len(came) / seconds
    return float(np.polyfit(came, np.arange(len(came)), 1)[0])


def poisson(
    asked: Asked,
    rate_per_s: float,
    warm_s: float,
    seconds: float,
    seed: int,
    cores: tuple[int, ...],
) -> Figures:
    """Latency from when each request was meant to be sent. Raises LoadFailed, also when a request fails."""
    shape = OpenLoop((Phase(rate_per_s, warm_s + seconds),), seed)
    plan = LoadPlan(
        asked.targets, shape, answer_timeout_s=ANSWER_TIMEOUT_S, progress_s=60.0, cores=cores
    )
    seen = summarise(_run(plan), warm_s, warm_s + seconds)
    return {
        "offered_per_s": rate_per_s,
        "requests": float(seen.requests),
        "p50_ms": seen.p50_ms,
        "p99_ms": seen.p99_ms,
        "sent_late": seen.late / seen.requests if seen.requests else np.nan,
    }


def _run(plan: LoadPlan) -> Samples:
    with LoadProcess(plan) as load:
        samples = load.samples()
    if not samples.good.all():
        failed = int((~samples.good).sum())
        raise LoadFailed(f"{failed} of {len(samples.good)} requests failed or were lost")
    return samples
