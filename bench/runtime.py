"""What serving costs beside the models: ``make bench-runtime``.

An identity model and an ensemble of three small CNNs, in closed loops of 1, 8 and 32 requests in flight, over
HTTP (binary tensors) and gRPC, beside a loop over the same models in one process, which is the limit. The
server has one core, the load has others; the loop runs on the server's core.

Checks: no request fails, and the answers are those of the models in this process. There is no figure to reach
here yet.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # `python bench/runtime.py` as well as -m

import numpy as np
import numpy.typing as npt
import torch
from bench.harness import Figures, Row, Variant, alternate, arguments, versions, write_results
from bench.models.cnn import IMAGE, export_cnn
from bench.models.identity import Identity
from bench.processes import on_cores
from bench.servers import DEVICE, HOST, BenchServer
from rich.console import Console
from rich.table import Table

from tessera_cli.loadgen import (
    ClosedLoop,
    LoadPlan,
    LoadProcess,
    Protocol,
    Started,
    Target,
    summarise,
)
from tessera_cli.loadgen.wire import decode, encode
from tessera_core.api.modelservice import Combine, OnTimeout
from tessera_core.ensemble.combine import combine
from tessera_runtime.target import InstanceTarget, MemberTarget, ServiceTarget

Array = npt.NDArray[np.float32]

CONCURRENCY = (1, 8, 32)
BATCH_CAP = 8
"""Where the CNNs have gained most of what batching gives; the loop runs at it too."""
EXAMPLES = 64
SLO_MS = 1000.0
"""Far away: nothing is dropped, so that closed loops measure capacity."""

RELATIVE, ABSOLUTE = 1e-4, 1e-5
"""Tolerance of answers: batches of other sizes sum in another order."""

CHECK_S = 0.5
"""Of comparing answers before anything is measured."""

TABLE_WIDTH = 100

PACKAGES = ("tessera", "torch", "numpy", "uvloop", "httptools", "grpcio", "protobuf", "msgspec")


@dataclass(frozen=True, slots=True)
class Case:
    """A service, its inputs, and the same models in this process."""

    name: str
    service: ServiceTarget
    input: str
    output: str
    examples: Array
    """[examples, …]: one row per request."""
    in_process: Callable[[Array], Array]
    preload: str

    def requests(self, protocol: Protocol) -> tuple[bytes, ...]:
        return tuple(
            encode(protocol, self.service.name, {self.input: row[None]}) for row in self.examples
        )


class Failed(Exception):
    """A check of this benchmark did not hold."""


def identity_case() -> Case:
    path = Path(__file__).parent / "models" / "identity.py"
    model = Identity()
    return Case(
        name="identity",
        service=_service("bench.identity", [path], "Python"),
        input="x",
        output="y",
        examples=_examples((16,)),
        in_process=lambda x: model({"x": x})["y"],
        preload="",
    )


def cnn_case(directory: Path) -> Case:
    paths = [directory / f"cnn{seed}.pt2" for seed in range(3)]
    modules = [export_cnn(seed, path) for seed, path in enumerate(paths)]

    def in_process(images: Array) -> Array:
        with torch.inference_mode():
            outputs = [module(torch.from_numpy(images)).numpy() for module in modules]
        return combine(Combine.MEAN, outputs)

    return Case(
        name="3 CNNs",
        service=_service("bench.cnns", paths, "TorchExport"),
        input="input",
        output="output_0",
        examples=_examples(IMAGE),
        in_process=in_process,
        preload="torch",
    )


def _examples(shape: tuple[int, ...]) -> Array:
    return np.random.default_rng(0).standard_normal((EXAMPLES, *shape), dtype=np.float32)


def _service(name: str, paths: Sequence[Path], model_format: str) -> ServiceTarget:
    members = tuple(
        MemberTarget(
            name=f"member{index}",
            path=str(path),
            format=model_format,
            digest=path.name,
            max_batch=BATCH_CAP,
            cap=BATCH_CAP,
            instances=(InstanceTarget(DEVICE),),
            allow_code=True,
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
        slo_ms=SLO_MS,
        percent=99.0,
    )


def measure_loop(case: Case, batch: int, cores: tuple[int, ...], seconds: float) -> Figures:
    """Rows per second of the models in this process, on the server's core."""
    rows = case.examples[:batch]
    times: list[float] = []
    with on_cores(cores):
        for _ in range(5):
            case.in_process(rows)
        cpu, begin = time.process_time(), time.perf_counter()
        end = last = begin
        while last - begin < seconds:
            case.in_process(rows)
            end = time.perf_counter()
            times.append(end - last)
            last = end
        cpu = time.process_time() - cpu
    done = batch * len(times)
    p50, p99 = np.percentile(times, (50, 99)) * 1e3
    return {
        "rate_per_s": done / (end - begin),
        "p50_ms": float(p50),
        "p99_ms": float(p99),
        "cpu_us": cpu / done * 1e6,
        "pss_mib": float("nan"),
    }


