"""What tuning gains, where it has to be done, and how long it takes: ``make bench-tuning``.

``shares``: every network is tuned on a share of 1, 2 and 4 cores, or as many as there are: variants are built there and the best
one is chosen by what is measured there. Each choice is then measured anew, on every share: by the figures that it was chosen
for it would look better than it is. If it matters where one tunes, the diagonal is best: what was tuned on the share that serves.

``workers``: the tuning tasks of all networks on one machine, by one worker after the other and by several at once, each with
a core of its own.

The gain of each network is the choice on the least share, beside the untuned model.

Everything is the server's own request: a variant and the untuned model run in turns on the same cores in the same minutes, and
figures are medians of ratios.
"""

from __future__ import annotations

import asyncio
import math
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))  # `python bench/tuning/main.py` as well

from bench.dataplane.running import ServerFailed
from bench.harness import Row, arguments, versions, write_results
from bench.tuning.networks import NETWORKS, export
from bench.tuning.served import Measure, Server, request, serving, share
from rich.console import Console
from rich.table import Table

from tessera_core.tuning.shards import share_out
from tessera_core.tuning.verdict import Figures, Paired, best, judge
from tessera_runtime.target import TuneOutcome

NAME = "tuning"
PACKAGES = ("tessera", "torch", "openvino", "numpy")
TOLERANCE = 2e-2
VARIANTS = ("openvino/fp32", "openvino/bf16", "torch/bf16", "torch/fp32/channels-last")
COMPILED = "inductor/fp32"
"""Built once for every share that it is tuned on, which takes a minute or more: of few networks."""
UNTUNED = "untuned"


Says = Callable[[str], None]


def sizes(cores: int) -> tuple[int, ...]:
    """Shares of a machine: 1, 2 and 4 cores; all of them where there are fewer."""
    return tuple(sorted({min(size, cores) for size in (1, 2, 4)}))


def paired(outcome: TuneOutcome, served: Sequence[int], tuned: int) -> tuple[Paired, ...]:
    """The cells of an outcome; shares over ``tuned``, the size that counts as the one that serves."""
    return tuple(
        Paired(
            served[cell.device] / tuned,
            cell.batch,
            cell.instances,
            Figures(cell.p50_ms, cell.p99_ms, cell.throughput),
            Figures(cell.untuned_p50_ms, cell.untuned_p99_ms, cell.untuned_throughput),
            cell.turns,
            cell.p99_wins,
            cell.throughput_wins,
        )
        for cell in outcome.cells
    )


def ratios(cells: Iterable[Paired], at: float) -> dict[str, float]:
    """Medians over sizes of batches at one share, over the untuned model's; NaN where nothing was measured."""
    there = [cell for cell in cells if cell.share == at]
    if not there:
        return dict.fromkeys(("p50", "p99", "throughput"), math.nan)
    return {
        "p50": median(cell.variant.p50_ms / cell.untuned.p50_ms for cell in there),
        "p99": median(cell.p99_ratio for cell in there),
        "throughput": median(cell.throughput_ratio for cell in there),
    }


def chosen(outcomes: Iterable[tuple[TuneOutcome, tuple[Paired, ...]]]) -> str:
    """The variant that is promoted at the share that was tuned on."""
    verdict = best(
        [
            judge(each.variant, each.problem, each.error, TOLERANCE, cells)
            for each, cells in outcomes
        ]
    )
    return verdict.variant if verdict is not None else UNTUNED


