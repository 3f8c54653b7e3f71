"""How Tessera's costs grow: with connections, with the size of a payload, with the number of models."""

from __future__ import annotations

import resource
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from bench.dataplane.counters import copied, roles
from bench.dataplane.generators import LoadBroke, closed_loop
from bench.dataplane.running import Running, ServerFailed
from bench.harness import Figures, Row
from bench.peers.base import WORKS, Wire, Work
from bench.peers.tessera import Tessera, apply, model_name, model_paths, service
from bench.processes import cpu_s, pss_mib, tree, usage

CONNECTIONS = (1, 10, 100, 1000, 5000)
PAYLOAD_BYTES = (64, 4 << 10, 64 << 10, 1 << 20, 16 << 20)
MODELS = (1, 100, 500)

IDLE_S = 2.0
LOAD_TIMEOUT_S = 120.0
_POLL_S = 0.1

ANY_WIDTH = Path(__file__).parents[1] / "models" / "identity_any.py"


def connection_rows(
    server: Running, cores: Sequence[int], counts: Sequence[int], seconds: float
) -> Iterator[Row]:
    """A closed loop over each number of HTTP connections."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    row = np.ones((1, *server.work.row_shape), "f4")
    request = server.peer.request(server.work, Wire.HTTP, row)
    size = len(server.answer(Wire.HTTP, row))
    for count in counts:
        labels = {"group": "connections", "at": f"{count:,}"}
        before = server.cpu_s()
        try:
            seen = closed_loop(
                request, Wire.HTTP, server.ports.http, count, seconds, cores, size, True
            )
        except LoadBroke as error:
            yield Row(labels | {"problem": str(error)}, ())
            continue
        used = server.cpu_s() - before
        yield Row(
            labels,
            (
                {
                    "rate_per_s": seen.requests / seen.seconds,
                    "p99_ms": seen.p99_ms,
                    "cpu_us": used / (seen.requests + seen.refused) * 1e6,
                    "refused_share": seen.refused / (seen.requests + seen.refused),
                },
            ),
        )


class _AnyWidth(Tessera):
    """The identity of rows of any width."""

    def prepare(self, work: Work, models: Path, directory: Path) -> None:
        self.write(directory, service(model_name(work), [ANY_WIDTH]))


def payload_rows(
    directory: Path,
    server_cores: tuple[int, ...],
    cores: Sequence[int],
    sizes: Sequence[int],
    seconds: float,
) -> Iterator[Row]:
    """Four requests in flight of each size, the answer as large."""
    widths = Work("identity", (1,), "x", "y")
    with Running(_AnyWidth(), widths, directory, directory / "payload", server_cores) as server:
        for wire in Wire:
            for size in sizes:
                labels = {"group": "payload", "at": f"{size:,} B", "protocol": wire.value}
                try:
                    yield Row(labels, (_payload(server, wire, size, cores, seconds),))
                except (LoadBroke, ServerFailed) as error:
                    yield Row(labels | {"problem": str(error)}, ())


def _payload(
    server: Running, wire: Wire, size: int, cores: Sequence[int], seconds: float
) -> Figures:
    row = np.ones((1, size // 4), "f4")
    request = server.peer.request(server.work, wire, row)
    answer = server.answer(wire, row)
    before, counted = server.cpu_s(), copied(server)
    seen = closed_loop(request, wire, server.port(wire), 4, seconds, cores, len(answer))
    used = server.cpu_s() - before
    figures = {
        "rate_per_s": seen.requests / seen.seconds,
        "mib_per_s": 2 * size * seen.requests / seen.seconds / 2**20,
        "cpu_us": used / seen.requests * 1e6,
        "p99_ms": seen.p99_ms,
    }
    return figures | {"copied_bytes": (copied(server) - counted) / seen.requests}


def model_rows(
    directory: Path,
    server_cores: tuple[int, ...],
    cores: Sequence[int],
    counts: Sequence[int],
    seconds: float,
) -> Iterator[Row]:
    """Idle identities beside one that is used: what they take, and what they cost the one."""
    work = WORKS["identity"]
    base = (0.0, 0.0)
    with Running(Tessera(), work, directory, directory / "models", server_cores) as server:
        for count in counts:
            labels = {"group": "models", "at": f"{count}"}
            idle = tuple(
                service(f"bench.idle{index}", model_paths(work, directory))
                for index in range(count - 1)
            )
            own = service(model_name(work), model_paths(work, directory))
            began = time.monotonic()
            while not apply(server.directory, (own, *idle)):
                if time.monotonic() - began > LOAD_TIMEOUT_S:
                    problem = f"not ready in {LOAD_TIMEOUT_S:.0f} s"
                    yield Row(labels | {"problem": problem}, ())
                    return
                time.sleep(_POLL_S)
            ready = time.monotonic() - began
            figures, memory = _idle(server, cores, seconds)
            if count == counts[0]:
                base = memory
            per_model = max(1, count - counts[0])
            figures |= {
                "ready_s": ready,
                "idle_model_mib": (memory[0] - base[0]) / per_model,
                "idle_model_dispatcher_mib": (memory[1] - base[1]) / per_model,
            }
            yield Row(labels, (figures,))


def _idle(
    server: Running, cores: Sequence[int], seconds: float
) -> tuple[Figures, tuple[float, float]]:
    """Figures, and MiB of all processes and of the dispatcher."""
    dispatcher = roles(server).dispatcher
    all_before, before = cpu_s(server.pid), tree(server.pid)[dispatcher]
    time.sleep(IDLE_S)
    dispatcher_used = tree(server.pid)[dispatcher] - before
    all_used = cpu_s(server.pid) - all_before
    row = np.ones((1, *server.work.row_shape), "f4")
    request = server.peer.request(server.work, Wire.HTTP, row)
    size = len(server.answer(Wire.HTTP, row))
    began = server.cpu_s()
    seen = closed_loop(request, Wire.HTTP, server.ports.http, 32, seconds, cores, size)
    loaded = server.cpu_s() - began
    whole = usage(server.pid)
    figures = {
        "idle_cpu_share": all_used / IDLE_S,
        "idle_dispatcher_cpu_share": dispatcher_used / IDLE_S,
        "cpu_us": loaded / seen.requests * 1e6,
        "processes": float(whole.processes),
        "pss_mib": whole.pss_mib,
        "descriptors": float(whole.descriptors),
    }
    return figures, (whole.pss_mib, pss_mib(dispatcher))
