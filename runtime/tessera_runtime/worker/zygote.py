"""The zygote: one process that has imported the engines and forks workers from itself.

Importing torch takes seconds and hundreds of megabytes; a fork of a process that has done it takes
milliseconds and shares the memory. So the zygote imports, stays single-threaded and never touches a
device: CUDA is initialised in the worker, after the fork.

It serves one dispatcher at a time on a listening socket that the supervisor owns. When the dispatcher goes,
its workers are killed: nobody is left who could read their answers.

Every worker that is confined (:mod:`tessera_runtime.worker.confine`) has a directory of its own, which is made before the
fork and removed when the worker has ended: workers are killed, so they cannot do it.
"""

from __future__ import annotations

import argparse
import gc
import os
import selectors
import shutil
import signal
import socket
import sys
import tempfile
from pathlib import Path

from tessera_runtime.engines.preload import Threaded, check_single_threaded, preload
from tessera_runtime.mps import PIPES
from tessera_runtime.parent import die_with, gain_no_privileges
from tessera_runtime.secret import says_secret
from tessera_runtime.worker import messages as m
from tessera_runtime.worker.confine import (
    Limits,
    Sandbox,
    drop_capabilities,
    landlock_abi,
    prepare,
)
from tessera_runtime.worker.process import run_worker
from tessera_runtime.worker.rehearsal import rehearse


def main() -> None:
    """Entry point of ``python -m tessera_runtime.worker.zygote``."""
    parser = argparse.ArgumentParser(prog="tessera-zygote")
    parser.add_argument("--listen-fd", type=int, required=True)
    parser.add_argument("--preload", default="", metavar="LIBRARY,…")
    parser.add_argument("--parent", type=int, required=True, help="process to end with")
    parser.add_argument(
        "--secret-digest", required=True, help="of what a dispatcher says when it connects"
    )
    parser.add_argument(
        "--scratch", type=Path, required=True, help="where workers get directories of their own"
    )
    parser.add_argument("--readable", action="append", default=[], metavar="PATH")
    parser.add_argument("--unconfined", action="store_true")
    arguments = parser.parse_args()
    die_with(arguments.parent, signal.SIGKILL)
    for left in arguments.scratch.iterdir():
        _discard(str(left))  # of the workers of a zygote that was killed
    libraries = tuple(filter(None, arguments.preload.split(",")))
    try:
        for library in ("python", *libraries):
            preload(library)
        rehearse(libraries)
        check_single_threaded("a rehearsal")
    except Threaded as error:
        print(f"tessera-zygote: {error}", file=sys.stderr)
        sys.exit(os.EX_CONFIG)
    # What is imported stays: a collection in a worker would touch, and so copy, every page of it.
    gc.collect()
    gc.freeze()
    listener = socket.socket(fileno=arguments.listen_fd)
    listener.setblocking(True)
    abi = 0 if arguments.unconfined else landlock_abi()
    limits = Limits(abi, str(arguments.scratch), tuple(arguments.readable)) if abi else None
    if limits is not None:
        drop_capabilities()
    _Zygote(listener, arguments.secret_digest, limits).run()


