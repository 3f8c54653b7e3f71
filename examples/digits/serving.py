"""`tessera serve` as a child process, and the one place that reads what it says about itself."""

from __future__ import annotations

import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from tessera_runtime.agent.status import STATUS_FILE, NotServing, ServiceStatus, read_status

READY_TIMEOUT_S = 150.0
STOP_TIMEOUT_S = 45.0
_POLL_S = 0.2
_COMMAND = "from tessera_cli.main import main; main()"


class ServeFailed(Exception):
    """The server did not become ready, or did not end well."""


@dataclass(frozen=True, slots=True)
class Address:
    host: str
    http: int
    grpc: int


class Serving:
    """A server of one ModelService file; a context manager. What it prints goes to this terminal."""

    def __init__(self, model_service: Path, state_dir: Path) -> None:
        self._model_service = model_service
        self._state_dir = state_dir
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Serving:
        (self._state_dir / STATUS_FILE).unlink(missing_ok=True)
        ports = (f"--{name}=0" for name in ("http", "grpc", "metrics"))  # whichever are free
        self._process = subprocess.Popen(
            [
                *(sys.executable, "-c", _COMMAND, "serve", "-f", str(self._model_service)),
                *("--state-dir", str(self._state_dir), *ports),
            ],
            # Relative model URIs are relative to here.
            cwd=self._model_service.parent,
            start_new_session=True,
        )
        return self

    def __exit__(
        self, _: type[BaseException] | None, __: BaseException | None, ___: TracebackType | None
    ) -> None:
        assert self._process is not None, "entered"
        self._process.terminate()
        try:
            self._process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def until_ready(self) -> Address:
        """Wait for the server to have measured, planned and loaded. Raises ServeFailed."""
        assert self._process is not None, "entered"
        deadline = time.monotonic() + READY_TIMEOUT_S
        while time.monotonic() < deadline:
            if self._process.poll() is not None:
                raise ServeFailed(f"`tessera serve` ended with status {self._process.returncode}")
            try:
                status = read_status(self._state_dir)
            except NotServing:
                status = None
            if status is not None and status.ready:
                host, _, http = status.http.removeprefix("http://").rpartition(":")
                return Address(host, int(http), int(status.grpc.rpartition(":")[2]))
            time.sleep(_POLL_S)
        raise ServeFailed(f"`tessera serve` is not ready after {READY_TIMEOUT_S:.0f} s")

    def stop(self) -> int:
        """Ask it to drain and end; its exit status. Raises ServeFailed when it does not."""
        assert self._process is not None, "entered"
        self._process.terminate()
        try:
            return self._process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            raise ServeFailed(f"`tessera serve` did not end in {STOP_TIMEOUT_S:.0f} s") from None

    def status(self) -> ServiceStatus | None:
        """What the server last said about its service; None before it says anything."""
        try:
            services = read_status(self._state_dir).services
        except NotServing:
            return None
        return services[0] if services else None
