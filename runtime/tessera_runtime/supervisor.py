"""The supervisor: starts the zygote and the dispatcher, and starts again whichever ends.

It is process 1 of the server container, so it reaps what nobody else reaps, and it does as little as
possible, so that it has no reason to die itself. It owns the listening sockets: while the dispatcher is
being restarted, connections wait in their queues instead of being refused.
"""

from __future__ import annotations

import argparse
import fcntl
import logging
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from tessera_runtime import logs, mps, server_options
from tessera_runtime.parent import die_with
from tessera_runtime.protocol.listen import PortTaken, listen_on
from tessera_runtime.secret import make_secret, secret_path
from tessera_runtime.worker.confine import landlock_abi

log = logging.getLogger(__name__)

FIRST_PAUSE_S = 0.1
MOST_PAUSE_S = 5.0
HEALTHY_S = 30.0
"""A child that ran for so long is restarted with a short pause again."""

ZYGOTE_ENVIRONMENT = {
    # A pool of BLAS threads in the zygote would not survive its forks.
    "OPENBLAS_NUM_THREADS": "1",
    "OMP_NUM_THREADS": "1",
    # ONNX Runtime starts a thread for it when imported; and a server tells nobody what it serves.
    "ORT_DISABLE_TELEMETRY": "1",
    # Loading a program makes torch ask whether there is a GPU. Asked of CUDA itself, that starts its driver in the
    # zygote, and no worker forked from there could use it.
    "PYTORCH_NVML_BASED_CUDA_CHECK": "1",
}

ACCEPT_WITHIN_S = 3.0
"""A dispatcher that replaces another lets connections wait until it can serve them, at most so long."""

JOIN_WITHIN_S = 60.0
"""On shared ports the first dispatcher takes no connection from the others until it can serve it, at most so long:
one model that cannot be loaded keeps no server away for ever."""

SCRATCH = ("workers", "mps")
"""Who gets directories outside of the run directory, whose path may be long, and goes with the server."""

STOP_GRACE_S = 10.0
"""Beyond the dispatcher's own drain time-out, before it is killed."""


@dataclass(slots=True)
class Child:
    """One process to keep running."""

    name: str
    command: Sequence[str]
    fds: tuple[int, ...]
    environment: dict[str, str]
    again: tuple[str, ...] = ()
    """Further options of every start but the first."""
    process: subprocess.Popen[bytes] | None = None
    started: float = 0.0
    start_at: float = 0.0
    """Monotonic seconds before which it is not started again."""
    failures: int = 0

    def start(self, now: float) -> None:
        command = [*self.command, *(self.again if self.started else ())]
        self.process = subprocess.Popen(command, pass_fds=self.fds, env=self.environment)
        self.started = now
        log.info("started %s", self.name, extra={"pid": self.process.pid})

    def ended(self, status: int, now: float) -> None:
        """Note the end of the process and when it may start again."""
        self.process = None
        self.failures = 0 if now - self.started > HEALTHY_S else self.failures + 1
        pause = min(MOST_PAUSE_S, FIRST_PAUSE_S * 2 ** (self.failures - 1)) if self.failures else 0
        self.start_at = now + pause
        log.error("%s ended with status %d, again in %.1f s", self.name, status, pause)


@dataclass(frozen=True, slots=True)
class ServerOptions:
    """How the server of one node is run."""

    run_dir: Path
    """For the sockets; private to the server and its agent."""
    host: str
    http: int
    grpc: int
    metrics: int
    preload: tuple[str, ...]
    """Modules that the zygote imports, where they are installed."""
    dispatcher: tuple[str, ...]
    """Further options of the dispatcher process."""
    log_level: str
    reuse_port: bool
    """Whether other servers may take the ports for HTTP and gRPC as well."""
    drain_timeout_s: float
    shutdown_delay_s: float
    """After the signal to end: how long it says that it is not ready, and still takes and answers requests."""
    confined: bool
    """Whether workers are kept from what they do not need, where the kernel can."""
    readable: tuple[Path, ...]
    """Files and directories that models may read beside their own."""
    artefacts: Path
    """Where what is compiled for models is kept."""


def control_path(run_dir: Path) -> Path:
    """Where the server listens for its agent."""
    return run_dir / "control.sock"


class DirectoryTaken(OSError):
    """Another server lives in the run directory; the text names it."""


def confinement(wanted: bool, abi: int) -> tuple[int, str]:
    """How workers run, and how loudly that is said. ``abi``: of the kernel's Landlock, 0 where there is none."""
    if not wanted:
        return logging.WARNING, "workers are not confined: --workers-unconfined"
    if not abi:
        return (
            logging.WARNING,
            "workers are not confined: no Landlock on this kernel, or it is kept from us",
        )
    return logging.INFO, f"workers are confined: Landlock {abi}"


