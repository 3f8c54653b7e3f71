"""Whether a server that works stays as it is: ``make bench-soak``.

Poisson arrivals over HTTP and gRPC for MINUTES; memory, descriptors, processes and shared memory of every
process of the server are sampled meanwhile, and once more when the clients have gone. It fails when memory
of any process grows faster than SLOPE_MIB_PER_MIN, when something is left that was not there before the load,
or when a request fails.

The slope is Theil and Sen's, the median over all pairs of samples, so that single steps do not make it.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # `python bench/soak.py` as well as -m

import numpy as np
from bench.dataplane.closed import examples
from bench.dataplane.main import cores_of
from bench.dataplane.running import Running
from bench.harness import arguments, versions, write_results
from bench.models.networks import export
from bench.peers.base import HOST, WORKS, Wire
from bench.peers.tessera import Tessera
from bench.processes import own_pss_mib, tree
from rich.console import Console
from rich.table import Table

from tessera_cli.loadgen import (
    LoadFailed,
    LoadPlan,
    LoadProcess,
    OpenLoop,
    Phase,
    Started,
    Summary,
    Target,
    summarise,
)

SLOPE_MIB_PER_MIN = 0.25
"""360 MiB a day: more would end in a kill before anybody looks."""
LEAST_GROWTH_MIB = 4.0
"""Less over a whole run is noise: caches and heaps that settle."""
WARM_SHARE = 0.25
"""Of the run, before which memory may grow: heaps fill up to what the load needs."""
SAMPLES = 120
LEAST_PERIOD_S = 0.25
SETTLE_S = 15.0
"""For the server to close what its clients have left."""
PATIENT_SLO_MS = 10_000.0
"""A machine that stops for a moment is not what is looked for: nothing is refused for that."""
CONNECTIONS = {Wire.HTTP: 32, Wire.GRPC: 4}
MODULES = ("supervisor", "worker.zygote", "dispatch.main")


@dataclass(frozen=True, slots=True)
class Sample:
    at_s: float
    memory_mib: dict[str, float]
    """PSS by process, its name and number; pages of files left out."""
    descriptors: int
    shared_mib: float
    """Of memory files that some process holds; each counted once."""

    @property
    def processes(self) -> int:
        return len(self.memory_mib)


def sample(leader: int, at_s: float) -> Sample:
    memory: dict[str, float] = {}
    descriptors = 0
    shared: dict[int, int] = {}
    for pid in tree(leader):
        try:
            name = _name(pid)
            entries = list(Path(f"/proc/{pid}/fd").iterdir())
            for entry in entries:
                if os.readlink(entry).startswith("/memfd:"):
                    found = entry.stat()
                    shared[found.st_ino] = found.st_blocks * 512
        except OSError:
            continue  # it has just ended
        descriptors += len(entries)
        memory[name] = own_pss_mib(pid)
    return Sample(at_s, memory, descriptors, sum(shared.values()) / 2**20)


def _name(pid: int) -> str:
    command = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace")
    for module in MODULES:
        if f"tessera_runtime.{module}\0" in command:
            # Workers are forks of the zygote and have its command line: the number tells them apart.
            return f"{module.partition('.')[0]} {pid}"
    return f"{Path(command.partition(chr(0))[0]).name} {pid}"


def slope_per_min(times_s: Sequence[float], values: Sequence[float]) -> float:
    """Theil and Sen's; 0 for fewer than two moments."""
    times, heights = np.array(times_s), np.array(values)
    first, second = np.triu_indices(len(times), 1)
    apart = times[second] - times[first]
    if not (apart > 0).any():
        return 0.0
    rises = (heights[second] - heights[first])[apart > 0] / apart[apart > 0]
    return float(np.median(rises)) * 60


def findings(before: Sample, during: Sequence[Sample], after: Sample, load: Summary) -> list[str]:
    """What is wrong, in words; nothing when all is well."""
    wrong = []
    if load.failed or load.lost:
        wrong.append(f"{load.failed} requests failed, {load.lost} were lost: {load.statuses}")
    steady = during[int(len(during) * WARM_SHARE) :]
    times = [each.at_s for each in steady]
    names = set.intersection(*(set(each.memory_mib) for each in steady)) if steady else set()
    for name in sorted(names):
        heights = [each.memory_mib[name] for each in steady]
        slope = slope_per_min(times, heights)
        growth = slope * (times[-1] - times[0]) / 60
        if slope > SLOPE_MIB_PER_MIN and growth > LEAST_GROWTH_MIB:
            wrong.append(
                f"memory of {name} grows by {slope:.2f} MiB a minute; at most {SLOPE_MIB_PER_MIN}"
            )
    if set(before.memory_mib) != set(after.memory_mib):
        wrong.append(
            f"processes changed: {sorted(before.memory_mib)} before, {sorted(after.memory_mib)} after"
        )
    if after.descriptors > before.descriptors:
        wrong.append(f"descriptors: {before.descriptors} before, {after.descriptors} after")
    peak = max((each.shared_mib for each in steady), default=0.0)
    if after.shared_mib > max(peak, before.shared_mib) + 1.0:
        wrong.append(
            f"shared memory: at most {peak:.0f} MiB under load, {after.shared_mib:.0f} after"
        )
    return wrong


