"""`tessera bench`: load on a running server, with inputs made up from the model's metadata."""

from __future__ import annotations

import argparse
import http.client
import json
from collections.abc import Mapping, Sequence
from math import isnan
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import numpy.typing as npt
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from tessera_cli.loadgen import (
    ClosedLoop,
    LoadFailed,
    LoadPlan,
    LoadProcess,
    OpenLoop,
    Phase,
    Protocol,
    Samples,
    Started,
    Summary,
    Target,
    summarise,
)
from tessera_cli.loadgen import Progress as LoadProgress
from tessera_cli.loadgen.wire import encode
from tessera_cli.output import add_output_argument, emit, fail
from tessera_runtime.datatypes import BYTES, DATATYPES

METADATA_TIMEOUT_S = 5.0
REQUESTS = 32
"""Different requests, sent in turn."""
OPEN_CONNECTIONS = 128
"""Of an open loop over HTTP: as many requests can be in flight; more wait and are late."""
MOST_IN_FLIGHT = 512
CALLS_PER_CONNECTION = 8
"""gRPC: more on one connection would wait for its single reader."""


class BenchFailed(Exception):
    """The load cannot be made or sent; the message is for the user."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", required=True, help="served name, such as default.digits")
    parser.add_argument("--url", default="http://127.0.0.1:8000", help="of the server, HTTP")
    parser.add_argument(
        "--grpc", metavar="HOST:PORT", help="send inference over gRPC to this address"
    )
    shape = parser.add_mutually_exclusive_group()
    shape.add_argument(
        "--rate", type=float, help="requests per second at random (Poisson) times: open loop"
    )
    shape.add_argument("--concurrency", type=int, default=1, help="requests in flight: closed loop")
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--rows", type=int, default=1, help="rows per request")
    parser.add_argument(
        "--shape",
        action="append",
        default=[],
        metavar="INPUT=N,…",
        help="shape of one row of an input whose shape is variable (repeatable)",
    )
    parser.add_argument("--slo", type=float, metavar="MS", help="say how many answers were in time")
    parser.add_argument("--seed", type=int, default=0, help="of inputs and times")
    add_output_argument(parser)


def run(arguments: argparse.Namespace) -> int:
    try:
        plan = plan_of(arguments)
        summary = summarise(_send(plan, arguments.seconds), 0.0, arguments.seconds, arguments.slo)
    except (BenchFailed, LoadFailed) as error:
        return fail("bench", str(error))
    if not summary.requests:
        return fail("bench", f"no request was finished in {arguments.seconds:g} s: send for longer")
    # JSON has no NaN: what was not measured is left out.
    figures = {
        n: v for n, v in summary.as_dict().items() if not (isinstance(v, float) and isnan(v))
    }
    emit(arguments.output, figures, lambda: _table(summary))
    return 1 if summary.failed or summary.lost else 0


def plan_of(arguments: argparse.Namespace) -> LoadPlan:
    """The load that was asked for. Raises BenchFailed."""
    url = urlsplit(arguments.url)
    if url.scheme != "http" or not url.hostname:
        raise BenchFailed(f"--url: found {arguments.url!r}, allowed: http://HOST[:PORT]")
    metadata = _metadata(url.hostname, url.port or 80, arguments.model)
    for name, value in (
        ("--seconds", arguments.seconds),
        ("--rows", arguments.rows),
        ("--rate", 1 if arguments.rate is None else arguments.rate),
    ):
        if value <= 0:
            raise BenchFailed(f"{name}: found {value}, must be positive")
    if not 1 <= arguments.concurrency <= MOST_IN_FLIGHT:
        raise BenchFailed(
            f"--concurrency: found {arguments.concurrency}, allowed: 1 to {MOST_IN_FLIGHT}"
        )
    protocol, host, port = Protocol.HTTP, url.hostname, url.port or 80
    if arguments.grpc:
        protocol = Protocol.GRPC
        host, _, text = arguments.grpc.rpartition(":")
        if not host or not text.isdecimal():
            raise BenchFailed(f"--grpc: found {arguments.grpc!r}, allowed: HOST:PORT")
        port = int(text)
    generator = np.random.default_rng(arguments.seed)
    shapes = row_shapes(arguments.shape)
    requests = tuple(
        encode(
            protocol,
            arguments.model,
            synthetic_inputs(metadata["inputs"], arguments.rows, shapes, generator),
        )
        for _ in range(REQUESTS)
    )
    in_flight = OPEN_CONNECTIONS if arguments.rate else arguments.concurrency
    connections = in_flight if protocol is Protocol.HTTP else -(-in_flight // CALLS_PER_CONNECTION)
    return LoadPlan(
        targets=(Target(protocol, host, port, requests, connections),),
        shape=OpenLoop((Phase(arguments.rate, arguments.seconds),), arguments.seed)
        if arguments.rate
        else ClosedLoop(arguments.concurrency, arguments.seconds),
    )


def row_shapes(given: Sequence[str]) -> dict[str, tuple[int, ...]]:
    """``INPUT=3,224,224`` by input. Raises BenchFailed."""
    shapes = {}
    for text in given:
        name, _, sizes = text.partition("=")
        parts = sizes.split(",") if sizes else []
        if not name or not all(part.isdecimal() and int(part) > 0 for part in parts):
            raise BenchFailed(f"--shape: found {text!r}, allowed: INPUT=N,N,… with positive sizes")
        shapes[name] = tuple(int(part) for part in parts)
    return shapes


def synthetic_inputs(
    inputs: Sequence[Mapping[str, Any]],
    rows: int,
    shapes: Mapping[str, tuple[int, ...]],
    generator: np.random.Generator,
) -> dict[str, npt.NDArray[Any]]:
    """Random tensors for the ``inputs`` of model metadata: normal floats, integers 0 and 1. Raises BenchFailed."""
    tensors: dict[str, npt.NDArray[Any]] = {}
    for given in inputs:
        name, datatype = given["name"], given["datatype"]
        row = shapes.get(name, tuple(int(size) for size in given["shape"][1:]))
        if datatype == BYTES or datatype not in DATATYPES:
            raise BenchFailed(f"input {name!r} is {datatype}, for which no values are made up")
        if min(row, default=1) < 1:
            raise BenchFailed(
                f"input {name!r} has the variable row shape {list(row)}; choose one with --shape {name}=N,…"
            )
        shape = (rows, *row)
        dtype = DATATYPES[datatype]
        values = (
            generator.standard_normal(shape)
            if dtype.kind == "f"
            else generator.integers(0, 2, shape)
        )
        tensors[name] = values.astype(dtype)
    return tensors


def _metadata(host: str, port: int, model: str) -> dict[str, Any]:
    connection = http.client.HTTPConnection(host, port, timeout=METADATA_TIMEOUT_S)
    try:
        connection.request("GET", f"/v2/models/{model}")
        response = connection.getresponse()
        answer: dict[str, Any] = json.loads(response.read())
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise BenchFailed(f"no model metadata from {host} port {port}: {error}") from error
    finally:
        connection.close()
    if response.status != 200:
        raise BenchFailed(f"{model}: {answer.get('error', response.reason)}")
    return answer


def _send(plan: LoadPlan, seconds: float) -> Samples:
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with LoadProcess(plan) as load, Progress(*columns, console=Console(stderr=True)) as bars:
        task = bars.add_task("warm-up", total=seconds)
        for message in load.messages():
            if isinstance(message, Started):
                bars.update(task, description="sending")
            elif isinstance(message, LoadProgress):
                rate = message.answered / plan.progress_s
                bars.update(task, completed=message.at_s, description=f"{rate:,.0f}/s")
        bars.update(task, completed=seconds)
        return load.samples()


def _table(summary: Summary) -> Table:
    table = Table(show_header=False)
    for name, value in summary.as_dict().items():
        if isinstance(value, dict):
            text = ", ".join(f"{status}: {count}" for status, count in sorted(value.items()))
        elif isinstance(value, float):
            text = "-" if isnan(value) else f"{value:,.3f}"
        else:
            text = f"{value:,}"
        table.add_row(name, text)
    return table
