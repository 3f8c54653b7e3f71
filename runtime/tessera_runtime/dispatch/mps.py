"""NVIDIA's Multi-Process Service for the workers of this server.

Without it several processes only take turns on a GPU. There is a daemon for each GPU or slice and namespace, from before
its first worker until after its last: a slice that a daemon holds cannot be cut. What a client does that the GPU takes for a
fault ends the work of all clients of that daemon, and no new one is taken before they are gone; a client that ends in the
middle of a kernel may leave the rest in disorder (NVIDIA, Multi-Process Service, "Error Containment", "Client Early
Termination"). So whenever one ends that was not idle, all end, and the next come to a new daemon.

A daemon that does not start, or ends by itself, is started again a few times. Then its place does without for some minutes:
one process, as where nobody asks for MPS.
"""

from __future__ import annotations

import asyncio
import logging
import os
import tempfile
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from tessera_runtime.dispatch.workers import FaultDomain, Place, Worker, WorkerLost, WorkerPool
from tessera_runtime.mps import CONTROL, LOG, PIPES, clear, control

log = logging.getLogger(__name__)

VISIBLE = "CUDA_VISIBLE_DEVICES"

READY_S = 10.0
ASK_S = 3.0
QUIT_S = 3.0
GONE_S = 20.0
"""Most that a daemon may take to answer for the first time, each time, and to end, and it and its clients to be gone."""

_POLL_S = 0.02

MOST_FAILURES = 3
FAILURES_WITHIN_S = 600.0
"""After so many failures within this time a place does without MPS, until the first of them is that old."""

_INTERFACE = {"CUDA_MPS_PROTOCOL_VERSION": "2"}
"""Of the daemon's commands: the one that all drivers know, whatever the environment says."""

Key = tuple[str, str]
"""(GPU or slice, namespace)."""


class MpsRefused(WorkerLost):
    """No daemon serves the place; the message says why."""


class MpsServer:
    """One daemon, the server that it starts, and their clients."""

    def __init__(self, directory: Path, process: asyncio.subprocess.Process) -> None:
        self.directory = directory
        self.process = process
        self.over = False
        """Whether it takes no clients any more."""
        self.gone = asyncio.Event()
        """Set when nothing of it is left."""
        self._end: asyncio.Task[None] | None = None
        """None while it has users."""
        self._domain = FaultDomain()
        self._clients: set[Worker] = set()
        self._users = 0
        """Clients, and what is to become one."""

    @property
    def environment(self) -> dict[str, str]:
        """What makes a process its client."""
        return {PIPES: str(self.directory / "pipes")}

    def reserve(self) -> None:
        """It is kept until :meth:`release`, or until the worker that is then admitted has ended."""
        self._users += 1

    def release(self) -> None:
        self._users -= 1
        if not self._users:
            self.over = True
            self._end = asyncio.create_task(self._quit(), name=f"end of MPS {self.directory}")

    def admit(self, worker: Worker) -> None:
        """``worker`` was started as its client, for what was reserved."""
        worker.domain = self._domain
        self._clients.add(worker)
        worker.lost.add_done_callback(lambda _: self._gone(worker))
        if self.over:
            worker.kill()

    def end_clients(self, *, orphaned: bool) -> None:
        """``orphaned``: whether what they run is known to be innocent."""
        self.over = True
        # At once: what is to be tried again must not come to one that is about to end.
        self._domain.suspect = self
        for client in self._clients:
            client.orphaned |= orphaned
            client.kill()

    def _gone(self, worker: Worker) -> None:
        self._clients.discard(worker)
        if not worker.finished and not self.over:
            log.warning("worker %d ended: so do all clients of its MPS server", worker.incarnation)
            self.end_clients(orphaned=False)
        self.release()

    async def _quit(self) -> None:
        try:
            await _ask(self.environment, "quit")
            async with asyncio.timeout(QUIT_S):
                await self.process.wait()
        except TimeoutError:
            log.warning("the MPS daemon of %s does not end: killed", self.directory)
            self.process.kill()
        await asyncio.to_thread(clear, self.directory)
        await self.process.wait()
        self.gone.set()