def share_rows(
    server: Server,
    paths: Mapping[str, Path],
    compiled: Sequence[str],
    cores: Sequence[int],
    measure: Measure,
    says: Says,
) -> Iterator[list[Row]]:
    """Every network, tuned on each share and served on each; the rows of one network at a time."""
    all_sizes = sizes(len(cores))
    for name, path in paths.items():
        rows: list[Row] = []
        # Of what is not compiled a variant is the same wherever it was tuned: only the choice differs.
        common = [
            run(server, path, variant, all_sizes, cores, measure, says) for variant in VARIANTS
        ]
        anew: dict[str, TuneOutcome] = {}
        for tuned in all_sizes:
            found = [(each, paired(each, all_sizes, tuned)) for each in common]
            order = (tuned, *(size for size in all_sizes if size != tuned))
            if name in compiled:
                built = run(server, path, COMPILED, order, cores, measure, says)
                found.append((built, paired(built, order, tuned)))
                rows += compiled_rows(name, built, order)
            variant = chosen(found)
            if variant == COMPILED:  # of each share another one
                again, measured = run(server, path, variant, order, cores, measure, says), order
            elif variant != UNTUNED:
                if variant not in anew:
                    anew[variant] = run(server, path, variant, all_sizes, cores, measure, says)
                again, measured = anew[variant], all_sizes
            for served in all_sizes:
                figures = {"p50": 1.0, "p99": 1.0, "throughput": 1.0, "error": 0.0}
                if variant != UNTUNED:
                    cells = paired(again, measured, tuned)
                    figures = {**ratios(cells, served / tuned), "error": again.error}
                labels = {
                    "part": "shares",
                    "network": name,
                    "tuned": str(tuned),
                    "served": str(served),
                    "variant": variant,
                }
                rows.append(Row(labels, (figures,)))
        for each in common:
            figures = ratios(paired(each, all_sizes, all_sizes[0]), 1.0)
            labels = {"part": "variants", "network": name, "variant": each.variant}
            rows.append(Row(labels, ({**figures, "error": each.error},)))
        yield rows


def compiled_rows(network: str, built: TuneOutcome, order: Sequence[int]) -> Iterator[Row]:
    """What was compiled for the first of the shares, on each of them, whether it is chosen or not; nothing where it failed."""
    if not built.problem:
        tuned = order[0]
        cells = paired(built, order, tuned)
        for served in order:
            labels = {"network": network, "tuned": str(tuned), "served": str(served)}
            figures = {**ratios(cells, served / tuned), "error": built.error}
            yield Row({"part": "compiled", **labels}, (figures,))


def run(
    server: Server,
    path: Path,
    variant: str,
    order: Sequence[int],
    cores: Sequence[int],
    measure: Measure,
    says: Says,
) -> TuneOutcome:
    """``variant`` built for the first of the sizes, measured on all. Raises ServerFailed."""
    devices = [share(cores[:size]) for size in order]
    outcome = asyncio.run(server.tune(request(path, variant, devices, measure, TOLERANCE)))
    said = outcome.problem or f"error {outcome.error:.1e}"
    says(f"{path.stem}: {variant} for {order[0]} cores: {said}")
    return outcome


async def tuned_at_once(
    server: Server,
    tasks: Sequence[tuple[Path, str]],
    workers: int,
    cores: Sequence[int],
    measure: Measure,
) -> float:
    """Seconds that all tasks take by so many workers, each on a core of its own."""
    texts = [f"{index}" for index in range(len(tasks))]

    async def work(core: int, mine: Sequence[str]) -> None:
        for index in map(int, mine):
            path, variant = tasks[index]
            await server.tune(request(path, variant, [share((core,))], measure, TOLERANCE))

    started = time.perf_counter()
    await asyncio.gather(
        *(work(core, mine) for core, mine in zip(cores, share_out(texts, workers), strict=False))
    )
    return time.perf_counter() - started


def worker_rows(
    server: Server,
    paths: Mapping[str, Path],
    cores: Sequence[int],
    measure: Measure,
    rounds: int,
    says: Says,
) -> list[Row]:
    """Tuning time of all networks, by 1, 2 and 4 workers, or as many as there are cores."""
    tasks = [(path, variant) for path in paths.values() for variant in VARIANTS]
    counts = sizes(len(cores))
    took: dict[int, list[float]] = {count: [] for count in counts}
    for turn in range(rounds):
        for count in counts if turn % 2 == 0 else counts[::-1]:
            seconds = asyncio.run(tuned_at_once(server, tasks, count, cores, measure))
            took[count].append(seconds)
            says(
                f"{len(tasks)} variants of {len(paths)} networks by {count} workers: {seconds:.0f} s"
            )
    return [
        Row(
            {"part": "workers", "workers": str(count)},
            tuple(
                {"seconds": seconds, "of_one": seconds / one}
                for seconds, one in zip(took[count], took[1], strict=True)
            ),
        )
        for count in counts
    ]


