"""The dispatcher process: front ends, dispatcher, control socket, metrics."""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import signal
import socket
import sys
from pathlib import Path

import uvloop

from tessera_runtime import control, logs, server_options
from tessera_runtime.artefacts import ArtefactRefused, ArtefactStore
from tessera_runtime.dispatch import certificates
from tessera_runtime.dispatch.arena import InputArena
from tessera_runtime.dispatch.dispatcher import Dispatcher
from tessera_runtime.dispatch.instances import Timeouts
from tessera_runtime.dispatch.metrics import start_metrics
from tessera_runtime.dispatch.peers import Channels
from tessera_runtime.dispatch.profiler import profile
from tessera_runtime.dispatch.tuner import MOST_AT_ONCE, tune
from tessera_runtime.dispatch.waiting import eventually
from tessera_runtime.dispatch.wanted import runs_nothing
from tessera_runtime.dispatch.worker_memory import watch
from tessera_runtime.dispatch.workers import LoadFailed, WorkerLost, WorkerPool
from tessera_runtime.errors import ServeError
from tessera_runtime.parent import die_with
from tessera_runtime.protocol.grpc_server import GrpcServer, start_grpc
from tessera_runtime.protocol.http_server import HttpServer, start_http
from tessera_runtime.protocol.limits import GrpcLimits, HttpLimits
from tessera_runtime.protocol.listen import PortTaken
from tessera_runtime.protocol.tls import TlsInvalid
from tessera_runtime.target import Ports

log = logging.getLogger(__name__)

PROFILE_TIMEOUT_S = 900.0

MIB = 1 << 20

PEER_OVERHEAD = 64 << 10
"""Bytes: names and shapes around the inputs, so that what one server took another takes from it."""


def parser() -> argparse.ArgumentParser:
    """Options of the process; the supervisor fills them in."""
    arguments = argparse.ArgumentParser(prog="tessera-dispatcher")
    arguments.add_argument("--http-fd", type=int, required=True)
    arguments.add_argument("--grpc-fd", type=int, required=True)
    arguments.add_argument("--control-fd", type=int, required=True)
    arguments.add_argument("--zygote", required=True, metavar="PATH")
    arguments.add_argument(
        "--secret-digest", required=True, help="of what agents say on the control socket"
    )
    arguments.add_argument(
        "--mps-root", type=Path, required=True, help="for the directories of MPS daemons"
    )
    server_options.add(arguments, "host", "metrics", "hang-timeout", "drain-timeout")
    server_options.add(arguments, "shutdown-delay", "log-level")
    arguments.add_argument("--artefacts", type=Path, required=True, metavar="DIRECTORY")
    arguments.add_argument(
        "--artefacts-mib",
        type=int,
        default=4096,
        metavar="MIB",
        help="most that artefacts take together; the one that was used longest ago goes first",
    )
    arguments.add_argument("--arena-mib", type=int, default=256)
    arguments.add_argument("--max-request-mib", type=int, default=64)
    arguments.add_argument("--load-timeout", type=float, default=300.0, metavar="SECONDS")
    arguments.add_argument(
        "--worker-growth-mib",
        type=int,
        default=1024,
        metavar="MIB",
        help="a process on a CPU that has grown by so much, beside what was loaded, is replaced",
    )
    arguments.add_argument(
        "--grpc-connection-age",
        type=float,
        metavar="SECONDS",
        help="after which clients are sent to connect anew; half of --shutdown-delay if not given",
    )
    arguments.add_argument("--hold-timeout", type=float, default=300.0, metavar="SECONDS")
    arguments.add_argument(
        "--accept-within",
        type=float,
        default=0.0,
        metavar="SECONDS",
        help="most that connections wait for what is wanted to be served",
    )
    certificates.add_options(arguments)
    arguments.add_argument("--plain-names", action="store_true")
    arguments.add_argument(
        "--parent", type=int, required=True, help="process to drain and end with"
    )
    return arguments


def main() -> None:
    """Entry point of ``python -m tessera_runtime.dispatch.main``."""
    arguments = parser().parse_args()
    die_with(arguments.parent, signal.SIGTERM)
    logs.configure("dispatcher", arguments.log_level)
    try:
        uvloop.run(serve(arguments))
    except (PortTaken, TlsInvalid, ArtefactRefused) as error:
        log.error("%s", error)
        sys.exit(os.EX_CONFIG)