@dataclass(slots=True)
class Seat:
    """Where a daemon is to be, and how that went."""

    server: MpsServer | None = None
    failures: deque[float] = field(default_factory=lambda: deque(maxlen=MOST_FAILURES))
    """When, monotonic seconds."""
    failed: int = 0
    """How often in all."""
    reason: str = ""
    """Of the last failure."""
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    asked: int = 0
    """How many are about to get a server from it."""

    @property
    def runs(self) -> bool:
        """Whether a daemon takes clients."""
        return self.server is not None and not self.server.over

    def works(self, now: float) -> bool:
        return not gives_up(self.failures, now)

    def forgettable(self, now: float) -> bool:
        """Whether nothing is there, and nothing went wrong of late."""
        return (
            not self.asked
            and (self.server is None or self.server.gone.is_set())
            and (not self.failures or now - self.failures[-1] >= FAILURES_WITHIN_S)
        )

    def fail(self, key: Key, reason: str) -> None:
        now = time.monotonic()
        self.failures.append(now)
        self.failed += 1
        self.reason = reason
        if self.works(now):
            log.warning("MPS on %s for %s: %s", *key, reason)
        else:
            log.error("%s for %s gets one process instead of MPS: %s", *key, reason)


def gives_up(failures: Sequence[float], now: float) -> bool:
    """Whether a place with these last failures does without MPS; monotonic seconds."""
    return len(failures) == MOST_FAILURES and now - failures[0] < FAILURES_WITHIN_S


class MpsServers:
    """Those of one dispatcher, and the workers that they serve."""

    def __init__(self, pool: WorkerPool, root: Path | None) -> None:
        """``root``: of their directories, with a short path, for there are sockets in them. None: there is no MPS."""
        self._pool = pool
        self._root = root
        self._seats: dict[Key, Seat] = {}
        self._watching: set[asyncio.Task[None]] = set()
        for left in root.iterdir() if root is not None else ():
            clear(left)  # of a dispatcher that was killed

    def __iter__(self) -> Iterator[tuple[Key, Seat]]:
        """Wherever MPS is wanted, or was lately."""
        return iter(self._seats.items())

    def works(self, place: Place, namespace: str) -> bool:
        """Whether processes of ``namespace`` at ``place`` are to share it through MPS."""
        if self._root is None or not place.mps_clients:
            return False
        seat = self._seats.get(_key(place, namespace))
        return seat is None or seat.works(time.monotonic())

    async def start(self, place: Place, namespace: str) -> Worker:
        """A new worker at ``place`` that shares it with the others of ``namespace``. Raises WorkerLost."""
        server = await self._reserved(place, namespace)
        try:
            environment = place.environment | server.environment
            worker = await self._pool.start(replace(place, environment=environment))
        except BaseException:
            server.release()
            raise
        server.admit(worker)
        return worker

    async def close(self) -> None:
        """End all of them, and what is left of their clients."""
        servers = [seat.server for _, seat in self if seat.server is not None]
        for server in servers:
            server.end_clients(orphaned=True)
        for server in servers:
            await _wait(server.gone)

    async def _reserved(self, place: Place, namespace: str) -> MpsServer:
        """One that takes clients, reserved for one. Raises MpsRefused."""
        key = _key(place, namespace)
        if key not in self._seats:  # a slice that is cut anew has another name
            now = time.monotonic()
            self._seats = {k: seat for k, seat in self._seats.items() if not seat.forgettable(now)}
        seat = self._seats.setdefault(key, Seat())
        seat.asked += 1
        try:
            async with seat.lock:
                if not self.works(place, namespace):
                    raise MpsRefused(seat.reason)
                if not seat.runs:
                    try:
                        seat.server = await self._launch(place, seat.server)
                    except MpsRefused as error:
                        seat.fail(key, str(error))
                        raise
                    self._watch(key, seat, seat.server)
                assert seat.server is not None
                seat.server.reserve()
                return seat.server
        finally:
            seat.asked -= 1

    async def _launch(self, place: Place, before: MpsServer | None) -> MpsServer:
        """One in the place of ``before``, which ends. Raises MpsRefused."""
        assert self._root is not None
        if before is not None and not await _wait(before.gone):
            raise MpsRefused(f"the daemon before, or a client, is left after {GONE_S:.0f} s")
        program = control()
        if not program:
            raise MpsRefused(f"{CONTROL} is not installed")
        directory = Path(tempfile.mkdtemp(prefix="", dir=self._root))
        pipes, logs = directory / "pipes", directory / "log"
        visible = place.environment.get(VISIBLE)
        environment = {PIPES: str(pipes), LOG: str(logs)}
        process: asyncio.subprocess.Process | None = None
        try:
            for each in (pipes, logs):
                each.mkdir()
            with _said(directory).open("wb") as said:
                process = await asyncio.create_subprocess_exec(
                    *(program, "-f"),
                    env=_with(environment | ({VISIBLE: visible} if visible else {})),
                    stdin=asyncio.subprocess.DEVNULL,
                    stdout=said,
                    stderr=said,
                    start_new_session=True,
                )
            await _answers(environment, process, directory)
        except BaseException as error:
            if process is not None and process.returncode is None:
                process.kill()
            await asyncio.to_thread(clear, directory)
            if isinstance(error, OSError):
                raise MpsRefused(f"{program}: {error.strerror}") from error
            raise
        return MpsServer(directory, process)

    def _watch(self, key: Key, seat: Seat, server: MpsServer) -> None:
        async def watch() -> None:
            status = await server.process.wait()
            if not server.over:
                seat.fail(key, f"the daemon ended with status {status}")
                server.end_clients(orphaned=True)

        task = asyncio.create_task(watch(), name=f"MPS {server.directory}")
        self._watching.add(task)
        task.add_done_callback(self._watching.discard)


