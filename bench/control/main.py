"""Policies for batches and instances beside each other, simulated: ``make bench-control``.

All policies see the same arrivals, on the same input path, under the same SLO and the same statistic. Jobs are spread over
the cores that this process may use; every figure follows from its seed, whatever the machine.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TypeVar

sys.path.insert(0, str(Path(__file__).parents[2]))  # `python bench/control/main.py` as well as -m

from bench.control import capacities, loads, models, steps
from bench.control.jobs import Decoding, Job, jobs
from bench.control.lines import tables
from bench.control.pictures import draw
from bench.control.summaries import summaries
from bench.harness import arguments, versions, write_results
from bench.lines import Line, Says, misses
from rich.console import Console

CASES = ("loads", "steps", "capacity", "capacity-decoded-before", "queue", "energy")
QUICK_NUMBER, QUICK_STEPS_NUMBER = 12, 1
"""One job that batches, and for steps one that shares."""
TABLE_WIDTH = 210

Task = Callable[[], list[Line]]
SizeT = TypeVar("SizeT", capacities.Size, loads.Size, steps.Size)


def tasks_of(case: str, quick: bool, seeds: int | None) -> list[Task]:
    """Each may run in a process of its own."""
    if case == "queue":
        return [partial(_listed, models.queue_lines)]
    if case == "energy":
        return [partial(_listed, models.energy_lines)]
    path = Decoding.BEFORE if case == "capacity-decoded-before" else Decoding.TIMED
    only = QUICK_STEPS_NUMBER if case == "steps" else QUICK_NUMBER
    chosen = [job for job in jobs(path) if not quick or job.number == only]
    if case == "loads":
        size = _seeded(loads.QUICK if quick else loads.Size(), seeds)
        return [partial(_of_job, loads.load_lines, job, size) for job in chosen]
    if case == "steps":
        stepped = _seeded(steps.QUICK if quick else steps.Size(), seeds)
        return [
            partial(_of_job, steps.step_lines, job, stepped)
            for job in chosen
            if job.number in steps.NUMBERS
        ]
    counted = _seeded(capacities.QUICK if quick else capacities.Size(), seeds)
    return [partial(_of_job, capacities.capacity_lines, job, counted, path) for job in chosen]


def _seeded(size: SizeT, seeds: int | None) -> SizeT:
    return replace(size, seeds=seeds) if seeds else size


def _listed(lines: Callable[[], Iterator[Line]]) -> list[Line]:
    return list(lines())


def _of_job(lines: Callable[..., Iterator[Line]], job: Job, *more: object) -> list[Line]:
    return list(lines(job, *more))


def measure(
    cases: Sequence[str], quick: bool, seeds: int | None, workers: int, says: Says
) -> list[Line]:
    """All lines, those of a table beside each other."""
    tasks = [task for case in cases for task in tasks_of(case, quick, seeds)]
    found: list[Line] = []
    with ProcessPoolExecutor(workers) as pool:
        for done, lines in enumerate(pool.map(_call, tasks), 1):
            found += lines
            said = dict.fromkeys(each.labels["case"].partition(",")[0] for each in lines)
            says(f"{done}/{len(tasks)}: {', '.join(said)}")
    order = {
        name: place
        for place, name in enumerate(dict.fromkeys(each.labels["case"] for each in found))
    }
    return sorted(found, key=lambda each: order[each.labels["case"]])


def _call(task: Task) -> list[Line]:
    return task()


def main(options: Sequence[str] | None = None) -> int:
    parser = arguments("Policies for batches and instances, simulated on the same arrivals.")
    parser.add_argument(
        "--only", metavar="CASE", action="append", choices=CASES, help="one case; may be repeated"
    )
    parser.add_argument("--workers", type=int, help="processes (default: one for each core)")
    chosen = parser.parse_args(options)
    workers = chosen.workers or len(os.sched_getaffinity(0))
    lines = measure(
        chosen.only or CASES, chosen.quick, chosen.rounds, workers, Console(stderr=True).print
    )
    console = Console(width=TABLE_WIDTH)
    for drawn in tables([*summaries(lines), *lines]):
        console.print(drawn)
    facts = {
        "versions": versions(("numpy",)),
        "cases": list(chosen.only or CASES),
        "missed": misses(lines),
    }
    for missed in facts["missed"]:
        console.print(f"missed: {missed}")
    written = write_results("control", chosen, facts, lines)
    if written is not None:
        console.print(f"written: {written}")
        draw(lines, written)
    return 0


if __name__ == "__main__":
    sys.exit(main())
