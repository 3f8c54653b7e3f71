"""The zygote: one process that has imported the engines and forks workers from itself.

Importing torch takes seconds and hundreds of megabytes; a fork of a process that has done it takes
milliseconds and shares the memory. So the zygote imports, stays single-threaded and never touches a
device: CUDA is initialised in the worker, after the fork.

It serves one dispatcher at a time on a listening socket that the supervisor owns. When the dispatcher goes,
its workers are killed: nobody is left who could read their answers.
"""

from __future__ import annotations

import argparse
import gc
import os
import selectors
import signal
import socket
import sys

from tessera_runtime.engines.preload import Threaded, check_single_threaded, preload
from tessera_runtime.parent import die_with, gain_no_privileges
from tessera_runtime.worker import messages as m
from tessera_runtime.worker.process import run_worker
from tessera_runtime.worker.rehearsal import rehearse


def main() -> None:
    """Entry point of ``python -m tessera_runtime.worker.zygote``."""
    parser = argparse.ArgumentParser(prog="tessera-zygote")
    parser.add_argument("--listen-fd", type=int, required=True)
    parser.add_argument("--preload", default="", metavar="LIBRARY,…")
    parser.add_argument("--parent", type=int, required=True, help="process to end with")
    arguments = parser.parse_args()
    die_with(arguments.parent, signal.SIGKILL)
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
    _Zygote(listener).run()


class _Zygote:
    def __init__(self, listener: socket.socket) -> None:
        self._listener = listener
        self._inbox = m.Inbox()
        self._selector: selectors.BaseSelector | None = None
        self._children: dict[int, int] = {}
        """Incarnation of each living worker, by pid."""
        self._wake_read, self._wake_write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.signal(signal.SIGCHLD, lambda *_: None)  # only to have the wake-up pipe written
        signal.set_wakeup_fd(self._wake_write, warn_on_full_buffer=False)

    def run(self) -> None:
        while True:
            connection, _ = self._listener.accept()
            with connection:
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
        try:
            pid = os.fork()
        except (
            OSError
        ) as error:  # out of processes or memory: the workers that run are not to suffer
            pid = -1
            m.send(dispatcher, m.NotForked(fork.incarnation, error.strerror or str(error)))
        if pid == 0:
            self._become_worker(parent, dispatcher, fork, control_fd, arena_fd)
        os.close(control_fd)
        os.close(arena_fd)
        if pid < 0:
            return
        self._children[pid] = fork.incarnation
        pidfd = os.pidfd_open(pid)
        m.send(dispatcher, m.Forked(fork.incarnation, pid), (pidfd,))
        os.close(pidfd)

    def _become_worker(
        self, parent: int, dispatcher: socket.socket, fork: m.Fork, control_fd: int, arena_fd: int
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
            run_worker(fork, socket.socket(fileno=control_fd), arena_fd)
        except BaseException as error:
            print(
                f"worker {fork.incarnation} failed: {type(error).__name__}: {error}",
                file=sys.stderr,
            )
        finally:
            os._exit(1)

    def _reap(self, dispatcher: socket.socket | None) -> None:
        while self._children:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid == 0:
                return
            incarnation = self._children.pop(pid)
            if dispatcher is not None:
                code = os.waitstatus_to_exitcode(status)
                m.send(dispatcher, m.Exited(incarnation, code))

    def _kill_all(self) -> None:
        for pid in self._children:
            os.kill(pid, signal.SIGKILL)
        for pid in list(self._children):
            os.waitpid(pid, 0)
        self._children.clear()


if __name__ == "__main__":
    main()