async def _answers(
    environment: Mapping[str, str], process: asyncio.subprocess.Process, directory: Path
) -> None:
    """Return when the daemon answers. Raises MpsRefused."""
    give_up = time.monotonic() + READY_S
    while not await _ask(environment, "get_server_list"):
        if process.returncode is not None:
            raise MpsRefused(f"it ended with status {process.returncode}: {_last_words(directory)}")
        if time.monotonic() > give_up:
            raise MpsRefused(f"no answer within {READY_S:.0f} s: {_last_words(directory)}")
        await asyncio.sleep(_POLL_S)


async def _ask(environment: Mapping[str, str], command: str) -> bool:
    """Whether the daemon has done ``command``, which it has :data:`ASK_S` for."""
    try:
        asking = await asyncio.create_subprocess_exec(
            control() or CONTROL,
            env=_with(environment),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.DEVNULL,
        )
    except OSError:
        return False
    try:
        async with asyncio.timeout(ASK_S):
            await asking.communicate(f"{command}\n".encode())
    except TimeoutError:
        return False
    finally:
        if asking.returncode is None:
            asking.kill()
    return asking.returncode == 0


async def _wait(event: asyncio.Event) -> bool:
    """Whether it was set within :data:`GONE_S`."""
    try:
        async with asyncio.timeout(GONE_S):
            return await event.wait()
    except TimeoutError:
        return False


def _key(place: Place, namespace: str) -> Key:
    return place.environment.get(VISIBLE, place.device), namespace


def _with(environment: Mapping[str, str]) -> dict[str, str]:
    return {**os.environ, **_INTERFACE, **environment}


def _said(directory: Path) -> Path:
    return directory / "said"


def _last_words(directory: Path) -> str:
    lines: list[str] = []
    for path in (_said(directory), *sorted((directory / "log").glob("*.log"))):
        lines += path.read_text(errors="replace").splitlines()[-4:]
    return " | ".join(lines)[:500] or "it said nothing"
