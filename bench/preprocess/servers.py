"""Servers that live as long as they are measured: ours, and plain ones."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from bench.dataplane.running import ServerFailed
from bench.peers.base import ROOT, Command, Ports, answers_200, free_ports
from bench.peers.tessera import server_command
from bench.preprocess.places import Places
from bench.preprocess.services import NETWORK
from bench.processes import end_session, start_session

from tessera_runtime.control import ControlClient, ControlError
from tessera_runtime.supervisor import control_path
from tessera_runtime.target import ServerTarget, ServiceTarget

FULL_SIZE = Path(__file__).with_name("full_size")

READY_TIMEOUT_S = 300.0
"""A dozen networks are loaded and warmed on the cores of one machine."""
_POLL_S = 0.1
_SAID = 600
"""Characters of the end of a log."""


@dataclass(frozen=True, slots=True)
class Starting:
    """Servers that were started: several may start beside each other before any is waited for."""

    ports: tuple[Ports, ...]
    directory: Path
    leader: int
    """The process that started all of them."""
    wait: Callable[[], None]
    """Until they are ready. Raises ServerFailed."""


@contextmanager
def tessera(
    services: Sequence[ServiceTarget], places: Places, directory: Path, full_size: bool = False
) -> Iterator[Starting]:
    """Ours. ``full_size``: JPEGs are decoded so."""
    ports = free_ports()
    plain = server_command(directory, ports, "torch")
    path = [str(FULL_SIZE)] * full_size + os.environ.get("PYTHONPATH", "").split(os.pathsep)
    command = Command(plain.argv, {"PYTHONPATH": os.pathsep.join(filter(None, path))})
    wanted = ServerTarget(devices=places.devices, services=tuple(services))

    def ready() -> bool:
        return asyncio.run(_serves(directory, wanted))

    with _started(command, places.dispatcher, directory, ready) as (pid, wait):
        yield Starting((ports,), directory, pid, wait)


@contextmanager
def plain(
    models: Path, processes: Sequence[tuple[int, ...]], directory: Path
) -> Iterator[Starting]:
    """Plain servers, one for each of ``processes`` on its cores, all of which its network may use."""
    ports = [free_ports() for _ in processes]
    served = [
        f"{each.http}:{','.join(map(str, cores))}"
        for each, cores in zip(ports, processes, strict=True)
    ]
    argv = (
        *(sys.executable, "-m", "bench.preprocess.plain_app", "--models", str(models)),
        *("--network", NETWORK, *served),
    )
    path = os.pathsep.join(filter(None, (os.environ.get("PYTHONPATH"), str(ROOT))))
    command = Command(argv, {"PYTHONPATH": path})

    def ready() -> bool:
        return all(answers_200(each.http, "/live") for each in ports)

    every = sorted({core for cores in processes for core in cores})
    with _started(command, every, directory, ready) as (pid, wait):
        yield Starting(tuple(ports), directory, pid, wait)


async def _serves(directory: Path, wanted: ServerTarget) -> bool:
    control = ControlClient(str(control_path(directory)))
    try:
        await control.apply(wanted)
        return (await control.report()).ready
    except ControlError:
        return False
    finally:
        await control.close()


@contextmanager
def _started(
    command: Command, cores: Sequence[int], directory: Path, ready: Callable[[], bool]
) -> Iterator[tuple[int, Callable[[], None]]]:
    """Its process, and what waits until ``ready``."""
    directory.mkdir(mode=0o700)
    with (directory / "log").open("wb") as log:
        process = start_session(
            command.argv, cores, command.environment, log, directory, subprocess.PIPE
        )

        def wait() -> None:
            deadline = time.monotonic() + READY_TIMEOUT_S
            while not ready():
                if process.poll() is not None or time.monotonic() > deadline:
                    said = (directory / "log").read_text(errors="replace")[-_SAID:]
                    raise ServerFailed(f"{directory.name} is not ready: {said}")
                time.sleep(_POLL_S)

        try:
            yield process.pid, wait
        finally:
            end_session(process)
            assert process.stdin is not None, "a pipe"
            process.stdin.close()