def soak(
    server: Running, seconds: float, rate_per_s: float, core: int
) -> tuple[Sample, list[Sample], Sample, Summary]:
    """Load the server and sample it: before, during, after. Raises LoadFailed."""
    rows = examples(server.work)
    targets = []
    for wire in Wire:
        asked = [server.peer.request(server.work, wire, row[None]) for row in rows]
        requests = tuple(each.raw_http if wire is Wire.HTTP else each.body for each in asked)
        server.ask(wire, asked[0])  # what is made once is made now
        targets.append(Target(wire, HOST, server.port(wire), requests, CONNECTIONS[wire]))
    plan = LoadPlan(
        tuple(targets),
        OpenLoop((Phase(rate_per_s, seconds),), seed=1),
        progress_s=max(LEAST_PERIOD_S, seconds / SAMPLES),
        cores=(core,),
    )
    before = _settled(server, None)
    during = []
    with LoadProcess(plan) as load:
        begin = time.monotonic()
        for message in load.messages():
            if isinstance(message, Started):
                begin = time.monotonic()
            else:
                during.append(sample(server.pid, time.monotonic() - begin))
        summary = summarise(load.samples(), 0.0, seconds)
    return before, during, _settled(server, before), summary


def _settled(server: Running, like: Sample | None) -> Sample:
    """A sample at rest: until descriptors are as few as in ``like``, or for the first time stay the same."""
    deadline = time.monotonic() + SETTLE_S
    last = sample(server.pid, 0.0)
    while time.monotonic() < deadline:
        if like is not None and last.descriptors <= like.descriptors:
            break
        time.sleep(0.5)
        now = sample(server.pid, 0.0)
        if like is None and now.descriptors == last.descriptors:
            break
        last = now
    return last


def table(before: Sample, during: Sequence[Sample], after: Sample) -> Table:
    drawn = Table(title="Soak")
    for name in ("", "before", "first under load", "last under load", "after"):
        drawn.add_column(name, justify="left" if not name else "right")
    shown = (before, during[0], during[-1], after) if during else (before, after)
    for process in sorted(before.memory_mib):
        figures = (each.memory_mib.get(process, float("nan")) for each in shown)
        drawn.add_row(f"PSS MiB, {process}", *(f"{figure:.1f}" for figure in figures))
    drawn.add_row("descriptors", *(str(each.descriptors) for each in shown))
    drawn.add_row("processes", *(str(each.processes) for each in shown))
    drawn.add_row("shared memory MiB", *(f"{each.shared_mib:.1f}" for each in shown))
    return drawn


def choices(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = arguments("Whether memory and descriptors stay as they are under steady load.")
    parser.add_argument("--minutes", type=float, help="default: 20, or 0.2 with --quick")
    parser.add_argument("--rate", type=float, default=400.0, help="requests per second")
    parser.add_argument("--work", choices=("identity", "ensemble"), default="ensemble")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    chosen = choices(argv)
    console = Console()
    server_cores, core, *_ = cores_of(sorted(os.sched_getaffinity(0)))
    seconds = 60 * (chosen.minutes or (0.2 if chosen.quick else 20.0))
    work = WORKS[chosen.work]
    with tempfile.TemporaryDirectory(prefix="bench-soak-") as name:
        folder = Path(name)
        for network in work.networks:
            export(network, work.row_shape, folder)
        try:
            with Running(
                Tessera(PATIENT_SLO_MS), work, folder, folder / "server", server_cores
            ) as server:
                before, during, after, load = soak(server, seconds, chosen.rate, core)
        except LoadFailed as error:
            console.print(f"FAILED: {error}")
            return 1
    wrong = findings(before, during, after, load)
    console.print(table(before, during, after))
    console.print(f"{load.requests} requests, p50 {load.p50_ms:.2f} ms, p99 {load.p99_ms:.2f} ms")
    for each in wrong:
        console.print(f"FAILED: {each}", markup=False)
    facts = {
        "versions": versions(("tessera", "torch", "numpy", "grpcio")),
        "method": {"seconds": seconds, "rate_per_s": chosen.rate, "work": work.name},
        "load": load.as_dict(),
        "findings": wrong,
        "samples": [
            {
                "at_s": each.at_s,
                "pss_mib": each.memory_mib,
                "descriptors": each.descriptors,
                "shared_mib": each.shared_mib,
            }
            for each in (before, *during, after)
        ],
    }
    write_results("soak", chosen, facts, ())
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
