"""Preprocessing on a real server with real JPEGs: ``make bench-preprocess``.

Photographs of 100 to 500 KiB are sent to a server that decodes them in its preprocessing stage and infers on them, to its
parts alone, and to plain servers that decode in their request handlers. All servers live through all rounds and take turns;
ratios are of one round.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))  # `python bench/preprocess/main.py` as well

from bench.dataplane.children import ChildFailed
from bench.dataplane.main import is_compiled, revision
from bench.dataplane.running import ServerFailed
from bench.harness import Row, alternate, arguments, machine, versions, write_results
from bench.lines import Line, Says, misses
from bench.preprocess.alone import Alone
from bench.preprocess.cases import Size, by_label, capacities, latencies
from bench.preprocess.contestants import SEPARATE, contestants, decodes
from bench.preprocess.judged import judged
from bench.preprocess.photographs import photographs
from bench.preprocess.pictures import draw
from bench.preprocess.places import Places, placed
from bench.preprocess.services import ENSEMBLE
from bench.preprocess.tables import tables
from rich.console import Console

from tessera_cli.loadgen import LoadFailed

NAME = "preprocess"
PACKAGES = ("tessera", "torch", "numpy", "simplejpeg", "pillow", "aiohttp", "scikit-learn")
QUICK = Size(rounds=1, warm_s=0.2, seconds=0.5, latency_s=0.5)
TABLE_WIDTH = 150


def measure(places: Places, size: Size, folder: Path, says: Says) -> tuple[list[Row], list[Line]]:
    """Rows, and the ratios of them. Raises ServerFailed, ChildFailed and LoadFailed."""
    with (
        contestants(places, folder) as found,
        Alone(folder / "models", places.decoding[:1]) as alone,
    ):
        counted = {name: decodes(found, name) for name in (ENSEMBLE, SEPARATE)}
        rows = alternate(capacities(found, alone, places, size), size.rounds, says)
        by_who = by_label(rows)
        rows += alternate(latencies(found, by_who, places, size), size.rounds, says)
    return rows, judged(by_who, places, counted)


def main(argv: Sequence[str] | None = None) -> int:
    parser = arguments(__doc__.partition("\n\n")[0])
    chosen = parser.parse_args(argv)
    progress = Console(stderr=True)
    console = Console(width=max(TABLE_WIDTH, progress.width))
    size = QUICK if chosen.quick else Size()
    size = replace(
        size, rounds=chosen.rounds or size.rounds, seconds=chosen.seconds or size.seconds
    )
    places = placed(sorted(os.sched_getaffinity(0)))
    before = machine()
    try:
        with tempfile.TemporaryDirectory(prefix="bench-preprocess-") as folder:
            rows, found = measure(places, size, Path(folder), progress.print)
    except (ServerFailed, LoadFailed, ChildFailed) as error:
        console.print(f"problem: {error}")
        return 1
    for table in tables(rows, found):
        console.print(table)
    missed = misses(found)
    for each in missed:
        console.print(f"missed: {each}")
    facts = {
        "revision": revision(),
        "compiled": is_compiled(),
        "versions": versions(PACKAGES),
        "cores": asdict(places),
        "photographs_kib": [round(len(each) / 1024) for each in photographs()],
        "size": asdict(size),
        "load_average_before": before["load_average"],
        "missed": missed,
    }
    written = write_results(NAME, chosen, facts, [*rows, *found])
    if written is not None:
        console.print(f"written: {written}")
        draw(rows, written)
    return 0


if __name__ == "__main__":
    sys.exit(main())
