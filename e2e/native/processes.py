"""Programs that run beside a test: each in a session of its own, logged to a file, ended by its pid."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from e2e.native.cgroups import Cgroup

_POLL_S = 0.05
_LOG_TAIL = 4000


def run(*command: str | Path, timeout_s: float = 60.0, stdin: str | None = None) -> str:
    """What a short command printed; raises RuntimeError with what it complained of."""
    words = [str(each) for each in command]
    done = subprocess.run(words, capture_output=True, text=True, input=stdin, timeout=timeout_s)
    if done.returncode:
        said = (done.stderr or done.stdout).strip()[-_LOG_TAIL:]
        raise RuntimeError(f"`{' '.join(words)}` ended with {done.returncode}: {said}")
    return done.stdout


def wait_until(ready: Callable[[], bool], timeout_s: float, what: str) -> None:
    """Poll ``ready``; raises RuntimeError that ``what`` did not happen when time is up."""
    deadline = time.monotonic() + timeout_s
    while not ready():
        if time.monotonic() > deadline:
            raise RuntimeError(f"{what}: not within {timeout_s} s")
        time.sleep(_POLL_S)


class Process:
    """One running program; leaving the context ends it and what it started."""

    def __init__(
        self,
        name: str,
        command: Sequence[str | Path],
        log: Path,
        env: Mapping[str, str] | None = None,
        group: Cgroup | None = None,
    ) -> None:
        self.name = name
        self.log = log
        with log.open("ab") as output:
            self._popen = subprocess.Popen(
                [str(each) for each in command],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                env={**os.environ, **(env or {})},
            )
        if group is not None:
            group.add(self.pid)

    @property
    def pid(self) -> int:
        return self._popen.pid

    def wait_until(self, ready: Callable[[], bool], timeout_s: float) -> None:
        """Poll ``ready``; raises RuntimeError with the end of the log when the program ends or time is up."""
        deadline = time.monotonic() + timeout_s
        while not ready():
            if self._popen.poll() is not None:
                raise RuntimeError(
                    f"{self.name} ended with {self._popen.returncode}: {self.tail()}"
                )
            if time.monotonic() > deadline:
                raise RuntimeError(f"{self.name} was not ready in {timeout_s} s: {self.tail()}")
            time.sleep(_POLL_S)

    def tail(self) -> str:
        """The last of what the program wrote."""
        return self.log.read_text(errors="replace")[-_LOG_TAIL:]

    def stop(self, timeout_s: float = 20.0) -> None:
        """SIGTERM to the whole session, SIGKILL to what is left after ``timeout_s``."""
        for number in (signal.SIGTERM, signal.SIGKILL):
            try:
                os.killpg(self.pid, number)
            except ProcessLookupError:
                break
            try:
                self._popen.wait(timeout_s)
            except subprocess.TimeoutExpired:
                continue
        self._popen.wait(timeout_s)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()


def free_ports(count: int) -> list[int]:
    """Ports of loopback that nothing listens on now."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports
