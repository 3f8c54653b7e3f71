"""The data plane beside its peers: ``make bench-dataplane``.

Tessera and every installed peer in one run: the same networks, the same client, one core for the server and
another for the load, one thread, batches of up to eight rows, validation, deadlines and statistics on. Servers
of a comparison live together and rounds alternate among them; figures are medians over the rounds. CPU is user
and system time of all processes of a server, the figure that other work on the machine moves least.

Answers are checked before anything is timed, and a load with one failed request measures nothing. What was not
run is shown as such. ``make bench-peers`` installs the peers.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))  # `python bench/dataplane/main.py` as well as -m

from bench.dataplane.closed import Bench
from bench.dataplane.generators import missing_programs
from bench.dataplane.groups import GROUPS, NEED_NO_PROGRAMS, QUICK_GROUPS
from bench.dataplane.targets import lines, number, table
from bench.harness import Row, arguments, versions, write_results
from bench.peers.base import BATCH_CAP, Peer
from bench.peers.install import pins
from bench.peers.litserve import LitServe
from bench.peers.mlserver import MLServer
from bench.peers.mosec import Mosec
from bench.peers.ray_serve import RayServe
from bench.peers.triton import Triton
from bench.processes import on_cores
from rich.console import Console
from rich.table import Table

TABLE_WIDTH = 170

PACKAGES = ("tessera", "torch", "numpy", "uvloop", "httptools", "grpcio", "protobuf", "msgspec")

PEERS: dict[str, Peer] = {
    "triton": Triton(),
    "triton-c": Triton("identity_c"),
    "mosec": Mosec(),
    "mlserver": MLServer(),
    "litserve": LitServe(),
    "ray": RayServe(),
}
QUICK_PEERS = ("triton", "triton-c")


def choices(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = arguments(__doc__.partition("\n\n")[0])

    def names(known: Iterable[str]) -> str:
        return f"of {', '.join(known)}"

    parser.add_argument("--only", type=_list, metavar="GROUP,…", help=names(GROUPS))
    parser.add_argument("--peers", type=_list, metavar="PEER,…", help=f"{names(PEERS)}; or none")
    parser.add_argument(
        "--profile",
        action="store_true",
        help="also show where Tessera's time goes in each closed loop",
    )
    chosen = parser.parse_args(argv)
    for given, known in ((chosen.only, {*GROUPS}), (chosen.peers, {*PEERS, "none"})):
        if unknown := set(given or ()) - known:
            parser.error(
                f"unknown: {', '.join(sorted(unknown))}; known: {', '.join(sorted(known))}"
            )
    return chosen


def _list(text: str) -> tuple[str, ...]:
    return tuple(filter(None, text.split(",")))


def chosen_peers(chosen: argparse.Namespace) -> tuple[tuple[Peer, ...], list[str]]:
    """Those that can be measured, and why the others are not."""
    wanted = chosen.peers or (QUICK_PEERS if chosen.quick else tuple(PEERS))
    there, absent = [], []
    for name, peer in PEERS.items():
        why = peer.missing() if name in wanted else "not chosen"
        if why:
            absent.append(f"{peer.name}: {why}")
        else:
            there.append(peer)
    return tuple(there), absent


def cores_of(cores: Sequence[int]) -> tuple[tuple[int, ...], int, tuple[int, ...], int | None]:
    """Of the server, of the closed loop's load, of the open loop's generators, and one to spare if there is."""
    load = cores[1] if len(cores) > 1 else cores[0]
    spare = cores[3] if len(cores) > 3 else None
    return (cores[0],), load, tuple(cores[1:3]) or (cores[0],), spare


def measured(rows: Iterable[Row]) -> Table:
    """Everything that was measured, as it was."""
    drawn = Table(title="Measured (medians)")
    drawn.add_column("group, work, server, protocol, in flight")
    drawn.add_column("figures")
    for row in rows:
        between = "\n" if row.labels["group"] == "profile" else "  "
        figures = between.join(
            f"{name} {number(value) or '-'}" for name, value in row.medians.items()
        )
        problem = row.labels.get("problem", "")
        labels = [value for name, value in row.labels.items() if name != "problem"]
        drawn.add_row(" ".join(labels), figures or problem)
    return drawn


def revision() -> str:
    """Of the sources measured; empty outside a repository, and without git."""
    argv = ["git", "describe", "--always", "--dirty"]
    try:
        done = subprocess.run(argv, capture_output=True, text=True, cwd=Path(__file__).parent)
    except OSError:
        return ""
    return done.stdout.strip()


def is_compiled() -> bool:
    """Whether servers run the compiled modules: asked of a process that, like them, starts in another folder."""
    code = "from tessera_runtime.dispatch import service; print(service.__file__)"
    argv = [sys.executable, "-c", code]
    done = subprocess.run(argv, capture_output=True, text=True, check=True, cwd="/")
    return done.stdout.strip().endswith(".so")


def main(argv: Sequence[str] | None = None) -> int:
    chosen = choices(argv)
    progress = Console(stderr=True)
    console = Console(width=max(TABLE_WIDTH, progress.width))
    groups = chosen.only or (QUICK_GROUPS if chosen.quick else tuple(GROUPS))
    if (absent := missing_programs()) and {*groups} - NEED_NO_PROGRAMS:
        progress.print(f"not installed: {absent} (make bench-peers)")
        return 1
    peers, problems = chosen_peers(chosen)
    cores = tuple(sorted(os.sched_getaffinity(0)))
    server_cores, load_core, open_cores, dispatcher_core = cores_of(cores)
    rounds = chosen.rounds or (1 if chosen.quick else 3)
    seconds = chosen.seconds or (1.0 if chosen.quick else 2.0)
    began = time.monotonic()

    def says(what: str) -> None:
        progress.print(f"{time.monotonic() - began:5.0f} s  {what}", markup=False, highlight=False)

    facts = {
        "revision": revision(),
        "versions": versions(PACKAGES),
        "compiled": is_compiled(),
        "peers": {name: wanted["packages"] for name, wanted in pins().items()},
        "method": {
            "rounds": rounds,
            "seconds": seconds,
            "server_cores": server_cores,
            "load_core": load_core,
            "open_loop_cores": open_cores,
            "dispatcher_core_under_overload": dispatcher_core,
            "batch_cap": BATCH_CAP,
            "load_average_before": os.getloadavg(),
        },
    }
    rows: list[Row] = []
    with (
        tempfile.TemporaryDirectory(prefix="bench-dataplane-") as name,
        on_cores(open_cores),  # this process stays off the server's core
    ):
        folder = Path(name)
        (folder / "models").mkdir()
        bench = Bench(
            models=folder / "models",
            directory=folder / "run",
            server_cores=server_cores,
            load_core=load_core,
            open_cores=open_cores,
            cores=cores,
            dispatcher_core=dispatcher_core,
            peers=peers,
            rounds=rounds,
            seconds=seconds,
            quick=chosen.quick,
            profile=chosen.profile,
            says=says,
            problems=problems,
        )
        for group in groups:
            rows += GROUPS[group](bench)
            judged = {"lines": [line.as_dict() for line in lines(rows)], "not_measured": problems}
            # After each group: what was measured is kept if a later one is interrupted.
            if written := write_results("dataplane", chosen, facts | judged, rows):
                says(f"written: {written}")
    console.print(measured(rows))
    console.print(table(lines(rows)))
    for problem in problems:
        console.print(f"- {problem}", markup=False, highlight=False)
    return 0


if __name__ == "__main__":
    sys.exit(main())
