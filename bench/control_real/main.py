"""Policies on real servers: ``make bench-control-real``.

Three networks of different shape are served on this machine, one after the other. The server measures each of them with
its own profiler, several times over. Then policies set batches and instances of the running server over its control
socket, once a second or as often as they decide, under Poisson load; beside them every static setting of a grid. All have
the same input path, arrivals, SLO and statistic: requests answered within the SLO, counted from when they were meant to be
sent.

The search of DNNScaler and of Clipper is done before, on full batches that take what was measured: it is not held
against them.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))  # `python bench/control_real/main.py` as well

from bench.control_real.comparing import (
    Size,
    Unmeasured,
    capacity,
    load_rows,
    sweep_rows,
    swept,
)
from bench.control_real.judged import ablations, ratios
from bench.control_real.pictures import draw
from bench.control_real.places import Place, on_gpu, on_processor
from bench.control_real.served import Server, serving
from bench.control_real.stepping import LESS, STEADY, Span, step_rows, steps
from bench.control_real.tables import tables
from bench.dataplane.gpu import NoGpu, gpu_name
from bench.dataplane.main import is_compiled, revision
from bench.dataplane.running import ServerFailed
from bench.harness import Row, arguments, machine, versions, write_results
from bench.processes import on_cores
from rich.console import Console

from tessera_cli.loadgen import LoadFailed
from tessera_runtime.control import ControlError

NAME = "control-real"
PACKAGES = ("tessera", "torch", "numpy", "uvloop", "msgspec")
OVERLOAD = 1.2
LOADS = (LESS, STEADY, OVERLOAD)
"""Of the capacity that is found first."""
QUICK = Size(rounds=1, seconds=0.5, settle_s=1.5, turn_s=0.1, cell_s=0.02, passes=1)
QUICK_SPAN = Span(before_s=1.0, after_s=2.0)
TABLE_WIDTH = 150


def network_rows(
    server: Server, loads: Sequence[float], size: Size, span: Span, console: Console
) -> Iterator[Row]:
    """All rows of one network."""
    name = server.task.name
    measured = server.measure(size.cell_s, size.passes)
    for cell in measured.profile.rows:
        labels = {"case": "profile", "network": name}
        labels |= {"rows": str(cell.batch), "instances": str(cell.instances)}
        yield Row(labels, ({"p50_ms": cell.p50_ms, "p99_ms": cell.p99_ms},))
    unit_per_s = capacity(server, measured, size.turn_s)
    console.print(f"{name}: {unit_per_s:,.0f}/s, DNNScaler turns {measured.probe.knob}")
    yield Row({"case": "capacity", "network": name}, ({"capacity_per_s": unit_per_s},))
    sweeps = {}
    for load in loads:
        console.print(f"{name}: sweep at {load:g}")
        rate, seed = load * unit_per_s, round(100 * load)
        sweeps[load] = swept(server, server.place.grid, rate, size.turn_s, seed)
        yield from sweep_rows(name, load, sweeps[load])
    for load in loads:
        console.print(f"{name}: policies at {load:g}")
        yield from load_rows(server, measured, load, unit_per_s, sweeps[load], size)
    if {LESS, STEADY} <= sweeps.keys():
        console.print(f"{name}: steps")
        for step in steps(server.task.slo_ms, sweeps, unit_per_s, span):
            yield from step_rows(server, measured, step, span, seed=9)


def measure(
    place: Place, loads: Sequence[float], size: Size, span: Span, console: Console
) -> tuple[list[Row], list[str]]:
    """Rows, and what went wrong: a network whose server or load fails, or that cannot be measured, is left out from there
    on.
    """
    rows: list[Row] = []
    problems: list[str] = []
    for task in place.tasks:
        try:
            with (
                tempfile.TemporaryDirectory(prefix="bench-control-") as folder,
                on_cores((*place.dispatcher, *place.load)),  # the others are the instances'
                serving(place, task, Path(folder)) as server,
            ):
                rows.extend(network_rows(server, loads, size, span, console))
        except (ServerFailed, LoadFailed, ControlError, Unmeasured) as error:
            problems.append(f"{task.name}: {error}")
            console.print(f"problem: {problems[-1]}")
    return rows, problems


def main(argv: Sequence[str] | None = None) -> int:
    parser = arguments(__doc__.partition("\n\n")[0])
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--only", metavar="NETWORK", action="append", help="may be repeated")
    parser.add_argument("--load", type=float, action="append", help="of the capacity; repeatable")
    chosen = parser.parse_args(argv)
    progress = Console(stderr=True)
    console = Console(width=max(TABLE_WIDTH, progress.width))
    cores = sorted(os.sched_getaffinity(0))
    try:
        place = on_processor(cores) if chosen.device == "cpu" else on_gpu(cores, gpu_name())
    except NoGpu as error:
        console.print(f"no GPU found: {error}")
        return 1
    if chosen.only:
        named = {task.name: task for task in place.tasks}
        if unknown := set(chosen.only) - named.keys():
            parser.error(f"--only: found {sorted(unknown)}, allowed are {sorted(named)}")
        place = replace(place, tasks=tuple(named[name] for name in chosen.only))
    if chosen.quick:
        place = replace(place, tasks=place.tasks[:1], caps=(1, 8), counts=(1, 2))
    size, span = (QUICK, QUICK_SPAN) if chosen.quick else (Size(), Span())
    size = replace(
        size,
        rounds=chosen.rounds or size.rounds,
        seconds=chosen.seconds or size.seconds,
    )
    before = machine()
    loads = chosen.load or ((OVERLOAD,) if chosen.quick else LOADS)
    rows, problems = measure(place, loads, size, span, progress)
    compared = ratios(rows)
    rows += [each.row for each in compared]
    rows += ablations(rows)
    for table in tables(rows):
        console.print(table)
    missed = [said for each in compared for said in each.missed]
    for said in missed:
        console.print(f"missed: {said}")
    facts = {
        "revision": revision(),
        "compiled": is_compiled(),
        "versions": versions(PACKAGES),
        "device": place.name,
        "slo_ms": {task.name: task.slo_ms for task in place.tasks},
        "seconds": size.seconds,
        "settling_s": size.settle_s,
        "load_average_before": before["load_average"],
        "noise": {
            f"{each.row.labels['network']} at {each.row.labels['load']}": each.noise
            for each in compared
        },
        "missed": missed,
        "problems": problems,
    }
    name = NAME if chosen.device == "cpu" else f"{NAME}-gpu"
    written = write_results(name, chosen, facts, rows)
    if written is not None:
        console.print(f"written: {written}")
        draw(rows, written)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
