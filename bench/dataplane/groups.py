"""The groups of measurements, each by name: what is started together and measured in one sitting."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, replace

from bench.dataplane import judges, profiles, scaling
from bench.dataplane.closed import Bench, best_loop, contestants, examples, group
from bench.dataplane.counters import per_batch
from bench.dataplane.dispatchers import dispatcher_rows
from bench.dataplane.generators import closed_loop
from bench.dataplane.gpu import gpu_rows
from bench.dataplane.loop import Loop
from bench.dataplane.open_loop import highest_rate
from bench.dataplane.overload import overload_rows
from bench.dataplane.rates import P99_BOUND_MS, closed_rate, poisson_rows
from bench.dataplane.running import Running
from bench.dataplane.start import first_answer_s, plain_start_s
from bench.dataplane.targets import LOOP, NAIVE_LOOP, TESSERA
from bench.harness import Row
from bench.peers.base import WORKS, Wire
from bench.peers.tessera import Tessera, model_name

RESNET_CONNECTIONS = 16


def identity(bench: Bench) -> list[Row]:
    with contestants(bench, ["identity"]) as running:
        rows = group(bench, "identity", running, (32, 1), {})
        return rows + profiled(bench, running, 32)


def cnn(bench: Bench) -> list[Row]:
    """With what is read from the same servers: Poisson, counters, judges."""
    bench.export(WORKS["cnn"])
    with (
        contestants(bench, ["cnn"]) as running,
        Loop(WORKS["cnn"], bench.models, bench.server_cores, tuned=False) as loop,
    ):
        rows = group(bench, "cnn", running, (32,), {LOOP: loop})
        rows += [best_loop(bench, WORKS["cnn"]), *profiled(bench, running, 32)]
        rows += poisson_rows(bench, running, rows)
        for server in running:
            if server.peer.name == TESSERA:
                server.resume()
                rows += _inside(bench, server)
                rows += _judged(bench, server, rows)
                server.pause()
    return rows


def ensemble(bench: Bench) -> list[Row]:
    bench.export(WORKS["ensemble"])
    with (
        contestants(bench, ["ensemble", "fused"]) as running,
        Loop(WORKS["ensemble"], bench.models, bench.server_cores, tuned=False) as loop,
    ):
        rows = group(bench, "ensemble", running, (32,), {LOOP: loop})
        rows += profiled(bench, running, 32)
        rows += poisson_rows(bench, running, rows)
    return rows


def resnet18(bench: Bench) -> list[Row]:
    """Compared by engine and copies: servers do not differ by batching here."""
    work = WORKS["resnet18"]
    bench.export(work)
    # A batch of eight takes a fifth of a second: long enough for several.
    longer = replace(bench, seconds=max(bench.seconds * 3, 2.0))
    longer.problems = bench.problems
    cores = bench.server_cores
    with ExitStack() as stack:
        naive = stack.enter_context(Loop(work, bench.models, cores, tuned=False, naive=True))
        tuned = stack.enter_context(Loop(work, bench.models, cores, tuned=True))
        running = stack.enter_context(contestants(longer, [work.name]))
        loops = {NAIVE_LOOP: naive, LOOP: tuned}
        return group(longer, work.name, running, (RESNET_CONNECTIONS,), loops)


def start(bench: Bench) -> list[Row]:
    """The identity shows what the fork costs, the CNN what loading adds."""
    rows = []
    for name in ("cnn",) if bench.quick else ("identity", "cnn"):
        work = WORKS[name]
        bench.export(work)
        cores = bench.server_cores
        plain = plain_start_s(work, bench.models, cores) if work.networks else float("nan")
        row = examples(work)[:1]
        with Running(Tessera(), work, bench.models, bench.path("start"), cores) as server:
            repeats = tuple(
                {"first_answer_s": first_answer_s(server, bench.models, row, n), "plain_s": plain}
                for n in range(bench.rounds)
            )
        rows.append(Row({"group": "start", "work": name, "server": TESSERA}, repeats))
    return rows


def connections(bench: Bench) -> list[Row]:
    counts = scaling.CONNECTIONS[:3] if bench.quick else scaling.CONNECTIONS
    work, cores = WORKS["identity"], (bench.load_core,)
    with Running(Tessera(), work, bench.models, bench.path("c"), bench.server_cores) as server:
        return list(scaling.connection_rows(server, cores, counts, bench.seconds))


def payload(bench: Bench) -> list[Row]:
    sizes = scaling.PAYLOAD_BYTES[::2] if bench.quick else scaling.PAYLOAD_BYTES
    where = (bench.path("payload"), bench.server_cores, (bench.load_core,))
    return list(scaling.payload_rows(*where, sizes, bench.seconds))


def models(bench: Bench) -> list[Row]:
    counts = (1, 10) if bench.quick else scaling.MODELS
    where = (bench.path("models"), bench.server_cores, (bench.load_core,))
    return list(scaling.model_rows(*where, counts, bench.seconds))


GROUPS: dict[str, Callable[[Bench], list[Row]]] = {
    "identity": identity,
    "cnn": cnn,
    "ensemble": ensemble,
    "overload": overload_rows,
    "resnet18": resnet18,
    "start": start,
    "connections": connections,
    "payload": payload,
    "models": models,
    "dispatchers": dispatcher_rows,
    "gpu": gpu_rows,
}

NEED_NO_PROGRAMS = frozenset({"gpu"})
"""Groups whose load is our own."""

QUICK_GROUPS = ("identity", "cnn", "ensemble", "overload", "start")


def profiled(bench: Bench, running: list[Running], count: int) -> list[Row]:
    """Where Tessera's time goes in the closed loops, where that was asked for."""
    if not bench.profile:
        return []
    if why := profiles.missing():
        bench.problem(f"profiles: {why}")
        return []
    own = [server for server in running if server.peer.name == TESSERA]
    return [row for server in own for wire in Wire for row in _profile(bench, server, wire, count)]