class Supervisor:
    """Made ready by :meth:`prepare`, which takes the ports; :meth:`run` returns the exit status."""

    def __init__(self, options: ServerOptions) -> None:
        self._options = options
        self._children: list[Child] = []
        self._sockets: list[socket.socket] = []
        self._lock = -1
        """Of the run directory: a shared port does not keep a second server from its sockets."""
        self._stopping = False

    def prepare(self) -> None:
        """Take the ports of clients and the local sockets. Raises PortTaken, DirectoryTaken."""
        options = self._options
        options.run_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._lock = _lock(options.run_dir)
        http = listen_on(options.host, options.http, options.reuse_port)
        grpc = listen_on(options.host, options.grpc, options.reuse_port)
        zygote_path = options.run_dir / "zygote.sock"
        zygote = _listen_unix(zygote_path, socket.SOCK_SEQPACKET)
        control = _listen_unix(control_path(options.run_dir), socket.SOCK_STREAM)
        self._sockets = [http, grpc, zygote, control]
        digest = make_secret(options.run_dir)
        scratch = {name: _new_scratch(options.run_dir, name) for name in SCRATCH}
        environment = dict(os.environ)
        self._children = [
            Child(
                "zygote",
                _command(
                    "tessera_runtime.worker.zygote",
                    {
                        "listen-fd": zygote.fileno(),
                        "preload": ",".join(options.preload),
                        "secret-digest": digest,
                        "scratch": scratch["workers"],
                        "parent": os.getpid(),
                    },
                    (
                        *(f"--readable={path.absolute()}" for path in options.readable),
                        *(() if options.confined else ("--unconfined",)),
                    ),
                ),
                (zygote.fileno(),),
                environment | ZYGOTE_ENVIRONMENT,
            ),
            Child(
                "dispatcher",
                _command(
                    "tessera_runtime.dispatch.main",
                    {
                        "http-fd": http.fileno(),
                        "grpc-fd": grpc.fileno(),
                        "control-fd": control.fileno(),
                        "zygote": zygote_path,
                        "mps-root": scratch["mps"],
                        "artefacts": options.artefacts.absolute(),
                        "secret-digest": digest,
                        "host": options.host,
                        "metrics": options.metrics,
                        "drain-timeout": options.drain_timeout_s,
                        "shutdown-delay": options.shutdown_delay_s,
                        "accept-within": JOIN_WITHIN_S if options.reuse_port else 0.0,
                        "log-level": options.log_level,
                        "parent": os.getpid(),
                    },
                    options.dispatcher,
                ),
                (http.fileno(), grpc.fileno(), control.fileno()),
                environment,
                (f"--accept-within={ACCEPT_WITHIN_S}",),
            ),
        ]

    def run(self) -> int:
        """Keep the children running until SIGTERM or SIGINT. Returns the exit status."""
        wanted = {signal.SIGTERM, signal.SIGINT, signal.SIGCHLD}
        for signum in (signal.SIGTERM, signal.SIGINT):  # where they are not blocked: during a start
            signal.signal(signum, self._ask_to_stop)
        signal.pthread_sigmask(signal.SIG_BLOCK, wanted)
        status = 0
        level, said = confinement(self._options.confined, landlock_abi())
        log.log(level, said)
        try:
            while True:
                now = time.monotonic()
                for child in self._children:
                    if child.process is None and child.start_at <= now and not self._stopping:
                        signal.pthread_sigmask(signal.SIG_UNBLOCK, wanted)
                        child.start(now)  # a child would inherit the blocked signals
                        signal.pthread_sigmask(signal.SIG_BLOCK, wanted)
                if self._stopping:
                    break
                waits = [c.start_at - now for c in self._children if c.process is None]
                received = signal.sigtimedwait(wanted, max(0.0, min(waits, default=3600.0)))
                if received is not None and received.si_signo != signal.SIGCHLD:
                    self._stopping = True
                status = self._reap() or status
        finally:
            self._stop()
        return status

    def _ask_to_stop(self, signum: int, frame: FrameType | None) -> None:
        self._stopping = True

    def _reap(self) -> int:
        """Collect every process that ended; os.EX_CONFIG when one of ours says that it cannot work."""
        while True:
            try:
                pid, raw = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return 0
            if pid == 0:
                return 0
            for child in self._children:
                if child.process is not None and child.process.pid == pid:
                    status = os.waitstatus_to_exitcode(raw)
                    child.process.returncode = status
                    child.ended(status, time.monotonic())
                    if status == os.EX_CONFIG:
                        self._stopping = True
                        return os.EX_CONFIG

    def _stop(self) -> None:
        """The dispatcher drains first; the zygote and its workers are of no use without it."""
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGCHLD})
        options = self._options
        grace = options.shutdown_delay_s + options.drain_timeout_s + STOP_GRACE_S
        for child in reversed(self._children):
            if child.process is None:
                continue
            child.process.terminate()
            try:
                child.process.wait(grace)
            except subprocess.TimeoutExpired:
                log.error("%s did not end in %.0f s: killed", child.name, grace)
                child.process.kill()
                child.process.wait()
        for sock in self._sockets:
            if sock.family == socket.AF_UNIX:
                Path(sock.getsockname()).unlink(missing_ok=True)
            sock.close()
        secret_path(options.run_dir).unlink(missing_ok=True)
        for name in SCRATCH:
            _remove_scratch(options.run_dir, name)
        os.close(self._lock)