def _plan(
    case: Case, server: BenchServer, protocol: Protocol, shape: ClosedLoop, cores: tuple[int, ...]
) -> LoadPlan:
    # Up to eight calls share a gRPC connection; more on one would wait for its single reader.
    connections = shape.concurrency if protocol is Protocol.HTTP else -(-shape.concurrency // 8)
    target = Target(protocol, HOST, server.ports[protocol], case.requests(protocol), connections)
    return LoadPlan(targets=(target,), shape=shape, cores=cores)


def measure_served(
    case: Case, server: BenchServer, protocol: Protocol, shape: ClosedLoop, cores: tuple[int, ...]
) -> Figures:
    """One closed loop. Raises Failed when a request fails."""
    with LoadProcess(_plan(case, server, protocol, shape, cores)) as load:
        before = server.usage()
        for message in load.messages():
            if isinstance(message, Started):  # warm-up is over
                before = server.usage()
        after = server.usage()
        samples = load.samples()
    summary = summarise(samples, 0.0, shape.seconds)
    if summary.failed or summary.lost:
        raise Failed(f"{case.name} {protocol.value}: failed requests: {summary.statuses}")
    answered = int((samples.done >= 0).sum())
    return {
        "rate_per_s": summary.rate_per_s,
        "p50_ms": summary.p50_ms,
        "p99_ms": summary.p99_ms,
        "cpu_us": (after.cpu_s - before.cpu_s) / answered * 1e6,
        "pss_mib": after.pss_mib,
    }


def check_answers(case: Case, server: BenchServer, cores: tuple[int, ...]) -> None:
    """Every kept answer is what the models give in this process. Raises Failed."""
    expected = case.in_process(case.examples)
    for protocol in Protocol:
        plan = _plan(case, server, protocol, ClosedLoop(8, CHECK_S, 0.0), cores)
        kept = LoadPlan(plan.targets, plan.shape, keep_answers=True, cores=cores)
        with LoadProcess(kept) as load:
            answers = load.samples().answers
        for number, body in enumerate(answers):
            try:
                found = decode(protocol, body)[case.output][0]
            except (ValueError, KeyError) as error:
                raise Failed(f"{case.name} {protocol.value}: not an answer: {body!r}") from error
            if not np.allclose(found, expected[number % EXAMPLES], RELATIVE, ABSOLUTE):
                raise Failed(
                    f"{case.name} {protocol.value}: answer {number} differs from the model's"
                )


def table(rows: Sequence[Row]) -> Table:
    """The medians, each served row beside its share of the loop at the same batch cap."""
    limits = {
        row.labels["model"]: row.medians["rate_per_s"]
        for row in rows
        if row.labels["via"] == f"loop b{BATCH_CAP}"
    }
    drawn = Table(title="Runtime: medians; server on one core")
    for name in ("model", "via", "in flight"):
        drawn.add_column(name, no_wrap=True)
    for name in ("req/s", "of loop", "p50 ms", "p99 ms", "CPU µs/req", "PSS MiB"):
        drawn.add_column(name, justify="right", no_wrap=True)
    for row in rows:
        figures, model = row.medians, row.labels["model"]
        memory = figures["pss_mib"]
        drawn.add_row(
            *row.labels.values(),
            f"{figures['rate_per_s']:,.0f}",
            f"{figures['rate_per_s'] / limits[model]:.3f}",
            f"{figures['p50_ms']:.3f}",
            f"{figures['p99_ms']:.3f}",
            f"{figures['cpu_us']:.0f}",
            "" if np.isnan(memory) else f"{memory:.0f}",
        )
    return drawn


def variants_of(
    case: Case,
    server: BenchServer,
    seconds: float,
    server_cores: tuple[int, ...],
    load_cores: tuple[int, ...],
) -> list[Variant]:
    rows = [
        Variant(
            {"model": case.name, "via": f"loop b{batch}", "in flight": ""},
            partial(measure_loop, case, batch, server_cores, seconds),
        )
        for batch in (1, BATCH_CAP)
    ]
    for protocol in Protocol:
        for concurrency in CONCURRENCY:
            shape = ClosedLoop(concurrency, seconds)
            labels = {"model": case.name, "via": protocol.value, "in flight": str(concurrency)}
            rows.append(
                Variant(labels, partial(measure_served, case, server, protocol, shape, load_cores))
            )
    return rows


def main() -> int:
    chosen = arguments("Throughput, latency, CPU and memory of the runtime.").parse_args()
    rounds = chosen.rounds or (1 if chosen.quick else 3)
    seconds = chosen.seconds or (0.5 if chosen.quick else 3.0)
    cores = sorted(os.sched_getaffinity(0))
    server_cores, load_cores = (cores[0],), tuple(cores[1:]) or (cores[0],)
    progress = Console(stderr=True)
    console = Console(width=max(TABLE_WIDTH, progress.width))
    torch.set_num_threads(1)
    os.sched_setaffinity(0, load_cores)
    try:
        with tempfile.TemporaryDirectory(prefix="bench-runtime-") as name:
            directory = Path(name)
            progress.print("exporting models, starting servers")
            one, three = identity_case(), cnn_case(directory)
            with (
                BenchServer(one.service, server_cores, directory / "one", one.preload) as first,
                BenchServer(three.service, server_cores, directory / "three", "torch") as second,
            ):
                variants = []
                for case, server in ((one, first), (three, second)):
                    check_answers(case, server, load_cores)
                    variants += variants_of(case, server, seconds, server_cores, load_cores)
                rows = alternate(variants, rounds, progress.print)
    except Failed as error:
        progress.print(f"FAILED: {error}")
        return 1
    console.print(table(rows))
    facts = {
        "versions": versions(PACKAGES),
        "method": {
            "rounds": rounds,
            "seconds": seconds,
            "server_cores": server_cores,
            "load_cores": load_cores,
            "batch_cap": BATCH_CAP,
        },
    }
    written = write_results("runtime", chosen, facts, rows)
    if written is not None:
        progress.print(f"written: {written}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
