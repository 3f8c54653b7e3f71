"""Closed loops against every contestant of a group, all alive at once, in alternating rounds."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from bench.dataplane.generators import LoadBroke, closed_loop
from bench.dataplane.loop import Loop
from bench.dataplane.running import Running, ServerFailed
from bench.harness import Figures, Row, Variant, alternate
from bench.models.networks import export
from bench.models.served import load
from bench.peers.base import BATCH_CAP, WORKS, Peer, Wire, Work
from bench.peers.tessera import Tessera

EXAMPLES = 8
"""Rows that are sent to check answers, and in turn under open load."""
CHECKED = 3
WARM_S = 0.3

NOT_MEASURED = {
    name: float("nan") for name in ("rate_per_s", "p50_ms", "p99_ms", "cpu_us", "requests")
}


@dataclass(slots=True)
class Bench:
    """What all groups share: where, on which cores, for how long, and what went wrong."""

    models: Path
    directory: Path
    server_cores: tuple[int, ...]
    load_core: int
    open_cores: tuple[int, ...]
    """Of the open-loop generators."""
    cores: tuple[int, ...]
    """All that there are."""
    dispatcher_core: int | None
    """One that neither workers nor loads have; None on a small machine."""
    peers: tuple[Peer, ...]
    rounds: int
    seconds: float
    quick: bool
    profile: bool
    says: Callable[[str], None]
    problems: list[str] = field(default_factory=list)
    """What was to be measured and could not be, and why."""

    def problem(self, what: str) -> None:
        self.problems.append(what)
        self.says(f"problem: {what}")

    def path(self, name: str) -> Path:
        self.directory.mkdir(parents=True, exist_ok=True)
        return self.directory / f"{name}{len(list(self.directory.iterdir()))}"

    def export(self, work: Work) -> None:
        for network in work.networks:
            export(network, work.row_shape, self.models)


def examples(work: Work) -> Any:
    shape = (EXAMPLES, *work.row_shape)
    if work.dtype == "u1":
        return np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    return np.random.default_rng(0).standard_normal(shape, dtype=np.float32)


@contextmanager
def contestants(bench: Bench, names: Sequence[str]) -> Iterator[list[Running]]:
    """Every server of the works ``names``, checked and paused; one that fails is left out and reported."""
    running: list[Running] = []
    with ExitStack() as stack:
        for name in names:
            work = WORKS[name]
            bench.export(work)
            rows = examples(work)[:CHECKED]
            expected = load(bench.models, work.networks)(rows)
            for peer in (Tessera(), *bench.peers):
                if name not in peer.works:
                    continue
                bench.says(f"starting {peer.name}: {name}")
                server = Running(peer, work, bench.models, bench.path(name), bench.server_cores)
                try:
                    stack.enter_context(server)
                    server.check(rows, expected)
                except ServerFailed as error:
                    bench.problem(str(error))
                    server.stop()
                    continue
                server.watch_idle()
                server.pause()
                running.append(server)
        try:
            yield running
        finally:
            for server in running:
                server.ask_to_stop()


def measure(bench: Bench, server: Running, wire: Wire, connections: int) -> Figures:
    """One closed loop: rate, latency, CPU of all the server's processes per request."""
    row = examples(server.work)[:1]
    request = server.peer.request(server.work, wire, row)
    server.resume()
    try:
        size = len(server.answer(wire, row))
        cores = (bench.load_core,)
        where = (request, wire, server.port(wire), connections)
        if not server.warmed(wire):
            closed_loop(*where, WARM_S, cores, size)
        before = server.cpu_s()
        seen = closed_loop(*where, bench.seconds, cores, size)
        used = server.cpu_s() - before
    except (LoadBroke, ServerFailed) as error:
        bench.problem(
            f"{server.peer.name} {server.work.name} {wire.value} c={connections}: {error}"
        )
        return NOT_MEASURED
    finally:
        server.pause()
    return {
        "rate_per_s": seen.requests / seen.seconds,
        "p50_ms": seen.p50_ms,
        "p99_ms": seen.p99_ms,
        "cpu_us": used / seen.requests * 1e6,
        "requests": float(seen.requests),
    }


def variants(bench: Bench, running: Sequence[Running], connections: Sequence[int]) -> list[Variant]:
    return [
        Variant(
            {
                "group": "closed",
                "work": server.work.name,
                "server": server.peer.name,
                "protocol": wire.value,
                "c": str(count),
            },
            partial(measure, bench, server, wire, count),
        )
        for server in running
        for wire in server.peer.wires
        for count in connections
    ]


def group(
    bench: Bench,
    work: str,
    running: Sequence[Running],
    connections: Sequence[int],
    loops: dict[str, Loop],
) -> list[Row]:
    """All servers and loops of a group, alternating; ``work`` is that of the loops."""
    measured = [
        Variant(
            {"group": "closed", "work": work, "server": name},
            partial(_loop_rate, loop, bench.seconds),
        )
        for name, loop in loops.items()
    ]
    return alternate([*measured, *variants(bench, running, connections)], bench.rounds, bench.says)


def _loop_rate(loop: Loop, seconds: float) -> Figures:
    return {"rate_per_s": loop.rate(BATCH_CAP, seconds)}


def best_loop(bench: Bench, work: Work) -> Row:
    """The fastest in-process loop over all batches and both allocator settings."""
    best = (0.0, 0, False)
    for tuned in (False, True):
        with Loop(work, bench.models, bench.server_cores, tuned) as loop:
            for batch in (8, 32) if bench.quick else (4, 8, 16, 32, 64):
                best = max(best, (loop.rate(batch, bench.seconds / 2), batch, tuned))
    rate, batch, tuned = best
    labels = {
        "group": "closed",
        "work": work.name,
        "server": "best loop",
        "at": f"batch {batch}, {'tuned' if tuned else 'default'} allocator",
    }
    return Row(labels, ({"rate_per_s": rate},))
