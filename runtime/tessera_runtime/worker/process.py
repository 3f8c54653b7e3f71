"""A worker process: holds models, opens and closes the lanes that run them.

It is forked from the zygote with the engine libraries imported, and ends when its dispatcher does: the
control socket then reads as closed. Nothing a model does here can reach further than this process, its
output regions and a read-only view of the inputs; and before the first model is read it is confined
(:mod:`tessera_runtime.worker.confine`), where the kernel can.
"""

from __future__ import annotations

import mmap
import os
import shutil
import signal
import socket
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TypeVar

from tessera_runtime.engines.base import (
    Engine,
    EngineDevice,
    LoadRefused,
    ModelFile,
    TensorMeta,
)
from tessera_runtime.engines.device import end_if_lost
from tessera_runtime.engines.loading import build_artefact, load_engine
from tessera_runtime.memory import give_back_freed_memory, keep_freed_memory, map_readonly
from tessera_runtime.worker import messages as m
from tessera_runtime.worker.confine import Sandbox, confine
from tessera_runtime.worker.lane import Lane
from tessera_runtime.worker.part import Part

COPY_BYTES = 1 << 20
"""Of a model that is copied: at a time."""

T = TypeVar("T")


def run_worker(
    fork: m.Fork, control: socket.socket, arena_fd: int, sandbox: Sandbox | None
) -> None:
    """Serve the control socket until it closes. Runs in the forked child. ``sandbox``: None where it is not confined."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the server's to handle: it drains
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    os.environ.update(fork.environment)
    if sandbox is not None:
        os.environ["HOME"] = os.environ["TMPDIR"] = tempfile.tempdir = sandbox.own
    if fork.kind == "cpu":
        keep_freed_memory()  # on a GPU lanes share the process, and the host's memory is not what they run in
    if fork.cores:
        os.sched_setaffinity(0, fork.cores)
    arena = map_readonly(arena_fd, fork.arena_size)
    _Worker(fork, control, arena, sandbox).serve()


class _Worker:
    def __init__(
        self, fork: m.Fork, control: socket.socket, arena: mmap.mmap, sandbox: Sandbox | None
    ) -> None:
        self._fork = fork
        self._sandbox = sandbox
        self._confined = False
        self._control = control
        self._inbox = m.Inbox()
        self._arena = memoryview(arena)
        self._device = EngineDevice(fork.kind, fork.threads, fork.memory_mib)
        self._models: dict[str, Engine] = {}
        self._sending = threading.Lock()

    def serve(self) -> None:
        while True:
            data, fds = self._inbox.receive(self._control)
            if not data:
                # Lanes run threads inside native code that cannot be interrupted; nobody waits for them.
                os._exit(0)
            match m.decode_to_worker(data):
                case m.Load() as load:
                    self._load(load, fds)
                    for fd in fds:
                        os.close(fd)
                case m.Build(load):
                    self._build(load)
                case m.Unload(model):
                    self._unload(model)
                case m.OpenLane() as opening:
                    self._open(opening, socket.socket(fileno=fds[0]))

    def _tell(self, message: m.Message, fds: tuple[int, ...] = ()) -> None:
        with self._sending:
            m.send(self._control, message, fds)

    def _load(self, load: m.Load, fds: list[int]) -> None:
        """The paths of the first one and of those beside it are among what this process then keeps; ``fds`` are the
        file's descriptor. Raises OSError where this process is not confined though it could be.
        """
        later = self._confined
        self._confine(load)
        files = fds[: len(fds) - load.built]
        try:
            with ExitStack() as copies:
                path = load.path
                if later and files and not _readable(path):
                    path = copies.enter_context(_copied(files[0], Path(path).suffix))
                artefact = copies.enter_context(_copied(fds[-1], ".pt2")) if load.built else ""
                file = _model_file(load, path, artefact)
                engine = _aside(lambda: load_engine(file, self._device))
        except LoadRefused as error:
            end_if_lost(error)
            reason = str(error)
        except Exception as error:
            # A library's own error: the file is at fault, or the memory; either way this worker stays.
            end_if_lost(error)
            reason = f"{type(error).__name__}: {error}"
        else:
            self._loaded(load.model, engine)
            return
        give_back_freed_memory()
        self._tell(m.LoadFailed(load.model, reason[:2000]))

    def _confine(self, load: m.Load) -> None:
        if self._sandbox is not None and not self._confined:
            confine(self._sandbox, load.path, *load.beside)
            self._confined = True

    def _build(self, load: m.Load) -> None:
        """In this process's own directory: all that a compiler writes goes with it. Raises OSError as :meth:`_load`."""
        self._confine(load)
        path = tempfile.mktemp(suffix=".pt2")
        try:
            file = _model_file(load, load.path)
            engine = _aside(lambda: build_artefact(file, self._device, path))
            artefact = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except Exception as error:  # a compiler's errors are of many kinds
            end_if_lost(error)
            refused = isinstance(error, LoadRefused)
            reason = f"{error}" if refused else f"{type(error).__name__}: {error}"
            self._tell(m.LoadFailed(load.model, reason[:2000]))
            return
        self._tell(m.Built(load.model, engine), (artefact,))
        os.close(artefact)

    def _loaded(self, model: str, engine: Engine) -> None:
        self._models[model] = engine
        signature = engine.signature
        self._tell(
            m.Loaded(
                model,
                tuple(m.Tensor(t.name, t.datatype, t.row_shape) for t in signature.inputs),
                tuple(m.Tensor(t.name, t.datatype, t.row_shape) for t in signature.outputs),
                signature.max_rows or 0,
                engine.version,
                engine.memory_mib(),
            )
        )

    def _unload(self, model: str) -> None:
        engine = self._models.pop(model, None)  # None: it was given up before it failed to load
        try:
            if engine is not None:
                engine.close()
        except (Exception, SystemExit) as error:  # the model's own code: the others stay
            print(f"{model}: closing failed: {error!r}", file=sys.stderr)
        del engine
        give_back_freed_memory()
        self._tell(m.Unloaded(model))

    def _open(self, opening: m.OpenLane, sock: socket.socket) -> None:
        engines = [self._models[model] for model in opening.models]
        # Warming runs on the lane's own thread: the lanes that serve already must not wait for it.
        lane = threading.Thread(
            target=self._run_lane,
            args=(opening, engines, sock),
            name=f"lane-{opening.lane}",
            daemon=True,
        )
        try:
            lane.start()
        except RuntimeError as error:  # no memory for its stack: what the others need is theirs
            self._tell(m.LaneFailed(opening.lane, f"{error}"))
            sock.close()

    def _run_lane(
        self, opening: m.OpenLane, engines: Sequence[Engine], sock: socket.socket
    ) -> None:
        names = opening.names or ((),) * len(engines)
        try:
            parts = [
                Part(self._arena, engine.signature, engine.lane(opening.largest), inputs)
                for engine, inputs in zip(engines, names, strict=True)
            ]
            lane = Lane(sock, self._fork.incarnation, parts)
            fd, size, warm = lane.warm(opening.batches, opening.row_shapes)
        except Exception as error:
            end_if_lost(error)
            reason = f"warming failed: {type(error).__name__}: {error}"[:2000]
            self._tell(m.LaneFailed(opening.lane, reason))
            sock.close()
            return
        self._tell(m.LaneOpen(opening.lane, size, warm), (fd,))
        lane.serve()