def _new_scratch(run_dir: Path, name: str) -> Path:
    """Where ``name`` get directories; what those of a server that was killed have left there goes."""
    _remove_scratch(run_dir, name)
    scratch = Path(tempfile.mkdtemp(prefix=f"tessera-{name}-"))
    (run_dir / name).symlink_to(scratch)
    return scratch


def _remove_scratch(run_dir: Path, name: str) -> None:
    link = run_dir / name
    if link.is_symlink():
        mps.clear(link.readlink())  # a server that was killed has left its daemons too
        link.unlink()


def _command(
    module: str, flags: Mapping[str, object], further: Sequence[str] = ()
) -> tuple[str, ...]:
    # -P: what lies in the directory that it was started in is neither imported nor readable by models.
    options = (f"--{name}={value}" for name, value in flags.items())
    return (sys.executable, "-P", "-m", module, *options, *further)


def _lock(directory: Path) -> int:
    """A descriptor that keeps ``directory`` until it is closed. Raises DirectoryTaken."""
    found = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(found, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(found)
        raise DirectoryTaken(f"{directory} is in use by another server") from error
    return found


def _listen_unix(path: Path, kind: int) -> socket.socket:
    path.unlink(missing_ok=True)
    sock = socket.socket(socket.AF_UNIX, kind | socket.SOCK_CLOEXEC)
    sock.bind(str(path))
    path.chmod(0o600)
    sock.listen(8)
    return sock


def main() -> None:
    """Entry point of ``python -m tessera_runtime.supervisor``; options it does not know are the dispatcher's."""
    parser = argparse.ArgumentParser(prog="tessera-server")
    parser.add_argument("--run-dir", type=Path, required=True)
    server_options.add(parser, *server_options.ADDRESSES)
    parser.add_argument(
        "--reuse-port",
        action="store_true",
        help="share the ports for HTTP and gRPC with other servers of this user that say so too: the kernel gives each"
        " new connection to one of them, where it stays. Nothing else is shared: each has its own workers, memory,"
        " --run-dir, --metrics port and statistics, and is told what to serve by itself; readiness and calls that load,"
        " unload or count are of the one that is reached",
    )
    parser.add_argument(
        "--preload",
        default="torch,onnxruntime",
        metavar="LIBRARY,…",
        help="what the zygote imports, where it is installed",
    )
    server_options.add(parser, *server_options.CONFINEMENT)
    server_options.add(parser, "artefacts")
    server_options.add(parser, "drain-timeout", "shutdown-delay", "log-level")
    parser.add_argument("--parent", type=int, default=0, help="process to drain and end with")
    arguments, further = parser.parse_known_args()
    if arguments.parent:
        die_with(arguments.parent, signal.SIGTERM)
    logs.configure("supervisor", arguments.log_level)
    supervisor = Supervisor(
        ServerOptions(
            run_dir=arguments.run_dir,
            host=arguments.host,
            http=arguments.http,
            grpc=arguments.grpc,
            metrics=arguments.metrics,
            reuse_port=arguments.reuse_port,
            preload=tuple(filter(None, arguments.preload.split(","))),
            dispatcher=tuple(further),
            confined=not arguments.workers_unconfined,
            readable=tuple(arguments.readable),
            artefacts=arguments.artefacts or arguments.run_dir / "artefacts",
            log_level=arguments.log_level,
            drain_timeout_s=arguments.drain_timeout,
            shutdown_delay_s=arguments.shutdown_delay,
        )
    )
    try:
        supervisor.prepare()
    except (PortTaken, DirectoryTaken) as error:
        log.error("%s", error)
        sys.exit(os.EX_CONFIG)
    sys.exit(supervisor.run())


if __name__ == "__main__":
    main()
