"""The planner against bounds, brute force and other people's planners: ``make bench-planner``.

One table over all cases, all sides in one run. ParvaGPU's measurements are not part of this repository; name
their folder with --data or in PARVAGPU_DATA, or their cases are skipped. Times are of a fresh planner unless
a line says otherwise; memory is that of a process of its own.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))  # `python bench/planner/main.py` as well as -m

from bench.harness import arguments, versions, write_results
from bench.lines import Line, Says, misses
from bench.planner import ensemble_case, fleet_cases, growth, oracle_case, slice_cases
from bench.planner.lines import Skipped, table
from bench.planner.parvagpu import DataMissing, data_folder, read
from rich.console import Console

PACKAGES = ("numpy", "scipy")
TABLE_WIDTH = 200
QUICK_ORACLE_CASES = 25

Job = Callable[[Says], Iterator[Line]]


def jobs_of(quick: bool, rounds: int | None, data: Path | None) -> dict[str, Job]:
    """By name, in the order of the table. Raises DataMissing inside a job that needs the folder."""
    effort = slice_cases.QUICK if quick else slice_cases.Effort(rounds=rounds or 3)
    fleet = fleet_cases.QUICK if quick else fleet_cases.Size(rounds=rounds or 3)

    def sliced(lines: Callable[..., Iterator[Line]], says: Says) -> Iterator[Line]:
        yield from lines(read(data_folder(data)), effort, says)

    return {
        "scenarios": partial(sliced, slice_cases.scenario_lines),
        "copies": partial(sliced, slice_cases.copies_lines),
        "fleet": partial(fleet_cases.fleet_lines, fleet),
        "replan": partial(fleet_cases.replan_lines, fleet),
        "tiny": partial(
            oracle_case.oracle_lines, QUICK_ORACLE_CASES if quick else oracle_case.CASES
        ),
        "ensemble": partial(
            ensemble_case.ensemble_lines, ensemble_case.QUICK if quick else ensemble_case.Size()
        ),
        "growth": partial(growth.growth_lines, growth.QUICK if quick else growth.Size()),
    }


def measure(jobs: dict[str, Job], says: Says) -> tuple[list[Line], list[Skipped]]:
    """All lines of all jobs, and the jobs that could not run."""
    lines: list[Line] = []
    skipped = []
    for name, job in jobs.items():
        try:
            lines += job(says)
        except DataMissing as missing:
            skipped.append(Skipped(name, f"no data. {missing}"))
    return lines, skipped


def main(options: Sequence[str] | None = None) -> int:
    parser = arguments("The planner beside bounds, brute force and other planners.")
    parser.add_argument(
        "--data", type=Path, metavar="DIR", help="ParvaGPU's profiles and scenarios"
    )
    parser.add_argument("--only", metavar="CASE", action="append", help="one case; may be repeated")
    chosen = parser.parse_args(options)
    jobs = jobs_of(chosen.quick, chosen.rounds, chosen.data)
    unknown = sorted(set(chosen.only or ()) - set(jobs))
    if unknown:
        parser.error(f"--only: {', '.join(unknown)} is none of {', '.join(jobs)}")
    if chosen.only:
        jobs = {name: job for name, job in jobs.items() if name in chosen.only}
    progress = Console(stderr=True)
    lines, skipped = measure(jobs, progress.print)
    Console(width=max(TABLE_WIDTH, progress.width)).print(table(lines, skipped))
    facts = {
        "versions": versions(PACKAGES),
        "cases": list(jobs),
        "skipped": {each.case: each.reason for each in skipped},
        "missed": misses(lines),
    }
    written = write_results("planner", chosen, facts, lines)
    if written is not None:
        progress.print(f"written: {written}")
        if "growth" in jobs:
            grown = [each for each in lines if each.labels["case"].startswith("growth")]
            growth.picture(grown, written.with_name(f"{written.stem}-growth.svg"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
