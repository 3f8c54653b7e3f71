"""One GPU: what a served network keeps of an in-process loop's throughput, and what several lanes gain over one.

The loop runs the file that is served, by CUDA graphs, with copies from and to pinned memory, in batches of the same cap.
The cap is the largest one whose batch takes the loop a third of the bound at most: a request waits for the batch before
its own. Where no GPU is found the rows say so.
"""

from __future__ import annotations

import re
import subprocess
import sys
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from bench.dataplane.children import Child, ChildFailed
from bench.dataplane.closed import CHECKED, Bench, examples
from bench.dataplane.gpu_lanes import lane_rows
from bench.dataplane.open_loop import Outcome, highest_rate, poisson
from bench.dataplane.rates import P99_BOUND_MS, TRIES
from bench.dataplane.running import Running, ServerFailed
from bench.dataplane.targets import LOOP, TESSERA
from bench.harness import Figures, Row
from bench.models.networks import pixels
from bench.peers.base import HOST, WORKS, Array, Wire, Work
from bench.peers.tessera import report
from bench.peers.tessera_gpu import TesseraOn
from bench.processes import on_cores

from tessera_cli.loadgen import LoadFailed

GRAPHS = "bench.dataplane.graphs"
LANES = "bench.dataplane.lanes"

GROUP = "gpu"
WORK = "resnet50"
CAPS = (8, 16, 32, 64, 128)
SHARE = 3
"""A batch takes at most this part of the bound."""
SLOTS = (1, 2)
INSTANCES = (1, 2)
MOST_GENERATORS = 6
CONNECTIONS = 64
"""Of each: all together hold what a server answers within the bound, and a common limit of descriptors allows them."""
TOLERANCE = 0.05
"""Of an answer's distance from single precision's, relative to its length: fifty layers in half precision are off by 0.02,
and two images' answers by 0.14.
"""
RUNS = 50

_STAGE = re.compile(
    r'^tessera_stage_seconds_(sum|count)\{[^}]*stage="(\w+)"[^}]*\} ([0-9.e+-]+)$', re.MULTILINE
)


@dataclass(frozen=True, slots=True)
class Place:
    """Where it is measured."""

    kind: str
    """``cuda``; ``cpu`` in tests."""
    name: str
    server_cores: tuple[int, ...]
    load_cores: tuple[int, ...]

    @property
    def labels(self) -> dict[str, str]:
        return {"group": GROUP, "on": self.name}


def gpu_rows(bench: Bench) -> list[Row]:
    server, load = halves(bench.cores)
    try:
        place = Place("cuda", gpu_name(), server, load)
    except NoGpu as error:
        why = f"no GPU found: {error}"
        bench.problem(f"{GROUP}: {why}")
        return [Row({"group": GROUP, "problem": why}, ())]
    return [*served_rows(bench, place, WORKS[WORK]), *lane_rows(bench, place)]


class NoGpu(Exception):
    """The message says what was asked."""


_NAME = """
import sys, torch
if not torch.cuda.is_available():
    sys.exit(f"torch {torch.__version__} sees none")
print(torch.cuda.get_device_name(0), f"torch {torch.__version__}", sep=", ")
"""


def gpu_name() -> str:
    """Of the first GPU, with torch's version. Raises NoGpu."""
    done = subprocess.run([sys.executable, "-c", _NAME], capture_output=True, text=True)
    if done.returncode:
        raise NoGpu((done.stderr.strip().splitlines() or ["nothing is said of it"])[-1])
    return done.stdout.strip().splitlines()[-1]


