"""A Tessera server under measurement: the real server, told directly what to run.

There is no agent and no planner: a benchmark fixes the setpoints, so that figures of two days differ by the
server alone.
"""

from __future__ import annotations

import asyncio
import socket
import subprocess
import sys
from pathlib import Path
from types import TracebackType

from bench.processes import Usage, session_usage, start_session

from tessera_cli.loadgen import Protocol
from tessera_runtime.control import ControlClient, ControlError
from tessera_runtime.supervisor import control_path
from tessera_runtime.target import DeviceTarget, ServerTarget, ServiceTarget

READY_TIMEOUT_S = 90.0
_POLL_S = 0.1

HOST = "127.0.0.1"
DEVICE = "cpu"


class ServerFailed(Exception):
    """It did not become ready; the message says what it reported."""


def free_port() -> int:
    with socket.create_server((HOST, 0)) as listener:
        return int(listener.getsockname()[1])


class BenchServer:
    """One service on its own server, on ``cores``; a context manager. Its log goes to ``directory``."""

    def __init__(
        self, service: ServiceTarget, cores: tuple[int, ...], directory: Path, preload: str
    ) -> None:
        self._service = service
        self._cores = cores
        self._directory = directory
        self._preload = preload
        self._process: subprocess.Popen[bytes] | None = None
        self.ports = {Protocol.HTTP: free_port(), Protocol.GRPC: free_port()}

    def __enter__(self) -> BenchServer:
        command = [
            *(sys.executable, "-m", "tessera_runtime.supervisor"),
            *("--run-dir", str(self._directory), "--host", HOST, "--log-level", "warning"),
            *("--http", str(self.ports[Protocol.HTTP])),
            *("--grpc", str(self.ports[Protocol.GRPC])),
            *("--metrics", str(free_port())),
            *("--preload", self._preload),
        ]
        self._process = start_session(command, self._cores)
        try:
            asyncio.run(self._until_ready())
        except BaseException:
            self._stop()
            raise
        return self

    def __exit__(
        self, _: type[BaseException] | None, __: BaseException | None, ___: TracebackType | None
    ) -> None:
        self._stop()

    def usage(self) -> Usage:
        assert self._process is not None, "inside the context"
        return session_usage(self._process.pid)

    async def _until_ready(self) -> None:
        device = DeviceTarget(DEVICE, "cpu", self._cores, len(self._cores))
        target = ServerTarget(devices=(device,), services=(self._service,))
        control = ControlClient(str(control_path(self._directory)))
        said = "it does not answer"
        applied = False
        try:
            async with asyncio.timeout(READY_TIMEOUT_S):
                while True:
                    try:
                        if not applied:
                            await control.apply(target)
                            applied = True
                        report = await control.report()
                        if report.ready:
                            return
                        said = "; ".join(
                            service.problem or member.problem or "still loading"
                            for service in report.services
                            for member in service.members
                        )
                    except ControlError as error:
                        said = str(error)
                    await asyncio.sleep(_POLL_S)
        except TimeoutError:
            raise ServerFailed(f"not ready in {READY_TIMEOUT_S:.0f} s: {said}") from None
        finally:
            await control.close()

    def _stop(self) -> None:
        if self._process is not None:
            self._process.terminate()
            self._process.wait()
            self._process = None
