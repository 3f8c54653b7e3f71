"""The real server: supervisor, dispatcher, zygote and workers as processes, told what to serve as an agent would."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import tritonclient.grpc as grpc_client
import tritonclient.http as http_client

from tessera_runtime.control import ControlClient, ControlError
from tessera_runtime.supervisor import control_path
from tessera_runtime.target import MemberReport, Ports, ServerReport, ServerTarget, ServiceReport

PATIENCE_S = 30.0
"""Most that any wait may take; far more than anything takes on a busy machine."""

POLL_S = 0.01


def wait_until(
    condition: Callable[[], object],
    what: Callable[[], str] | str,
    patience_s: float = PATIENCE_S,
) -> None:
    """Return when ``condition`` holds; fail with ``what`` was waited for when it never does."""
    give_up = time.monotonic() + patience_s
    while not condition():
        if time.monotonic() > give_up:
            explained = what if isinstance(what, str) else what()
            raise AssertionError(f"waited {patience_s:.0f} s for: {explained}")
        time.sleep(POLL_S)


class Server:
    """A running server. Made by :func:`running_server`; used from one thread."""

    def __init__(self, run_dir: Path, options: Sequence[str]) -> None:
        self.run_dir = run_dir
        self.log_path = run_dir.parent / f"{run_dir.name}.log"
        self._runner = asyncio.Runner()
        self._control = ControlClient(str(control_path(run_dir)))
        self._target = ServerTarget()
        self._clients: list[http_client.InferenceServerClient | grpc_client.InferenceServerClient]
        self._clients = []
        self._known: dict[int, str] = {}
        with self.log_path.open("wb") as log:
            self.process = subprocess.Popen(supervisor_command(run_dir, options), stderr=log)

    # What it is told and what it says

    def apply(
        self,
        target: ServerTarget,
        keys: Mapping[str, tuple[str, ...]] | None = None,
        *,
        wait: bool = True,
    ) -> None:
        """Apply ``target`` and, with ``wait``, return when all of it is served. ``keys``: those to hand over."""
        self._target = target
        self._ask(lambda: self._control.apply(target, keys))
        if wait:
            self.wait_served()

    def reapply(self) -> None:
        """What an agent does after the dispatcher has restarted."""
        self.apply(self._target)

    def report(self) -> ServerReport:
        report = self._ask(self._control.report)
        self._note_processes()
        return report

    def service(self, name: str) -> ServiceReport:
        return next(service for service in self.report().services if service.name == name)

    def member(self, service: str, member: str = "") -> MemberReport:
        """The member of a service, the first where none is named."""
        members = self.service(service).members
        return next(m for m in members if m.name == member or not member)

    def wait_served(self) -> None:
        """Until the report shows exactly the wanted services, versions, caps and instances."""

        def served() -> bool:
            report = self.report()
            got = {
                service.name: (
                    service.version,
                    service.ready,
                    [(m.digest, m.wanted, m.ready) for m in service.members],
                )
                for service in report.services
            }
            return got == {
                service.name: (
                    service.version,
                    True,
                    [
                        (m.digest, wanted := sum(i.count for i in m.instances), wanted)
                        for m in service.members
                    ],
                )
                for service in self._target.services
            }

        wait_until(served, lambda: f"what is wanted to be served; report: {self.report()}")

    def wait_joined(self, service: str, processes: int) -> None:
        """Until the members of ``service`` run as one in so many processes."""

        def joined(report: ServerReport) -> bool:
            return any(s.name == service and s.joined == processes for s in report.services)

        self.wait_for(joined, f"{service} joined in {processes} processes")

    def wait_for(self, condition: Callable[[ServerReport], object], what: str) -> None:
        wait_until(lambda: condition(self.report()), lambda: f"{what}; report: {self.report()}")

    def _ask(self, ask):
        give_up = time.monotonic() + PATIENCE_S
        while True:
            try:
                return self._runner.run(ask())
            except ControlError as error:
                # Right after the start nobody answers yet; a refusal is an answer.
                if "does not answer" not in str(error) and "hung up" not in str(error):
                    raise
                if self.process.poll() is not None or time.monotonic() > give_up:
                    raise AssertionError(f"{error}\n{self.log()}") from error
                time.sleep(POLL_S)

    # Where it is

    def ports(self) -> Ports:
        """Of the dispatcher that runs now."""
        return self.report().ports

    def http(self, **options: object) -> http_client.InferenceServerClient:
        client = http_client.InferenceServerClient(f"127.0.0.1:{self.ports().http}", **options)
        self._clients.append(client)
        return client

    def grpc(self) -> grpc_client.InferenceServerClient:
        client = grpc_client.InferenceServerClient(f"127.0.0.1:{self.ports().grpc}")
        self._clients.append(client)
        return client

    def log(self) -> str:
        return self.log_path.read_text()

    def log_lines(self) -> list[dict]:
        """The structured lines; one that is still being written is left out."""
        lines = []
        for line in self.log().splitlines():
            try:
                lines.append(json.loads(line))
            except ValueError:
                continue
        return lines

    # Its processes

    def pid_of(self, module: str) -> int | None:
        """The process of this server that runs ``python -m <module>``."""
        for pid in children(self.process.pid):
            if module in command(pid):
                return pid
        return None

    @property
    def dispatcher_pid(self) -> int:
        pid = self.pid_of("tessera_runtime.dispatch.main")
        assert pid is not None
        return pid

    @property
    def zygote_pid(self) -> int:
        pid = self.pid_of("tessera_runtime.worker.zygote")
        assert pid is not None
        return pid

    def worker_pids(self) -> set[int]:
        return {worker.pid for worker in self.report().workers}

    def _note_processes(self) -> None:
        for pid in descendants(self.process.pid):
            if pid not in self._known:
                self._known[pid] = started(pid)

    # Its end

    def terminate(self) -> int:
        """SIGTERM, and the exit status."""
        if self.process.poll() is None:
            self._note_processes()
            self.process.terminate()
        return self.process.wait(PATIENCE_S)

    def close(self) -> None:
        """End the server and check that nothing of it is left.

        Its shared memory has no name: it lives in descriptors of its processes and ends with them.
        """
        self.hang_up()
        try:
            status = self.terminate()
        finally:
            left = {pid for pid, start in self._known.items() if start and started(pid) == start}
            for pid in left:
                os.kill(pid, signal.SIGKILL)
        assert not left, f"processes outlived the server: {left}"
        assert status == 0, self.log()
        assert not list(self.run_dir.glob("*.sock"))

    def hang_up(self) -> None:
        """Close this side of every conversation."""
        for client in self._clients:
            client.close()
        self._runner.run(self._control.close())
        self._runner.close()


@contextmanager
def running_server(run_dir: Path, *options: str) -> Iterator[Server]:
    """A server with its sockets in ``run_dir``; without engines in its zygote unless ``options`` say so."""
    server = Server(run_dir, options)
    try:
        yield server
    finally:
        server.close()


def supervisor_command(run_dir: Path, options: Sequence[str]) -> list[str]:
    return [
        sys.executable,
        "-m",
        "tessera_runtime.supervisor",
        f"--run-dir={run_dir}",
        "--preload=",
        "--http=0",
        "--grpc=0",
        "--metrics=0",
        "--arena-mib=16",
        "--max-request-mib=4",
        *options,
    ]


# Processes, as /proc has them


def started(pid: int) -> str:
    """Start time of a living process, which with its pid identifies it; empty for none and for a zombie."""
    fields = _stat(pid)
    return fields[19] if fields and fields[0] != "Z" else ""


def children(pid: int) -> list[int]:
    return _by_parent().get(pid, [])


def descendants(pid: int) -> list[int]:
    """Of one look at all processes: servers are asked often, and looking takes milliseconds."""
    by_parent = _by_parent()
    found = list(by_parent.get(pid, ()))
    for child in found:  # which grows meanwhile
        found += by_parent.get(child, ())
    return found


def _by_parent() -> dict[int, list[int]]:
    found: dict[int, list[int]] = {}
    for name in os.listdir("/proc"):
        if name.isdigit() and (fields := _stat(int(name))):
            found.setdefault(int(fields[1]), []).append(int(name))
    return found


def command(pid: int) -> str:
    try:
        return (Path("/proc") / str(pid) / "cmdline").read_bytes().replace(b"\0", b" ").decode()
    except OSError:
        return ""


def fds(pid: int) -> list[str]:
    """What each open descriptor of a process is."""
    folder = Path("/proc") / str(pid) / "fd"
    found = []
    for entry in folder.iterdir():
        try:
            found.append(os.readlink(entry))
        except OSError:
            continue
    return found


def memfds(pid: int) -> list[str]:
    return [link for link in fds(pid) if "memfd:tessera" in link]


def _stat(pid: int) -> list[str]:
    """Fields of proc_pid_stat(5) from the state on."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()
    except OSError:
        return []