def tables(rows: Sequence[Row]) -> list[Table]:
    """As they are printed: shares, what was compiled for them, gains, workers."""
    found = [row for row in rows if row.labels["part"] == "shares"]
    served = sorted({row.labels["served"] for row in found})
    crossed = [
        _crossed("of what is chosen", found),
        _crossed("compiled", [row for row in rows if row.labels["part"] == "compiled"]),
    ]
    gains = Table(title="what the choice does on the least share, beside untuned")
    for column in ("network", "variant", "p50", "p99", "throughput", "error"):
        gains.add_column(column)
    for row in found:
        if row.labels["tuned"] == row.labels["served"] == served[0]:
            figures = row.medians
            gains.add_row(
                row.labels["network"],
                row.labels["variant"],
                f"{figures['p50']:.2f}",
                f"{figures['p99']:.2f}",
                f"{figures['throughput']:.2f}",
                f"{figures['error']:.1e}",
            )
    times = Table(title="tuning all networks")
    for column in ("workers", "seconds", "of one"):
        times.add_column(column, justify="right")
    for row in rows:
        if row.labels["part"] == "workers":
            times.add_row(
                row.labels["workers"],
                f"{row.medians['seconds']:.0f}",
                f"{row.medians['of_one']:.2f}",
            )
    return [table for table in (*crossed, gains, times) if table.row_count]


def _crossed(what: str, rows: Sequence[Row]) -> Table:
    """p99 by the share where it was tuned and the one that serves."""
    table = Table(
        title=f"p99 of untuned, {what}: median (worst) of networks, by where tuned and served"
    )
    served = sorted({row.labels["served"] for row in rows})
    table.add_column("tuned at")
    for size in served:
        table.add_column(f"served at {size}", justify="right")
    for tuned in sorted({row.labels["tuned"] for row in rows}):
        cells = [
            [
                row.medians["p99"]
                for row in rows
                if (row.labels["tuned"], row.labels["served"]) == (tuned, size)
            ]
            for size in served
        ]
        table.add_row(tuned, *(f"{median(cell):.2f} ({max(cell):.2f})" for cell in cells))
    return table


def main(argv: Sequence[str] | None = None) -> int:
    parser = arguments(__doc__.splitlines()[0])
    parser.add_argument("--networks", default=",".join(NETWORKS), metavar="NAME,…")
    parser.add_argument(
        "--compiled",
        default="cnn,mlp,encoder",
        metavar="NAME,…",
        help=f"networks that {COMPILED} is built of",
    )
    parser.add_argument("--only", choices=("shares", "workers"))
    options = parser.parse_args(argv)
    console = Console(width=120)
    cores = sorted(os.sched_getaffinity(0))
    names = ["cnn"] if options.quick else options.networks.split(",")
    unknown = set(names) - NETWORKS.keys()
    if unknown:
        parser.error(f"--networks: {', '.join(sorted(unknown))}; allowed: {', '.join(NETWORKS)}")
    compiled = [] if options.quick else [each for each in options.compiled.split(",") if each]
    rounds = 1 if options.quick else options.rounds or 5
    measure = Measure(options.seconds or (0.02 if options.quick else 0.6), rounds, (1, 8))
    brief = Measure(measure.cell_s / 2, 1, (1, 8))
    name = f"{NAME}-{options.only}" if options.only else NAME
    rows: list[Row] = []
    facts: dict[str, Any] = {
        "tolerance": TOLERANCE,
        "cores": cores,
        "versions": versions(PACKAGES),
    }
    with tempfile.TemporaryDirectory(prefix="tessera-tuning-") as folder:
        directory = Path(folder)
        paths = {each: export(each, directory) for each in names}
        says: Says = lambda text: console.print(f"[dim]{text}[/]", highlight=False)  # noqa: E731
        try:
            with serving(directory) as server:
                if options.only != "workers":
                    for found in share_rows(server, paths, compiled, cores, measure, says):
                        rows += found
                        write_results(name, options, facts, rows)  # what takes so long is not lost
                if options.only != "shares":
                    rows += worker_rows(server, paths, cores, brief, min(rounds, 2), says)
        except ServerFailed as error:
            console.print(f"{error}\n{(directory / 'server.log').read_text()[-2000:]}")
            return 1
    for table in tables(rows):
        console.print(table)
    path = write_results(name, options, facts, rows)
    if path is not None:
        console.print(f"written to {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
