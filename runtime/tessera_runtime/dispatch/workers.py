"""Worker processes as the dispatcher sees them.

A worker is asked for through the zygote, talked to over its control socket, and known to be gone only when
its pidfd says so: a closed socket can also mean a process that is stopped or stuck and may still write.
Each process has an *incarnation* number that is never used again, so nothing it left behind can be taken
for the work of its successor.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec

from tessera_runtime.dispatch.arena import InputArena
from tessera_runtime.dispatch.worker_memory import Gauge, bound
from tessera_runtime.memory import UntrustedMemory, map_readonly
from tessera_runtime.secret import secret_beside
from tessera_runtime.worker import messages as m

if TYPE_CHECKING:
    from tessera_runtime.dispatch.member import Member

log = logging.getLogger(__name__)

CONNECT_ATTEMPTS = 100
CONNECT_DELAY_S = 0.1
"""The zygote's socket exists from the start, but a zygote that imports torch cold takes seconds to accept."""

FORK_TIMEOUT_S = 60.0
"""Most a fork may take: it includes the zygote's imports when it has just been started."""


class WorkerLost(Exception):
    """The process ended, or did not start."""


class LoadFailed(Exception):
    """The worker is fine, the model is not."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where a worker runs."""

    device: str
    kind: str
    """``cpu`` or ``cuda``."""
    cores: tuple[int, ...] = ()
    threads: int = 1
    memory_mib: int = 0
    environment: dict[str, str] = field(default_factory=dict)
    mps_clients: int = 0
    """As in :class:`~tessera_runtime.target.DeviceTarget`."""


@dataclass(slots=True)
class OpenedLane:
    """What the dispatcher holds of an instance that is warm."""

    worker: Worker
    sock: socket.socket
    region: memoryview
    warm_ms: tuple[float, ...]


class FaultDomain:
    """What ends together: a process, or all clients of an MPS server."""

    def __init__(self) -> None:
        self.suspect: object | None = None
        """The lane of a request that a process has ended with: until it is done, nothing else is begun here. Or whoever ends
        all of it: nothing is begun here any more.
        """
        self.waiting: set[Member] = set()
        """Members with work for it then."""

    def acquit(self) -> None:
        """What was suspected is done."""
        self.suspect = None
        waiting, self.waiting = self.waiting, set()
        for member in waiting:
            member.pump_soon()


