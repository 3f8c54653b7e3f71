"""Rows of the open loop: the Poisson rate that holds its p99."""

from __future__ import annotations

from collections.abc import Sequence

from bench.dataplane.closed import Bench, examples
from bench.dataplane.open_loop import Outcome, highest_rate, poisson
from bench.dataplane.running import Running, ServerFailed
from bench.dataplane.targets import TESSERA, TRITON, Found
from bench.harness import Row
from bench.peers.base import Wire

from tessera_cli.loadgen import LoadFailed

P99_BOUND_MS = 15.0
TRIES = 2
"""Of a rate before it counts as too high, for every server: one stall of a shared machine is a p99 of its own here."""


def closed_rate(rows: Sequence[Row], work: str, server: str, wire: Wire = Wire.HTTP) -> float:
    """Requests per second that a closed loop of 32 reached; NaN where there is none."""
    found = Found(rows)
    return found.value("rate_per_s", work=work, server=server, protocol=wire.value, c="32")


def poisson_rows(bench: Bench, running: Sequence[Running], closed: Sequence[Row]) -> list[Row]:
    """Of Tessera and Triton over HTTP, by bisection under the closed loop's rate."""
    rows = []
    for server in running:
        if server.peer.name not in (TESSERA, TRITON) or server.work.name == "fused":
            continue
        server.resume()
        try:
            rows.append(_poisson(bench, server, closed))
        except (LoadFailed, ServerFailed) as error:
            bench.problem(f"{server.peer.name} {server.work.name} Poisson: {error}")
        finally:
            server.pause()
    return rows


def _poisson(bench: Bench, server: Running, closed: Sequence[Row]) -> Row:
    steps, seconds = (2, 1.0) if bench.quick else (5, 2.5)
    top = closed_rate(closed, server.work.name, server.peer.name)
    tried: dict[float, Outcome] = {}

    def holds(rate: float) -> bool:
        return any(once(rate) for _ in range(TRIES))

    def once(rate: float) -> bool:
        asked = examples(server.work)
        seen = poisson(server, Wire.HTTP, asked, rate, seconds, bench.open_cores)
        tried[rate] = seen
        bench.says(
            f"{server.peer.name} {server.work.name} Poisson {rate:,.0f}/s: p99 {seen.p99_ms:.1f} ms, "
            f"late {seen.late:.1%}"
        )
        return not (seen.failed or seen.lost) and seen.p99_ms <= P99_BOUND_MS

    found = highest_rate(holds, top, steps)
    labels = {"group": "poisson", "work": server.work.name, "server": server.peer.name}
    figures = {"rate_per_s": found, "closed_loop_per_s": top}
    if found in tried:
        figures |= {"p99_ms": tried[found].p99_ms, "late": tried[found].late}
    return Row(labels | {"protocol": "http"}, (figures,))
