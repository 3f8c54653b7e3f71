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
import tempfile
import threading
from pathlib import Path

from tessera_runtime.engines.base import (
    Engine,
    EngineDevice,
    LoadRefused,
    ModelFile,
    TensorMeta,
)
from tessera_runtime.engines.loading import load_engine
from tessera_runtime.memory import keep_freed_memory, map_readonly
from tessera_runtime.worker import messages as m
from tessera_runtime.worker.confine import Sandbox, confine
from tessera_runtime.worker.lane import Lane

COPY_BYTES = 1 << 20
"""Of a model that is copied: at a time."""


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
                case m.Unload(model):
                    self._models.pop(model).close()
                case m.OpenLane() as opening:
                    self._open(opening, socket.socket(fileno=fds[0]))

    def _tell(self, message: m.Message, fds: tuple[int, ...] = ()) -> None:
        with self._sending:
            m.send(self._control, message, fds)

    def _load(self, load: m.Load, fds: list[int]) -> None:
        """Load it from its path, the first one: that is among what this process then keeps. Rights cannot be had later,
        and a descriptor cannot be opened anew, so what comes after it is copied from ``fds``. Raises OSError where
        this process is not confined though it could be.
        """
        path, copy = load.path, ""
        if self._confined and fds:
            copy = path = tempfile.mktemp(suffix=Path(path).suffix)  # in a directory of its own
        elif self._sandbox is not None and not self._confined:
            confine(self._sandbox, path)
            self._confined = True
        try:
            if copy:
                with open(fds[0], "rb", closefd=False) as file, open(copy, "xb") as target:
                    shutil.copyfileobj(file, target, COPY_BYTES)
            engine = load_engine(_model_file(load, path), self._device)
        except LoadRefused as error:
            self._tell(m.LoadFailed(load.model, str(error)[:2000]))
            return
        except Exception as error:
            # A library's own error: the file is at fault, or the memory; either way this worker stays.
            self._tell(m.LoadFailed(load.model, f"{type(error).__name__}: {error}"[:2000]))
            return
        finally:
            for fd in fds:
                os.close(fd)
            if copy:
                Path(copy).unlink(missing_ok=True)
        self._models[load.model] = engine
        signature = engine.signature
        self._tell(
            m.Loaded(
                load.model,
                tuple(m.Tensor(t.name, t.datatype, t.row_shape) for t in signature.inputs),
                tuple(m.Tensor(t.name, t.datatype, t.row_shape) for t in signature.outputs),
                signature.max_rows or 0,
                engine.version,
                engine.memory_mib(),
            )
        )

    def _open(self, opening: m.OpenLane, sock: socket.socket) -> None:
        engine = self._models[opening.model]
        # Warming runs on the lane's own thread: the lanes that serve already must not wait for it.
        threading.Thread(
            target=self._run_lane,
            args=(opening, engine, sock),
            name=f"lane-{opening.lane}",
            daemon=True,
        ).start()

    def _run_lane(self, opening: m.OpenLane, engine: Engine, sock: socket.socket) -> None:
        try:
            engine_lane = engine.lane(opening.largest)
            lane = Lane(sock, self._fork.incarnation, self._arena, engine.signature, engine_lane)
            fd, size, warm = lane.warm(opening.batches, opening.row_shapes)
        except Exception as error:
            reason = f"warming failed: {type(error).__name__}: {error}"[:2000]
            self._tell(m.LaneFailed(opening.lane, reason))
            sock.close()
            return
        self._tell(m.LaneOpen(opening.lane, size, warm), (fd,))
        lane.serve()


def _model_file(load: m.Load, path: str) -> ModelFile:
    return ModelFile(
        path=path,
        format=load.format,
        allow_code=load.allow_code,
        inputs=tuple(TensorMeta(t.name, t.datatype, t.row_shape) for t in load.inputs),
        outputs=tuple(TensorMeta(t.name, t.datatype, t.row_shape) for t in load.outputs),
    )
