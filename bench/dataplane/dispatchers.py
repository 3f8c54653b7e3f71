"""One server beside two that share its ports: how much more a further dispatcher answers, and at what cost.

A dispatcher is one loop on one core, so a node with more cores for it runs more servers, among which the kernel
spreads connections (docs/decisions/0021-several-dispatchers.md). Each server has a core and as many connections, and the
same two generators, on cores of their own, load one server and two. Each server's and the generators' share of
their cores is among the figures: a generator that is always busy hides the servers, and a server that is not has
lost its core to something else.
"""

from __future__ import annotations

import os
import resource
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

from bench.dataplane.closed import NOT_MEASURED, Bench, examples
from bench.dataplane.counters import roles
from bench.dataplane.generators import LoadBroke, Loaded, closed_loop
from bench.dataplane.running import Running, ServerFailed
from bench.harness import Figures, Row, Variant, alternate
from bench.peers.base import WORKS, Request, Wire
from bench.peers.tessera import Tessera, report

CONNECTIONS = 32
"""For each server; with two generators, even."""

LISTEN_TIMEOUT_S = 10.0
_POLL_S = 0.01
_LISTEN = "0A"
"""The state of a socket in /proc/net/tcp."""


def dispatcher_rows(bench: Bench) -> list[Row]:
    """Closed loops of the identity over both protocols. Without four cores nothing is measured."""
    if bench.dispatcher_core is None:
        bench.problem("dispatchers: two servers and two generators take four cores")
        return []
    server_cores = (bench.server_cores[0], bench.open_cores[-1])
    load_cores = (bench.load_core, bench.dispatcher_core)
    with ExitStack() as stack:
        groups = [
            stack.enter_context(_sharing(bench, server_cores[:1])),
            stack.enter_context(_sharing(bench, server_cores)),
        ]
        variants = [
            Variant(
                {
                    "group": "dispatchers",
                    "servers": str(len(servers)),
                    "protocol": wire.value,
                    "c": str(CONNECTIONS * len(servers)),
                },
                partial(_measured, bench, servers, wire, load_cores),
            )
            for wire in Wire
            for servers in groups
        ]
        return alternate(variants, bench.rounds, bench.says)


@contextmanager
def _sharing(bench: Bench, cores: Sequence[int]) -> Iterator[list[Running]]:
    """A server on each core, all on the ports of the first. Raises ServerFailed."""
    servers: list[Running] = []
    with ExitStack() as stack:
        for core in cores:
            path = bench.path("dispatchers")
            server = Running(
                Tessera(reuse_port=True), WORKS["identity"], bench.models, path, (core,)
            )
            if servers:
                shared = servers[0].ports
                server.ports = replace(server.ports, http=shared.http, grpc=shared.grpc)
            servers.append(stack.enter_context(server))
        _wait_listening(servers)
        yield servers


def _wait_listening(servers: Sequence[Running]) -> None:
    """A server serves a moment before it takes connections. Raises ServerFailed."""
    began = time.monotonic()
    while any(_listeners(servers[0].port(wire)) < len(servers) for wire in Wire):
        if time.monotonic() - began > LISTEN_TIMEOUT_S:
            raise ServerFailed(f"not all of {len(servers)} servers take connections")
        time.sleep(_POLL_S)


def _listeners(port: int) -> int:
    entries = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return sum(e[3] == _LISTEN and int(e[1].rpartition(":")[2], 16) == port for e in entries)


def _measured(
    bench: Bench, servers: Sequence[Running], wire: Wire, cores: Sequence[int]
) -> Figures:
    first = servers[0]
    row = examples(first.work)[:1]
    request = first.peer.request(first.work, wire, row)
    try:
        size = len(first.answer(wire, row))
        _load(request, wire, first.port(wire), cores, 0.3, size, servers)
        return _figures(request, wire, cores, bench.seconds, size, servers)
    except (LoadBroke, ServerFailed) as error:
        bench.problem(f"dispatchers: {len(servers)} servers, {wire.value}: {error}")
        return NOT_MEASURED


def _figures(
    request: Request,
    wire: Wire,
    cores: Sequence[int],
    seconds: float,
    size: int,
    servers: Sequence[Running],
) -> Figures:
    port = servers[0].port(wire)
    used, answered, loading = [s.cpu_s() for s in servers], _answered(servers), _children_s()
    seen, connected = _load(request, wire, port, cores, seconds, size, servers)
    used = [s.cpu_s() - before for s, before in zip(servers, used, strict=True)]
    answered = [now - before for now, before in zip(_answered(servers), answered, strict=True)]
    requests = sum(one.requests for one in seen)
    lasted = max(one.seconds for one in seen)
    return {
        "rate_per_s": sum(one.requests / one.seconds for one in seen),
        "p50_ms": max(one.p50_ms for one in seen),
        "p99_ms": max(one.p99_ms for one in seen),
        "cpu_us": sum(used) / requests * 1e6,
        "requests": float(requests),
        # Of a core each.
        "busiest_server": max(used) / lasted,
        "idlest_server": min(used) / lasted,
        "generators": (_children_s() - loading) / lasted / len(cores),
        # Of all; an even share is one over the number of servers.
        "most_connections": _most(connected),
        "most_requests": _most(answered),
    }


def _load(
    request: Request,
    wire: Wire,
    port: int,
    cores: Sequence[int],
    seconds: float,
    size: int,
    servers: Sequence[Running],
) -> tuple[list[Loaded], list[int]]:
    """A generator on each core, and how many connections each server had half-way. Raises LoadBroke."""
    dispatchers = [roles(server).dispatcher for server in servers]
    before = [_descriptors(pid) for pid in dispatchers]
    each = CONNECTIONS * len(servers) // len(cores)
    with ThreadPoolExecutor(len(cores)) as pool:
        loads = [
            pool.submit(closed_loop, request, wire, port, each, seconds, (core,), size)
            for core in cores
        ]
        time.sleep(seconds / 2)
        half = [_descriptors(pid) for pid in dispatchers]
        return [load.result() for load in loads], [
            now - then for now, then in zip(half, before, strict=True)
        ]


def _most(counts: Sequence[int]) -> float:
    """Share of the largest; NaN of nothing."""
    return max(counts) / sum(counts) if any(counts) else float("nan")


def _descriptors(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/fd"))


def _answered(servers: Sequence[Running]) -> list[int]:
    return [sum(one.total for one in report(server.directory).services) for server in servers]


def _children_s() -> float:
    """Processor seconds of the generators that have ended: of all children that were waited for."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime
