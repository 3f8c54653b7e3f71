"""Any peer as a running server: started on its core, checked, paused while others are measured, ended.

Every server of a comparison lives through all its rounds, so that rounds can alternate. One that works though
nobody asks is stopped by signal while others are measured, so that it takes nothing from them; the others are
left alone, since a stop can look like a fault to a server that watches its own processes.
"""

from __future__ import annotations

import http.client
import signal
import subprocess
import time
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType

import grpc
import numpy as np
from bench.peers.base import GRPC_INFER, HOST, Array, Peer, Ports, Request, Wire, Work, free_ports
from bench.processes import Usage, cpu_s, end_session, signal_all, start_session, usage

READY_TIMEOUT_S = 90.0
ANSWER_TIMEOUT_S = 20.0
_POLL_S = 0.1

IDLE_S = 1.0
RESTLESS_SHARE = 0.02
"""Of a core: two ticks of the kernel's accounting."""
_LOG_LINES = 6

RELATIVE, ABSOLUTE = 1e-3, 1e-4
"""Tolerance of answers: batches of other sizes, and other layouts, sum in another order."""

_ANY_SIZE = (("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1))

_FRAME = 5
"""Bytes before a gRPC message: not compressed, size."""


class ServerFailed(Exception):
    """A server did not become ready, or answered wrong; the message says which and why."""


class Running:
    """A peer serving one work; a context manager."""

    def __init__(
        self, peer: Peer, work: Work, models: Path, directory: Path, cores: tuple[int, ...]
    ) -> None:
        self.peer = peer
        self.work = work
        self.ports: Ports = free_ports()
        self.directory = directory
        self._models = models
        self._cores = cores
        self._process: subprocess.Popen[bytes] | None = None
        self._files = ExitStack()
        self._restless = False
        self._warmed: set[Wire] = set()

    def __enter__(self) -> Running:
        self.directory.mkdir(parents=True, mode=0o700)
        (self.directory / "cores").write_text(" ".join(map(str, self._cores)))
        self.peer.prepare(self.work, self._models, self.directory)
        command = self.peer.command(self.work, self._models, self.directory, self.ports)
        log = self._files.enter_context((self.directory / "log").open("wb"))
        self._process = start_session(
            command.argv, self._cores, command.environment, log, self.directory
        )
        try:
            self._wait_until_ready()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self, _: type[BaseException] | None, __: BaseException | None, ___: TracebackType | None
    ) -> None:
        self.stop()

    def stop(self) -> None:
        if self._process is not None:
            end_session(self._process)
            self._process = None
        self._files.close()

    def ask_to_stop(self) -> None:
        """So that several can end at once; :meth:`stop` waits for it."""
        if self._process is not None:
            self.resume()
            self._process.terminate()

    @property
    def pid(self) -> int:
        assert self._process is not None, "inside the context"
        return self._process.pid

    def cpu_s(self) -> float:
        return cpu_s(self.pid)

    def usage(self) -> Usage:
        return usage(self.pid)

    def warmed(self, wire: Wire) -> bool:
        """Whether this was asked before: the first load over a wire is not to be timed."""
        before = wire in self._warmed
        self._warmed.add(wire)
        return before

    def watch_idle(self) -> None:
        """See what it takes when nobody asks, from which on :meth:`pause` does something or nothing."""
        before = self.cpu_s()
        time.sleep(IDLE_S)
        self._restless = self.cpu_s() - before > IDLE_S * RESTLESS_SHARE

    def pause(self) -> None:
        if self._restless:
            signal_all(self.pid, signal.SIGSTOP)

    def resume(self) -> None:
        if self._restless:
            signal_all(self.pid, signal.SIGCONT)

    def port(self, wire: Wire) -> int:
        return self.ports.http if wire is Wire.HTTP else self.ports.grpc

    def answer(self, wire: Wire, rows: Array) -> bytes:
        """The body of the answer for ``rows``. Raises ServerFailed."""
        return self.ask(wire, self.peer.request(self.work, wire, rows))

    def ask(self, wire: Wire, request: Request) -> bytes:
        """The body of one answer. Raises ServerFailed."""
        if wire is Wire.GRPC:
            with grpc.insecure_channel(f"{HOST}:{self.ports.grpc}", _ANY_SIZE) as channel:
                call = channel.unary_unary(GRPC_INFER)
                try:
                    message: bytes = call(request.body[_FRAME:], timeout=ANSWER_TIMEOUT_S)
                except grpc.RpcError as error:
                    raise ServerFailed(f"{self.peer.name} gRPC: {error}") from error
            return b"\0" + len(message).to_bytes(4, "big") + message
        return self._http("POST", request.path, request.body, dict(request.headers))

    def get(self, path: str) -> bytes:
        """The body of the answer of the HTTP front end. Raises ServerFailed."""
        return self._http("GET", path, b"", {})

    def _http(self, method: str, path: str, body: bytes, headers: dict[str, str]) -> bytes:
        connection = http.client.HTTPConnection(HOST, self.ports.http, timeout=ANSWER_TIMEOUT_S)
        try:
            connection.request(method, path, body, headers)
            response = connection.getresponse()
            answer = response.read()
        except (OSError, http.client.HTTPException) as error:
            raise ServerFailed(f"{self.peer.name} HTTP: {error!r}") from error
        finally:
            connection.close()
        if response.status != 200:
            raise ServerFailed(f"{self.peer.name} HTTP: {response.status} {answer[:200]!r}")
        return answer

    def check(self, rows: Array, expected: Array) -> None:
        """Ask for each row over each wire. Raises ServerFailed when an answer is not close to ``expected``."""
        for wire in self.peer.wires:
            for row, right in zip(rows, expected, strict=True):
                body = self.answer(wire, row[None])
                try:
                    found = self.peer.request(self.work, wire, row[None]).read(body)[0]
                except (ValueError, KeyError) as error:
                    raise ServerFailed(f"{self.peer.name}: not an answer: {body!r}") from error
                if not np.allclose(found, right, RELATIVE, ABSOLUTE):
                    raise ServerFailed(
                        f"{self.peer.name} {wire.value} {self.work.name}: an answer differs from the model's"
                    )

    def _wait_until_ready(self) -> None:
        assert self._process is not None, "just started"
        deadline = time.monotonic() + READY_TIMEOUT_S
        while not self.peer.ready(self.work, self.directory, self.ports):
            ended = self._process.poll()
            if ended is not None or time.monotonic() > deadline:
                why = f"ended with {ended}" if ended is not None else "is not ready"
                last = (self.directory / "log").read_text(errors="replace").splitlines()
                said = " | ".join(last[-_LOG_LINES:])
                raise ServerFailed(f"{self.peer.name} {self.work.name} {why}: {said}")
            time.sleep(_POLL_S)
