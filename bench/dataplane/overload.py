"""Twice the capacity: how much is still answered in time, and how soon the rest is refused.

The workers have a core; the dispatcher has one of its own where the machine has enough of them. The capacity is that
of a closed loop against this very server, and so are the service times that it is then told as a profile: what its
statistics say of batches of one and of full ones.
"""

from __future__ import annotations

import json
from dataclasses import asdict

from bench.dataplane.closed import Bench, examples
from bench.dataplane.generators import LoadBroke, closed_loop
from bench.dataplane.open_loop import poisson
from bench.dataplane.running import Running, ServerFailed
from bench.dataplane.targets import TESSERA
from bench.harness import Row
from bench.peers.base import BATCH_CAP, WORKS, Wire
from bench.peers.tessera import Tessera, model_name

from tessera_cli.loadgen import LoadFailed
from tessera_runtime.target import ServiceTime

SLO_MS = 50.0
IN_FLIGHT = 32
CONNECTIONS = 448
"""Per generator: more than wait at any time, or the client would slow its load."""


def overload_rows(bench: Bench) -> list[Row]:
    work = WORKS["ensemble"]
    bench.export(work)
    workers = bench.server_cores[:1]
    own = () if bench.dispatcher_core is None else (bench.dispatcher_core,)
    peer = Tessera(SLO_MS, worker_cores=workers)
    server = Running(peer, work, bench.models, bench.path("overload"), workers + own)
    seconds = 1.0 if bench.quick else 5.0
    rows = examples(work)
    try:
        with server:
            request = peer.request(work, Wire.HTTP, rows[:1])
            size = len(server.answer(Wire.HTTP, rows[:1]))
            for in_flight in (1, IN_FLIGHT):
                load = (in_flight, seconds, bench.open_cores[:1], size)
                closed = closed_loop(request, Wire.HTTP, server.port(Wire.HTTP), *load)
            capacity = closed.requests / closed.seconds
            if not peer.tell(work, bench.models, server.directory, _service_time(server)):
                raise ServerFailed("Tessera is not ready when told its service times")
            bench.says(f"overload: {2 * capacity:,.0f}/s")
            seen = poisson(
                server,
                Wire.HTTP,
                rows,
                2 * capacity,
                seconds,
                bench.open_cores,
                SLO_MS,
                connections=CONNECTIONS,
            )
    except (LoadBroke, LoadFailed, ServerFailed) as error:
        bench.problem(f"overload: {error}")
        return []
    figures = asdict(seen) | {"closed_loop_per_s": capacity, "slo_ms": SLO_MS}
    labels = {"group": "overload", "work": work.name, "server": TESSERA}
    return [Row(labels | {"dispatcher": "own core" if own else "the workers' core"}, (figures,))]


def _service_time(server: Running) -> ServiceTime:
    """Of one member, by the server's own statistics. Raises ServerFailed without batches of one and full ones."""
    found = json.loads(server.get(f"/v2/models/{model_name(server.work)}/stats"))
    batch_ms = {}
    for batch in found["model_stats"][0]["batch_stats"]:
        stages = [batch[f"compute_{stage}"] for stage in ("input", "infer", "output")]
        batch_ms[batch["batch_size"]] = sum(s["ns"] / s["count"] for s in stages) / 1e6
    if not {1, BATCH_CAP} <= batch_ms.keys():
        raise ServerFailed(f"batches of {sorted(batch_ms)} rows only")
    one_ms, full_ms = batch_ms[1], batch_ms[BATCH_CAP]
    alpha_ms = (full_ms - one_ms) / (BATCH_CAP - 1)
    return ServiceTime(alpha_ms=alpha_ms, tau0_ms=one_ms - alpha_ms)
