"""The simulator beside the real server, and how fast it is: ``make bench-simulate``.

A model is served on this machine; Poisson requests come at shares of its capacity; the simulator is given the very
moments at which they were sent, and their latencies are laid beside each other. What it is told is measured before
(``served.py``). Two models: *timed* keeps its worker for a time that depends on the batch alone, as a GPU does, and
*mlp* computes on the CPU, so that whatever else runs on the machine is in its batch times.

``batch_time_drift`` is how much longer batches took in a run than before it. Where it is large, the machine was not
the one that the simulator was told of, and the run says so; ``own_p99_error`` is with the batch times of that run,
``steady_p99_error`` with batches that take their mean and never more.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))  # `python bench/simulate/main.py` as well as -m

from bench.dataplane.main import is_compiled, revision
from bench.dataplane.running import Running, ServerFailed
from bench.harness import Figures, Row, arguments, machine, versions, write_results
from bench.models.networks import export
from bench.peers.base import BATCH_CAP, WORKS
from bench.processes import on_cores
from bench.simulate.fleet import QUICK, Fleet, fleet_rows
from bench.simulate.judged import TARGET_P99, judged, verdict
from bench.simulate.served import SATURATING, Served, compared, load, measured_facts
from bench.simulate.speed import speed_rows
from rich.console import Console
from rich.table import Table

from tessera_cli.loadgen import ClosedLoop, LoadFailed

PACKAGES = ("tessera", "torch", "numpy", "uvloop", "httptools", "msgspec")
LOADS = (0.3, 0.5, 0.7, 0.8)
MODELS = {"timed": WORKS["identity"], "mlp": WORKS["mlp"]}
TABLE_WIDTH = 150


def served_rows(
    name: str,
    folder: Path,
    cores: Sequence[int],
    rounds: int,
    seconds: float,
    says: Callable[[str], None],
    problems: list[str],
) -> Iterator[Row]:
    """One row per load; every run measures what the simulator is told anew. One that fails is a problem of its own.

    Raises ServerFailed and LoadFailed where there is no server.
    """
    work = MODELS[name]
    for network in work.networks:
        export(network, work.row_shape, folder)
    worker, other = cores[0], cores[-1]
    found: dict[float, list[Figures]] = {share: [] for share in LOADS}
    peer = Served(timed=name == "timed", worker_cores=(worker,))
    with Running(peer, work, folder, folder / name, (worker, other)) as server:
        load(server, ClosedLoop(SATURATING, 1.0), other)
        for turn in range(rounds):
            for number, share in enumerate(LOADS):
                says(f"{name}: round {turn + 1}/{rounds}, load {share:g}")
                try:
                    facts = measured_facts(server, max(seconds / 8, 1.0), other, 7000 + 10 * turn)
                    seed = 100 * turn + number
                    found[share].append(compared(server, facts, share, seconds, other, seed))
                except (ServerFailed, LoadFailed) as error:
                    busy = os.getloadavg()[0]
                    problems.append(f"{name} at {share:g}, load average {busy:.0f}: {error}")
    for share, repeats in found.items():
        if not repeats:
            continue
        yield Row({"group": "served", "model": name, "load": f"{share:g}"}, tuple(repeats))


def shown(rows: Sequence[Row]) -> tuple[Table, Table]:
    beside = Table(title="Latency in ms, measured / simulated: medians of the runs")
    for heading in (
        "model",
        "load",
        "req/s",
        "p50",
        "p95",
        "p99",
        "p99 error: median [least, most]",
    ):
        beside.add_column(heading)
    for heading in ("with means alone", "with own batch times", "drift", ""):
        beside.add_column(heading)
    fast = Table(title="Simulated requests per second, one queue, one core")
    for heading in ("profile", "load", "deadlines", "batch", "M per s", "M per CPU s"):
        fast.add_column(heading)
    for row in rows:
        m, of = row.medians, row.labels
        if of["group"] == "fleet":
            continue
        if of["group"] == "speed":
            speed = [f"{m[f'requests_per_{unit}'] / 1e6:.2f}" for unit in ("s", "cpu_s")]
            fast.add_row(
                of["profile"], of["load"], of["deadlines"], f"{m['mean_batch']:.1f}", *speed
            )
            continue
        pairs = [
            f"{m[f'measured_p{q}_ms']:.2f} / {m[f'simulated_p{q}_ms']:.2f}" for q in (50, 95, 99)
        ]
        errors = [str(judged(row, f"{kind}p99_error")) for kind in ("", "steady_", "own_")]
        drift = f"{m['batch_time_drift']:+.1%}"
        rate = f"{m['rate_per_s']:.0f}"
        beside.add_row(of["model"], of["load"], rate, *pairs, *errors, drift, verdict(row))
    return beside, fast


def fleet_line(m: Figures) -> str:
    return (
        f"fleet: {m['services']:.0f} services on {m['devices']:.0f} devices, {m['requests'] / 1e6:.1f} M requests, "
        f"{m['member_requests'] / 1e6:.1f} M of members, in {m['seconds']:.0f} s; at most {m['peak_mib']:.0f} MiB"
    )


def main(argv: Sequence[str] | None = None) -> int:
    parser = arguments(__doc__.partition("\n\n")[0])
    parser.add_argument("--only", choices=(*MODELS, "speed", "fleet"), help="one part of it")
    chosen = parser.parse_args(argv)
    progress = Console(stderr=True)
    console = Console(width=max(TABLE_WIDTH, progress.width))
    rounds = chosen.rounds or (1 if chosen.quick else 5)
    seconds = chosen.seconds or (2.0 if chosen.quick else 12.0)
    cores = sorted(os.sched_getaffinity(0))[:2]
    before = machine()
    rows: list[Row] = []
    problems: list[str] = []
    for name in MODELS:
        if chosen.only not in (None, name):
            continue
        try:
            with (
                tempfile.TemporaryDirectory(prefix="bench-simulate-") as folder,
                on_cores(cores[-1:]),  # this process stays off the worker's core
            ):
                rows += served_rows(
                    name, Path(folder), cores, rounds, seconds, progress.print, problems
                )
        except (ServerFailed, LoadFailed) as error:
            problems.append(f"{name}: {error}")
    if chosen.only in (None, "speed"):
        progress.print("speed")
        with on_cores(cores[:1]):
            rows += speed_rows(100_000 if chosen.quick else 1_000_000, min(rounds, 3))
    if chosen.only in (None, "fleet"):
        progress.print("fleet")
        with on_cores(cores[:1]):
            rows += fleet_rows(QUICK if chosen.quick else Fleet())
    facts = {
        "revision": revision(),
        "compiled": is_compiled(),
        "versions": versions(PACKAGES),
        "method": {
            "rounds": rounds,
            "seconds": seconds,
            "worker_core": cores[0],
            "dispatcher_and_load_core": cores[-1],
            "batch_cap": BATCH_CAP,
            "target_p99_error": TARGET_P99,
            "load_average_before": before["load_average"],
        },
        "verdicts": {
            f"{row.labels['model']} at {row.labels['load']}": verdict(row)
            for row in rows
            if row.labels["group"] == "served"
        },
        "not_measured": problems,
    }
    if written := write_results("simulate", chosen, facts, rows):
        progress.print(f"written: {written}")
    for each in shown(rows):
        if each.row_count:
            console.print(each)
    for row in rows:
        if row.labels["group"] == "fleet":
            console.print(fleet_line(row.medians))
    console.print(f"load average before {before['load_average']}, after {list(os.getloadavg())}")
    for problem in problems:
        console.print(f"- {problem}", markup=False, highlight=False)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