def _aside(work: Callable[[], T]) -> T:
    """``work()`` on a thread that ends with it. Raises what it raises.

    OpenMP keeps a pool of threads for every thread that ever computed, and as soon as all pools together are more than there
    are cores, none waits actively any more (libgomp, ``GOMP_SPINCOUNT``): beside a pool that is left from loading, each
    operator of a lane on most of the cores took several times as long.
    """
    with ThreadPoolExecutor(1, "load") as thread:
        return thread.submit(work).result()


@contextmanager
def _copied(fd: int, suffix: str) -> Iterator[str]:
    """A copy in this process's own directory, for the time of a load: rights cannot be had later, and a descriptor cannot
    be opened anew. Raises OSError.
    """
    copy = tempfile.mktemp(suffix=suffix)
    try:
        with open(fd, "rb", closefd=False) as file, open(copy, "xb") as target:
            file.seek(0)  # it may have been read by another worker, which was given the same one
            shutil.copyfileobj(file, target, COPY_BYTES)
        yield copy
    finally:
        Path(copy).unlink(missing_ok=True)


def _readable(path: str) -> bool:
    try:
        os.close(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC))
    except OSError:
        return False
    return True


def _model_file(load: m.Load, path: str, artefact: str = "") -> ModelFile:
    return ModelFile(
        path=path,
        format=load.format,
        allow_code=load.allow_code,
        inputs=tuple(TensorMeta(t.name, t.datatype, t.row_shape) for t in load.inputs),
        outputs=tuple(TensorMeta(t.name, t.datatype, t.row_shape) for t in load.outputs),
        variant=load.variant,
        artefact=artefact,
    )