class Worker:
    """One worker process."""

    def __init__(
        self, incarnation: int, pid: int, pidfd: int, control: socket.socket, place: Place
    ) -> None:
        self.incarnation = incarnation
        self.pid = pid
        self.place = place
        self.alive = True
        self.killed = False
        """Whether it was ended on purpose."""
        self.finished = False
        """Whether it was ended when nothing ran in it."""
        self.orphaned = False
        """Whether something has ended that takes it along: the zygote, or MPS."""
        self.retired = False
        """Whether its instances are to leave it, and no more to come."""
        self.gauge = Gauge(pid) if place.kind == "cpu" else None
        """Of its memory; None on a GPU, where the host's is not what models run in."""
        self.lost: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        """Done when the process is known gone."""
        self.domain = FaultDomain()
        self._pidfd = pidfd
        self._control = control
        self._inbox = m.Inbox()
        self._loads: dict[str, asyncio.Future[m.Loaded]] = {}
        self._built: asyncio.Future[tuple[str, int]] | None = None
        self._lanes: dict[int, asyncio.Future[tuple[memoryview, tuple[float, ...]]]] = {}
        self._unloading: dict[str, asyncio.Future[None]] = {}
        self._next_lane = 0
        self._why = ""
        """Why it was ended, where that is known."""
        self._turn = asyncio.Lock()
        control.setblocking(False)
        loop = asyncio.get_running_loop()
        loop.add_reader(control.fileno(), self._on_message)
        loop.add_reader(pidfd, self._on_exit)

    @asynccontextmanager
    async def turn(self, model: str) -> AsyncIterator[None]:
        """Within it an instance of ``model`` is loaded and warmed, one after another: what serves in the process shares
        an interpreter with no more than one, and what never ends is known by its name. Raises WorkerLost.
        """
        async with self._turn:
            if self.retired or not self.alive:
                raise WorkerLost(f"worker {self.incarnation} (pid {self.pid}) takes nobody in")
            with nullcontext() if self.gauge is None else self.gauge.loading(model):
                yield

    async def load(self, request: m.Load, artefact: int | None = None) -> m.Loaded:
        """Load a model, once however often it is asked for. ``artefact``: descriptor of what was built for its variant, which
        stays the caller's. Raises LoadFailed, WorkerLost.
        """
        for unloading in list(self._unloading.values()):
            await asyncio.shield(unloading)  # its memory is not to be taken for that of this one
        if self.gauge is not None:
            self.gauge.begins()
        if request.model not in self._loads:
            self._loads[request.model] = asyncio.get_running_loop().create_future()
            fds = _opened(request.path)
            given = () if artefact is None else (artefact,)
            try:
                self._send(msgspec.structs.replace(request, built=bool(given)), fds + given)
            finally:
                for fd in fds:
                    os.close(fd)
        return await asyncio.shield(self._loads[request.model])

    async def build(self, request: m.Load) -> tuple[str, int]:
        """Build what the variant needs, in a worker that is for nothing else: library and version, and a descriptor of the
        artefact, the caller's to close once the worker has ended. Raises LoadFailed, WorkerLost.
        """
        self._built = asyncio.get_running_loop().create_future()
        self._send(m.Build(request))
        return await self._built

    def unload(self, model: str) -> None:
        """Forget a model whose lanes are closed."""
        if self.alive and self._loads.pop(model, None) is not None:
            self._unloading[model] = asyncio.get_running_loop().create_future()
            self._send(m.Unload(model))

    async def open_lane(
        self,
        models: tuple[str, ...],
        largest: int,
        batches: tuple[int, ...],
        row_shapes: dict[str, tuple[int, ...]],
        names: tuple[tuple[str, ...], ...] = (),
    ) -> OpenedLane:
        """Open an instance for batches of up to ``largest`` rows, and run each of ``batches`` on zeros.

        ``models``: loaded ones; several run each batch in turn. ``names``: of several, the inputs of each, in
        the order in which batches give theirs. Raises LoadFailed, WorkerLost.
        """
        lane, self._next_lane = self._next_lane, self._next_lane + 1
        ours, theirs = m.pair()
        opened = self._lanes[lane] = asyncio.get_running_loop().create_future()
        try:
            with theirs:
                self._send(
                    m.OpenLane(lane, models, names, largest, batches, row_shapes),
                    (theirs.fileno(),),
                )
            region, warm_ms = await opened
        except BaseException:
            ours.close()
            raise
        finally:
            self._lanes.pop(lane, None)
        return OpenedLane(self, ours, region, warm_ms)

    def finish(self) -> None:
        """End the process, in which nothing runs any more."""
        self.finished = self.alive
        self.kill()

    def kill(self) -> None:
        """End the process now. Its exit is reported by :attr:`lost` like any other."""
        self.killed = True
        if self.alive:
            try:
                signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)
            except ProcessLookupError:
                pass

    def _send(self, message: m.Message, fds: tuple[int, ...] = ()) -> None:
        try:
            m.send(self._control, message, fds)
        except OSError as error:
            raise WorkerLost(f"worker {self.incarnation} is gone: {error.strerror}") from error

    def _on_message(self) -> None:
        fds: list[int] = []
        try:
            data, fds = self._inbox.receive(self._control)
            if data:
                self._handle(m.decode_from_worker(data), fds)
                return
        except BlockingIOError:
            return
        except ConnectionResetError:
            pass  # it ended before it had read all that it was told
        except (OSError, msgspec.MsgspecError, UntrustedMemory, IndexError) as error:
            log.error("worker %d sent something unusable: %s", self.incarnation, error)
            self._why = f": {error}"
        finally:
            for fd in fds:
                os.close(fd)
        # End of file or nonsense: either way this process is of no more use, and must not linger.
        asyncio.get_running_loop().remove_reader(self._control.fileno())
        self.kill()

    def _handle(self, message: m.FromWorker, fds: list[int]) -> None:
        match message:
            case m.Loaded():
                _settle(self._loads.get(message.model), message)
            case m.Built(_, engine):
                if self._built is not None and not self._built.done():
                    self._built.set_result((engine, fds.pop()))
            case m.LoadFailed(model, reason):
                future: asyncio.Future[Any] | None = self._loads.pop(model, self._built)
                if future is not None and not future.done():
                    future.set_exception(LoadFailed(reason))
            case m.Unloaded(model):
                _settle(self._unloading.pop(model, None), None)
                if self.gauge is not None:
                    self.gauge.unloaded(model)
            case m.LaneOpen(lane, size, warm_ms):
                region = memoryview(map_readonly(fds.pop(), size))
                _settle(self._lanes.get(lane), (region, warm_ms))
            case m.LaneFailed(lane, reason):
                opening = self._lanes.get(lane)
                if opening is not None and not opening.done():
                    opening.set_exception(LoadFailed(reason))

    def _on_exit(self) -> None:
        loop = asyncio.get_running_loop()
        loop.remove_reader(self._pidfd)
        loop.remove_reader(self._control.fileno())
        os.close(self._pidfd)
        self._control.close()
        self.alive = False
        gone = WorkerLost(f"worker {self.incarnation} (pid {self.pid}) ended{self._why}")
        waiting: list[asyncio.Future[Any]] = [
            *self._loads.values(),
            *(() if self._built is None else (self._built,)),
            *self._unloading.values(),
            *self._lanes.values(),
        ]
        for future in waiting:
            if not future.done():
                future.set_exception(gone)
                future.exception()  # nobody may be waiting any more; that is no error
        if not self.lost.done():
            self.lost.set_result(None)


