"""The operator as a process of its own that a test may stop and kill like a pod's.

Each is forked from a process that has imported it already, which takes 10 ms instead of two seconds of a processor:
it is killed and started again some hundred times.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import urllib.request
from multiprocessing.context import ForkServerContext
from pathlib import Path
from types import TracebackType
from typing import Self

from e2e.faults.kube import NAMESPACE, WAIT_S
from e2e.native.processes import free_ports

SETTINGS = "debounce: 50ms\nmostDebounce: 200ms\nheartbeatPoll: 1s\n"
_LOG_TAIL = 4000


class Operator:
    """One replica. A context: it does not outlive it."""

    def __init__(
        self, kubeconfig: Path, folder: Path, name: str = "operator-1", settings: str = SETTINGS
    ) -> None:
        self.name, self._log = name, folder / f"{name}.log"
        (self._port,) = free_ports(1)
        config = folder / f"{name}.yaml"
        config.write_text(settings)
        arguments = (
            f"--namespace={NAMESPACE}",
            f"--identity={name}",
            f"--kubeconfig={kubeconfig}",
            f"--config={config}",
            "--runtime-image=runtime",
            "--runtime-cpu-image=runtime-cpu",
            f"--port={self._port}",
        )
        self._process = _context().Process(
            target=_run, args=(arguments, str(self._log)), name=name, daemon=True
        )
        self._process.start()

    @property
    def exit_code(self) -> int | None:
        """None while it runs; negative after a signal."""
        return self._process.exitcode

    def kill(self) -> None:
        """SIGKILL."""
        self._process.kill()

    def terminate(self) -> None:
        """SIGTERM."""
        self._process.terminate()

    def suspend(self) -> None:
        """SIGSTOP: it believes that no time passes."""
        os.kill(self._pid, signal.SIGSTOP)

    def resume(self) -> None:
        os.kill(self._pid, signal.SIGCONT)

    def wait(self, timeout_s: float = WAIT_S) -> int:
        """Its exit code. Raises AssertionError where it goes on."""
        self._process.join(timeout_s)
        code = self.exit_code
        assert code is not None, f"{self.name} still runs after {timeout_s:g} s: {self.tail()}"
        return code

    def metric(self, name: str) -> float:
        """0 where it says nothing of it."""
        try:
            with urllib.request.urlopen(
                f"http://127.0.0.1:{self._port}/metrics", timeout=5
            ) as page:
                lines = page.read().decode().splitlines()
        except OSError:
            return 0.0
        return next((float(each.split()[-1]) for each in lines if each.startswith(f"{name} ")), 0.0)

    @property
    def leads(self) -> bool:
        return self.metric("tessera_operator_leader") == 1

    @property
    def rounds(self) -> int:
        return int(self.metric("tessera_operator_plan_seconds_count"))

    def tail(self) -> str:
        """The last of what it said."""
        return self._log.read_text(errors="replace")[-_LOG_TAIL:] if self._log.exists() else ""

    @property
    def _pid(self) -> int:
        assert self._process.pid is not None
        return self._process.pid

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._process.kill()
        self._process.join()


def _context() -> ForkServerContext:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tessera_operator.__main__", __name__])
    return context


def _run(arguments: tuple[str, ...], log: str) -> None:
    from tessera_operator.__main__ import main

    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    for stream in (1, 2):
        os.dup2(output, stream)
    sys.argv = ["tessera-operator", *arguments]
    sys.exit(main())