def halves(cores: Sequence[int]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Of the server, which has the first ones, and of the load; of one core, both."""
    middle = max(1, len(cores) // 2)
    return tuple(cores[:middle]), tuple(cores[middle:]) or tuple(cores)


def served_rows(
    bench: Bench,
    place: Place,
    work: Work,
    caps: Sequence[int] = CAPS,
    instances: Sequence[int] = (),
) -> list[Row]:
    """The loop at every cap, Tessera at the one that is chosen, and where a batch's time goes."""
    asked = examples(work)[:CHECKED]
    with on_cores(place.server_cores):
        bench.export(work)
        expected = reference(work, asked)
    own = place.labels | {"work": work.name}
    rows: list[Row] = []
    try:
        with Child(GRAPHS, [work.name, str(bench.models), place.kind], place.server_cores) as loop:
            answer = np.array(loop.ask(rows=asked.tolist())["answer"], np.float32)
            if not close(answer, expected):
                raise ChildFailed("the loop's answers differ from single precision's")
            for cap in caps:
                for slots in SLOTS:
                    figures = _loop(loop, cap, slots, bench)
                    bench.says(f"{GROUP} loop, {cap} rows, {slots} slots: {_said(figures[-1])}")
                    rows.append(
                        Row(own | {"server": LOOP, "cap": str(cap), "slots": str(slots)}, figures)
                    )
            cap = chosen_cap(rows)
            try:
                alone = Row(
                    own | {"server": "a batch alone", "cap": str(cap)},
                    (_alone(loop, place, work, cap, bench),),
                )
                bench.says(f"{GROUP} a batch of {cap} alone: {_said(alone.medians)}")
                rows.append(alone)
            except ChildFailed as error:
                bench.problem(f"{GROUP}: a batch alone: {error}")
    except ChildFailed as error:
        bench.problem(f"{GROUP}: {error}")
        return rows
    top = loop_rate(rows, cap)
    for count in instances or (INSTANCES[-1:] if bench.quick else INSTANCES):
        for confined in (True, False):  # the second only to have figures where the first fails
            peer = TesseraOn(kind=place.kind, instances=count, cap=cap, confined=confined)
            labels = own | {"server": TESSERA, "cap": str(cap), "instances": str(count)}
            where = (bench.models, bench.path(GROUP), place.server_cores)
            try:
                with Running(peer, work, *where) as server:
                    check(server, asked, expected)
                    told = {} if confined else {"workers": "not confined"}
                    rows.append(Row(labels | told, (_highest(bench, place, server, top),)))
                break
            except (ServerFailed, LoadFailed) as error:
                ways = "confined" if confined else "not confined"
                bench.problem(f"{GROUP}: {count} instances, {ways}: {error}")
    return rows


def reference(work: Work, rows: Array) -> Array:
    """Answers in single precision, on the processor."""
    import torch

    net = pixels(work.networks[0], torch.float)
    with torch.inference_mode():
        found: Array = net(torch.from_numpy(rows)).numpy()
    return found


def close(found: Array, expected: Array) -> bool:
    """Whether each row is, and is another one than the others' right answers."""
    for index, row in enumerate(found):
        away = np.linalg.norm(expected - row, axis=1) / np.linalg.norm(expected, axis=1)
        if not away[index] <= TOLERANCE or int(away.argmin()) != index:
            return False
    return found.shape == expected.shape


def check(server: Running, rows: Array, expected: Array) -> None:
    """Ask for each row over each wire. Raises ServerFailed."""
    for wire in server.peer.wires:
        request = [server.peer.request(server.work, wire, row[None]) for row in rows]
        found = [each.read(server.ask(wire, each))[0] for each in request]
        if not close(np.stack(found), expected):
            raise ServerFailed(f"{wire.value} {server.work.name}: answers differ from the model's")


def chosen_cap(rows: Sequence[Row]) -> int:
    """The largest whose batch takes one slot at most a part of the bound; the smallest if none does."""
    alone = {
        int(row.labels["cap"]): row.medians["batch_ms"]
        for row in rows
        if row.labels.get("slots") == "1"
    }
    return max((cap for cap, ms in alone.items() if ms <= P99_BOUND_MS / SHARE), default=min(alone))


def loop_rate(rows: Sequence[Row], cap: int) -> float:
    """Rows per second of the loop at ``cap``, of as many slots as do best."""
    return max(
        row.medians["rate_per_s"]
        for row in rows
        if row.labels.get("cap") == str(cap) and "slots" in row.labels
    )


def _loop(loop: Child, cap: int, slots: int, bench: Bench) -> tuple[Figures, ...]:
    found = []
    for _ in range(bench.rounds):
        rate = loop.ask(batch=cap, slots=slots, seconds=bench.seconds / 2)["rows_per_s"]
        found.append({"rate_per_s": rate, "batch_ms": cap * slots / rate * 1e3})
    return tuple(found)


def _alone(loop: Child, place: Place, work: Work, cap: int, bench: Bench) -> Figures:
    """Of one batch: the loop's steps by events of the device, and the whole in Tessera's lane."""
    parts: Figures = loop.ask(batch=cap, runs=RUNS)
    with Child(LANES, [str(bench.models), place.kind], place.server_cores) as lanes:
        return parts | {"lane_ms": lanes.ask(work=work.name, batch=cap, runs=RUNS)["run_ms"]}


def _highest(bench: Bench, place: Place, server: Running, top: float) -> Figures:
    """The Poisson rate that holds the bound, by bisection under the loop's, and what batches were like at it."""
    steps, seconds = (1, 0.5) if bench.quick else (6, 3.0)
    asked = examples(server.work)
    cores = place.load_cores[:MOST_GENERATORS]
    tried: dict[float, Figures] = {}

    def holds(rate: float) -> bool:
        return any(once(rate) for _ in range(TRIES))

    def once(rate: float) -> bool:
        before = stages(server)
        seen = poisson(server, Wire.HTTP, asked, rate, seconds, cores, connections=CONNECTIONS)
        tried[rate] = _figures(seen) | per_batch(before, stages(server))
        bench.says(f"{GROUP} Poisson {rate:,.0f}/s: {_said(tried[rate])}")
        return not (seen.failed or seen.lost) and seen.p99_ms <= P99_BOUND_MS

    found = highest_rate(holds, top, steps)
    at = tried[found] if found else tried[min(tried)]
    return {"rate_per_s": found, "loop_per_s": top} | at


def _figures(seen: Outcome) -> Figures:
    return {"p50_ms": seen.p50_ms, "p99_ms": seen.p99_ms, "late": seen.late}


def _said(figures: Figures) -> str:
    return ", ".join(f"{name} {value:.3g}" for name, value in figures.items())


def stages(server: Running) -> dict[str, float]:
    """Of the server's own clock, since it began: seconds and count of each stage, and rows."""
    with urllib.request.urlopen(f"http://{HOST}:{server.ports.metrics}/metrics", timeout=5) as page:
        found = parse_stages(page.read().decode())
    members = [member for each in report(server.directory).services for member in each.members]
    return found | {"rows": float(sum(member.rows for member in members))}


def parse_stages(page: str) -> dict[str, float]:
    """``STAGE_sum`` and ``STAGE_count`` of a page of metrics."""
    return {f"{stage}_{what}": float(value) for what, stage, value in _STAGE.findall(page)}


def per_batch(before: Figures, after: Figures) -> Figures:
    """Between two readings of :func:`stages`: rows per batch, and milliseconds of each stage."""
    grown = {name: value - before.get(name, 0.0) for name, value in after.items()}
    batches = grown.get("inference_count", 0.0)
    figures = {"rows_per_batch": grown["rows"] / batches if batches else float("nan")}
    for stage in ("queue", "preprocess", "inference"):
        count = grown.get(f"{stage}_count", 0.0)
        total = grown.get(f"{stage}_sum", 0.0)
        figures[f"{stage}_ms"] = total / count * 1e3 if count else float("nan")
    return figures