class WorkerPool:
    """Starts workers through the zygote."""

    def __init__(self, zygote_path: str, arena: InputArena) -> None:
        self._path = zygote_path
        self._arena = arena
        self._zygote: socket.socket | None = None
        self._inbox = m.Inbox()
        self._connecting = asyncio.Lock()
        self._forks: dict[int, asyncio.Future[tuple[int, int]]] = {}
        self._next_incarnation = 1
        self._started: dict[int, Worker] = {}
        """By incarnation, until the zygote reports the exit."""

    async def start(self, place: Place) -> Worker:
        """A new worker at ``place``. Raises WorkerLost."""
        zygote = await self._connected()
        incarnation, self._next_incarnation = self._next_incarnation, self._next_incarnation + 1
        ours, theirs = m.pair()
        forked = self._forks[incarnation] = asyncio.get_running_loop().create_future()
        fork = m.Fork(
            incarnation,
            self._arena.size,
            place.kind,
            place.cores,
            place.threads,
            place.memory_mib,
            place.environment,
        )
        try:
            with theirs:
                m.send(zygote, fork, (theirs.fileno(), self._arena.fd))
            async with asyncio.timeout(FORK_TIMEOUT_S):
                pid, pidfd = await forked
        except BaseException as error:
            ours.close()
            if forked.done() and not forked.cancelled() and not forked.exception():
                os.close(forked.result()[1])  # it came, and nobody wants it any more
            if isinstance(error, OSError):  # a time-out is one
                reason = str(error) or f"no answer in {FORK_TIMEOUT_S:.0f} s"
                raise WorkerLost(f"the zygote could not fork: {reason}") from error
            raise
        finally:
            self._forks.pop(incarnation, None)
        bound(pid, place.memory_mib if place.kind == "cpu" else 0)
        worker = self._started[incarnation] = Worker(incarnation, pid, pidfd, ours, place)
        return worker

    def close(self) -> None:
        """Hang up: the zygote then kills what it forked."""
        if self._zygote is not None:
            asyncio.get_running_loop().remove_reader(self._zygote.fileno())
            self._zygote.close()
            self._zygote = None

    async def _connected(self) -> socket.socket:
        async with self._connecting:
            if self._zygote is None:
                self._zygote = await self._connect()
                asyncio.get_running_loop().add_reader(self._zygote.fileno(), self._on_message)
            return self._zygote

    async def _connect(self) -> socket.socket:
        for _ in range(CONNECT_ATTEMPTS):
            sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC)
            try:
                sock.connect(self._path)
                sock.send(secret_beside(self._path))
            except OSError:
                sock.close()
                await asyncio.sleep(CONNECT_DELAY_S)
                continue
            sock.setblocking(False)
            return sock
        raise WorkerLost(f"no zygote answers at {self._path}")

    def _on_message(self) -> None:
        assert self._zygote is not None
        try:
            data, fds = self._inbox.receive(self._zygote)
        except BlockingIOError:
            return
        except OSError:
            data, fds = memoryview(b""), []
        if not data:
            log.warning("the zygote is gone; its workers end with it")
            self.close()
            for orphan in self._started.values():
                orphan.orphaned = True
            self._started.clear()
            for future in self._forks.values():
                if not future.done():
                    future.set_exception(WorkerLost("the zygote ended"))
            return
        match m.decode_from_zygote(data):
            case m.Forked(incarnation, pid):
                forked = self._forks.get(incarnation)
                if forked is None or forked.done():
                    os.close(fds[0])  # given up meanwhile: its control socket is closed, so it ends
                else:
                    forked.set_result((pid, fds[0]))
            case m.NotForked(incarnation, reason):
                forked = self._forks.get(incarnation)
                if forked is not None and not forked.done():
                    forked.set_exception(WorkerLost(f"no worker could be forked: {reason}"))
            case m.Exited(incarnation, status):
                worker = self._started.pop(incarnation, None)
                expected = worker is not None and worker.killed
                # A negative status is a signal; -9 that nobody here sent is the kernel, out of memory.
                level = logging.INFO if expected else logging.ERROR
                log.log(level, "worker %d exited with status %d", incarnation, status)


def _opened(path: str) -> tuple[int, ...]:
    """The file for a worker that may no longer open it itself; nothing where that fails, which the worker then says."""
    try:
        return (os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC),)
    except OSError:
        return ()


T = TypeVar("T")


def _settle(future: asyncio.Future[T] | None, value: T) -> None:
    if future is not None and not future.done():
        future.set_result(value)
