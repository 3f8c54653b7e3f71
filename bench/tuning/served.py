"""A real server that tunes: requests of variants on shares of this machine's cores."""

from __future__ import annotations

import asyncio
import hashlib
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from bench.dataplane.running import ServerFailed

from tessera_runtime.control import ControlClient, ControlError
from tessera_runtime.supervisor import control_path
from tessera_runtime.target import DeviceTarget, MemberTarget, TuneOutcome, TuneRequest

START_S = 60.0
REQUEST_S = 1800.0
BUILD_S = 900.0
HANG_S = 60.0


@dataclass(frozen=True, slots=True)
class Measure:
    """How long is measured."""

    cell_s: float
    rounds: int
    batches: tuple[int, ...]


def share(cores: Sequence[int]) -> DeviceTarget:
    """Cores as a device."""
    name = "-".join(map(str, cores))
    return DeviceTarget(f"cpu-{name}", "cpu", tuple(cores), threads=len(cores))


def request(
    path: Path, variant: str, devices: Sequence[DeviceTarget], measure: Measure, tolerance: float
) -> TuneRequest:
    """``devices``: the share that it is tuned for first."""
    digest = f"sha256:{hashlib.sha256(path.read_bytes()).hexdigest()}"
    largest = max(measure.batches)
    return TuneRequest(
        member=MemberTarget(path.stem, str(path), "TorchExport", digest, largest, largest, ()),
        inputs=(),
        outputs=(),
        variant=variant,
        tolerance=tolerance,
        devices=tuple(devices),
        batches=measure.batches,
        cell_s=measure.cell_s,
        rounds=measure.rounds,
        build_limit_s=BUILD_S,
        hang_s=HANG_S,
    )


class Server:
    """Made by :func:`serving`."""

    def __init__(self, run_dir: Path) -> None:
        self._socket = str(control_path(run_dir))

    async def tune(self, wanted: TuneRequest) -> TuneOutcome:
        """Raises ServerFailed."""
        client = ControlClient(self._socket)
        try:
            return await client.tune(wanted, REQUEST_S)
        except ControlError as error:
            raise ServerFailed(str(error)) from error
        finally:
            await client.close()

    async def answering(self, process: subprocess.Popen[bytes]) -> None:
        """Wait until it does. Raises ServerFailed."""
        until = time.monotonic() + START_S
        client = ControlClient(self._socket)
        try:
            while True:
                try:
                    await client.report()
                    return
                except ControlError as error:
                    if process.poll() is not None or time.monotonic() > until:
                        raise ServerFailed(f"the server did not start: {error}") from error
                    await asyncio.sleep(0.1)
        finally:
            await client.close()


@contextmanager
def serving(directory: Path) -> Iterator[Server]:
    """A server with its files in ``directory``, which has compiled nothing yet. Raises ServerFailed."""
    run_dir = directory / "run"
    with (directory / "server.log").open("wb") as log:
        process = subprocess.Popen(
            [
                *(sys.executable, "-m", "tessera_runtime.supervisor"),
                *(f"--run-dir={run_dir}", "--http=0", "--grpc=0", "--metrics=0"),
                *("--preload=torch", f"--parent={os.getpid()}", "--log-level=warning"),
            ],
            stderr=log,
        )
    server = Server(run_dir)
    try:
        asyncio.run(server.answering(process))
        yield server
    finally:
        process.terminate()
        process.wait(60)