async def serve(arguments: argparse.Namespace) -> None:
    """Serve until SIGTERM, then drain. Raises PortTaken, TlsInvalid, ArtefactRefused."""
    largest = arguments.max_request_mib * MIB
    store = ArtefactStore(arguments.artefacts, arguments.artefacts_mib * MIB)
    arena = InputArena(arguments.arena_mib * MIB, largest + PEER_OVERHEAD)
    pool = WorkerPool(arguments.zygote, arena)
    tls = certificates.read(arguments)
    channels = Channels(certificates.security(tls, arguments.peer_name))
    dispatcher = Dispatcher(
        arena,
        pool,
        store,
        timeouts=Timeouts(load_s=arguments.load_timeout, hang_s=arguments.hang_timeout),
        plain_names=arguments.plain_names,
        hold_s=arguments.hold_timeout,
        channels=channels,
        mps_root=arguments.mps_root,
    )
    tuning = asyncio.Semaphore(MOST_AT_ONCE)

    async def answer(request: control.Request) -> control.Answer:
        match request:
            case control.Apply(target, keys):
                try:
                    dispatcher.apply(target, keys)
                except KeyError as error:
                    return control.Refused(f"an instance names the unknown device {error}")
                for each in https:
                    each.send_elsewhere(runs_nothing(target))
                return control.Applied()
            case control.Report():
                return control.Reported(dispatcher.report())
            case control.Profile(wanted):
                try:
                    async with asyncio.timeout(PROFILE_TIMEOUT_S):
                        return control.Profiled(
                            await profile(pool, dispatcher.workers.mps, arena, store, wanted)
                        )
                except (LoadFailed, WorkerLost, ServeError) as error:
                    return control.Refused(str(error))
                except TimeoutError:
                    return control.Refused(f"measuring took over {PROFILE_TIMEOUT_S:.0f} s")
            case control.Tune(ordered):
                if tuning.locked():
                    return control.Refused(f"{MOST_AT_ONCE} variants are being tuned; ask later")
                try:
                    async with tuning:
                        return control.Tuned(
                            await tune(pool, dispatcher.workers.mps, arena, store, ordered)
                        )
                except (LoadFailed, WorkerLost, ServeError) as error:
                    return control.Refused(str(error))

    http_socket = socket.socket(fileno=arguments.http_fd)
    grpc_socket = socket.socket(fileno=arguments.grpc_fd)
    front_ends: list[HttpServer | GrpcServer] = []
    https: list[HttpServer] = []
    metrics = start_metrics(
        dispatcher,
        lambda: sum(each.copied for each in front_ends),
        arguments.host,
        arguments.metrics,
    )
    dispatcher.ports = Ports(
        http_socket.getsockname()[1], grpc_socket.getsockname()[1], metrics.port
    )
    controls = await control.serve_control(answer, arguments.control_fd, arguments.secret_digest)
    # Connections queue in the sockets, which others opened: better late than refused.
    await eventually(dispatcher.ready, arguments.accept_within)
    http = await start_http(
        dispatcher,
        http_socket,
        limits=HttpLimits(max_body=largest),
        context=tls.http,
    )
    # Connections of gRPC come of age by themselves.
    https.append(http)
    http.send_elsewhere(runs_nothing(dispatcher.target))
    grpc_limits = GrpcLimits(
        max_message=largest + PEER_OVERHEAD,
        max_connection_age_s=arguments.grpc_connection_age or _age_s(arguments.shutdown_delay),
        # What is held may take that long; a shorter grace would cut it off.
        max_connection_age_grace_s=max(30.0, arguments.hold_timeout),
    )
    grpc = await start_grpc(
        dispatcher,
        grpc_socket,
        limits=grpc_limits,
        context=tls.grpc,
    )
    front_ends += http, grpc
    log.info("serving", extra={"http": http.port, "grpc": grpc.port, "metrics": metrics.port})
    watching = [
        asyncio.create_task(work)
        for work in (
            watch(
                dispatcher.workers.living.values, dispatcher.replace, arguments.worker_growth_mib
            ),
            certificates.follow(tls, arguments.peer_name, http, grpc, channels),
        )
    ]
    stopping = asyncio.Event()
    for signum in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(signum, stopping.set)
    await stopping.wait()
    dispatcher.stop_advertising()
    if arguments.shutdown_delay:
        # Endpoints are taken away by others, who need time to learn of it: until then clients still come.
        log.info("answering for %.1f s more", arguments.shutdown_delay)
        http.let_go()
        await asyncio.sleep(arguments.shutdown_delay)
    log.info("draining")
    controls.close()
    timeout_s = arguments.drain_timeout
    dispatcher.holds.refuse_after(timeout_s / 2)
    for task in watching:
        task.cancel()
    await asyncio.gather(http.drain(timeout_s), grpc.drain(timeout_s))
    await dispatcher.drain(timeout_s)
    await dispatcher.close()
    pool.close()
    metrics.close()


def _age_s(shutdown_delay_s: float) -> float:
    """How old gRPC connections get, seconds, so that the end of the server fails no call.

    Every connection comes of age within the delay, also one that was made while the server was still taken for
    ready: its client then finds another server while this one still answers, and few are left to be drained.
    """
    usual_s = GrpcLimits().max_connection_age_s
    return min(usual_s, shutdown_delay_s / 2) if shutdown_delay_s else usual_s


if __name__ == "__main__":
    main()