def _profile(bench: Bench, server: Running, wire: Wire, count: int) -> list[Row]:
    row = examples(server.work)[:1]
    request = server.peer.request(server.work, wire, row)
    size = len(server.answer(wire, row))

    def load(seconds: float) -> None:
        cores = (bench.load_core,)
        closed_loop(request, wire, server.port(wire), count, seconds, cores, size)

    bench.says(f"profile {server.work.name} {wire.value}")
    labels = {"work": server.work.name, "server": TESSERA, "protocol": wire.value}
    return profiles.profile(server, labels, load, bench.seconds)


def _inside(bench: Bench, server: Running) -> list[Row]:
    """Counters per batch, loaded and with a lone request."""
    row = examples(server.work)[:1]
    request = server.peer.request(server.work, Wire.HTTP, row)
    size = len(server.answer(Wire.HTTP, row))
    rows = []
    for count in (32, 1):

        def load(count: int = count) -> int:
            where = (request, Wire.HTTP, server.ports.http, count)
            return closed_loop(*where, bench.seconds, (bench.load_core,), size).requests

        labels = {"group": "inside", "work": server.work.name, "server": TESSERA, "c": str(count)}
        rows.append(Row(labels, (per_batch(server, load, row.nbytes),)))
    return rows


def _judged(bench: Bench, server: Running, closed: list[Row]) -> list[Row]:
    """What perf_analyzer and LoadGen say of Tessera."""
    rows: list[Row] = []
    labels = {"group": "judge", "work": server.work.name, "server": TESSERA}
    top = closed_rate(closed, server.work.name, TESSERA)
    analyzer, harness = judges.perf_analyzer_missing(), judges.loadgen_missing()
    for judge, why in (("perf_analyzer", analyzer), ("LoadGen", harness)):
        if why:
            bench.problem(f"{judge}: {why}")
    model, cores = model_name(server.work), bench.open_cores[:1]
    for wire in Wire if not analyzer else ():
        rate = closed_rate(closed, server.work.name, TESSERA, wire)
        arrivals = judges.Setting(poisson_per_s=round(0.3 * rate))
        for setting in (judges.Setting(concurrency=32), arrivals):
            bench.says(f"perf_analyzer {wire.value} {setting}")
            try:
                said = judges.perf_analyzer(server, wire, model, cores, setting, bench.quick)
            except judges.JudgeBroke as error:
                bench.problem(str(error))
                continue
            own = labels | {"judge": "perf_analyzer", "protocol": wire.value, "at": str(setting)}
            rows.append(Row(own, (asdict(said),)))
    if not harness:
        rows += _loadgen(bench, server, labels | {"judge": "LoadGen Server"}, top)
    return rows


LOADGEN_MOST_PER_S = 2000.0
"""Its driver is Python; above this it would judge itself."""


def _loadgen(bench: Bench, server: Running, labels: dict[str, str], top: float) -> list[Row]:
    """The best VALID rate, by bisection."""
    verdicts: list[judges.Verdict] = []
    seconds = 1.0 if bench.quick else 4.0

    def holds(rate: float) -> bool:
        asked = examples(server.work)
        verdicts.append(
            judges.loadgen(server, asked, rate, P99_BOUND_MS, seconds, bench.open_cores[:1])
        )
        bench.says(f"LoadGen: {verdicts[-1]}")
        return verdicts[-1].valid

    ceiling = min(top, LOADGEN_MOST_PER_S)
    try:
        best = highest_rate(holds, ceiling, 1 if bench.quick else 4)
    except judges.JudgeBroke as error:
        bench.problem(str(error))
        return []
    p99 = [verdict.p99_ms for verdict in verdicts if verdict.target_per_s == round(best, 2)]
    figures = {"rate_per_s": best, "ceiling_per_s": ceiling}
    figures["p99_ms"] = p99[0] if p99 else float("nan")
    return [Row(labels | {"protocol": "http", "at": "best VALID rate"}, (figures,))]