class _Zygote:
    def __init__(self, listener: socket.socket, digest: str, limits: Limits | None) -> None:
        """``limits``: of its workers; None: they are not confined."""
        self._listener = listener
        self._digest = digest
        self._limits = limits
        self._inbox = m.Inbox()
        self._selector: selectors.BaseSelector | None = None
        self._children: dict[int, tuple[int, str]] = {}
        """Incarnation and directory of each living worker, by pid; the directory is empty where it has none."""
        self._wake_read, self._wake_write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.signal(signal.SIGCHLD, lambda *_: None)  # only to have the wake-up pipe written
        signal.set_wakeup_fd(self._wake_write, warn_on_full_buffer=False)

    def run(self) -> None:
        while True:
            connection, _ = self._listener.accept()
            with connection:
                if not says_secret(connection, self._digest):
                    continue
                self._serve(connection)
            self._kill_all()

    def _serve(self, dispatcher: socket.socket) -> None:
        with selectors.DefaultSelector() as selector:
            self._selector = selector
            selector.register(dispatcher, selectors.EVENT_READ)
            selector.register(self._wake_read, selectors.EVENT_READ)
            while True:
                for key, _ in selector.select():
                    try:
                        if key.fileobj is dispatcher:
                            data, fds = self._inbox.receive(dispatcher)
                            if not data:
                                return
                            self._fork(dispatcher, m.decode_to_zygote(data), fds)
                        else:
                            os.read(self._wake_read, 4096)
                            self._reap(dispatcher)
                    except OSError:
                        return

    def _fork(self, dispatcher: socket.socket, fork: m.Fork, fds: list[int]) -> None:
        control_fd, arena_fd = fds
        parent = os.getpid()
        own, sandbox = "", None
        try:
            if self._limits is not None:
                own = tempfile.mkdtemp(prefix=f"{fork.incarnation}-", dir=self._limits.scratch)
                pipes = fork.environment.get(PIPES) or os.environ.get(PIPES, "")
                sandbox = prepare(self._limits, own, fork.kind, pipes)
            pid = os.fork()
        except OSError as error:
            # Out of processes, memory or disk: the workers that run are not to suffer.
            pid = -1
            m.send(dispatcher, m.NotForked(fork.incarnation, error.strerror or str(error)))
        if pid == 0:
            self._become_worker(parent, dispatcher, fork, control_fd, arena_fd, sandbox)
        os.close(control_fd)
        os.close(arena_fd)
        if sandbox is not None:
            os.close(sandbox.ruleset)
        if pid < 0:
            _discard(own)
            return
        self._children[pid] = fork.incarnation, own
        pidfd = os.pidfd_open(pid)
        m.send(dispatcher, m.Forked(fork.incarnation, pid), (pidfd,))
        os.close(pidfd)

    def _become_worker(
        self,
        parent: int,
        dispatcher: socket.socket,
        fork: m.Fork,
        control_fd: int,
        arena_fd: int,
        sandbox: Sandbox | None,
    ) -> None:
        """Never returns: the child must not run the parent's loop or clean-up."""
        try:
            die_with(parent, signal.SIGKILL)
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            # Of the zygote's own descriptors none is left to a model, which could wake it, or blind it.
            if self._selector is not None:
                self._selector.close()
            for fd in (self._wake_read, self._wake_write):
                os.close(fd)
            dispatcher.close()
            self._listener.close()
            gain_no_privileges()
            run_worker(fork, socket.socket(fileno=control_fd), arena_fd, sandbox)
        except BaseException as error:
            print(
                f"worker {fork.incarnation} failed: {type(error).__name__}: {error}",
                file=sys.stderr,
            )
        finally:
            os._exit(1)

    def _reap(self, dispatcher: socket.socket) -> None:
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            if pid not in self._children:
                continue  # it has removed a directory
            incarnation, own = self._children.pop(pid)
            _discard(own)
            m.send(dispatcher, m.Exited(incarnation, os.waitstatus_to_exitcode(status)))

    def _kill_all(self) -> None:
        for pid in self._children:
            os.kill(pid, signal.SIGKILL)
        for pid, (_, own) in self._children.items():
            os.waitpid(pid, 0)
            _discard(own)
        self._children.clear()


def _discard(own: str) -> None:
    """Remove a worker's directory, by a process of its own where there is something in it: that may be much."""
    try:
        if own:
            os.rmdir(own)
    except OSError:
        parent = os.getpid()
        try:
            pid = os.fork()
        except OSError:
            return  # it goes with the server
        if pid == 0:
            try:
                die_with(parent, signal.SIGKILL)
                shutil.rmtree(own, ignore_errors=True)
            finally:
                os._exit(0)


if __name__ == "__main__":
    main()
